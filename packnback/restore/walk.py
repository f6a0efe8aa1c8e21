"""Walking a listing: groups become directories whose place in the tree was checked.

Pages are authenticated one by one, but a client whose key was stolen can seal any listing it likes. So a
directory is passed on only if its parent lists a directory of that name, its parts are complete and in order,
and its names ascend over all parts. What breaks a rule becomes a Hole, and so does everything below it.

Where a part of the listing cannot be read, the directories after it may lack the parent that was lost with it.
They are passed on as *detached*: the files in them can still be saved.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from msgspec import Struct, field

from packnback import errors
from packnback.format.entry import DIRECTORY, Entry
from packnback.format.listing import Group, path_key
from packnback.restore.listing import Hole, decode_group


class Part(Struct, frozen=True):
    """The entries of a directory, or of one part of a huge one."""

    path: bytes
    part: int
    entries: list[Entry]
    detached: bool
    """Nothing is known of the directory itself: its parent's entry for it was lost."""


class _Frame(Struct):
    path: bytes
    next_part: int
    last_name: bytes = b""
    directories: set[bytes] = field(default_factory=set)
    """Directories that were listed here and have not come yet."""
    blind: bool = False
    """Some of its entries were lost."""


class _Refusal(Exception):
    pass


def walk(stream: Iterable[Group | Hole], top: bytes = b"") -> Iterator[Part | Hole]:
    """The checked directories of a stream of groups that begins with the directory `top`."""
    return _Walk(top).run(stream)


class _Walk:
    def __init__(self, top: bytes) -> None:
        self._top = top
        self._stack: list[_Frame] = []
        self._holes: list[Hole] = []

    def run(self, stream: Iterable[Group | Hole]) -> Iterator[Part | Hole]:
        for item in stream:
            if isinstance(item, Hole):
                self._lost(item)
                yield item
                continue
            try:
                yield self._enter(item)
            except _Refusal as refusal:
                where = "/" + item.path.decode(errors="replace")
                problem = errors.FormatDamage("listing", str(refusal), where)
                yield Hole(item.key, (item.key[0], item.part + 1), problem)
            except errors.FormatDamage as damage:
                yield Hole(item.key, (item.key[0], item.part + 1), damage)

    def _lost(self, hole: Hole) -> None:
        self._holes.append(hole)
        if self._stack and path_key(self._stack[-1].path) == hole.first[0]:
            self._stack[-1].blind = True

    def _was_lost(self, path: bytes) -> bool:
        key = (path_key(path), 0)
        # Holes come in order and do not overlap.
        at = bisect_right(self._holes, key, key=lambda hole: hole.first)
        return at > 0 and self._holes[at - 1].covers(key)

    def _enter(self, group: Group) -> Part:
        path = group.path
        if self._stack and self._stack[-1].path == path:
            frame, detached = self._stack[-1], False
            if group.part != frame.next_part and not frame.blind:
                raise _Refusal("a part of the directory is missing")
        else:
            lost = self._was_lost(path)
            detached = self._leave_and_check(path, group.part, lost)
            frame = _Frame(path, group.part, blind=lost)
            self._stack.append(frame)
        frame.next_part = group.part + 1
        try:
            entries = decode_group(group)
        except errors.FormatDamage:
            frame.blind = True
            raise
        if entries:
            if frame.last_name and entries[0].name <= frame.last_name:
                raise _Refusal("names of one part do not come after those of the part before it")
            frame.last_name = entries[-1].name
            frame.directories.update(e.name for e in entries if e.type == DIRECTORY)
        return Part(path, group.part, entries, detached)

    def _leave_and_check(self, path: bytes, part: int, lost: bool) -> bool:
        """Leave what does not lie above `path`; whether nothing is known of this directory. Raises _Refusal."""
        parent, _, name = path.rpartition(b"/")
        while self._stack and not _lies_above(self._stack[-1].path, path):
            self._stack.pop()
        if part and not lost:
            raise _Refusal("the first part of the directory is missing")
        if path == self._top:
            return False
        if not self._stack or self._stack[-1].path != parent:
            if lost or self._was_lost(parent):
                return True
            raise _Refusal("a directory whose parent is not there")
        above = self._stack[-1]
        if name in above.directories:
            above.directories.discard(name)
            return False
        if above.blind:
            return True
        raise _Refusal("its parent does not list it as a directory")


def _lies_above(ancestor: bytes, path: bytes) -> bool:
    return ancestor == b"" or path.startswith(ancestor + b"/")
