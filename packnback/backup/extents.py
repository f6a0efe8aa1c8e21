"""The extent list of one file while it is being stored: in order, settled as ids become known.

A file with few extents keeps them in its entry. More go into extent objects as soon as their ids are known, so
that a file of any size holds the same amount of memory here: the extents that are still on their way, and one
unfinished extent object per depth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from packnback.backup.layers import Layers, Limits
from packnback.backup.listing_cuts import ListingCuts
from packnback.backup.ticket import Place, Ticket, joined
from packnback.format.entry import (
    INLINE_EXTENTS,
    Entry,
    Extent,
    encode_extent_object,
    encode_far_object,
)
from packnback.ids import Kind

EXTENTS_PER_OBJECT = Limits(least=128, most=2048)


class MetaSink(Protocol):
    """Where objects of the listing go."""

    def add_meta(self, kind: Kind, level: int, refs: Sequence[bytes], plaintext: bytes) -> bytes:
        """Store an object that refers to `refs` (ascending) and return its id."""


class Content(Protocol):
    """The content of a file, stored or on its way."""

    @property
    def submitted(self) -> bool:
        """Whether it may be waited for: it may not while it lies in a bundle that is still open."""

    @property
    def weight(self) -> int:
        """How many extents it holds in memory, about."""

    def settle(self) -> bool:
        """Take note of what is known by now. True once everything is."""

    def describe(self, entry: Entry) -> None:
        """Complete the file's entry; waits for what is not known yet."""


class SmallContent:
    """A file that lies in one piece in a bundle: `length` bytes from `start` of the bundle's contents.

    Identical files share one. There are as many of these as small files, so its attributes are looked at directly.
    """

    __slots__ = ("check", "length", "start", "ticket")
    weight = 1

    def __init__(self, ticket: Ticket, start: int, length: int, check: bytes) -> None:
        self.ticket = ticket
        self.start = start
        self.length = length
        self.check = check

    @property
    def submitted(self) -> bool:
        """Whether the bundle is closed."""
        return self.ticket.submitted

    def settle(self) -> bool:
        """Whether the bundle has its id."""
        return self.ticket.id is not None

    def describe(self, entry: Entry) -> None:
        """Set size, extent and check."""
        ticket = self.ticket
        entry.size = self.length
        entry.extents = (Extent(ticket.id or ticket.wait(), self.start + ticket.shift, self.length),)
        entry.check = self.check


class TakenOver:
    """A content that an earlier run stored, as `entry` describes it."""

    submitted = True

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    @property
    def weight(self) -> int:
        """Extents in the entry."""
        return max(1, len(self._entry.extents) + len(self._entry.far))

    def settle(self) -> bool:
        """Everything is known."""
        return True

    def describe(self, entry: Entry) -> None:
        """Set size, extents and check."""
        known = self._entry
        entry.size, entry.check = known.size, known.check
        entry.extents, entry.far, entry.far_depth = known.extents, known.far, known.far_depth


class LargeContent:
    """A file of many extents, added in order of their place in the file; holes among them."""

    def __init__(self, sink: MetaSink, cuts: ListingCuts) -> None:
        self._sink = sink
        self._coming: deque[Place | Extent] = deque()
        self._settled: tuple[Sequence[Extent], int] | None = None
        self._layers = Layers(
            self._join,
            ends=lambda extent: extent.id is not None and cuts.extents_end(extent.id),
            keep=lambda depth: INLINE_EXTENTS,
            limits=EXTENTS_PER_OBJECT,
        )
        self.size = 0
        """Bytes covered so far."""
        self.check = b""
        """The keyed hash of the content, for the entry; empty where whole chunks were stored."""

    @property
    def submitted(self) -> bool:
        """Chunks are handed on at once, and gathered pieces when the file ends."""
        return True

    @property
    def weight(self) -> int:
        """Extents on their way, and those of an entry."""
        return len(self._coming) + INLINE_EXTENTS

    def add(self, extent: Place | Extent) -> None:
        """The next stretch of the file. One that goes on where the last one ends, in its object, joins it."""
        self.size += extent.length
        both = joined(self._coming[-1], extent) if self._coming else None
        if both is not None:
            self._coming[-1] = both
            return
        self._coming.append(extent)
        self.settle()

    def settle(self) -> bool:
        """Move extents with a known id into the list, but for the last one, which may still grow."""
        coming = self._coming
        while len(coming) > 1 and _is_known(coming[0]):
            self._layers.append(_known(coming.popleft()))
        return not coming or (len(coming) == 1 and _is_known(coming[0]))

    def describe(self, entry: Entry) -> None:
        """Set size, extents (near or far) and check; no extent can be added any more."""
        if self._settled is None:
            while self._coming:
                self._layers.append(_known(self._coming.popleft()))
            self._settled = self._layers.finish()
        extents, depth = self._settled
        entry.size = self.size
        entry.check = self.check
        if depth == 0:
            entry.extents = extents
        else:
            entry.far = [_object_and_length(extent) for extent in extents]
            entry.far_depth = depth

    def _join(self, extents: Sequence[Extent], depth: int) -> Extent:
        if depth == 0:
            refs, plaintext = encode_extent_object(extents)
        else:
            refs, plaintext = encode_far_object([_object_and_length(extent) for extent in extents], depth)
        object_id = self._sink.add_meta(Kind.EXTENTS, depth + 1, refs, plaintext)
        return Extent(object_id, 0, sum(extent.length for extent in extents))


def _is_known(extent: Place | Extent) -> bool:
    return isinstance(extent, Extent) or extent.resolved


def _known(extent: Place | Extent) -> Extent:
    return extent if isinstance(extent, Extent) else extent.extent()


def _object_and_length(extent: Extent) -> tuple[bytes, int]:
    assert extent.id is not None
    return extent.id, extent.length
