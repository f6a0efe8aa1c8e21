"""Navigating the listing of a snapshot: groups in order, one directory, one entry.

A listing is a tree of tables over pages (`format.listing`). Whatever part of the order of directories a caller
asks for, only objects whose range touches it are read, so one directory costs one object per level. What a
table claims of a child (its first group, the depth, sums of totals) is compared with what the child says.

An object that cannot be read, or that contradicts its parent, becomes a `Hole` in the stream: the range of
directories that cannot be told. What comes after it is read as if nothing had happened.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from msgspec import Struct

from packnback import errors
from packnback.format.entry import DIRECTORY, FILE, Entry, decode_block
from packnback.format.listing import Group, Totals, decode_page, decode_table, path_key
from packnback.ids import Kind
from packnback.recent import Recent
from packnback.restore.objects import ObjectReader

T = TypeVar("T")

Key = tuple[bytes, int]
"""A place in the order of a listing: (path_key of a directory, part)."""
START: Key = (b"", 0)
PART_END = 1 << 32
PREFETCH = 8
"""Pages or tables read in one go while streaming."""
_EXPANDED_KEPT = 32

PROBLEMS = (errors.Damage, errors.EnvelopeRejected)
"""What makes a hole instead of ending everything."""


class Node(Struct, frozen=True):
    """A page or table somewhere in a listing, with the range of groups that its parent assigns to it."""

    id: bytes
    depth: int | None
    """0 for a page, 1 for a table of pages, and so on; None for a root, which says so itself."""
    first: Key = START
    end: Key | None = None
    """The first group that is not in it; None when nothing comes after it."""
    totals: Totals | None = None


class Hole(Struct, frozen=True):
    """Groups from `first` up to, not including, `end` that cannot be told, because of `problem`."""

    first: Key
    end: Key | None
    problem: errors.PacknbackError
    id: bytes | None = None
    """The object that is to blame, if it is a whole one."""

    @property
    def path(self) -> bytes:
        """The first directory that is concerned."""
        return key_path(self.first)

    @property
    def reason(self) -> str:
        """What is missing and why, for people."""
        if self.id is None:
            return str(self.problem)
        until = f"up to /{key_path(self.end).decode(errors='replace')}" if self.end else "to the end"
        return f"the listing cannot be read from here {until}: {self.problem}"

    def covers(self, key: Key) -> bool:
        """Whether the group at `key` would stand in the hole."""
        return self.first <= key and (self.end is None or key < self.end)


def key_path(key: Key) -> bytes:
    """The directory that a key stands for."""
    return key[0].replace(b"\0", b"/")


class Listing:
    """The tree below one root table."""

    def __init__(self, reader: ObjectReader, root: bytes) -> None:
        self.reader = reader
        self.root = Node(root, None)
        self._expanded = Recent[bytes, tuple[Node, list[Node] | list[Group]]](_EXPANDED_KEPT)
        """By id. Who looks for one path after the other passes by the same tables again and again."""

    def groups(self, under: bytes = b"") -> Iterator[Group | Hole]:
        """The directory `under` and all below it, depth first, in order."""
        low = path_key(under)
        yield from self._stream(self.root, (low, 0), (low + b"\1", 0) if low else None)

    def directory(self, path: bytes) -> Iterator[Group | Hole]:
        """The parts of one directory, in order; none when there is no such directory."""
        low = path_key(path)
        yield from self._stream(self.root, (low, 0), (low, PART_END))

    def entries(self, path: bytes) -> Iterator[Entry]:
        """The entries of one directory, ascending by name. Raises the problem of what cannot be read."""
        for group in self.directory(path):
            if isinstance(group, Hole):
                raise group.problem
            yield from decode_group(group)

    def entry(self, path: bytes) -> Entry:
        """The entry at `path` (not the root's, which has none). Raises PathUnknown, or what cannot be read."""
        parent, _, name = path.rpartition(b"/")
        parts = list(self.directory(parent))
        groups = [part for part in parts if isinstance(part, Group)]
        if len(groups) == len(parts) and (found := _bisected(groups, name)) is not None:
            return found
        for part in parts:  # it is not there, or something about the order of the parts is wrong
            if isinstance(part, Hole):
                raise part.problem
            if (found := _named(part, name)) is not None:
                return found
        raise errors.PathUnknown("/" + path.decode(errors="replace"))

    def lineage(self, path: bytes) -> list[tuple[bytes, Entry]]:
        """(path, entry) of everything from the first component down to `path` itself.

        Raises PathUnknown also when something above `path` is not a directory.
        """
        found: list[tuple[bytes, Entry]] = []
        parts = path.split(b"/") if path else []
        for depth in range(1, len(parts) + 1):
            if found and found[-1][1].type != DIRECTORY:
                raise errors.PathUnknown("/" + path.decode(errors="replace"))
            here = b"/".join(parts[:depth])
            try:
                found.append((here, self.entry(here)))
            except errors.PathUnknown:  # whatever is missing on the way to it, `path` is what was asked for
                raise errors.PathUnknown("/" + path.decode(errors="replace")) from None
        return found

    def totals(self) -> Totals | None:
        """What the root claims of the whole snapshot: for progress, not for decisions. None if unreadable."""
        try:
            nodes = (node for node in self.expand(self.root) if isinstance(node, Node))
            return sum((node.totals for node in nodes if node.totals), Totals())
        except PROBLEMS:
            return None

    def expand(self, node: Node) -> list[Node] | list[Group]:
        """What stands in a page (groups) or table (nodes). Raises Damage, also when it contradicts `node`."""
        known = self._expanded.get(node.id)
        if known is not None and known[0] == node:
            return known[1]
        inside = self._page(node) if node.depth == 0 else self._table(node)
        self._expanded.note(node.id, (node, inside))
        return inside

    def _page(self, node: Node) -> list[Group]:
        opened = self.reader.listing_object(node.id, Kind.PAGE)
        groups = _decoded(node, lambda: decode_page(opened.refs, opened.plaintext))
        _demand(node, groups[0].key == node.first, "does not begin where its table says")
        _demand(node, node.end is None or groups[-1].key < node.end, "reaches into the next page")
        return groups

    def _table(self, node: Node) -> list[Node]:
        opened = self.reader.listing_object(node.id, Kind.TABLE)
        table = _decoded(node, lambda: decode_table(opened.refs, opened.plaintext))
        children = table.children
        _demand(node, children[0].key == node.first, "does not begin where its table says")
        _demand(node, node.depth in (None, table.depth + 1), "its depth is not what its table says")
        _demand(node, node.end is None or children[-1].key < node.end, "reaches into the next table")
        total = sum((child.totals for child in children), Totals())
        _demand(node, node.totals in (None, total), "its totals are not what its table says")
        ends: list[Key | None] = [child.key for child in children[1:]]
        return [
            Node(child.id, table.depth, child.key, end, child.totals)
            for child, end in zip(children, [*ends, node.end], strict=True)
        ]

    def _stream(self, node: Node, low: Key, high: Key | None) -> Iterator[Group | Hole]:
        """Groups with low ≤ key < high."""
        try:
            inside = self.expand(node)
        except PROBLEMS as problem:
            yield Hole(node.first, node.end, problem, node.id)
            return
        if node.depth == 0:
            for group in inside:
                if isinstance(group, Group) and group.key >= low and (high is None or group.key < high):
                    yield group
            return
        nodes = [child for child in inside if isinstance(child, Node)]
        keys = [child.first for child in nodes]
        start = max(bisect_right(keys, low) - 1, 0)
        stop = len(nodes) if high is None else bisect_left(keys, high)
        for at in range(start, stop, PREFETCH):
            batch = nodes[at : min(at + PREFETCH, stop)]
            self.reader.prefetch([child.id for child in batch])
            for child in batch:
                yield from self._stream(child, low, high)


def prefetch_tops(reader: ObjectReader, roots: Sequence[bytes]) -> None:
    """Read the roots of several listings in one go, and then what comes first below them."""
    roots = list(dict.fromkeys(roots))
    reader.prefetch(roots)
    below: list[bytes] = []
    for root in roots:
        try:
            inside = Listing(reader, root).expand(Node(root, None))
        except PROBLEMS:
            continue  # whoever reads it is told
        below += [node.id for node in inside[:PREFETCH] if isinstance(node, Node)]
    reader.prefetch(below)


def decode_group(group: Group) -> list[Entry]:
    """The entries of a group. Raises FormatDamage that says which directory it was."""
    try:
        return decode_block(group.ids, group.block)
    except errors.FormatDamage as damage:
        where = "/" + group.path.decode(errors="replace")
        raise errors.FormatDamage(damage.what, damage.why, where) from damage


def _bisected(parts: Sequence[Group], name: bytes) -> Entry | None:
    """The entry of that name in the parts of a huge directory, whose names ascend."""
    low, high = 0, len(parts)
    while low < high:
        middle = (low + high) // 2
        entries = decode_group(parts[middle])
        if entries and entries[-1].name < name:
            low = middle + 1
        elif entries and entries[0].name > name:
            high = middle
        else:
            return _among(entries, name)
    return None


def _named(part: Group, name: bytes) -> Entry | None:
    return _among(decode_group(part), name)


def _among(entries: Sequence[Entry], name: bytes) -> Entry | None:
    at = bisect_left(entries, name, key=lambda e: e.name)
    return entries[at] if at < len(entries) and entries[at].name == name else None


def totals_of(entry_lists: Sequence[Sequence[Entry]]) -> Totals:
    """What a table should claim of a page whose groups have these entries."""
    entries = [entry for group in entry_lists for entry in group]
    files = [entry.size for entry in entries if entry.type == FILE]
    return Totals(len(entries), len(files), sum(files))


def _decoded(node: Node, decode: Callable[[], T]) -> T:
    try:
        return decode()
    except errors.FormatDamage as damage:
        raise errors.ObjectDamage(node.id, f"{damage.what}: {damage.why}") from damage


def _demand(node: Node, condition: bool, why: str) -> None:
    if not condition:
        raise errors.ObjectDamage(node.id, why)
