"""The pieces of large files that were stored earlier: where each of them stands, and how a changed file finds them.

A large file is cut into chunks of about 1 MiB, made of pieces of about 8 KiB (`cut`). The cache keeps, for each file,
the list of its pieces: a keyed hash of 16 bytes, the length, and where it lies. If the file changes, the pieces that
are found become extents into old objects (`delta`). About 2.6 MB of list stand for 1 GB of file.

A list is written once, in segments, as the file is stored, and read only if the file changed, as a window: around
where the last piece was found, and around where the same bytes stood before. So memory does not grow with the file.
What was moved farther than the window reaches within a huge file is stored again.

An object of which a file uses less than half is *poor*, and so are very small ones once there are many: its pieces
are not found again, so that what remains of it is stored anew with the next change. That bounds both the waste in
old objects and the number of fragments that a file is put together from.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby, repeat
from typing import Any, NamedTuple

import cbor2
from blake3 import blake3
from msgspec import Struct

from packnback.backup.ahead import Presence
from packnback.backup.cache import PIECES, Cache
from packnback.backup.cache_rows import PieceFile, Rows, segment_key, split_ids
from packnback.backup.reuse import NewPieces, OldObject
from packnback.backup.spool import Spool
from packnback.backup.ticket import Place
from packnback.format.entry import Extent
from packnback.ids import KIB

DIGEST_LEN = 16
SEGMENT_PIECES = 4096
COARSE_FROM = 64 << 30
"""Files of at least this many bytes have coarser pieces."""
COARSE_STEP = 8
_AHEAD, _BEHIND, _STRIDE = 32, 8, 8
"""Segments around a position that are held; the window moves by the stride."""
_FOLLOWED_LEAST = 16
"""So many pieces in a row have to be found elsewhere before the window goes there: what single pieces have in common
with another place (zeros, tables of a file system) says nothing of where the file goes on.
"""
SMALL_OBJECT = 64 * KIB
SMALL_OBJECTS_MOST = 64
RUN_PIECES_MOST = 2304
"""Pieces in one run, which is never split over segments: those of the longest chunk, all of the least length."""
_TALLY_LIMIT = 1 << 18
_UNSEEN = -2


def join(lengths: Sequence[int], step: int) -> Sequence[int]:
    """Lengths of pieces, `step` of them joined on average: by their own lengths, so the content decides."""
    if step == 1:
        return lengths
    joined: list[int] = []
    length = 0
    for piece in lengths:
        length += piece
        if piece % step == 0:
            joined.append(length)
            length = 0
    if length:
        joined.append(length)
    return joined


def digests_of(new: NewPieces, data: memoryview, lengths: Sequence[int]) -> list[bytes]:
    """The hashes of the pieces that `data` consists of."""
    digest, at, found = new.digest, 0, []
    for length in lengths:
        found.append(digest(data[at : at + length]))
        at += length
    return found


class _Segment(Struct):
    """Some thousand pieces, in order."""

    ids: Sequence[bytes]
    sizes: Sequence[int]
    """Of the objects, in bytes."""
    usable: Sequence[bool]
    objects: array[int]
    """For each piece, which object it lies in."""
    offsets: array[int]
    lengths: array[int]
    digests: list[bytes]
    where: dict[bytes, int]
    """Digest → number, of usable pieces."""
    wholes: dict[int, int]
    """Where the pieces begin that are all of one object, and where they end."""
    is_last: bool
    """The file ended with it. (It says so itself: after a crash it may not be the last one of which is known.)"""


class OldPieceList:
    """The list of a file as it was stored last. A piece has a number: its segment's times SEGMENT_PIECES, plus."""

    def __init__(self, cache: Cache, rows: Rows, presence: Presence, file: bytes, facts: PieceFile) -> None:
        self._cache = cache
        self._rows = rows
        self._presence = presence
        self._file = file
        self._facts = facts
        self._poor = frozenset(facts.poor)
        self._segments: dict[int, _Segment] = {}
        self._where: dict[bytes, int] = {}
        """Digest → number, of usable pieces in all segments, and of some that were in the window before."""
        self._sizes: dict[bytes, int] = {}
        """Of the objects that were found; about one for each MiB of the file."""
        self._expected = 0
        """The piece that comes next if nothing was inserted or removed."""
        self._followed = 0
        """Pieces that were found where they were expected, since one was not."""
        self._found_at = self._sought_at = _UNSEEN
        self.seek(0)

    def seek(self, offset: int) -> None:
        """See `reuse.OldPieces`."""
        segment = offset * self._facts.segments // max(self._facts.size, 1)
        if segment // _STRIDE != self._sought_at:
            self._sought_at = segment // _STRIDE
            self._move()

    def expected(self) -> tuple[int, bytes] | None:
        """See `reuse.OldPieces`."""
        at, i = divmod(self._expected, SEGMENT_PIECES)
        segment = self._segments.get(at)
        if segment is None or i >= len(segment.digests) - segment.is_last:
            return None
        return segment.lengths[i], segment.digests[i]

    def find(self, digest: bytes, length: int) -> Extent | None:
        """See `reuse.OldPieces`.

        Of several equal pieces the one that goes on where the last one ended is best, then one that is near.
        (Otherwise the window would go to and fro for every stretch of zeros.)
        """
        at, i = divmod(self._expected, SEGMENT_PIECES)
        segment = self._segments.get(at)
        self._followed += 1
        if segment is None or i >= len(segment.digests) or segment.digests[i] != digest:
            self._followed = 0
            number = self._look_up(digest, segment)
            if number is None:
                self._expected = self._after(at, i, segment)
                return None
            at, i = divmod(number, SEGMENT_PIECES)
            segment = self._segments[at]
        self._expected = self._after(at, i, segment)
        self._go_to(at)
        which = segment.objects[i]
        if not segment.usable[which] or segment.lengths[i] != length:
            return None
        object_id = segment.ids[which]
        self._sizes[object_id] = segment.sizes[which]
        return Extent(object_id, segment.offsets[i], length)

    def object_ahead(self) -> OldObject | None:
        """See `reuse.OldPieces`."""
        at, i = divmod(self._expected, SEGMENT_PIECES)
        segment = self._segments.get(at)
        if segment is None or (end := segment.wholes.get(i)) is None:
            return None
        which = segment.objects[i]
        if not segment.usable[which]:
            return None
        return OldObject(segment.ids[which], segment.sizes[which], segment.lengths[i:end], segment.digests[i:end])

    def passed(self, whole: OldObject) -> None:
        """See `reuse.OldPieces`."""
        count = len(whole.digests)
        at, i = divmod(self._expected, SEGMENT_PIECES)
        self._sizes[whole.id] = whole.size
        self._followed += count
        self._expected = self._after(at, i + count - 1, self._segments.get(at))
        self._go_to(at)

    def _go_to(self, segment: int) -> None:
        """Let the window follow to where the last pieces were found."""
        if segment // _STRIDE != self._found_at and self._followed >= _FOLLOWED_LEAST:
            self._found_at = segment // _STRIDE
            self._move()

    def _after(self, at: int, i: int, segment: _Segment | None) -> int:
        """The number that follows piece `i` of a segment; segments are not full."""
        if segment is not None and i + 1 >= len(segment.digests) and at + 1 < self._facts.segments:
            return (at + 1) * SEGMENT_PIECES
        return at * SEGMENT_PIECES + i + 1

    def _look_up(self, digest: bytes, near: _Segment | None) -> int | None:
        """The number of a usable piece in the window, if there is one."""
        if near is not None and (number := near.where.get(digest)) is not None:
            return number
        number = self._where.get(digest)
        return number if number is not None and number // SEGMENT_PIECES in self._segments else None

    def size_of(self, object_id: bytes) -> int:
        """The size of an object that was found, however long ago: the window may have moved on since."""
        return self._sizes.get(object_id, 0)

    def _move(self) -> None:
        wanted: set[int] = set()
        for stride in (self._found_at, self._sought_at):
            if stride != _UNSEEN:
                at = stride * _STRIDE
                wanted.update(range(max(at - _BEHIND, 0), min(at + _STRIDE + _AHEAD, self._facts.segments)))
        missing = sorted(wanted.difference(self._segments))
        if len(self._segments) + len(missing) > 2 * (_BEHIND + _STRIDE + _AHEAD):
            # Not before: who goes to and fro between two places would read both again and again.
            for at in [at for at in self._segments if at not in wanted]:
                del self._segments[at]
        self._read(missing)

    def _read(self, wanted: Sequence[int]) -> None:
        with self._cache.reading() as txn:
            keys = [segment_key(self._file, at) for at in wanted]
            bodies = [self._rows.open(PIECES, key, txn.get(PIECES, key)) for key in keys]
        found = {at: cbor2.loads(body) for at, body in zip(wanted, bodies, strict=True) if body is not None}
        ids = {i for value in found.values() for i in split_ids(value[0])}
        missing = self._presence.missing(self._presence.ask(ids), ids) | self._poor
        for at, value in found.items():
            self._segments[at] = _segment(value, missing, at * SEGMENT_PIECES)
            self._where.update(self._segments[at].where)
        # What has left the window is struck out all at once: piece by piece would take ten times as long.
        if len(self._where) > 2 * sum(len(segment.where) for segment in self._segments.values()):
            self._where = {}
            for segment in self._segments.values():
                self._where.update(segment.where)


