"""Comparing two listings without reading what they share.

Two streams of nodes, groups and entries are merged in the order of the listing. Where both stand at the same
object, it is skipped unread: pages that two snapshots share cost nothing, and tables that they share cost less.
Otherwise the one that comes first is opened into its parts until entries can be compared by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from packnback import errors
from packnback.format.entry import FILE, Entry
from packnback.format.listing import Group, path_key
from packnback.restore.listing import PROBLEMS, Hole, Key, Listing, Node, decode_group
from packnback.restore.look import join


class Change(Struct, frozen=True):
    """One path that differs. `before` is None for what was added, `after` for what was removed."""

    path: bytes
    before: Entry | None
    after: Entry | None

    @property
    def what(self) -> str:
        """``added``, ``removed``, ``type``, ``content`` or ``metadata``."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        if self.before.type != self.after.type:
            return "type"
        return "metadata" if same_content(self.before, self.after) else "content"


_AHEAD = 32
"""Pages or tables that are read in one go on each side."""


def same_content(a: Entry, b: Entry) -> bool:
    """Whether two entries surely have the same content, link target or device.

    Files cut anew may be told apart although their bytes agree; equal content checks settle it where there are
    any (they do between snapshots of one domain).
    """
    if (a.type, a.size, a.target, a.rdev) != (b.type, b.size, b.target, b.rdev):
        return False
    if a.type == FILE and a.check and a.check == b.check:
        return True
    return list(a.extents) == list(b.extents) and list(a.far) == list(b.far)


def diff(before: Listing, after: Listing) -> Iterator[Change | Hole]:
    """What differs, in listing order. Where one side cannot be read, its hole is told and nothing compared."""
    old, new = _Side(before), _Side(after)
    while True:
        a, b = old.head, new.head
        if a is None and b is None:
            return
        if a is not None and b is not None and _same(a, b):
            old.drop()
            new.drop()
        elif opened := _to_open(old, new):
            if (node := opened.to_be_read) is not None:
                _fetch_ahead(old, new, node.depth)
            if (hole := opened.open()) is not None:
                yield hole
        else:
            change = _compare(old, new)
            blind = change is not None and any(side.blind(change.path) for side in (old, new))
            if change is not None and not blind:
                yield change


def _fetch_ahead(old: _Side, new: _Side, depth: int | None) -> None:
    """Read what will be opened next in one go, and not one after the other; nothing that is equal on both sides.

    Of one depth: what lies below a node may be equal to what lies below one of the other side that is still closed.
    """
    for side, other in ((old, new), (new, old)):
        shared = other.waiting(depth)
        side.prefetch([object_id for object_id in side.waiting(depth) if object_id not in shared][:_AHEAD])


class _Name(Struct, frozen=True):
    """An entry at its place in the merge."""

    directory: bytes
    entry: Entry

    @property
    def order(self) -> tuple[bytes, bytes]:
        return path_key(self.directory), self.entry.name


_Item = Node | Group | _Name


class _Side:
    """One listing, opened only as far as the comparison has needed: a stack with what comes next on top."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._stack: list[_Item] = [listing.root]
        self._holes: list[Hole] = []

    @property
    def head(self) -> _Item | None:
        return self._stack[-1] if self._stack else None

    def drop(self) -> None:
        self._stack.pop()

    @property
    def to_be_read(self) -> Node | None:
        """The head, if an object has to be read to open it."""
        head = self.head
        return head if isinstance(head, Node) and not self._listing.reader.holds(head.id) else None

    def waiting(self, depth: int | None) -> dict[bytes, None]:
        """The ids of the pages or tables of that depth that come next, in order."""
        nodes = (item for item in reversed(self._stack) if isinstance(item, Node))
        return dict.fromkeys(node.id for node in nodes if node.depth == depth)

    def prefetch(self, ids: list[bytes]) -> None:
        """Read these listing objects in one go."""
        self._listing.reader.prefetch(ids)

    def open(self) -> Hole | None:
        """Replace the head, a node or group, by its parts; the hole that it turned out to be."""
        item = self._stack.pop()
        parts: Sequence[_Item]
        try:
            if isinstance(item, Node):
                parts = self._listing.expand(item)
            elif isinstance(item, Group):
                parts = [_Name(item.path, entry) for entry in decode_group(item)]
            else:
                raise TypeError("an entry has no parts")
        except PROBLEMS as problem:
            hole = _hole(item, problem)
            self._holes.append(hole)
            return hole
        self._stack.extend(reversed(parts))
        return None

    def blind(self, path: bytes) -> bool:
        """Whether the directory that `path` stands in could not be read on this side."""
        key = path_key(path.rpartition(b"/")[0])
        return any(hole.first[0] <= key and (hole.end is None or (key, 0) < hole.end) for hole in self._holes)


def _hole(item: _Item, problem: errors.PacknbackError) -> Hole:
    if isinstance(item, Node):
        return Hole(item.first, item.end, problem, item.id)
    if isinstance(item, Group):
        return Hole(item.key, (item.key[0], item.part + 1), problem)
    raise TypeError("an entry was read already")


def _same(a: _Item, b: _Item) -> bool:
    if isinstance(a, Node) and isinstance(b, Node):
        return a.id == b.id and a.first == b.first
    if isinstance(a, Group) and isinstance(b, Group):
        return a.key == b.key and a.block == b.block and a.ids == b.ids
    return False


def _place(item: _Item) -> Key:
    """Where an item begins; for a name, where its directory does."""
    if isinstance(item, Node):
        return item.first
    return item.key if isinstance(item, Group) else (path_key(item.directory), 0)


def _to_open(old: _Side, new: _Side) -> _Side | None:
    """The side to open next, or None when both heads are names that can be compared (or one is alone)."""
    closed = [side for side in (old, new) if isinstance(side.head, Node | Group)]
    if not closed:
        return None
    if len(closed) == 1:
        other = new if closed[0] is old else old
        if other.head is None:
            return closed[0]
        # A name goes first only when the other side can have nothing in its directory any more.
        later = _place(closed[0].head)[0] > _place(other.head)[0]  # type: ignore[arg-type]
        return None if later else closed[0]
    return min(closed, key=lambda side: (_place(side.head), -_depth(side.head)))  # type: ignore[arg-type]


def _depth(item: _Item | None) -> int:
    """Tables are opened before the pages that begin at the same place, so that equal ones can meet."""
    if isinstance(item, Node):
        return 1 << 10 if item.depth is None else 1 + item.depth
    return 0


def _compare(old: _Side, new: _Side) -> Change | None:
    a = old.head if isinstance(old.head, _Name) else None
    b = new.head if isinstance(new.head, _Name) else None
    if a is not None and (b is None or a.order < b.order):
        old.drop()
        return Change(join(a.directory, a.entry.name), a.entry, None)
    if b is not None and (a is None or b.order < a.order):
        new.drop()
        return Change(join(b.directory, b.entry.name), None, b.entry)
    if a is None or b is None:
        raise TypeError("nothing to compare")
    old.drop()
    new.drop()
    return None if a.entry == b.entry else Change(join(a.directory, a.entry.name), a.entry, b.entry)
