"""Recognised pieces: the same cuts as without memory, for a fraction of the searching."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cached_client import KEY, CachedClient, settle

from packnback.backup.cut import Cutter
from packnback.backup.pieces import NewPieceList
from packnback.backup.recognise import Recogniser
from packnback.ids import KIB, MIB


class Observed:
    """A client, the lengths of the pieces it remembers of its last save, and how many of them it searched for."""

    def __init__(self, base: Path, patch: pytest.MonkeyPatch) -> None:
        self.client = CachedClient(base)
        self.lengths: list[int] = []
        self.searched = 0
        add, searched = NewPieceList.add, Recogniser.searched

        def note_lengths(new: NewPieceList, extent: object, lengths: list[int], digests: list[bytes]) -> None:
            self.lengths += lengths
            add(new, extent, lengths, digests)  # type: ignore[arg-type]

        def note_search(recogniser: Recogniser, piece: memoryview) -> bool:
            self.searched += 1
            return searched(recogniser, piece)

        patch.setattr(NewPieceList, "add", note_lengths)
        patch.setattr(Recogniser, "searched", note_search)

    def save(self, content: bytes) -> None:
        """Save `content`, and see that it was cut like a file that nobody knows."""
        self.lengths, self.searched = [], 0
        (self.client.source / "image").write_bytes(content)
        settle()
        self.client.save()
        self.client.check_against_disk()
        chunks = Cutter(KEY.chunk_key).feed(memoryview(content), final=True)
        assert self.lengths == [piece for chunk in chunks for piece in chunk.pieces]


@pytest.fixture
def observed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Observed:
    return Observed(tmp_path, monkeypatch)


def test_only_what_changed_is_searched(observed: Observed) -> None:
    draw = random.Random(1)
    content = draw.randbytes(6 * MIB)
    observed.save(content)
    assert observed.searched == 0, "there was nothing to compare with"
    pieces = len(observed.lengths)
    content = content[: 3 * MIB] + draw.randbytes(4096) + content[3 * MIB + 4096 :]
    observed.save(content)
    assert 1 <= observed.searched <= 8 < pieces / 50
    content = content[:MIB] + b"inserted" + content[MIB:]
    observed.save(content)
    assert 1 <= observed.searched <= 8
    content = content[: 2 * MIB] + content[2 * MIB + 100_000 :]
    observed.save(content)
    assert 1 <= observed.searched <= 8


def test_a_file_that_grows_is_cut_as_if_it_had_always_been_so_long(observed: Observed) -> None:
    """The last piece ended with the file, not by its content: recognised, it would leave a stump at every append."""
    draw = random.Random(2)
    content = draw.randbytes(2 * MIB)
    observed.save(content)
    for length in (1, 100, 3000, 5000, 40_000, 1):
        content += draw.randbytes(length)
        observed.save(content)
        assert observed.searched <= 20


def test_a_stretch_of_zeros_is_followed_from_its_beginning(observed: Observed) -> None:
    """Its pieces are all alike, and any of them could be taken for the one that was found."""
    draw = random.Random(5)
    before, after = draw.randbytes(MIB), draw.randbytes(MIB)
    observed.save(before + bytes(3 * MIB) + after)
    observed.save(before[:-60_000] + bytes(3 * MIB) + after)
    assert observed.searched <= 8


def test_nothing_in_common(observed: Observed) -> None:
    observed.save(random.Random(3).randbytes(2 * MIB))
    observed.save(random.Random(4).randbytes(2 * MIB))
    assert observed.searched == len(observed.lengths)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_to_a_file(observed: Observed, seed: int) -> None:
    draw = random.Random(seed)
    content = bytearray(b"".join((draw.randbytes(2 * MIB), bytes(MIB), draw.randbytes(MIB))))
    observed.save(bytes(content))
    for _ in range(5):
        for _ in range(draw.randrange(1, 5)):
            at = draw.randrange(len(content))
            length = draw.choice((1, 100, 5000, 64 * KIB, 700 * KIB))
            match draw.randrange(5):
                case 0:
                    content[at : at + length] = draw.randbytes(length)
                case 1:
                    content[at:at] = draw.randbytes(length)
                case 2:
                    content[at : at + length] = b""
                case 3:
                    content[at : at + length] = bytes(length)
                case 4:
                    piece, to = content[at : at + length], draw.randrange(len(content))
                    content[to:to] = piece
        if len(content) < MIB:
            content += draw.randbytes(MIB)
        observed.save(bytes(content))
