"""Large files: the same chunks as from one big buffer, in lent buffers that go round."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packnback.backup.buffers import Buffer, PlaintextBudget
from packnback.backup.cut import Cutter
from packnback.backup.stream import ChunkStream, Read
from packnback.backup.ticket import Ticket
from packnback.ids import KIB, MIB

KEY = bytes(32)
NOISE = Random(11).randbytes(30 * MIB)


class CopyingSink:
    """Takes chunks by copy, a few late, so that a buffer that is lent again too early is noticed."""

    def __init__(self, late: int) -> None:
        self.budget = PlaintextBudget(64 * MIB)
        self.chunks: list[bytes] = []
        self._late = late
        self._waiting: list[tuple[memoryview, Buffer | None]] = []

    def acquire_buffer(self) -> Buffer:
        buffer = self.budget.acquire()
        while buffer is None:
            self._take()
            buffer = self.budget.acquire()
        return buffer

    def release_buffer(self, buffer: Buffer) -> None:
        self.budget.release(buffer)

    def wait_for(self, ticket: Ticket) -> None:
        raise AssertionError("nobody waits")

    def add_data(self, plaintext: memoryview, *, lease: Buffer | None = None) -> Ticket:
        assert lease is not None
        lease.users += 1
        self._waiting.append((plaintext, lease))
        if len(self._waiting) > self._late:
            self._take()
        return Ticket(self)

    def _take(self) -> None:
        plaintext, lease = self._waiting.pop(0)
        self.chunks.append(bytes(plaintext))
        assert lease is not None
        self.budget.release(lease)

    def finish(self) -> list[bytes]:
        while self._waiting:
            self._take()
        return self.chunks


def reader(data: bytes, most: int) -> Read:
    at = 0

    def read(into: memoryview) -> int:
        nonlocal at
        part = data[at : at + min(most, len(into))]
        into[: len(part)] = part
        at += len(part)
        return len(part)

    return read


def expected(data: bytes) -> list[bytes]:
    chunks = Cutter(KEY).feed(memoryview(data), final=True)
    return [data[c.offset : c.offset + c.length] for c in chunks]


@given(
    lengths=st.lists(st.one_of(st.integers(0, 3 * MIB), st.integers(0, 30 * MIB)), min_size=1, max_size=6),
    most=st.integers(100_000, 2 * MIB),
    late=st.integers(0, 20),
)
def test_files_are_cut_as_if_in_one_piece(lengths: list[int], most: int, late: int) -> None:
    sink = CopyingSink(late)
    stream = ChunkStream(sink, KEY)
    for length in lengths:
        stored = list(stream.store(reader(NOISE[:length], most)))
        assert sum(place.length for place, _ in stored) == length
        assert all(sum(pieces) == place.length for place, pieces in stored)
    stream.close()
    assert sink.finish() == [chunk for length in lengths for chunk in expected(NOISE[:length])]
    assert sink.budget.peak <= 64 * MIB


def test_files_share_buffers() -> None:
    sink = CopyingSink(late=1000)
    stream = ChunkStream(sink, KEY)
    for _ in range(20):
        list(stream.store(reader(NOISE[: 600 * KIB], 600 * KIB)))
    stream.close()
    assert sink.budget.peak <= 16 * MIB, "twenty files of 0.6 MiB fit into two buffers of 8 MiB"


def test_a_file_that_cannot_be_read_does_not_harm_the_next() -> None:
    counts = iter([1000])

    def broken(into: memoryview) -> int:
        into[:1000] = bytes(1000)
        count = next(counts, None)
        if count is None:
            raise OSError("gone")
        return count

    sink = CopyingSink(late=0)
    stream = ChunkStream(sink, KEY)
    with pytest.raises(OSError, match="gone"):
        list(stream.store(broken))
    list(stream.store(reader(NOISE[: 3 * MIB], MIB)))
    stream.close()
    assert sink.finish() == expected(NOISE[: 3 * MIB])


def test_all_buffers_come_back() -> None:
    sink = CopyingSink(late=5)
    stream = ChunkStream(sink, KEY)
    list(stream.store(reader(NOISE, MIB)))
    stream.close()
    sink.finish()
    idle = sink.budget.held
    assert idle
    assert sink.budget.charge(64 * MIB), "idle buffers give way to other plaintexts"
    assert not sink.budget.charge(1)