def _segment(value: Sequence[Any], missing: set[bytes] | frozenset[bytes], first: int) -> _Segment:
    """A segment whose first piece has the number `first`."""
    joined, packed_sizes, runs, lengths, digests, is_last = value
    ids, sizes = split_ids(joined), array("I", packed_sizes)
    usable = [object_id not in missing for object_id in ids]
    objects, offsets, piece_lengths = array("I"), array("I"), array("I", lengths)
    numbers, i, wholes = array("I", runs), 0, dict[int, int]()
    for which, offset, count in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        objects.extend(repeat(which, count))
        offsets.extend(accumulate(piece_lengths[i : i + count - 1], initial=offset))
        if offset == 0 and offsets[-1] + piece_lengths[i + count - 1] == sizes[which]:
            wholes[i] = i + count
        i += count
    if is_last:  # its end was the file's, not one of its own
        wholes = {begin: end for begin, end in wholes.items() if end < i}
    split = [digests[at : at + DIGEST_LEN] for at in range(0, len(digests), DIGEST_LEN)]
    where = dict(zip(split, range(first, first + len(split)), strict=True))
    if not all(usable):
        where = {digest: first + i for i, digest in enumerate(split) if usable[objects[i]]}
    if len(where) < len(split):
        where.update((split[i], first + i) for i in _long_runs(split) if usable[objects[i]])
    return _Segment(ids, sizes, usable, objects, offsets, piece_lengths, split, where, wholes, is_last)


