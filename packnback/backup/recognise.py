"""Pieces of a changed file that stand where they stood before, recognised instead of searched for.

Where a piece ends depends on nothing but the bytes from its beginning on (`cut`). So if a file goes on with the very
bytes of the piece that came next the last time, it goes on with that piece: one hash, which is needed in any case,
tells so, and nothing has to be searched. After a piece that is not known, pieces are searched for until one is.
"""

from __future__ import annotations

from packnback.backup.cut import PIECE_MAX, PIECE_MIN
from packnback.backup.reuse import NewPieces, OldPieces
from packnback.format.entry import Extent


class Recogniser:
    """Follows one file through its `old` pieces, while it is being cut."""

    def __init__(self, old: OldPieces, new: NewPieces) -> None:
        self._old = old
        self._digest = new.digest
        self._in_step = True
        """Whether the piece that comes next may be the one that is expected."""
        self._wrong = False
        """Whether the last guess was: then what is found is believed only when it was expected, too."""
        self._digests: list[bytes] = []
        self._found: list[Extent | None] = []

    def recognised(self, data: memoryview) -> int:
        """The length of the piece with which `data` begins, if it is the one that is expected; otherwise 0."""
        if not self._in_step:
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
        digest, expected = self._digest(piece), self._old.expected()
        # What is expected may not be found: its object is poor, or missing. The file goes on with it all the same.
        as_expected = expected is not None and expected[1] == digest
        found = self._enter(digest, len(piece))
        self._in_step = as_expected or (found and not self._wrong)
        return self._in_step

    def take(self, count: int) -> tuple[list[bytes], list[Extent | None]]:
        """Of the next `count` pieces, the hashes, and where they lie (see `OldPieces.find`)."""
        digests, found = self._digests[:count], self._found[:count]
        del self._digests[:count], self._found[:count]
        return digests, found

    def _enter(self, digest: bytes, length: int) -> bool:
        extent = self._old.find(digest, length)
        self._digests.append(digest)
        self._found.append(extent)
        return extent is not None
