"""Recognised pieces: the same cuts as without memory, for a fraction of the searching."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from cached_client import KEY, CachedClient, settle

from packnback.backup import cache_rows, cut, pieces, remember
from packnback.backup.cache import PIECES
from packnback.backup.cache_rows import split_ids
from packnback.backup.cut import PIECE_MIN, Cutter
from packnback.backup.pieces import NewPieceList, OldPieceList, join
from packnback.backup.recognise import Recogniser
from packnback.backup.reuse import OldObject
from packnback.backup.spool import Spool
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
        step = remember.COARSE_STEP if remember.COARSE_FROM == 0 else 1
        assert self.lengths == [piece for chunk in chunks for piece in join(chunk.pieces, step)]


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


def test_the_end_of_a_file_is_known_after_a_crash(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies when the segments of a file that became shorter are written, and its facts are not."""
    monkeypatch.setattr(pieces, "SEGMENT_PIECES", 1200)
    monkeypatch.setattr(pieces, "RUN_PIECES_MOST", 1100)
    draw = random.Random(9)
    content = draw.randbytes(4 * MIB)
    observed.save(content)
    lengths = observed.lengths
    cut_off = next(i for i, length in enumerate(lengths) if i > 100 and length > 3 * PIECE_MIN)
    shorter = content[: sum(lengths[:cut_off]) + PIECE_MIN + 100]
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "pieces", lambda *_: None)
        observed.save(shorter)
    observed.save(shorter + content[len(shorter) : MIB + 300 * KIB] + draw.randbytes(MIB))
    assert observed.searched < len(observed.lengths)


def piece_of_4_kib(draw: random.Random) -> bytes:
    """Bytes that are one piece wherever they stand."""
    while True:
        data = draw.randbytes(64 * KIB)
        length = Cutter(KEY.chunk_key).feed(memoryview(data), final=True)[0].pieces[0]
        if length < 4400:
            return data[:length]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all pieces that were hashed by themselves."""
    found: list[int] = []
    real = NewPieceList.digest

    def note(new: NewPieceList, data: memoryview) -> bytes:
        found.append(len(data))
        return real(new, data)

    monkeypatch.setattr(NewPieceList, "digest", note)
    return found


def test_chunks_in_which_nothing_changed_are_recognised_as_a_whole(observed: Observed, hashed: list[int]) -> None:
    content = bytearray(random.Random(9).randbytes(40 * MIB))
    observed.save(bytes(content))
    for _ in range(3):  # what is recognised as a whole is remembered so that the next run recognises it, too
        content[20 * MIB] ^= 1
        hashed.clear()
        observed.save(bytes(content))
        assert sum(hashed) < 15 * MIB, "the chunk that changed, and the one after it; both can be long"
        assert observed.searched < 20


def test_so_are_those_of_a_huge_file(
    observed: Observed, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packnback.backup.remember.COARSE_FROM", 0)
    content = bytearray(random.Random(14).randbytes(40 * MIB))
    observed.save(bytes(content))
    content[20 * MIB] ^= 1
    hashed.clear()
    observed.save(bytes(content))
    assert sum(hashed) < 15 * MIB


def test_a_chunk_whose_object_is_gone_or_poor_is_not_taken(
    observed: Observed, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random.Random(10).randbytes(6 * MIB)
    observed.save(content)
    real = pieces._segment

    def all_missing(value: Sequence[Any], _: object, first: int) -> Any:
        return real(value, set(split_ids(value[0])), first)

    monkeypatch.setattr(pieces, "_segment", all_missing)
    observed.save(content + b"x")
    assert sum(hashed) > len(content)


@pytest.mark.parametrize("rest", [1, 5000, 100 * KIB, 255 * KIB, 300 * KIB])
def test_a_file_that_ends_soon_after_a_whole_chunk(observed: Observed, rest: int) -> None:
    content = random.Random(11).randbytes(12 * MIB)
    observed.save(content)
    ends = list(accumulate(chunk.length for chunk in Cutter(KEY.chunk_key).feed(memoryview(content), final=True)))
    observed.save(content[: ends[2] + rest])
    observed.save(content[: ends[1]])
    observed.save(content[: ends[2]] + content[:rest])
    observed.save(content)


def test_an_object_that_claims_to_be_endless_is_not_waited_for(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random.Random(12).randbytes(6 * MIB)
    observed.save(content)
    real = pieces.OldPieceList.object_ahead

    def endless(old: OldPieceList) -> OldObject | None:
        found = real(old)
        return found and found._replace(size=1 << 31)

    monkeypatch.setattr(pieces.OldPieceList, "object_ahead", endless)
    observed.save(content + b"x")


def test_strays_do_not_move_the_window(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of a file system and the like stand in many places, and do not tell where the file goes on."""
    names = {"SEGMENT_PIECES": 160, "RUN_PIECES_MOST": 130, "_AHEAD": 1, "_BEHIND": 1, "_STRIDE": 1}
    for name, value in names.items():
        monkeypatch.setattr(pieces, name, value)
    monkeypatch.setattr(cut, "CHUNK_MIN", 128 * KIB)
    monkeypatch.setattr(cut, "CHUNK_MAX", 512 * KIB)
    draw = random.Random(13)
    stray = b"".join(piece_of_4_kib(draw) for _ in range(4))
    content = b"".join(draw.randbytes(500 * KIB) + stray for _ in range(48))
    observed.save(content)
    segments = sum(1 for table, _, _ in observed.client.rows() if table == PIECES)
    read = 0
    real = pieces.OldPieceList._read

    def count(old: OldPieceList, wanted: Sequence[int]) -> None:
        nonlocal read
        read += len(wanted)
        real(old, wanted)

    monkeypatch.setattr(pieces.OldPieceList, "_read", count)
    # Something new before each of them: then they are looked up, and may be found anywhere.
    observed.save(content.replace(stray, b"new" + draw.randbytes(9000) + stray))
    assert segments > 12
    assert read <= segments + 4


