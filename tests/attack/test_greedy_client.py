"""A client that wants more than its share: of the disk, of the server's time, of the lock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from served import backup, client_of, lawless
from smallclient import OWNER, SmallClient

from packnback import errors
from packnback.format import record as record_format
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.forget import forget
from packnback.ids import KIB, Kind, ObjectClass
from packnback.remote import frames, intake, serving
from packnback.remote.frames import Side
from packnback.remote.intake import BLOCK, HEADER_KEPT, Bounds
from packnback.remote.protocol import Connection
from packnback.store.local import create_local, open_local


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "repo"
    create_local(str(path), OWNER.bundle.raw).close()
    return path


@pytest.fixture
def web1(root: Path) -> SmallClient:
    return client_named(root, "web1")


def client_named(root: Path, name: str) -> SmallClient:
    repository = open_local(str(root))
    repository.close()
    return SmallClient(repository.config.repository_id, name)


def on_disk(root: Path, *directories: str) -> int:
    """Bytes that files take there, as the file system counts them."""
    return sum(
        os.stat(path).st_blocks * 512
        for directory in directories
        for path in (root / directory).rglob("*")
        if path.is_file()
    )


def dwarf(client: SmallClient, number: int) -> bytes:
    """The smallest record that there is: no reader could open it, but no server can know."""
    envelope_id = client.envelope(ObjectClass.DATA)[1]
    object_id = client.key.domain_id[:8] + number.to_bytes(24, "big")
    return record_format.finish(record_format.encode_header(Kind.DATA, 0, 0, 1, object_id, envelope_id), b"", b"x")


def used(root: Path, client: SmallClient) -> int:
    with lawless(root, "put", bounds=Bounds(quota=1 << 40)) as asking:
        answer = asking.ask(frames.OpenSession(client.certificate, 0))
        assert isinstance(answer, frames.Opened)
        return answer.used


# --- the disk -----------------------------------------------------------------------------------------------------


def test_a_quota_counts_what_tiny_packs_take(root: Path, web1: SmallClient) -> None:
    """A pack of one record of 81 bytes takes a block of 4 KiB and a name: fifty times as much."""
    quota = 400 * KIB
    for start in range(0, 10_000, 40):
        with lawless(root, "put", bounds=Bounds(quota=quota)) as client:
            client.ask(frames.OpenSession(web1.certificate, 0))
            client.send(frames.Put(web1.envelope(ObjectClass.DATA)[0]))
            try:
                for number in range(start, start + 40):
                    client.send(frames.Put(dwarf(web1, number)))
                    client.ask(frames.Flush())
            except errors.QuotaExceeded:
                break
        assert on_disk(root, "packs") <= 2 * quota
    else:
        raise AssertionError("no end of them")
    assert on_disk(root, "packs") <= 2 * quota
    assert used(root, web1) >= on_disk(root, "packs")


def test_a_quota_counts_refs_twice_as_footers_repeat_them(root: Path, web1: SmallClient) -> None:
    data = [web1.seal(Kind.DATA, [], bytes([i % 256, i // 256]) * 3, 0) for i in range(300)]
    refs = sorted(each.id for each in data)
    envelope_id = web1.envelope(ObjectClass.META)[1]
    with client_of(root, "put") as repository, repository.session(web1.certificate) as session:
        session.put([web1.envelope(c)[0] for c in ObjectClass] + [each.record for each in data])
        session.flush()
        for number in range(20):
            object_id = web1.key.domain_id[:8] + number.to_bytes(24, "big")
            header = record_format.encode_header(Kind.PAGE, 1, len(refs), 1, object_id, envelope_id)
            session.put([record_format.finish(header, b"".join(refs), b"x")])
        session.flush()
    assert used(root, web1) >= on_disk(root, "packs")


def test_a_quota_counts_headers_that_are_kept_for_ever(root: Path, web1: SmallClient) -> None:
    with client_of(root, "put") as repository, repository.session(web1.certificate) as session:
        for number in range(30):
            backup(web1, session, {"file": b"%d" % number})
    before = used(root, web1)
    repository = open_local(str(root))
    with repository.reading():
        forget(repository, [info.name for info in repository.snapshots()][:-1])
    compact(repository, CompactOptions(grace_ns=0))
    repository.close()
    assert before > used(root, web1) >= on_disk(root, "packs", "snapshots") + 29 * HEADER_KEPT
    kept = sum(path.stat().st_size for path in (root / "headers").iterdir())
    assert kept <= 29 * HEADER_KEPT
    with lawless(root, "put", bounds=Bounds(quota=29 * HEADER_KEPT)) as client:
        answer = client.ask(frames.OpenSession(web1.certificate, 0))
        assert isinstance(answer, frames.Opened)
        client.send(frames.Put(web1.envelope(ObjectClass.DATA)[0]))
        client.send(frames.Put(dwarf(web1, 1)))
        with pytest.raises(errors.QuotaExceeded):
            client.ask(frames.Flush())


def test_what_one_client_takes_is_not_counted_against_another(root: Path, web1: SmallClient) -> None:
    """Not even when compaction has put their records into one pack."""
    web2 = client_named(root, "web2")
    with client_of(root, "put") as repository:
        for round_number in range(20):
            for client, size in ((web1, 40_000), (web2, 100)):
                with repository.session(client.certificate) as session:
                    backup(client, session, {"file": bytes([round_number]) * size})
    before = used(root, web1), used(root, web2)
    repository = open_local(str(root))
    done = compact(repository, CompactOptions(grace_ns=0))
    repository.close()
    assert done.packs_rewritten
    after = used(root, web1), used(root, web2)
    assert all(now <= then for now, then in zip(after, before, strict=True))
    assert sum(after) >= on_disk(root, "packs", "snapshots")
    assert sum(after) <= on_disk(root, "packs", "snapshots") + 2 * 4 * BLOCK


def test_no_client_uses_up_the_last_files_that_can_be_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = os.statvfs(root)
    assert serving._room(str(root)) == plenty.f_bavail * plenty.f_frsize
    few = SimpleNamespace(f_bavail=1 << 30, f_frsize=4096, f_files=1 << 20, f_favail=4095)
    monkeypatch.setattr("packnback.remote.serving.os.statvfs", lambda path: few)
    assert serving._room(str(root)) < intake.ROOM_KEPT
    few.f_favail = 4096
    assert serving._room(str(root)) > intake.ROOM_KEPT
    few.f_files = few.f_favail = 0  # btrfs has no such number
    assert serving._room(str(root)) > intake.ROOM_KEPT


# --- the lock -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stored_root(root: Path, web1: SmallClient) -> Iterator[Path]:
    """With more in it than two pipes and a window hold."""
    with client_of(root, "put") as repository, repository.session(web1.certificate) as session:
        backup(web1, session, {f"file{i}": os.urandom(1 << 20) for i in range(24)})
    yield root


def nobody_holds_the_lock(root: Path) -> bool:
    repository = open_local(str(root))
    try:
        with repository.ports.locks.exclusive(0):
            return True
    except errors.Locked:
        return False
    finally:
        repository.close()


def test_a_reader_that_stops_reading_does_not_hold_the_lock_for_ever(
    stored_root: Path, web1: SmallClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that was stopped with Ctrl-Z keeps the connection open; the network says nothing about it."""
    wanted = b"".join(o.id for o in data_objects(stored_root))
    with lawless(stored_root, "get", "list", idle_s=1.0) as client:
        client.ask(frames.BeginReading(0))
        client.send(frames.Get(1, wanted))
        time.sleep(0.2)
        assert not nobody_holds_the_lock(stored_root)
        assert client.serving.ended()
        assert isinstance(client.serving.failure, errors.RemoteFailed)
        assert client.serving.failure.why == "idle"
        assert nobody_holds_the_lock(stored_root)


def data_objects(root: Path) -> list[record_format.Record]:
    return [
        record
        for path in (root / "packs").rglob("*.pack")
        for _, record in record_format.scan(path.read_bytes())
        if record.kind == Kind.DATA
    ]


def test_a_client_that_asks_and_never_reads_the_answers(root: Path, web1: SmallClient) -> None:
    with lawless(root, "put", idle_s=1.0) as client:
        client.ask(frames.OpenSession(web1.certificate, 0))
        connection = Connection(Side.CLIENT)
        connection.send(frames.Hello("x"))
        question = b"".join(connection.send(frames.Has(web1.key.domain_id[:8] * 4 * 4096)))
        with pytest.raises(BrokenPipeError):  # both pipes are full, and then there is nobody at their other end
            for _ in range(5000):
                client.send_bytes(question)
        assert client.serving.ended()
        assert nobody_holds_the_lock(root)
