"""Storing one large file: read, cut, against what is known of it, with its holes.

Data comes as one stream without holes (`runs`), is cut (`stream`) and stored (`delta`); what comes out is a list of
extents (`extents`) in which the holes stand again.
"""

from __future__ import annotations

from collections.abc import Iterator

from blake3 import blake3

from packnback.backup.delta import Delta, Whole
from packnback.backup.extents import LargeContent
from packnback.backup.listing_cuts import ListingCuts
from packnback.backup.pipeline import Pipeline
from packnback.backup.reuse import Reuse
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
        check: blake3 | None = None
        writer: Whole | Delta
        if old is not None and new is not None:
            writer, check = Delta(self._pipeline, old, new), self._hasher.start()
        else:
            writer = Whole(self._pipeline, new)
        for buffer, data, lengths in self._stream.chunks(read):
            at = 0
            for part in writer.store(buffer, data, lengths):
                for extent in runs.place(part) if runs is not None else (part,):
                    content.add(extent)
                    if check is not None:
                        at += _update(check, extent, data[at:])
            if new is not None:
                new.settle()
            self._watch.progress.advance(len(data))
        for hole in runs.tail() if runs is not None else ():
            content.add(hole)
            if check is not None:
                _update(check, hole, _ZEROS)
        writer.finish()
        if check is not None:
            content.check = check.digest(CHECK_LEN)
        return content, new is not None and new.finish()


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