def _long_runs(digests: Sequence[bytes]) -> Iterable[int]:
    """For each digest that stands several times in a row (as of zeros), where its longest such row begins.

    Whoever gets into such a row by looking it up can follow it from there.
    """
    longest: dict[bytes, int] = {}
    starts: dict[bytes, int] = {}
    at = 0
    for digest, row in groupby(digests):
        count = len(list(row))
        if count > longest.get(digest, 1):
            longest[digest], starts[digest] = count, at
        at += count
    return starts.values()


class _Run(NamedTuple):
    """Pieces that lie one behind the other in one object."""

    extent: Place | Extent
    lengths: Sequence[int]
    digests: list[bytes]
    size: int
    """Of an old object."""


class NewPieceList:
    """The list of a file that is being stored: written to the spool as ids become known."""

    def __init__(self, spool: Spool, rows: Rows, file: bytes, old: OldPieceList | None, step: int) -> None:
        self.step = step
        self.finished = False
        self._spool = spool
        self._rows = rows
        self._hasher = blake3(key=rows.digest_key)
        self._file = file
        self._old = old
        self._coming: deque[_Run] = deque()
        self._segments = 0
        self._length = 0
        self._size = 0
        self._tally: dict[bytes, list[int]] = {}
        """Old objects that the file uses in part, or that are small: (bytes used, size)."""
        self._poor: list[bytes] = []
        self._start_segment()

    def digest(self, piece: memoryview) -> bytes:
        """See `reuse.NewPieces`."""
        hasher = self._hasher
        hasher.reset()
        return hasher.update(piece).digest(DIGEST_LEN)

    def add(self, extent: Place | Extent, lengths: Sequence[int], digests: list[bytes]) -> None:
        """See `reuse.NewPieces`."""
        size = 0
        if isinstance(extent, Extent) and extent.id is not None and self._old is not None:
            size = self._old.size_of(extent.id)
            is_part = extent.length < size or size < SMALL_OBJECT
            if is_part and (extent.id in self._tally or len(self._tally) < _TALLY_LIMIT):
                self._tally.setdefault(extent.id, [0, size])[0] += extent.length
        self._size += extent.length
        self._coming.append(_Run(extent, lengths, digests, size))

    def finish(self) -> bool:
        """See `reuse.NewPieces`: True if more than a quarter of the file's length is waste in poor objects."""
        poor = [object_id for object_id, (used, size) in self._tally.items() if 2 * used < size]
        waste = sum(size - used for used, size in self._tally.values() if 2 * used < size)
        small = [object_id for object_id, (_, size) in self._tally.items() if size < SMALL_OBJECT]
        if len(small) > SMALL_OBJECTS_MOST:
            poor += small
        self._poor = sorted(set(poor))
        self._tally.clear()
        self._old = None
        self.finished = True
        return 4 * waste > self._size

    def settle(self) -> bool:
        """Write what is known by now. True when that is all of it."""
        coming = self._coming
        while coming and (isinstance(coming[0].extent, Extent) or coming[0].extent.resolved):
            self._take(coming.popleft())
        if coming or not self.finished:
            return False
        if self._lengths:
            self._end_segment(is_last=True)
        facts = PieceFile(self._segments, self._length, self._size, time.time_ns(), self.step, self._poor)
        self._spool.pieces(self._file, facts)
        return True

    def _take(self, run: _Run) -> None:
        if len(self._lengths) > SEGMENT_PIECES - RUN_PIECES_MOST:
            self._end_segment(is_last=False)
        extent, size = run.extent, run.size
        if isinstance(extent, Place):
            size = extent.ticket.size
            extent = extent.extent()
        assert extent.id is not None
        which = self._objects.setdefault(extent.id, len(self._objects))
        if which == len(self._sizes):
            self._sizes.append(size)
        self._runs.extend((which, extent.offset, len(run.lengths)))
        self._lengths.extend(run.lengths)
        self._digests += run.digests

    def _start_segment(self) -> None:
        self._objects: dict[bytes, int] = {}
        self._sizes = array("I")
        self._runs = array("I")
        self._lengths = array("I")
        self._digests: list[bytes] = []

    def _end_segment(self, *, is_last: bool) -> None:
        key = segment_key(self._file, self._segments)
        arrays = [a.tobytes() for a in (self._sizes, self._runs, self._lengths)]
        body = cbor2.dumps([b"".join(self._objects), *arrays, b"".join(self._digests), is_last])
        value = self._rows.seal(PIECES, key, body)
        self._spool.segment(key, value)
        self._segments += 1
        self._length += len(value)
        self._start_segment()
