"""Pieces of a changed file that stand where they stood before, recognised instead of searched for.

Where a piece ends depends on nothing but the bytes from its beginning on (`cut`). So if a file goes on with the very
bytes of the piece that came next the last time, it goes on with that piece: one hash, which is needed in any case,
tells so, and nothing has to be searched. After a piece that is not known, pieces are searched for until one is.

The same holds for a chunk that is an object of its own: if the bytes that come next have its id, a hash of all of
them, they are that chunk, and nothing has to be done for each of its hundred pieces. It is tried after a chunk
in which nothing had changed. Of a file whose pieces are remembered joined (`pieces.join`), which do not tell where
theirs begin, that is all that can be recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from packnback.backup.cut import PIECE_MAX, PIECE_MIN
from packnback.backup.pieces import digests_of, join
from packnback.backup.reuse import NewPieces, OldObject, OldPieces
from packnback.crypto.derive import Buffer
from packnback.format.entry import Extent


class Pieces(NamedTuple):
    """The pieces of a chunk: of each the length, the hash, and where it lies (see `OldPieces.find`)."""

    lengths: Sequence[int]
    digests: list[bytes]
    found: list[Extent | None]


class Recogniser:
    """Follows one file through its `old` pieces, while it is being cut. `id_of` tells the id of a data object.

    Each chunk is taken before the next one is asked for.
    """

    def __init__(self, old: OldPieces, new: NewPieces, id_of: Callable[[Buffer], bytes]) -> None:
        self._old = old
        self._new = new
        self._digest = new.digest
        self._id_of = id_of
        self._joined = new.step > 1
        self._in_step = True
        """Whether the piece that comes next may be the one that is expected."""
        self._wrong = False
        """Whether the last guess was: then what is found is believed only when it was expected, too."""
        self._nothing_new = True
        """Whether all of the chunk before was as expected."""
        self._ahead: OldObject | None = None
        self._whole: OldObject | None = None
        """The object with which the chunk begins that was not taken yet, if that was recognised."""
        self._digests: list[bytes] = []
        self._found: list[Extent | None] = []

    def chunk_ahead(self) -> int:
        """The length of the chunk that is expected to begin here, or 0 if its pieces have to be looked at."""
        self._ahead = self._old.object_ahead() if self._in_step and self._nothing_new else None
        self._nothing_new = not self._joined
        return self._ahead.size if self._ahead is not None else 0

    def recognised_chunk(self, data: memoryview) -> Sequence[int]:
        """The lengths of the pieces of `data`, if it is what `chunk_ahead` has told of; otherwise none."""
        whole = self._ahead
        if whole is None:
            return ()
        # The hash of a piece depends on the rule by which it was cut, the id of an object does not.
        if self._digest(data[: whole.lengths[0]]) != whole.digests[0] or self._id_of(data) != whole.id:
            return ()
        self._old.passed(whole)
        self._whole = whole
        self._nothing_new = True
        return whole.lengths

    def recognised(self, data: memoryview) -> int:
        """The length of the piece with which `data` begins, if it is the one that is expected; otherwise 0."""
        if not self._in_step or self._joined:
            return 0
        expected = self._old.expected()
        if expected is None:
            return 0
        length, digest = expected
        if not PIECE_MIN <= length <= PIECE_MAX or length > len(data):
            return 0
        self._in_step = self._digest(data[:length]) == digest
        self._wrong = not self._in_step
        if self._wrong:
            return 0
        self._enter(digest, length)
        return length

    def searched(self, piece: memoryview) -> bool:
        """Take note of a piece that had to be searched for. True if the next one may be recognised."""
        if self._joined:
            return False
        self._nothing_new = False
        digest, expected = self._digest(piece), self._old.expected()
        # What is expected may not be found: its object is poor, or missing. The file goes on with it all the same.
        as_expected = expected is not None and expected[1] == digest
        found = self._enter(digest, len(piece))
        self._in_step = as_expected or (found and not self._wrong)
        return self._in_step

    def take(self, data: memoryview, lengths: Sequence[int]) -> OldObject | Pieces:
        """What is known of the chunk `data`, in which pieces of these lengths were found: that it is an object as a
        whole, or its pieces.
        """
        whole, self._whole = self._whole, None
        if whole is not None and whole.size == len(data):
            return whole
        if self._joined:
            lengths = join(lengths, self._new.step)
            digests = digests_of(self._new, data, lengths)
            found = list(map(self._old.find, digests, lengths))
            self._nothing_new = None not in found
            return Pieces(lengths, digests, found)
        digests, found = list[bytes](), list[Extent | None]()
        if whole is not None:  # the rest of the file was too short for a chunk of its own, and joined this one
            digests += whole.digests
            offsets = accumulate(whole.lengths, initial=0)
            found += (Extent(whole.id, offset, n) for offset, n in zip(offsets, whole.lengths, strict=False))
        rest = len(lengths) - len(digests)
        digests, found = digests + self._digests[:rest], found + self._found[:rest]
        del self._digests[:rest], self._found[:rest]
        return Pieces(lengths, digests, found)

    def _enter(self, digest: bytes, length: int) -> bool:
        extent = self._old.find(digest, length)
        self._digests.append(digest)
        self._found.append(extent)
        return extent is not None
