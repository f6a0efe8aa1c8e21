"""Deltas inside large files: a change costs what it changed, and the file is whatever the disk says."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from cached_client import CachedClient, settle

from packnback.backup import pieces, read, spool
from packnback.backup.cache import AGES, PIECES
from packnback.backup.cut import PIECE_MAX
from packnback.backup.pieces import join
from packnback.format.entry import Extent
from packnback.ids import KIB, MIB, Kind


@pytest.fixture
def client(tmp_path: Path) -> CachedClient:
    return CachedClient(tmp_path)


def data_bytes(client: CachedClient) -> int:
    return sum(len(r.body) for r in client.repository.opened.records.values() if r.kind == Kind.DATA)


def save(client: CachedClient, content: bytes, name: str = "image") -> int:
    """Store `content` as the file, and return how many bytes of data that added to the repository."""
    before = data_bytes(client)
    (client.source / name).write_bytes(content)
    settle()
    client.save()
    client.check_against_disk()
    return data_bytes(client) - before


def test_join_is_decided_by_contents() -> None:
    draw = random.Random(1)
    lengths = [draw.randrange(2048, 20_000) for _ in range(1000)]
    joined = list(join(lengths, 8))
    assert sum(joined) == sum(lengths)
    assert 80 < len(joined) < 200
    assert joined[-50:] == list(join(lengths[7:], 8))[-50:], "what comes before does not matter for long"
    assert join(lengths, 1) is lengths


@pytest.mark.parametrize("step", [1, 8])
def test_overwritten_inserted_removed_moved(client: CachedClient, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    if step > 1:
        monkeypatch.setattr(pieces, "COARSE_FROM", 0)
        monkeypatch.setattr("packnback.backup.remember.COARSE_FROM", 0)
    draw = random.Random(1)
    content = draw.randbytes(6 * MIB)
    assert save(client, content) > 6 * MIB
    plain = client.entry("image")
    assert not plain.check, "whole chunks need none"
    few = 200 * KIB * step
    changed = content[: 3 * MIB] + draw.randbytes(4096) + content[3 * MIB + 4096 :]
    assert save(client, changed) < few
    assert len(client.entry("image").check) == 8
    changed = changed[:MIB] + b"inserted" + changed[MIB:]
    assert save(client, changed) < few
    changed = changed[: 4 * MIB] + changed[4 * MIB + 100_000 :]
    assert save(client, changed) < few
    changed = changed[3 * MIB :] + changed[: 3 * MIB]
    assert save(client, changed) < few
    assert save(client, changed + changed[MIB : 3 * MIB]) < few
    assert save(client, changed[:MIB]) < few
    assert save(client, content) < 7 * MIB


def test_an_unchanged_stretch_is_one_extent(client: CachedClient) -> None:
    draw = random.Random(4)
    content = draw.randbytes(5 * MIB)
    save(client, content)
    chunks = len(client.entry("image").extents)
    save(client, content[:2_500_000] + b"!" + content[2_500_001:])
    extents = client.entry("image").extents
    assert chunks < len(extents) <= chunks + 2
    for one, two in pairwise(extents):
        assert one.id != two.id or one.offset + one.length != two.offset


def test_repeated_content_does_not_tear_runs_apart(client: CachedClient) -> None:
    block = random.Random(5).randbytes(64 * KIB)
    content = b"".join(block + random.Random(i).randbytes(64 * KIB) for i in range(30))
    save(client, content)
    chunks = len(client.entry("image").extents)
    save(client, content + b"tail")
    assert len(client.entry("image").extents) <= chunks + 2


def test_a_sparse_file_that_changes(client: CachedClient) -> None:
    path = client.source / "sparse"
    draw = random.Random(6)
    with open(path, "wb") as file:
        for i in range(5):
            file.seek(i * 4 * MIB)
            file.write(draw.randbytes(700 * KIB))
        file.truncate(30 * MIB)
    settle()
    client.save()
    before = data_bytes(client)
    with open(path, "r+b") as file:
        file.seek(8 * MIB + 50_000)
        file.write(b"changed")
        file.seek(26 * MIB)
        file.write(b"where there was nothing")
    settle()
    client.save()
    client.check_against_disk()
    entry = client.entry("sparse")
    assert len(entry.check) == 8
    assert sum(e.length for e in entry.extents if e.id is None) > 20 * MIB
    assert data_bytes(client) - before < 200 * KIB


def test_windows_that_do_not_reach_over_the_file(client: CachedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SEGMENT_PIECES", 40)
    monkeypatch.setattr(pieces, "RUN_PIECES_MOST", 30)
    monkeypatch.setattr(pieces, "_AHEAD", 2)
    monkeypatch.setattr(pieces, "_BEHIND", 1)
    monkeypatch.setattr(pieces, "_STRIDE", 1)
    monkeypatch.setattr(pieces, "SMALL_OBJECT", 0)
    monkeypatch.setattr("packnback.backup.cut.CHUNK_MIN", 32 * KIB)
    monkeypatch.setattr("packnback.backup.cut.CHUNK_MAX", 64 * KIB)
    draw = random.Random(7)
    content = draw.randbytes(8 * MIB)
    save(client, content)
    changed = bytearray(content)
    for at in range(0, len(changed), 512 * KIB):
        changed[at : at + 100] = draw.randbytes(100)
    assert save(client, bytes(changed)) < 16 * (3 * PIECE_MAX)
    changed[2 * MIB : 2 * MIB] = draw.randbytes(300 * KIB)
    assert save(client, bytes(changed)) < 600 * KIB
    held: list[int] = []
    real = pieces.OldPieceList._move

    def move(self: pieces.OldPieceList) -> None:
        real(self)
        held.append(sum(len(segment.digests) for segment in self._segments.values()))
        assert len(self._where) <= 2 * held[-1]

    monkeypatch.setattr(pieces.OldPieceList, "_move", move)
    save(client, bytes(changed) + b"!")
    assert len(held) > 10
    assert max(held) <= 8 * 40, "the window is bounded"


def test_objects_that_are_gone_are_not_pointed_to(client: CachedClient) -> None:
    draw = random.Random(8)
    content = draw.randbytes(5 * MIB)
    save(client, content)
    records = client.repository.opened.records
    extents = client.entry("image").extents
    records.clear()
    assert save(client, content[:100] + b"!" + content[101:]) > 5 * MIB
    assert client.entry("image").extents[1] == extents[1]


def test_a_file_that_shrinks_while_it_is_read(client: CachedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(9)
    content = draw.randbytes(5 * MIB)
    save(client, content)
    path = client.source / "image"
    path.write_bytes(content + b"longer")
    settle()
    real, calls = os.preadv, []

    def shrink(fd: int, buffers: list[memoryview], at: int) -> int:
        calls.append(at)
        if len(calls) == 3:
            os.truncate(path, 3 * MIB)
        return real(fd, buffers, at)

    with monkeypatch.context() as patch:
        patch.setattr(read.os, "preadv", shrink)
        result = client.save()
    assert result.unsteady == [os.fsencode(path)]
    assert client.entry("image").size == 3 * MIB
    client.save()
    client.check_against_disk()


def test_what_a_wrong_row_could_do_is_noticed_by_the_check(client: CachedClient) -> None:
    """Suppose a row lied in spite of its check: the entry's check does not fit then, and restore says so."""
    draw = random.Random(10)
    content = draw.randbytes(4 * MIB)
    save(client, content)
    real = pieces.OldPieceList.find
    lies: list[Extent] = []

    def lie(self: pieces.OldPieceList, digest: bytes, length: int) -> Extent | None:
        found = real(self, digest, length)
        if found is not None and not lies and found.offset >= length:
            lies.append(found)
            return Extent(found.id, found.offset - length, length)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces.OldPieceList, "find", lie)
        (client.source / "image").write_bytes(content + b"!")
        settle()
        client.save()
    assert lies
    with pytest.raises(AssertionError):
        client.tree()


