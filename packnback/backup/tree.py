"""The listing as it is stored: blocks of entries joined into pages, pages under tables, a table as the root.

Where a page or table ends is a keyed decision about the group or child that stands there (`listing_cuts`), so a
change in one directory makes one new page and the tables above it, and everything else is found again.

A group has to fit into a page together with the ids that it uses. Names alone decide where the walk splits a huge
directory; entries that are long, or that point to very many objects, are split once more here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy

from msgspec import Struct

from packnback.backup.extents import MetaSink
from packnback.backup.layers import Layers, Limits
from packnback.backup.listing_cuts import ListingCuts
from packnback.format.entry import FILE, Entry, encode_block
from packnback.format.listing import (
    FANOUT_LIMIT,
    PAGE_LIMIT,
    Child,
    Group,
    Totals,
    encode_page,
    encode_table,
)
from packnback.ids import KIB, REFS_LIMIT, Kind

BLOCK_LIMIT = 512 * KIB
"""Entries are split before their block grows beyond this; an entry of many attributes may exceed it alone."""
BLOCK_IDS_LIMIT = 2048
CHILDREN_PER_TABLE = Limits(least=128, most=FANOUT_LIMIT)

_ENTRY_OVERHEAD = 64
_EXTENT_OVERHEAD = 14
_GROUP_OVERHEAD = 24


class Block(Struct, frozen=True):
    """Encoded entries of one directory, or of a stretch of it: what a group is made of, and what can be kept."""

    ids: Sequence[bytes]
    """The objects that the entries use, ascending."""
    data: bytes
    totals: Totals
    level: int
    """The highest level among the objects: 0 for data, more where there are extent objects."""


class Root(Struct, frozen=True):
    """The table on top of a listing."""

    id: bytes
    level: int
    totals: Totals


class _Node(Struct, frozen=True):
    child: Child
    level: int


def encode_entries(entries: Sequence[Entry]) -> list[Block]:
    """The entries, ascending by name, in one block, or in as many as the limits demand."""
    ids, data = encode_block(entries)
    if len(data) <= BLOCK_LIMIT and len(ids) <= BLOCK_IDS_LIMIT:
        return [_block(entries, ids, data)]
    return [_block(stretch, *encode_block(stretch)) for stretch in _stretches(entries)]


def _block(entries: Sequence[Entry], ids: Sequence[bytes], data: bytes) -> Block:
    sizes = [entry.size for entry in entries if entry.type == FILE]
    # Objects of extents stand on a level of their own depth; those at the top of a file's list on the highest.
    level = max([entry.far_depth for entry in entries], default=0)
    return Block(ids, data, Totals(len(entries), len(sizes), sum(sizes)), level)


def _stretches(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    begin, size, ids = 0, 0, set[bytes]()
    for i, entry in enumerate(entries):
        entry_ids, entry_size = entry.ids(), _encoded_size(entry)
        if i > begin and (size + entry_size > BLOCK_LIMIT or len(ids | entry_ids) > BLOCK_IDS_LIMIT):
            yield entries[begin:i]
            begin, size, ids = i, 0, set()
        size += entry_size
        ids |= entry_ids
    yield entries[begin:]


def _encoded_size(entry: Entry) -> int:
    """An upper bound of the bytes that an entry adds to a block."""
    attributes = sum(len(name) + len(value) + 10 for name, value in entry.xattrs.items())
    extents = len(entry.extents) + len(entry.far)
    return _ENTRY_OVERHEAD + len(entry.name) + len(entry.target) + attributes + extents * _EXTENT_OVERHEAD


class ListingBuilder:
    """Makes the pages and tables of one snapshot. Directories are added in listing order, each at one go."""

    def __init__(self, sink: MetaSink, cuts: ListingCuts) -> None:
        self._sink = sink
        self._cuts = cuts
        self._path: bytes | None = None
        self._next_part = 0
        self._start_page()
        self._tables = Layers(
            self._table,
            ends=lambda node: cuts.table_ends(node.child.id),
            # A root is a table even over a single page; a single table needs none above it.
            keep=lambda depth: 0 if depth == 0 else 1,
            limits=CHILDREN_PER_TABLE,
        )

    def add(self, path: bytes, blocks: Sequence[Block]) -> None:
        """The blocks of a directory, or the next ones of the directory that was added last."""
        if path != self._path:
            self._path, self._next_part = path, 0
        for block in blocks:
            self._add_group(Group(path, self._next_part, block.ids, block.data), block)
            self._next_part += 1

    def finish(self) -> Root:
        """End the listing; nothing can be added any more."""
        if self._path is None:
            self.add(b"", encode_entries(()))
        if self._groups:
            self._tables.append(self._page())
        (top,), _ = self._tables.finish()
        return Root(top.child.id, top.level, top.child.totals)

    def checkpoint(self, path: bytes = b"", blocks: Sequence[Block] = ()) -> Root:
        """The root of a listing that ends here, or behind these blocks, while this one goes on as if nothing had
        happened."""
        other = copy(self)
        other._groups, other._refs, other._tables = list(self._groups), set(self._refs), self._tables.copy()
        if blocks:
            other.add(path, blocks)
        return other.finish()

    def _start_page(self) -> None:
        self._groups: list[Group] = []
        self._refs: set[bytes] = set()
        self._size = 0
        self._level = 0
        self._totals = Totals()

    def _add_group(self, group: Group, block: Block) -> None:
        # An index takes at most 3 bytes, as there are 4096 of them.
        size = len(group.path) + len(group.block) + 3 * len(group.ids) + _GROUP_OVERHEAD
        if self._groups and (self._size + size > PAGE_LIMIT or not self._has_room_for(group.ids)):
            self._end_page()
        self._groups.append(group)
        self._refs.update(group.ids)
        self._size += size
        self._level = max(self._level, block.level)
        self._totals += block.totals
        if self._cuts.page_ends(group.path, group.part, len(group.path) + len(group.block)):
            self._end_page()

    def _has_room_for(self, ids: Sequence[bytes]) -> bool:
        return len(self._refs) + len(ids) <= REFS_LIMIT or len(self._refs.union(ids)) <= REFS_LIMIT

    def _end_page(self) -> None:
        page = self._page()
        self._start_page()
        self._tables.append(page)

    def _page(self) -> _Node:
        refs, plaintext = encode_page(self._groups)
        level = self._level + 1
        page = self._sink.add_meta(Kind.PAGE, level, refs, plaintext)
        first = self._groups[0]
        return _Node(Child(page, first.path, first.part, self._totals), level)

    def _table(self, nodes: Sequence[_Node], depth: int) -> _Node:
        refs, plaintext = encode_table([node.child for node in nodes], depth)
        level = 1 + max(node.level for node in nodes)
        table = self._sink.add_meta(Kind.TABLE, level, refs, plaintext)
        first = nodes[0].child
        totals = sum((node.child.totals for node in nodes), Totals())
        return _Node(Child(table, first.path, first.part, totals), level)
