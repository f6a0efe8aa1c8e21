"""Storing one large file: read, cut, against what is known of it, with its holes.

Data comes as one stream without holes (`runs`), is cut (`stream`) and stored (`delta`); what comes out is a list of
extents (`extents`) in which the holes stand again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

from blake3 import blake3

from packnback.backup.buffers import Buffer
from packnback.backup.delta import Delta, Whole
from packnback.backup.extents import LargeContent
from packnback.backup.listing_cuts import ListingCuts
from packnback.backup.pipeline import Pipeline
from packnback.backup.reuse import NewPieces, Reuse
from packnback.backup.runs import FileRuns
from packnback.backup.stream import ChunkStream, Read
from packnback.backup.ticket import Place
from packnback.crypto.content import ContentHasher
from packnback.crypto.keys import PutKey
from packnback.events import Watch
from packnback.format.entry import CHECK_LEN, Extent
from packnback.ids import MIB, ObjectClass

_ZEROS = memoryview(bytes(1 * MIB))


class LargeFiles:
    """Stores large files through a pipeline, one at a time."""

    def __init__(
        self,
        pipeline: Pipeline,
        stream: ChunkStream,
        put_key: PutKey,
        cuts: ListingCuts,
        reuse: Reuse,
        watch: Watch,
    ) -> None:
        self._pipeline = pipeline
        self._stream = stream
        self._hasher = ContentHasher(put_key.id_key[ObjectClass.DATA])
        self._cuts = cuts
        self._reuse = reuse
        self._watch = watch

    def store(self, name: bytes, size: int, read: Read, runs: FileRuns | None = None) -> tuple[LargeContent, bool]:
        """(content, whether the next run should read the file again although it does not change).

        `name` is the absolute path, or the name of a stream; `size` about how much data there is, if that is
        known. With `runs`, `read` is its method, and holes are put back where they were.
        """
        content = LargeContent(self._pipeline, self._cuts)
        memory = self._reuse.pieces(name, size)
        old, new = memory if memory is not None else (None, None)
        if old is not None and new is not None:
            with ThreadPoolExecutor(1, "check") as thread:
                self._store_delta(content, Delta(self._pipeline, old, new), new, read, runs, thread)
        else:
            writer = Whole(self._pipeline, new)
            for buffer, data, lengths in self._stream.chunks(read):
                for extent in _with_holes(writer.store(buffer, data, lengths), runs):
                    content.add(extent)
                self._chunk_done(data, new)
            for hole in runs.tail() if runs is not None else ():
                content.add(hole)
        return content, new is not None and new.finish()

    def _store_delta(
        self,
        content: LargeContent,
        delta: Delta,
        new: NewPieces,
        read: Read,
        runs: FileRuns | None,
        thread: Executor,
    ) -> None:
        """Meanwhile `thread` hashes the whole content, holes included."""
        check = self._hasher.start()
        for buffer, data, lengths in self._stream.chunks(read, delta.recogniser):
            extents = list(_with_holes(delta.store(buffer, data, lengths), runs))
            for extent in extents:
                content.add(extent)
            self._pipeline.hold_buffer(buffer)
            thread.submit(self._check, check, extents, data, buffer)
            self._chunk_done(data, new)
        for hole in runs.tail() if runs is not None else ():
            content.add(hole)
            thread.submit(_update, check, hole, _ZEROS)
        delta.finish()
        content.check = thread.submit(check.digest, CHECK_LEN).result()

    def _check(self, check: blake3, extents: Iterable[Place | Extent], data: memoryview, buffer: Buffer) -> None:
        """Hash a chunk as it stands in the file, and give its buffer back."""
        at = 0
        for extent in extents:
            at += _update(check, extent, data[at:])
        self._pipeline.release_buffer(buffer)

    def _chunk_done(self, data: memoryview, new: NewPieces | None) -> None:
        if new is not None:
            new.settle()
        self._watch.progress.advance(len(data))


def _with_holes(parts: Iterable[Place | Extent], runs: FileRuns | None) -> Iterable[Place | Extent]:
    return parts if runs is None else (extent for part in parts for extent in runs.place(part))


def _update(check: blake3, extent: Place | Extent, data: memoryview) -> int:
    """Hash what an extent stands for; the bytes of `data` that were taken."""
    if isinstance(extent, Extent) and extent.id is None:
        for length in _steps(extent.length):
            check.update(_ZEROS[:length])
        return 0
    check.update(data[: extent.length])
    return extent.length


def _steps(length: int) -> Iterator[int]:
    while length:
        step = min(length, len(_ZEROS))
        yield step
        length -= step