def test_small_gathered_objects_cannot_be_guessed(client: CachedClient) -> None:
    content = random.Random(11).randbytes(2 * MIB)
    save(client, content)
    sizes = []
    for name in ("c", "d"):
        save(client, content, name)
        sizes.append(save(client, content + b"secret", name))
    assert all(sizes), "the same few bytes become different objects"


def rounds(client: CachedClient, size: int, count: int, changes: int) -> tuple[int, int]:
    """(bytes of data that the last snapshot needs, its extents) after `count` rounds of random changes."""
    draw = random.Random(12)
    content = bytearray().join(draw.randbytes(MIB) for _ in range(size // MIB))  # it cannot draw 256 MiB at once
    for number in range(count):
        for _ in range(changes):
            at = draw.randrange(len(content) - 8192)
            content[at : at + 4096] = draw.randbytes(4096)
        (client.source / "image").write_bytes(content)
        settle()
        client.save()
        if number % 10 == 9:
            client.check_against_disk()
    records = client.repository.opened.records
    extents = client.extents("image")
    return sum(len(records[i].body) for i in {e.id for e in extents if e.id is not None}), len(extents)


def test_fragmentation_is_bounded(client: CachedClient) -> None:
    """After 100 rounds that rewrite the file twice over, it needs at most about twice its size."""
    size = 3 * MIB
    needed, extents = rounds(client, size, 100, 8)
    assert needed < 2.3 * size
    assert extents < size // (2 * KIB)


@pytest.mark.nightly
def test_fragmentation_is_bounded_at_length(client: CachedClient) -> None:
    size = 256 * MIB
    needed, _ = rounds(client, size, 100, 64)
    assert needed < 2.3 * size


def test_many_small_objects_are_put_together(client: CachedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SMALL_OBJECTS_MOST", 5)
    content = bytearray(random.Random(13).randbytes(3 * MIB))
    most = 0
    for i in range(24):
        content[i * 100_000 : i * 100_000 + 10] = os.urandom(10)
        save(client, bytes(content))
        records = client.repository.opened.records
        ids = {e.id for e in client.entry("image").extents if e.id is not None}
        most = max(most, sum(len(records[i].body) < 70 * KIB for i in ids))
    assert most <= 8


def test_a_file_that_left_most_of_its_objects_is_looked_at_once_more(client: CachedClient) -> None:
    content = random.Random(14).randbytes(8 * MIB)
    save(client, content)
    # A fifth of each object stays: pieces from here and there.
    parts = [content[at : at + 100 * KIB] for at in range(0, 8 * MIB, 512 * KIB)]
    save(client, b"".join(parts))
    old = {e.id for e in client.entry("image").extents}
    client.save()
    assert client.counters.files_opened == 1
    client.check_against_disk()
    assert old - {e.id for e in client.entry("image").extents}
    client.save()
    assert client.counters.files_opened == 0


def test_piece_lists_are_bounded(client: CachedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "PIECES_LIMIT", 8_000)
    draw = random.Random(15)
    for i in range(8):
        save(client, draw.randbytes(600 * KIB), f"file{i}")
    rows = client.rows()
    held = sum(len(value) for table, key, value in rows if table == PIECES and len(key) > 16)
    assert 0 < held <= 8_000
    assert sum(table == AGES for table, _, _ in rows) == sum(t == PIECES and len(k) == 16 for t, k, _ in rows)
    content = (client.source / "file7").read_bytes()
    assert save(client, content[:300_000] + b"!" + content[300_001:], "file7") < 100 * KIB, "the newest is there"
