"""Large files on their way into the pipeline: read into lent buffers, cut, handed on without a copy.

Chunks are slices of the buffer into which they were read. Only what is not cut yet when a buffer is full (half a
chunk, on average) is copied to the beginning of the next one. Files follow each other in one buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from packnback.backup.buffers import Buffer
from packnback.backup.cut import Cutter, Recogniser
from packnback.backup.ticket import Place, Ticket
from packnback.ids import KIB, MIB

Read = Callable[[memoryview], int]
"""Fills the beginning of a buffer with the next bytes and says how many; 0 at the end. Like ``readinto``."""

STEP = 1 * MIB
"""Bytes between two looks at what was read: still in the processor's cache, and few calls."""
_ROOM_MIN = 128 * KIB
"""With less room than this a buffer is left."""


class Sink(Protocol):
    """Where chunks go."""

    def acquire_buffer(self) -> Buffer:
        """An empty buffer; waits until there is one."""

    def release_buffer(self, buffer: Buffer) -> None:
        """Give it back; chunks that lie in it keep it alive."""

    def add_data(self, plaintext: memoryview, *, lease: Buffer | None = None) -> Ticket:
        """Store one data object."""


class ChunkStream:
    """Cuts files and hands their chunks to `sink` (the pipeline). One file at a time, in one thread."""

    def __init__(self, sink: Sink, chunk_key: bytes) -> None:
        self._sink = sink
        self._chunk_key = chunk_key
        self._buffer: Buffer | None = None
        self._start = 0
        """Where in the buffer the chunk that is not cut yet begins."""
        self._fill = 0
        """Where the next bytes go."""

    def store(self, read: Read) -> Iterator[tuple[Place, list[int]]]:
        """Store one file: for each chunk in order, its place and the lengths of its pieces.

        Must be consumed to its end. What `read` raises passes through; the next file is not affected.
        """
        for buffer, data, pieces in self.chunks(read):
            yield Place(self._sink.add_data(data, lease=buffer), 0, len(data)), pieces

    def chunks(
        self, read: Read, recogniser: Recogniser | None = None
    ) -> Iterator[tuple[Buffer, memoryview, list[int]]]:
        """Cut one file: for each chunk in order, its bytes, the buffer in which they lie, the lengths of its pieces.

        The bytes stay where they are until the next chunk is asked for, and as long as an object that was handed
        in with that buffer needs them. Must be consumed to its end.
        """
        cutter = Cutter(self._chunk_key, recogniser)
        self._start = self._fill
        final = False
        while not final:
            buffer = self._room()
            final = self._read_step(buffer, read)
            data = buffer.view[self._start : self._fill]
            for chunk in cutter.chunks(data, final=final):
                yield buffer, data[chunk.offset : chunk.offset + chunk.length], chunk.pieces
                self._start += chunk.length

    def close(self) -> None:
        """Give the current buffer back."""
        if self._buffer is not None:
            self._sink.release_buffer(self._buffer)
            self._buffer = None
            self._start = self._fill = 0

    def _room(self) -> Buffer:
        """A buffer with room behind the bytes that are not cut yet."""
        old = self._buffer
        if old is not None and len(old.view) - self._fill >= _ROOM_MIN:
            return old
        new = self._sink.acquire_buffer()
        pending = self._fill - self._start
        if old is not None:
            new.view[:pending] = old.view[self._start : self._fill]
            self._sink.release_buffer(old)
        self._buffer, self._start, self._fill = new, 0, pending
        return new

    def _read_step(self, buffer: Buffer, read: Read) -> bool:
        """Read one step, whatever the size of single reads. True at the end of the file."""
        end = min(self._fill + STEP, len(buffer.view))
        while self._fill < end:
            count = read(buffer.view[self._fill : end])
            if count == 0:
                return True
            self._fill += count
        return False
