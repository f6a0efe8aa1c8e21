"""Cutting: bounds, independence of how a file is read, and boundaries that must never move."""

from __future__ import annotations

from importlib.metadata import version
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packnback.backup.cut import (
    CHUNK_MAX,
    CHUNK_MIN,
    FILE_MIN,
    PENDING_MAX,
    PIECE_MAX,
    PIECE_MIN,
    Chunk,
    Cutter,
)
from packnback.ids import MIB

KEY = bytes(range(32))


def cut(data: bytes, key: bytes = KEY) -> list[Chunk]:
    return Cutter(key).feed(memoryview(data), final=True)


def cut_in_steps(data: bytes, steps: list[int], key: bytes = KEY) -> list[Chunk]:
    """Feed ever more of `data`, as a reader does that cannot hold all of it."""
    cutter, found, start, end = Cutter(key), [], 0, 0
    turn = 0
    while end < len(data):
        end = min(end + steps[turn % len(steps)], len(data))
        turn += 1
        chunks = cutter.feed(memoryview(data)[start:end])
        found += [Chunk(start + c.offset, c.length, c.pieces) for c in chunks]
        start += sum(c.length for c in chunks)
        assert end - start < PENDING_MAX + max(steps)
    found += [Chunk(start + c.offset, c.length, c.pieces) for c in cutter.feed(memoryview(data)[start:], final=True)]
    return found


NOISE = Random(20240501).randbytes(12 * MIB)
ZEROS = bytes(9 * MIB + 12345)
TEXT = b"".join(b"%d: the quick brown fox\n" % i for i in range(300_000))


def test_golden_boundaries_of_this_very_fastcdc() -> None:
    assert version("fastcdc") == "1.7.0", "another version may cut elsewhere: every large file would be stored anew"
    assert [c.length for c in cut(NOISE)] == GOLDEN_NOISE
    assert [c.length for c in cut(TEXT)] == GOLDEN_TEXT
    assert cut(NOISE)[0].pieces[:8] == GOLDEN_PIECES


@pytest.mark.parametrize("data", [NOISE, ZEROS, TEXT], ids=["noise", "zeros", "text"])
def test_bounds(data: bytes) -> None:
    chunks = cut(data)
    assert [c.offset for c in chunks] == [sum(c.length for c in chunks[:i]) for i in range(len(chunks))]
    assert sum(c.length for c in chunks) == len(data)
    assert all(CHUNK_MIN <= c.length <= CHUNK_MAX for c in chunks[:-1])
    assert CHUNK_MIN <= chunks[-1].length <= CHUNK_MAX + CHUNK_MIN
    for chunk in chunks:
        assert sum(chunk.pieces) == chunk.length
        assert all(PIECE_MIN <= p <= PIECE_MAX for p in chunk.pieces[:-1])


def test_average_is_about_a_mebibyte() -> None:
    data = Random(7).randbytes(64 * MIB)
    assert 0.6 * MIB < len(data) / len(cut(data)) < 1.6 * MIB


@given(
    data=st.sampled_from([NOISE, ZEROS, TEXT]),
    length=st.integers(0, 9 * MIB),
    steps=st.lists(st.integers(30_000, 3 * MIB), min_size=1, max_size=5),
)
def test_how_a_file_is_read_does_not_matter(data: bytes, length: int, steps: list[int]) -> None:
    assert cut_in_steps(data[:length], steps) == cut(data[:length])


def test_tiny_steps_do_not_matter_either() -> None:
    data = NOISE[: 1 * MIB]
    assert cut_in_steps(data, [1, 63, 4096]) == cut(data)


@pytest.mark.parametrize("extra", [1, CHUNK_MIN - 1, CHUNK_MIN])
def test_a_tail_below_the_minimum_joins_the_chunk_before_it(extra: int) -> None:
    first = cut(NOISE)[0].length
    lengths = [c.length for c in cut(NOISE[: first + extra])]
    assert lengths == ([first + extra] if extra < CHUNK_MIN else [first, extra])


@pytest.mark.parametrize("length", [1, 100, CHUNK_MIN - 1, FILE_MIN])
def test_a_short_file_is_one_chunk_or_two(length: int) -> None:
    assert sum(c.length for c in cut(NOISE[:length])) == length


def test_an_empty_file_has_no_chunks() -> None:
    assert cut(b"") == []


def test_an_insertion_moves_few_boundaries() -> None:
    before = {NOISE[c.offset : c.offset + c.length] for c in cut(NOISE)}
    changed = NOISE[: 5 * MIB] + b"inserted" + NOISE[5 * MIB :]
    after = {changed[c.offset : c.offset + c.length] for c in cut(changed)}
    assert len(after - before) <= 3


def test_another_key_cuts_elsewhere_among_the_same_pieces() -> None:
    mine, other = cut(NOISE), cut(NOISE, bytes(32))
    assert {c.offset for c in mine} & {c.offset for c in other} == {0}
    assert [p for c in mine for p in c.pieces] == [p for c in other for p in c.pieces]


GOLDEN_NOISE = [
    4168669,
    721532,
    920152,
    295067,
    472595,
    874810,
    372382,
    583809,
    475255,
    369493,
    487591,
    1685064,
    1156493,
]
GOLDEN_TEXT = [768116, 419646, 1810316, 2104782, 699065, 959663, 1527302]
GOLDEN_PIECES = [6655, 14503, 4666, 4823, 9395, 7203, 14566, 9187]
