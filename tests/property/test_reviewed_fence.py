"""Other machines: sessions on a mounted repository, and a compaction on the machine that has the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from smallclient import OWNER, SmallClient

from packnback.errors import Locked, ObjectMissing
from packnback.gc import exclusive
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.forget import forget
from packnback.store.lmdb_index import LmdbIndex
from packnback.store.local import create_local, open_local
from packnback.store.lock import FileLocks
from packnback.store.repository import LocalRepository

FLOCK = struct.Struct("hhqqi4x")


def lock_all(path: Path, kind: int) -> int:
    """What an NFS server does for a client that holds a flock: a byte-range lock on everything; a descriptor.

    By another open file description, as lockd's is.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    return fd


def test_a_session_on_another_machine_keeps_compaction_out(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path)
    far = lock_all(tmp_path / "lock", fcntl.F_RDLCK)
    with pytest.raises(Locked) as told:
        locks.exclusive(0)
    assert told.value.holder == "another process, or another machine"
    locks.shared(0).release()
    os.close(far)
    locks.exclusive(0).release()


def test_compaction_keeps_sessions_on_other_machines_out(tmp_path: Path) -> None:
    held = FileLocks(tmp_path).exclusive(0)
    with pytest.raises(OSError) as told:
        lock_all(tmp_path / "lock", fcntl.F_RDLCK)
    assert told.value.errno in (errno.EAGAIN, errno.EACCES)
    held.release()
    os.close(lock_all(tmp_path / "lock", fcntl.F_RDLCK))


def test_a_local_session_and_one_elsewhere_go_together(tmp_path: Path) -> None:
    far = lock_all(tmp_path / "lock", fcntl.F_RDLCK)
    FileLocks(tmp_path).shared(0).release()
    os.close(far)


@pytest.mark.parametrize("when", ["before the snapshot", "after the snapshot"])
def test_a_snapshot_that_lost_its_objects_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Somebody whom no lock holds back deletes what a session was told that it need not store.

    The session has an index of its own, as on a machine that has mounted the repository.
    """
    made = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    index = LmdbIndex.open(str(tmp_path / "index"), ballast_bytes=0)
    away = LocalRepository(made.location, made.config, replace(made.ports, fenced=False, index=index))
    rng = random.Random(7)
    files = {f"old{i}": rng.randbytes(5000) for i in range(6)}
    client = SmallClient(made.config.repository_id)
    with made.session(client.certificate) as session:
        client.backup(session, files)
    packs = list((tmp_path / "repo" / "packs").glob("*/*.pack"))

    def delete() -> None:
        for path in packs:
            path.unlink(missing_ok=True)

    with away.session(client.certificate) as session:
        root = client.store(session, files)
        assert session.bytes_published == 0
        publish = away.ports.blobs.publish

        def then_delete(name: str, buffers: Any) -> None:
            publish(name, buffers)
            delete()

        if when == "before the snapshot":
            delete()
        else:
            monkeypatch.setattr(away.ports.blobs, "publish", then_delete)
        with pytest.raises(ObjectMissing):
            session.commit(client.snapshot(root, session.head()))
    monkeypatch.undo()
    with away.session(client.certificate) as session:
        client.backup(session, files)
    assert all(info.complete for info in away.snapshots())
    for opened in (away, made):
        opened.close()


def test_a_lock_file_that_was_removed_under_a_session_does_not_cost_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes it for a stale lock and compacts: with a new lock file, nothing keeps him out."""
    repository = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    other = open_local(str(tmp_path / "repo"))
    rng = random.Random(9)
    files = {f"old{i}": rng.randbytes(5000) for i in range(6)}
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        client.backup(session, files)
        client.backup(session, {"new": b"new"})
    forget(repository, [repository.snapshots()[0].name])
    with repository.session(client.certificate) as session:
        root = client.store(session, files)
        with pytest.raises(Locked):
            compact(other, CompactOptions(grace_ns=0))
        (tmp_path / "repo" / "lock").unlink()
        gone = []

        def unlinked_by_a_compaction(name: str, buffers: Any) -> None:
            """What it has decided to delete before our snapshot was there."""
            publish(name, buffers)
            gone.extend(path for path in (tmp_path / "repo" / "packs").glob("*/*.pack"))
            for path in gone:
                path.unlink()

        publish = repository.ports.blobs.publish
        monkeypatch.setattr(repository.ports.blobs, "publish", unlinked_by_a_compaction)
        with pytest.raises(ObjectMissing):
            session.commit(client.snapshot(root, session.head()))
        assert gone
    for opened in (other, repository):
        opened.close()


def test_compaction_stops_at_a_snapshot_that_arrived_in_spite_of_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    index = LmdbIndex.open(str(tmp_path / "index"), ballast_bytes=0)
    locks = FileLocks(tmp_path)
    away = LocalRepository(here.location, here.config, replace(here.ports, fenced=False, index=index, locks=locks))
    rng = random.Random(8)
    files = {f"old{i}": rng.randbytes(5000) for i in range(6)}
    client = SmallClient(here.config.repository_id)
    with here.session(client.certificate) as session:
        client.backup(session, files)
        client.backup(session, {"new": b"new"})
    forget(here, [here.snapshots()[0].name])
    confirm = exclusive.confirm_counts

    def and_a_backup(repository: LocalRepository) -> None:
        confirm(repository)
        with away.session(client.certificate) as session:
            client.backup(session, files)

    monkeypatch.setattr(exclusive, "confirm_counts", and_a_backup)
    with pytest.raises(Locked):
        compact(here, CompactOptions(grace_ns=0, max_waste=0.0))
    with here.reading():
        assert here.snapshots()[-1].complete
    for opened in (away, here):
        opened.close()
