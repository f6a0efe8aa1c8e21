"""Directories whose files are still on their way: kept in order until every id in them is known.

A listing is written in order, but a small file lies in a bundle that may stay open for long, and the next
thousand directories may be unchanged. What waits is bounded: beyond the bound the open bundle is closed, and the
oldest directory is waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

from packnback.backup.extents import Content
from packnback.backup.tree import Block, ListingBuilder, encode_entries
from packnback.format.entry import Entry
from packnback.ids import ID_LEN, MIB

WAITING_LIMIT = 24 * MIB
"""Bytes of memory that waiting directories may take, about."""
_ENTRY_BYTES = 600
_CONTENT_BYTES = 200


class _Waiting(Struct):
    """One part of a directory: blocks, or entries some of which wait for their content."""

    path: bytes
    blocks: Sequence[Block]
    entries: Sequence[Entry]
    contents: Sequence[tuple[Entry, Content]]
    stored: Callable[[Sequence[Block]], None] | None
    weight: int
    settled: int = 0
    """How many of the contents are known."""


class Backlog:
    """Hands directories to a listing, in order. `close_bundle` settles what waits for an open bundle."""

    def __init__(self, listing: ListingBuilder, close_bundle: Callable[[], None], limit: int = WAITING_LIMIT) -> None:
        self._listing = listing
        self._close_bundle = close_bundle
        self._limit = limit
        self._queue: deque[_Waiting] = deque()
        self.weight = 0
        """Bytes of what waits, about."""

    def add_blocks(self, path: bytes, blocks: Sequence[Block]) -> None:
        """A part that was recognised as unchanged."""
        weight = sum(len(block.data) + ID_LEN * len(block.ids) for block in blocks)
        self._add(_Waiting(path, blocks, (), (), None, weight))

    def add_entries(
        self,
        path: bytes,
        entries: Sequence[Entry],
        contents: Sequence[tuple[Entry, Content]],
        stored: Callable[[Sequence[Block]], None] | None = None,
    ) -> None:
        """A part whose `contents` complete some of its entries; `stored` is then told of its blocks."""
        weight = _ENTRY_BYTES * len(entries) + _CONTENT_BYTES * sum([content.weight for _, content in contents])
        self._add(_Waiting(path, (), entries, contents, stored, weight))

    def drain(self) -> None:
        """Wait for everything."""
        self._close_bundle()
        while self._queue:
            self._hand_on()

    def _add(self, part: _Waiting) -> None:
        self._queue.append(part)
        self.weight += part.weight
        while self._queue and _is_settled(self._queue[0]):
            self._hand_on()
        while self.weight > self._limit and self._queue:
            if not all(content.submitted for _, content in self._queue[0].contents):
                self._close_bundle()
            self._hand_on()

    def _hand_on(self) -> None:
        part = self._queue.popleft()
        self.weight -= part.weight
        blocks = part.blocks
        if not blocks:
            for entry, content in part.contents:
                content.describe(entry)
            blocks = encode_entries(part.entries)
        if part.stored is not None:
            part.stored(blocks)
        self._listing.add(part.path, blocks)


def _is_settled(part: _Waiting) -> bool:
    contents = part.contents
    while part.settled < len(contents):
        if not contents[part.settled][1].settle():
            return False
        part.settled += 1
    return True
