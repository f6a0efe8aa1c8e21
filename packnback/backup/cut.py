"""Cutting large files: public candidates, a secret choice.

fastcdc proposes the ends of *pieces* (4 to 32 KiB, 8 KiB on average); whether the end of a piece ends a *chunk*
as well is decided by a PRF, under the cut key, of the 64 bytes before it. Other tools cut with a keyed table or
a keyed polynomial, which are linear and can be solved for from the lengths of known files; here there is nothing
linear to solve. A piece depends on nothing before it and a chunk is a run of whole pieces, so an insertion moves
the cuts of one chunk or two, and the pieces can be reused by themselves when only few of them changed.

A chunk has at least 256 KiB (unless the file has less), 1 MiB on average and at most 4 MiB; a tail below the
minimum joins the chunk before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from packnback.ids import KIB, MIB

FILE_MIN = 512 * KIB
"""Files of at least this many bytes are cut, smaller ones are bundled."""
CHUNK_MIN = 256 * KIB
CHUNK_MAX = 4 * MIB
PIECE_MIN, PIECE_AVERAGE, PIECE_MAX = 4 * KIB, 8 * KIB, 32 * KIB
PENDING_MAX = CHUNK_MAX + CHUNK_MIN
"""Most bytes that `Cutter.feed` can leave behind for the next call; also the length of the longest chunk."""

_CUT_ONE_IN = 96
_CUT_BELOW = (1 << 64) // _CUT_ONE_IN
_CUT_CONTEXT_LEN = 64
CUT_RULE = f"fastcdc 1.7.0, {PIECE_MIN} {PIECE_AVERAGE} {PIECE_MAX}; {CHUNK_MIN} {CHUNK_MAX} {_CUT_ONE_IN}"
"""What decides where a piece ends, and where a chunk; a test holds fastcdc to that version."""


class Chunk(NamedTuple):
    """A run of whole pieces, within the data that was fed."""

    offset: int
    length: int
    pieces: list[int]
    """Lengths of its pieces in bytes; they sum to `length`."""


@cache
def _piece_finder() -> Callable[..., Iterable[Any]]:
    # Importing fastcdc takes 0.1 s, most of it for its command line; a run without large files needs none of it.
    from fastcdc.fastcdc_cy import fastcdc_cy

    return fastcdc_cy  # type: ignore[no-any-return]


class Recogniser(Protocol):
    """Knows chunks and pieces of a file without searching for them (`recognise`)."""

    def chunk_ahead(self) -> int:
        """The length of the chunk that may begin here, or 0. Asked once wherever a chunk begins."""

    def recognised_chunk(self, data: memoryview) -> Sequence[int]:
        """The lengths of the pieces of this chunk, if it is the one that was ahead; otherwise none."""

    def recognised(self, data: memoryview) -> int:
        """The length of the piece with which `data` begins, or 0 if it has to be searched for."""

    def searched(self, piece: memoryview) -> bool:
        """Take note of a piece that was searched for. True if it is worth asking for the next one."""


class Cutter:
    """Cuts one file, given in any number of parts. `chunk_key` is the put key's `chunk_key`, 32 bytes.

    With a recogniser the cuts are the same; it is shown each piece once, in order.
    """

    def __init__(self, chunk_key: bytes, recogniser: Recogniser | None = None) -> None:
        self._key = chunk_key
        self._recogniser = recogniser
        self._pieces: list[int] = []
        self._scanned = 0
        self._ended = False
        self._ahead = -1
        """The length of the chunk that may begin here; negative if nobody was asked yet."""

    def feed(self, data: memoryview, *, final: bool = False) -> list[Chunk]:
        """All that `chunks` gives."""
        return list(self.chunks(data, final=final))

    def chunks(self, data: memoryview, *, final: bool = False) -> Iterator[Chunk]:
        """The chunks that are certain now, in order; `final` says that the file ends with `data`.

        To be consumed to its end. A recogniser is not asked about a chunk before the one before it was given.
        `data` starts where the last chunk returned by the previous call ended: what was not cut is shown
        again, with more behind it, and never exceeds PENDING_MAX. The chunks are the same for every way of
        splitting the file into calls. Small steps cost time, as one piece is looked at again in each.
        """
        start = 0
        while True:
            if not self._ended:
                self._scan(data, start, final)
            # A chunk is certain once a tail behind it could stand alone.
            if not self._ended or len(data) - start - self._scanned < CHUNK_MIN:
                break
            chunk = self._take(start)
            start += chunk.length
            yield chunk
        if final and start < len(data):
            if self._ended:
                self._append_tail(data[start + self._scanned :])
            yield self._take(start)

    def _take(self, start: int) -> Chunk:
        chunk = Chunk(start, self._scanned, self._pieces)
        self._pieces, self._scanned, self._ended, self._ahead = [], 0, False, -1
        return chunk

    def _scan(self, data: memoryview, start: int, final: bool) -> None:
        """Collect pieces of the chunk that begins at `start`, up to its end or the last certain piece."""
        if self._recognise_chunk(data, start, final):
            return
        self._recognise(data, start)
        while self._search(data, start, final):
            self._recognise(data, start)

    def _recognise_chunk(self, data: memoryview, start: int, final: bool) -> bool:
        """Take a whole chunk that need not be looked at piece by piece. True also if more data is needed to tell."""
        if self._recogniser is None:
            return False
        if self._ahead < 0:
            length = self._recogniser.chunk_ahead()
            self._ahead = length if CHUNK_MIN <= length <= PENDING_MAX else 0
        length = self._ahead
        if length > len(data) - start and not final:
            return True
        self._ahead = 0
        if not 0 < length <= len(data) - start or not self._ends(data, start, length):
            return False
        self._pieces += self._recogniser.recognised_chunk(data[start : start + length])
        self._scanned = sum(self._pieces)
        self._ended = bool(self._pieces)
        return self._ended

    def _recognise(self, data: memoryview, start: int) -> None:
        """Collect pieces for as long as they need not be searched for."""
        if self._recogniser is None:
            return
        recognised = self._recogniser.recognised
        while not self._ended and (length := recognised(data[start + self._scanned :])):
            self._pieces.append(length)
            self._scanned += length
            self._ended = self._scanned >= CHUNK_MIN and self._ends(data, start, self._scanned)

    def _search(self, data: memoryview, start: int, final: bool) -> bool:
        """Find pieces by their content. True if it stopped because the next one may be recognised."""
        if self._ended:
            return False
        pieces, scanned, recogniser = self._pieces, self._scanned, self._recogniser
        known = len(data) - start
        again = False
        for piece in _piece_finder()(data[start + scanned :], PIECE_MIN, PIECE_AVERAGE, PIECE_MAX):
            end = scanned + piece.length
            if end == known and not final:
                break  # more bytes may lengthen this piece
            pieces.append(piece.length)
            again = recogniser is not None and recogniser.searched(data[start + scanned : start + end])
            scanned = end
            if scanned >= CHUNK_MIN and self._ends(data, start, scanned):
                self._ended = True
                break
            if again:
                break
        self._scanned = scanned
        return again and not self._ended

    def _ends(self, data: memoryview, start: int, scanned: int) -> bool:
        """Whether the chunk that begins at `start` ends after `scanned` bytes, which are whole pieces."""
        context = data[start + scanned - _CUT_CONTEXT_LEN : start + scanned]
        value = int.from_bytes(blake2b(context, key=self._key, digest_size=8).digest(), "little")
        return value < _CUT_BELOW or scanned > CHUNK_MAX - PIECE_MAX

    def _append_tail(self, tail: memoryview) -> None:
        at = 0
        for piece in _piece_finder()(tail, PIECE_MIN, PIECE_AVERAGE, PIECE_MAX):
            self._pieces.append(piece.length)
            if self._recogniser is not None:
                self._recogniser.searched(tail[at : at + piece.length])
            at += piece.length
        self._scanned += len(tail)
