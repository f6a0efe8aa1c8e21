"""The engine on a real file system and real LMDB: what a session does, what reconcile makes of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar, cast

import pytest
from smallclient import OWNER, SmallClient

from packnback.errors import DiskFull, FormatDamage, IndexDamage, NotAllowed, ObjectMissing, Refused, StaleSequence
from packnback.format.record import parse
from packnback.format.snapshot import marker_name
from packnback.gc.maintenance import LocalMaintenance
from packnback.gc.whatif import what_if
from packnback.ids import Kind
from packnback.store import lmdb_index
from packnback.store.check import index_difference
from packnback.store.index import Index, WriteTxn
from packnback.store.local import create_local, open_local
from packnback.store.reconcile import reconcile
from packnback.store.repository import LocalRepository

T = TypeVar("T")
FILES = {f"file{i}": bytes([i]) * (1000 * i) for i in range(11)}


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


def test_backup_is_listed_and_every_object_can_be_fetched(repository: LocalRepository) -> None:
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        done = client.backup(session, FILES)
        assert session.bytes_published > 0
    [info] = repository.snapshots()
    assert (info.id, info.client, info.sequence, info.complete) == (done.id, "web1", 1, True)
    objects, root = client.objects(FILES)
    wanted = [o.id for o in objects] + [root.id]
    fetched = {f.id: f for f in repository.fetch(wanted)}
    assert set(fetched) == set(wanted)
    assert all(f.problem is None and parse(f.record).id == f.id for f in fetched.values())


def test_second_backup_stores_only_what_changed(repository: LocalRepository) -> None:
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        client.backup(session, FILES)
    with repository.session(client.certificate) as session:
        before = session.bytes_published
        client.backup(session, FILES | {"file3": b"changed"})
        assert session.bytes_published - before < 60_000
    assert [s.sequence for s in repository.snapshots()] == [1, 2]


def test_index_after_sessions_equals_one_built_from_nothing(repository: LocalRepository, tmp_path: Path) -> None:
    client = SmallClient(repository.config.repository_id)
    for i in range(4):
        with repository.session(client.certificate) as session:
            client.backup(session, FILES | {"extra": bytes([i]) * 500})
    with repository.ports.scratch_index() as fresh:
        reconcile(repository.truth, fresh)
        assert index_difference(repository.ports.index, fresh) is None
    repository.close()
    shutil.rmtree(tmp_path / "repo" / "index")
    again = open_local(repository.location)
    with again.reading():
        assert len(again.snapshots()) == 4
    assert again.ports.watch.counters.records_read == 0
    again.close()


def test_what_a_session_has_published_when_transactions_run_twice(
    repository: LocalRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do when the map has to grow, or another process has thrown the index away."""
    index, client = repository.ports.index, SmallClient(repository.config.repository_id)
    real, ran = index.write, []

    def write(body: Callable[[WriteTxn], T]) -> T:
        what_if(cast("Index", SimpleNamespace(write=real)), body)
        ran.append(body)
        return real(body)

    monkeypatch.setattr(index, "write", write)
    with repository.session(client.certificate) as session:
        client.backup(session, FILES)
        assert ran
        files = [*(tmp_path / "repo/packs").glob("*/*"), *(tmp_path / "repo/snapshots").iterdir()]
        assert session.bytes_published == sum(file.stat().st_size for file in files)
    [info] = repository.snapshots()
    with repository.reading():
        assert len(LocalMaintenance(repository).forget([info.name], force=True)) == 1
        assert LocalMaintenance(repository).recover([info.name]) == [info.name]


def test_a_page_before_its_data_is_refused(repository: LocalRepository) -> None:
    client = SmallClient(repository.config.repository_id)
    objects, root = client.objects(FILES)
    page = next(o for o in objects if o.level == 1)
    with repository.session(client.certificate) as session:
        for object_class in (1, 2):
            session.put([client.envelope(object_class)[0]])
        with pytest.raises(ObjectMissing):
            session.put([page.record])
        with pytest.raises(ObjectMissing):
            session.commit(client.snapshot(root.id, None))


