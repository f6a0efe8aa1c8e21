"""Bundling small files: many of them, in the order of the walk, become one object.

Where a bundle ends is decided by a PRF of the content of the file that was just added, so that a run that knows
nothing of earlier ones makes mostly the same bundles again, and an observer cannot predict them. Only the end of
the run is no property of the contents: a bundle that is closed for that reason starts with 16 random bytes,
or else a stolen put key could confirm a guess at a small secret file by asking for the object's id.

Files are read straight to where their bundle is being put together, in a buffer that the pipeline lends, so that
no content is copied, or lies in memory that was never used before (see `buffers`).

Where a file lies is settled when its bundle closes, and not before: see `extents.SmallContent`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from packnback.backup.buffers import Buffer
from packnback.backup.cut import FILE_MIN
from packnback.backup.extents import SmallContent
from packnback.backup.ticket import Ticket, known_ticket
from packnback.crypto.content import ContentHasher
from packnback.crypto.derive import MAC
from packnback.crypto.derive import Buffer as Bytes
from packnback.crypto.keys import PutKey
from packnback.format.entry import CHECK_LEN, Extent
from packnback.ids import KIB, MIB, ObjectClass
from packnback.recent import Recent

BUNDLE_MIN = 256 * KIB
BUNDLE_MAX = 1 * MIB
_CERTAIN_SIZE = 256 * KIB
"""A file's chance to end its bundle is its size over this."""
_PREFIX_LEN = 16
RECENT_CONTENTS = 1 << 15
"""Contents that are remembered, at least half of them at any time, to find identical files; about 10 MiB."""


class Sink(Protocol):
    """Where finished bundles go, and whence the memory comes in which they are made."""

    def acquire_buffer(self) -> Buffer:
        """An empty buffer; waits until there is one."""

    def release_buffer(self, buffer: Buffer) -> None:
        """Give it back; bundles that lie in it keep it alive."""

    def new_ticket(self) -> Ticket:
        """A ticket for an object that is still being put together."""

    def add_data(self, plaintext: Bytes, *, ticket: Ticket | None = None, lease: Buffer | None = None) -> Ticket:
        """Store one data object."""


class Memory(Protocol):
    """Contents that earlier runs stored (`reuse.Reuse`)."""

    def content(self, content_hash: bytes) -> Extent | None:
        """Where a content lies, if the repository has it."""

    def bundled(self, ticket: Ticket, size: int, contents: Sequence[tuple[bytes, int, int]]) -> None:
        """A bundle with `size` bytes of contents was closed; (hash, where it starts, length) of all its contents."""


class Bundler:
    """Puts small files into bundles and hands full ones to `sink` (the pipeline)."""

    def __init__(self, sink: Sink, put_key: PutKey, memory: Memory | None = None) -> None:
        self._sink = sink
        self._memory = memory
        self._hasher = ContentHasher(put_key.id_key[ObjectClass.DATA])
        self._bundle_key = put_key.bundle_key
        self._recent = Recent[bytes, SmallContent](RECENT_CONTENTS)
        self._buffer: Buffer | None = None
        self._start = 0
        """Where in the buffer the open bundle begins."""
        self._length = 0
        """Bytes in the open bundle."""
        self._contents: list[tuple[bytes, int, int]] = []
        self._ticket = sink.new_ticket()
        self.files_shared = 0
        """Files that were found to be identical to an earlier one, of this run or, with `memory`, any."""

    def room(self, size: int) -> memoryview:
        """Memory for the content of one small file of `size` bytes, which `add_read` then takes.

        Raises ValueError unless that is 1 to FILE_MIN - 1; an empty file needs no place.
        """
        if not 0 < size < FILE_MIN:
            raise ValueError("not a small file")
        begin = self._start + self._length
        if self._buffer is None or begin + size > len(self._buffer.view):
            begin = self._move_to_new_buffer()
        assert self._buffer is not None
        return self._buffer.view[begin : begin + size]

    def add_read(self, content: memoryview) -> SmallContent:
        """Where the content will be that was read into what `room` gave, and its check for the entry."""
        length = len(content)
        content_hash = self._hasher.hash(content)
        known = self._recent.get(content_hash) or self._find(content_hash, length)
        if known is not None:
            self.files_shared += 1
            return known
        if self._length + length > BUNDLE_MAX:
            self._close()
        start = self._length
        placed = SmallContent(self._ticket, start, length, content_hash[:CHECK_LEN])
        self._contents.append((content_hash, start, length))
        self._length = start + length
        self._recent.note(content_hash, placed)
        if self._length >= BUNDLE_MIN and self._ends(content_hash, length):
            self._close()
        return placed

    def add(self, content: Bytes) -> SmallContent:
        """The same for a content that is somewhere else in memory. Raises ValueError like `room`."""
        room = self.room(len(content))
        room[:] = content
        return self.add_read(room)

    def flush(self) -> None:
        """Close the open bundle although nothing in it says so: at the end of the run, or to settle places."""
        if self._buffer is None:
            return
        if self._length:
            self._ticket.shift = _PREFIX_LEN
            view = self._buffer.view[self._start : self._start + self._length]
            self._hand_in(b"".join((os.urandom(_PREFIX_LEN), view)), None)
        self._sink.release_buffer(self._buffer)
        self._buffer, self._start = None, 0

    def _move_to_new_buffer(self) -> int:
        """Take another buffer, to which the open bundle moves; where in it there is room."""
        new = self._sink.acquire_buffer()
        if self._buffer is not None:
            new.view[: self._length] = self._buffer.view[self._start : self._start + self._length]
            self._sink.release_buffer(self._buffer)
        self._buffer, self._start = new, 0
        return self._length

    def _ends(self, content_hash: bytes, size: int) -> bool:
        value = int.from_bytes(MAC(self._bundle_key, content_hash, 8), "little")
        return value * _CERTAIN_SIZE < size << 64

    def _find(self, content_hash: bytes, length: int) -> SmallContent | None:
        """A place in a bundle of an earlier run."""
        extent = self._memory.content(content_hash) if self._memory is not None else None
        if extent is None or extent.length != length:
            return None
        placed = SmallContent(known_ticket(extent.id), extent.offset, extent.length, content_hash[:CHECK_LEN])
        self._recent.note(content_hash, placed)
        return placed

    def _close(self) -> None:
        """The open bundle is complete; the next one begins behind it."""
        assert self._buffer is not None
        end = self._start + self._length
        self._hand_in(self._buffer.view[self._start : end], self._buffer)
        self._start = end

    def _hand_in(self, plaintext: Bytes, lease: Buffer | None) -> None:
        ticket, size, contents = self._ticket, self._length, self._contents
        self._contents, self._length = [], 0
        self._ticket = self._sink.new_ticket()
        self._sink.add_data(plaintext, ticket=ticket, lease=lease)
        if self._memory is not None:
            self._memory.bundled(ticket, size, contents)
