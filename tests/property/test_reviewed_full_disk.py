"""A full disk is left by deleting, so deleting must not need what a full disk does not have."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from smallclient import OWNER, SmallClient

from packnback.errors import DiskFull
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.forget import forget
from packnback.store import packer
from packnback.store.check import check_structure
from packnback.store.local import create_local
from packnback.store.repository import LocalRepository
from packnback.store.sizes import stats


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalRepository]:
    monkeypatch.setattr(packer, "RECORDS_LIMIT", 4)
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


def back_up(repository: LocalRepository, files: dict[str, bytes], name: str = "web1") -> None:
    client = SmallClient(repository.config.repository_id, name)
    with repository.session(client.certificate) as session:
        client.backup(session, files)


def fill_disk(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch, room: int = 0) -> None:
    """From now on there is room for blobs of `room` bytes together, plus what is deleted."""
    blobs, left = repository.ports.blobs, [room]
    publish, delete = blobs.publish, blobs.delete

    def faulty_publish(name: str, buffers: Sequence[Any]) -> None:
        size = sum(len(buffer) for buffer in buffers)
        if size > max(left[0], 4096):
            raise DiskFull(name)
        publish(name, buffers)
        left[0] -= size

    def faulty_delete(name: str) -> None:
        size = blobs.size(name)
        delete(name)
        left[0] += size

    monkeypatch.setattr(blobs, "publish", faulty_publish)
    monkeypatch.setattr(blobs, "delete", faulty_delete)


def test_dead_packs_go_before_anything_is_rewritten(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(5)
    kept = {f"kept{i}": rng.randbytes(30_000) for i in range(4)}
    back_up(repository, kept | {f"gone{i:02}": rng.randbytes(30_000) for i in range(40)})
    back_up(repository, kept)
    forget(repository, [repository.snapshots()[0].name])
    before = stats(repository).bytes_total
    fill_disk(repository, monkeypatch)
    done = compact(repository, CompactOptions(grace_ns=0, max_waste=0.0))
    assert done.packs_deleted > 0 and stats(repository).bytes_total < before / 2
    assert not check_structure(repository).damage


def test_a_disk_that_fills_up_while_rewriting_keeps_what_was_won(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for one new pack at a time: each run gives back more than it takes, and the last one finishes."""
    rng = random.Random(6)
    files = {f"f{i:02}": rng.randbytes(30_000) for i in range(32)}
    back_up(repository, files)
    back_up(repository, {name: files[name] for name in sorted(files)[::2]})
    forget(repository, [repository.snapshots()[0].name])
    fill_disk(repository, monkeypatch, room=170_000)
    full, sizes = 0, [stats(repository).bytes_total]
    for _ in range(12):
        try:
            compact(repository, CompactOptions(grace_ns=0, max_waste=0.0))
            break
        except DiskFull:
            full += 1
            sizes.append(stats(repository).bytes_total)
    else:
        pytest.fail(f"never finished: {sizes}")
    assert full and sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert not check_structure(repository).damage and repository.snapshots()[0].complete


def test_what_a_writer_left_on_a_full_disk_keeps_nobody_from_reading(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer published a pack and found no room for its row; until the ballast goes, there is none."""
    files = {"file": b"content"}
    back_up(repository, files)
    back_up(repository, files | {"more": b"more"})
    index = repository.ports.index
    index.write(lambda txn: [txn.clear(table) for table in ("packs", "pack_names", "snapshots", "objects")])
    write, release, held = index.write, index.release_ballast, [True]

    def no_room(body: Any) -> Any:
        if held[0]:
            raise DiskFull("index")
        return write(body)

    def let_go() -> None:
        held[0] = False
        release()

    monkeypatch.setattr(index, "write", no_room)
    monkeypatch.setattr(index, "release_ballast", let_go)
    with repository.reading():
        first, second = repository.snapshots()
        assert first.complete and second.complete
        assert forget(repository, [first.name])
