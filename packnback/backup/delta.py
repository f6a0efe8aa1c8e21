"""A changed large file: what earlier runs stored of it becomes extents into old objects, and only the rest is stored.

The file is cut as ever (`recognise` makes it quick). Of a chunk in which no piece (or hardly any) is known, an object
of its own is made; of others only the unknown pieces are taken, and gathered into new objects of about 1 MiB. Such an
object starts with 16 random bytes, as one may be small and easy to guess (see `bundle`).

A file that is put together from parts of objects gets the keyed hash of its whole content into its entry: restore
verifies it, so that a mistake here, or in the cache, cannot pass in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Protocol

from packnback.backup.buffers import Buffer
from packnback.backup.pieces import digests_of, join
from packnback.backup.recognise import Recogniser
from packnback.backup.reuse import NewPieces, OldObject, OldPieces
from packnback.backup.ticket import Place, Ticket, joined
from packnback.crypto.derive import Buffer as Bytes
from packnback.format.entry import Extent
from packnback.ids import MIB

GATHERED_MIN = 1 * MIB
"""Gathered pieces become an object when they reach this many bytes."""
REUSE_LEAST = 8
"""A chunk of which less than one in so many bytes is known is stored as a whole: fragments have a price too."""
_PREFIX_LEN = 16


class Sink(Protocol):
    """Where objects go; the pipeline."""

    def new_ticket(self) -> Ticket:
        """A ticket for an object that is still being put together."""

    def add_data(self, plaintext: Bytes, *, ticket: Ticket | None = None, lease: Buffer | None = None) -> Ticket:
        """Store one data object."""

    def id_of_data(self, plaintext: Bytes) -> bytes:
        """The id that a data object has or would have."""


class Whole:
    """Stores each chunk as an object, and notes its pieces for the next time."""

    def __init__(self, sink: Sink, new: NewPieces | None) -> None:
        self._sink = sink
        self._new = new

    def store(self, buffer: Buffer, data: memoryview, lengths: list[int]) -> Iterator[Place | Extent]:
        """Where the chunk `data` lies, which consists of pieces of these lengths and stands in `buffer`."""
        place = self.hand_in(buffer, data)
        if self._new is not None:
            pieces = join(lengths, self._new.step)
            self._new.add(place, pieces, digests_of(self._new, data, pieces))
        yield place

    def hand_in(self, buffer: Buffer, data: memoryview) -> Place:
        """Make an object of a chunk."""
        return Place(self._sink.add_data(data, lease=buffer), 0, len(data))


class Delta:
    """Stores one file against what is known of it."""

    def __init__(self, sink: Sink, old: OldPieces, new: NewPieces) -> None:
        self._sink = sink
        self._old = old
        self._new = new
        self.recogniser = Recogniser(old, new, sink.id_of_data)
        """To be asked while the file is being cut."""
        self._whole = Whole(sink, new)
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._ticket = sink.new_ticket()
        self._offset = 0

    def store(self, buffer: Buffer, data: memoryview, lengths: list[int]) -> Iterator[Place | Extent]:
        """Where the parts of the chunk `data` lie, in order; see `Whole.store`."""
        self._offset += len(data)
        taken = self.recogniser.take(data, lengths)
        self._old.seek(self._offset)
        if isinstance(taken, OldObject):
            extent = Extent(taken.id, 0, taken.size)
            self._new.add(extent, taken.lengths, taken.digests)
            yield extent
            return
        pieces, digests, found = taken
        known = sum(extent.length for extent in found if extent is not None)
        if known * REUSE_LEAST < len(data):
            place = self._whole.hand_in(buffer, data)
            self._new.add(place, pieces, digests)
            yield place
        else:
            yield from self._mixed(data, pieces, digests, found)

    def finish(self) -> None:
        """Close the object of gathered pieces."""
        if self._gathered:
            self._ticket.shift = _PREFIX_LEN
            self._sink.add_data(b"".join((os.urandom(_PREFIX_LEN), *self._gathered)), ticket=self._ticket)
            self._ticket = self._sink.new_ticket()
            self._gathered, self._gathered_bytes = [], 0

    def _mixed(
        self, data: memoryview, pieces: Sequence[int], digests: list[bytes], found: list[Extent | None]
    ) -> Iterator[Place | Extent]:
        """Neighbours in one object are one extent."""
        run: Place | Extent | None = None
        start = at = 0
        for i, length in enumerate(pieces):
            extent = found[i] or self._gather(data[at : at + length])
            at += length
            both = joined(run, extent) if run is not None else None
            if run is not None and both is None:
                self._new.add(run, pieces[start:i], digests[start:i])
                yield run
                start = i
            run = both or extent
        if run is not None:
            self._new.add(run, pieces[start:], digests[start:])
            yield run

    def _gather(self, piece: memoryview) -> Place:
        if self._gathered_bytes >= GATHERED_MIN:
            self.finish()
        place = Place(self._ticket, self._gathered_bytes, len(piece))
        self._gathered.append(bytes(piece))
        self._gathered_bytes += len(piece)
        return place
