"""A check, a restore and a backup at the same time: what one of them does to the index is not what another tells.

Two processes on one index are two LMDB environments, which one process cannot have; so the other process is one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from smallclient import OWNER, SmallClient

from packnback import lmdb_files
from packnback.gc.maintenance import CheckOptions, LocalMaintenance
from packnback.store import check as check_module
from packnback.store import packer
from packnback.store.index import Index
from packnback.store.local import create_local
from packnback.store.repository import LocalRepository

THROW_AWAY = """
import sys
from packnback.store.lmdb_index import LmdbIndex
index = LmdbIndex.open(sys.argv[1], ballast_bytes=0)
index.discard()
with index.read() as txn:
    assert not txn.count("snapshots")
index.close()
"""


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


def test_check_beside_a_backup_finds_nothing_wrong(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that the check is about to compare, the backup has published one more pack."""
    monkeypatch.setattr(packer, "RECORDS_LIMIT", 1)
    client = SmallClient(repository.config.repository_id)
    compare, left = check_module.index_difference, [b"one", b"two", b"three"]
    with repository.session(client.certificate) as session:

        def after_a_pack(live: Index, fresh: Index) -> str | None:
            if left:
                client.store(session, {"file": left.pop()})
                session.flush()
            return compare(live, fresh)

        monkeypatch.setattr(check_module, "index_difference", after_a_pack)
        generation = repository.ports.index.generation
        report = LocalMaintenance(repository).check(CheckOptions()).report
    assert not left and not report.repaired and not report.damage
    assert repository.ports.index.generation == generation


def test_an_index_thrown_away_by_another_process_hides_nothing(repository: LocalRepository) -> None:
    """It throws the index away and has not filled it again: whoever reads or writes meanwhile sees to that."""
    client = SmallClient(repository.config.repository_id)
    files = {"file": b"content"}
    with repository.session(client.certificate) as session:
        client.backup(session, files)
        ids = [sealed.id for sealed in client.objects(files)[0]]
        throw_away(repository)
        assert session.head() is not None
    with repository.reading():
        throw_away(repository)
        assert [info.complete for info in repository.snapshots()] == [True]
        throw_away(repository)
        assert [fetched.problem for fetched in repository.fetch(ids)] == [None] * len(ids)


def test_an_index_thrown_away_during_a_reconcile_is_filled_again(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        client.backup(session, {"file": b"content"})
    listed, thrown = repository.ports.blobs.list, []

    def then_throw_away(directory: str) -> Sequence[str]:
        if not thrown:
            thrown.append(directory)
            throw_away(repository)
        return listed(directory)

    monkeypatch.setattr(repository.ports.blobs, "list", then_throw_away)
    with repository.session(client.certificate) as session:
        assert thrown and session.head() is not None
        client.backup(session, {"file": b"changed"})
    assert [info.receipt.counter for info in repository.snapshots()] == [1, 2]


def throw_away(repository: LocalRepository) -> None:
    directory = f"{repository.location}/index"
    assert Path(lmdb_files.data_path(directory)).exists()
    done: Any = subprocess.run([sys.executable, "-c", THROW_AWAY, directory], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_index_thrown_away_while_a_commit_catches_up(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in a row, the second time in the middle of catching up with the first."""
    client = SmallClient(repository.config.repository_id)
    listed, left = repository.ports.blobs.list, [1]

    def then_throw_away(directory: str) -> Sequence[str]:
        if left and directory == "snapshots":
            left.pop()
            throw_away(repository)
        return listed(directory)

    with repository.session(client.certificate) as session:
        root = client.store(session, {"file": b"content"})
        session.flush()
        head = session.head()
        throw_away(repository)
        monkeypatch.setattr(repository.ports.blobs, "list", then_throw_away)
        session.commit(client.snapshot(root, head))
    assert not left and [info.complete for info in repository.snapshots()] == [True]