def test_a_pattern_is_followed_from_segment_to_segment(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are not full: what comes after the last piece of one is the first piece of the next."""
    monkeypatch.setattr(pieces, "SEGMENT_PIECES", 1200)
    monkeypatch.setattr(pieces, "RUN_PIECES_MOST", 1100)
    draw = random.Random(6)
    content = (piece_of_4_kib(draw) + piece_of_4_kib(draw)) * 600
    observed.save(content)
    observed.save(content + b"x")
    assert observed.searched <= 4


def test_a_wrong_guess_is_not_repeated_at_once(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(7)
    noise, piece = draw.randbytes(MIB), piece_of_4_kib(draw)
    observed.save(noise + piece * 2 + bytes(600 * KIB))
    hashed = 0
    real = NewPieceList.digest

    def count(new: NewPieceList, data: memoryview) -> bytes:
        nonlocal hashed
        hashed += len(data)
        return real(new, data)

    monkeypatch.setattr(NewPieceList, "digest", count)
    content = noise + piece * 1000 + bytes(600 * KIB)
    observed.save(content)
    assert len(piece) * 1000 <= hashed < 1.1 * len(content)


def test_pieces_by_another_rule_are_not_recognised(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be handed on from snapshot to snapshot, and other files cut otherwise for ever."""
    content = random.Random(8).randbytes(2 * MIB)
    with monkeypatch.context() as patch:
        patch.setattr(cut, "PIECE_MIN", 2 * KIB)
        patch.setattr(cache_rows, "CUT_RULE", "of old")
        observed.save(content)
    observed.save(content + b"x")
    assert observed.searched == len(observed.lengths)


def test_sizes_are_known_after_the_window_has_moved(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "SEGMENT_PIECES": 160,
        "RUN_PIECES_MOST": 130,
        "_AHEAD": 4,
        "_BEHIND": 1,
        "_STRIDE": 1,
        "SMALL_OBJECT": 0,
    }
    for name, value in names.items():
        monkeypatch.setattr(pieces, name, value)
    monkeypatch.setattr(cut, "CHUNK_MIN", 128 * KIB)
    monkeypatch.setattr(cut, "CHUNK_MAX", 512 * KIB)
    sizes = []
    real = OldPieceList.size_of

    def note(old: OldPieceList, object_id: bytes) -> int:
        sizes.append(real(old, object_id))
        return sizes[-1]

    monkeypatch.setattr(OldPieceList, "size_of", note)
    content = random.Random(7).randbytes(24 * MIB)
    observed.save(content)
    observed.save(content[: 6 * MIB] + content[9 * MIB : 9 * MIB + 300_000] + content[6 * MIB :])
    assert sizes and all(sizes)


def test_nothing_in_common(observed: Observed) -> None:
    observed.save(random.Random(3).randbytes(2 * MIB))
    observed.save(random.Random(4).randbytes(2 * MIB))
    assert observed.searched == len(observed.lengths)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("joined", [False, True])
def test_whatever_happens_to_a_file(
    observed: Observed, monkeypatch: pytest.MonkeyPatch, seed: int, joined: bool
) -> None:
    if joined:
        monkeypatch.setattr("packnback.backup.remember.COARSE_FROM", 0)
    draw = random.Random(seed)
    content = bytearray(b"".join((draw.randbytes(4 * MIB), bytes(MIB), draw.randbytes(2 * MIB))))
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