def test_wrong_level_foreign_domain_and_missing_envelope_are_refused(repository: LocalRepository) -> None:
    client = SmallClient(repository.config.repository_id)
    other = SmallClient(repository.config.repository_id, "web2")
    with repository.session(client.certificate) as session:
        with pytest.raises(NotAllowed):
            session.put([client.seal(Kind.DATA, [], b"no envelope yet", 0).record])
        with pytest.raises(NotAllowed):
            session.put([other.envelope(1)[0]])
        session.put([client.envelope(1)[0], client.envelope(2)[0]])
        with pytest.raises(NotAllowed):
            session.put([other.seal(Kind.DATA, [], b"foreign", 0).record])
        data = client.seal(Kind.DATA, [], b"data", 0)
        session.put([data.record])
        with pytest.raises(FormatDamage):
            session.put([client.seal(Kind.PAGE, [data.id], b"page", 3).record])
        with pytest.raises(NotAllowed):
            session.has([other.seal(Kind.DATA, [], b"data", 0).id])


def test_chain_is_continued_and_commit_is_idempotent(repository: LocalRepository) -> None:
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        root = client.store(session, FILES)
        first = client.snapshot(root, None)
        done = session.commit(first)
        assert session.commit(first) == done
        with pytest.raises(StaleSequence):
            session.commit(client.snapshot(root, None, time_ns=7))
        head = session.head()
        assert head is not None
        skipping = type(head)(head.sequence + 1, head.id, head.received_ns, head.epoch)
        with pytest.raises(Refused):
            session.commit(client.snapshot(root, skipping))


def test_lower_epoch_is_refused(repository: LocalRepository) -> None:
    newer = SmallClient(repository.config.repository_id, epoch=3)
    with repository.session(newer.certificate) as session:
        newer.backup(session, FILES)
    older = SmallClient(repository.config.repository_id, epoch=2)
    with pytest.raises(NotAllowed), repository.session(older.certificate):
        pass


def test_index_thrown_away_under_a_session(repository: LocalRepository, tmp_path: Path) -> None:
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        client.backup(session, FILES)
        root = client.store(session, FILES | {"new": b"new"})
        session.flush()
        shutil.rmtree(tmp_path / "repo" / "index")
        head = session.head()
        assert head is not None and head.sequence == 1
        shutil.rmtree(tmp_path / "repo" / "index")
        session.commit(client.snapshot(root, head))
    assert [s.complete for s in repository.snapshots()] == [True, True]


def test_a_snapshot_is_not_born_forgotten(repository: LocalRepository) -> None:
    """A marker by a clock that was ahead, for a snapshot that was lost: its number is given once more."""
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        client.backup(session, FILES)
    [info] = repository.snapshots()
    marker = marker_name(info.client_id, info.sequence, info.receipt.time_ns + 50 * 86_400 * 10**9)
    other = marker_name(bytes(16), info.sequence, info.receipt.time_ns)
    for name in (marker, other):
        repository.ports.blobs.publish(f"forgotten/{name}", [b""])
    repository.ports.blobs.delete(f"snapshots/{info.name}")
    with repository.session(client.certificate) as session:
        assert session.head() is None
        client.backup(session, FILES | {"more": b"text"})
    [again] = repository.snapshots()
    assert (again.name, again.forgotten_ns) == (info.name, None)
    assert repository.ports.blobs.list("forgotten") == [other]
    with repository.ports.scratch_index() as fresh:
        reconcile(repository.truth, fresh)
        assert index_difference(repository.ports.index, fresh) is None


def test_a_closed_repository_has_given_everything_back(repository: LocalRepository) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    repository.close()
    before = descriptors()
    for _ in range(3):
        again = open_local(repository.location)
        with again.reading():
            assert descriptors() > before
        again.close()
    assert descriptors() == before


def test_a_repository_that_cannot_be_opened_leaves_nothing_behind(
    repository: LocalRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No index can be made, neither there nor where temporary files go."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    repository.close()

    def full(directory: str, *_: object, **__: object) -> None:
        raise DiskFull(directory)

    monkeypatch.setattr(lmdb_index, "attach", full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DiskFull):
        open_local(repository.location)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not list((tmp_path / "tmp").iterdir())


def test_an_index_that_is_damaged_again_at_once_is_not_made_anew_for_ever(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory or the disk under it is going bad: the next one would be no better."""
    client, discarded = SmallClient(repository.config.repository_id), []
    real = repository.ports.index.discard
    with repository.session(client.certificate) as session:

        def discard() -> None:
            discarded.append(True)
            real()

        def damaged(*_: object) -> None:
            raise IndexDamage("objects", "a bad page")

        monkeypatch.setattr(repository.ports.index, "discard", discard)
        monkeypatch.setattr(session, "_has", damaged)
        with pytest.raises(IndexDamage):
            session.has([client.key.domain_id[:8] + bytes(24)])
    assert len(discarded) == 1
