"""A client that was taken over, with a put key and a connection that may put: it does its worst.

Whatever it sends, nothing that is stored is read, changed or removed, and it learns no more than whether complete
objects of its own domain are there, its own head, and its quota.
"""

from __future__ import annotations

import struct
import threading
import time
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path

import pytest
from blake3 import blake3
from msgspec.structs import replace
from served import Lawless, PipeTransport, Serving, backup, client_of, lawless, stored
from smallclient import OWNER, SmallClient

from packnback import errors
from packnback.crypto.keys import OwnerKey
from packnback.crypto.sign import sign_snapshot
from packnback.events import Watch
from packnback.format import record as record_format
from packnback.format import snapshot
from packnback.gc.forget import judge
from packnback.gc.retention import Policy
from packnback.ids import Kind, ObjectClass
from packnback.remote import frames
from packnback.remote.client import RemoteRepository
from packnback.remote.intake import Bounds
from packnback.remote.server import VERBS
from packnback.remote.table import SPECS
from packnback.restore.objects import ObjectReader
from packnback.store.interface import Head, SnapshotInfo
from packnback.store.local import create_local, open_local
from packnback.store.repository import LocalRepository

FILES = {f"file{i}": bytes([i]) * (1000 * i) for i in range(1, 8)}
SECOND_NS = 10**9
MINUTE_NS = 60 * SECOND_NS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a snapshot of web1, and one of web2, who is somebody else."""
    path = tmp_path / "repo"
    repository = create_local(str(path), OWNER.bundle.raw)
    for name in ("web1", "web2"):
        client = SmallClient(repository.config.repository_id, name)
        with repository.session(client.certificate) as session:
            backup(client, session, FILES)
    repository.close()
    return path


@pytest.fixture
def web1(root: Path) -> SmallClient:
    return client_named(root, "web1")


def client_named(root: Path, name: str, epoch: int = 1) -> SmallClient:
    return SmallClient(snapshot_infos(root)[1], name, epoch=epoch)


def snapshot_infos(root: Path) -> tuple[list[SnapshotInfo], bytes]:
    repository = open_local(str(root))
    try:
        with repository.reading():
            return repository.snapshots(), repository.config.repository_id
    finally:
        repository.close()


def opened(client: Lawless, who: SmallClient) -> Lawless:
    """With a session open."""
    assert isinstance(client.ask(frames.OpenSession(who.certificate, 1000)), frames.Opened)
    return client


# --- what a role may not do ---------------------------------------------------------------------------------------

REQUESTS: dict[frames.Frame, tuple[str, ...]] = {
    frames.ListSnapshots(): ("list",),
    frames.ReadSnapshot("x"): ("list",),
    frames.AskGaps(): ("list",),
    frames.AskReleased(): ("list",),
    frames.AskStats(True): ("list",),
    frames.Get(1, bytes(32)): ("get",),
    frames.AskTime(True): ("forget",),
    frames.Compact(0, 0, True, False, 0): ("compact",),
    frames.Check(True, 1_000_000, False, b"", 0): ("check",),
    frames.Check(True, 1_000_000, True, b"", 0): ("check", "compact"),
    frames.Has(bytes(32)): ("put",),
    frames.Flush(): ("put",),
    frames.GetHead(): ("put",),
    frames.Put(b"x"): ("put",),
    frames.Commit(b"x"): ("put",),
}


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda frame: type(frame).__name__)
def test_without_the_verb_nothing_is_answered(root: Path, request_: frames.Frame) -> None:
    before = stored(root)
    for missing in REQUESTS[request_]:
        others = [verb for verb in VERBS if verb != missing]
        for verbs in ([], others):
            with lawless(root, *verbs) as client, pytest.raises(errors.NotAllowed) as caught:
                client.ask(request_)
            assert caught.value.verb in REQUESTS[request_]
    assert stored(root) == before


def test_forget_and_recover_need_their_verb(root: Path) -> None:
    before = stored(root)
    names = [info.name for info in snapshot_infos(root)[0]]
    for request in (frames.Forget(names, True), frames.Recover(names)):
        with lawless(root, *(v for v in VERBS if v != "forget")) as client, pytest.raises(errors.NotAllowed):
            client.ask(request)
    assert stored(root) == before


def test_a_put_client_cannot_hold_the_lock_for_reading(root: Path) -> None:
    with lawless(root, "put") as client, pytest.raises(errors.NotAllowed):
        client.ask(frames.BeginReading(0))


def test_the_client_refuses_before_anything_is_sent_when_a_verb_is_missing(root: Path) -> None:
    serving = Serving(root, "put")
    with pytest.raises(errors.NotAllowed) as caught:
        RemoteRepository(PipeTransport(serving.pipes.client), "ssh://far/r", "far", ["get", "list"], Watch())
    assert caught.value.verb == "get"
    assert serving.ended()


# --- being somebody else ------------------------------------------------------------------------------------------


def test_another_clients_name(root: Path, web1: SmallClient) -> None:
    web2 = client_named(root, "web2")
    with lawless(root, "put", bounds=Bounds("web1")) as client, pytest.raises(errors.NotAllowed):
        client.ask(frames.OpenSession(web2.certificate, 0))
    head = snapshot_infos(root)[0][1]
    with lawless(root, "put") as client:
        opened(client, web1)
        forged = web2.snapshot(head.root, None, time_ns=time.time_ns())
        with pytest.raises(errors.NotAllowed):
            client.ask(frames.Commit(forged))


def test_epochs_do_not_go_back(root: Path) -> None:
    third = client_named(root, "web1", epoch=3)
    with client_of(root, "put", bounds=Bounds("web1", 3)) as repository:
        with repository.session(third.certificate) as session:
            backup(third, session, FILES)
        for epoch in (1, 2):
            older = client_named(root, "web1", epoch=epoch)
            with pytest.raises(errors.NotAllowed), repository.session(older.certificate):
                pass
    told_of_a_break_in = Bounds("web1", 4)
    with lawless(root, "put", bounds=told_of_a_break_in) as client, pytest.raises(errors.NotAllowed):
        client.ask(frames.OpenSession(third.certificate, 0))


def test_a_certificate_by_somebody_else_opens_nothing(root: Path) -> None:
    mallory = OwnerKey(bytes(32)).put_key("web1").certificate.raw
    honest = bytearray(client_named(root, "web1").certificate)
    honest[-1] ^= 1
    with lawless(root, "put") as client:
        with pytest.raises(errors.WrongOwner):
            client.ask(frames.OpenSession(mallory, 0))
        with pytest.raises(errors.FormatDamage):
            client.ask(frames.OpenSession(bytes(honest), 0))
        with pytest.raises(errors.FormatDamage):
            client.ask(frames.OpenSession(b"", 0))


def test_a_snapshot_made_from_public_keys_alone(root: Path, web1: SmallClient) -> None:
    """Who knows bundle, certificate and an old snapshot, but not the signing seed."""
    info = snapshot_infos(root)[0][0]
    genuine = web1.snapshot(info.root, None, time_ns=time.time_ns())
    file = snapshot.decode_file(genuine, receipt=False)
    header = replace(file.header, sequence=info.sequence + 1, prev=info.id)
    raw = snapshot.encode_header(header)
    for signature in (bytes(64), file.signature, sign_snapshot(bytes(32), raw)):
        forged = snapshot.encode_file(replace(file, header=header, header_bytes=raw, signature=signature))
        with lawless(root, "put") as client:
            opened(client, web1)
            with pytest.raises(errors.SnapshotDamage):
                client.ask(frames.Commit(forged))
    assert len(snapshot_infos(root)[0]) == 2


# --- learning things ----------------------------------------------------------------------------------------------


def test_nobody_probes_his_neighbours(root: Path, web1: SmallClient) -> None:
    """Neither with `has`, nor with refs: what exists and what does not gets the same answer."""
    web2 = client_named(root, "web2")
    theirs, _ = web2.objects(FILES)
    absent = web2.seal(Kind.DATA, [], b"not there", 0)
    answers = []
    for target in (theirs[0], absent):
        with lawless(root, "put") as client:
            opened(client, web1)
            with pytest.raises(errors.NotAllowed) as caught:
                client.ask(frames.Has(target.id))
            answers.append(str(caught.value))
            for object_class in ObjectClass:
                client.send(frames.Put(web1.envelope(object_class)[0]))
            client.send(frames.Put(web1.seal(Kind.PAGE, [target.id], b"page", 1).record))
            with pytest.raises(errors.NotAllowed) as caught:
                client.ask(frames.Flush())
            answers.append(str(caught.value))
    assert answers[:2] == answers[2:]


def test_a_put_client_is_told_no_counter_and_no_path(root: Path, web1: SmallClient) -> None:
    assert not any("counter" in name for name in frames.CommittedAs.__struct_fields__)
    with lawless(root, "put") as client:
        opened(client, web1)
        for request in (frames.Has(bytes(32)), frames.Commit(b"junk"), frames.Commit(b"PNBH")):
            with pytest.raises(errors.PacknbackError) as caught:
                client.ask(request)
            assert str(root) not in str(caught.value)


def test_only_its_own_head(root: Path, web1: SmallClient) -> None:
    with client_of(root, "put") as repository, repository.session(web1.certificate) as session:
        head = session.head()
    mine = next(info for info in snapshot_infos(root)[0] if info.client == "web1")
    assert head is not None and (head.sequence, head.id) == (mine.sequence, mine.id)


# --- path traversal -----------------------------------------------------------------------------------------------

NASTY = [
    "../config",
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\0b",
    "x" * 200,
    "\ud7ff",
    "*",
    "%2e%2e/config",
]


@pytest.mark.parametrize("name", NASTY)
def test_paths_in_every_string(root: Path, name: str) -> None:
    stem = snapshot_infos(root)[0][0].name
    before = stored(root)
    with lawless(root, *VERBS) as client:
        for wanted in (name, stem + "/../../config", name + ".snap", stem + "\0"):
            with pytest.raises((errors.SnapshotUnknown, errors.ProtocolViolation)):
                client.ask(frames.ReadSnapshot(wanted[:200]))
        assert client.ask(frames.Forget([name], True)) == frames.Names([])
        assert client.ask(frames.Recover([name])) == frames.Names([])
    assert stored(root) == before


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [c for c, spec in SPECS.items() if spec.sender is frames.Side.CLIENT])
def test_oversized_frames_end_the_connection_at_their_head(root: Path, cls: type[frames.Frame]) -> None:
    with lawless(root, *VERBS) as client:
        client.send_head(cls, SPECS[cls].limit + 1)
        answer = client.next()
        assert isinstance(answer, frames.Farewell) and answer.name == "ProtocolViolation"
        assert client.serving.ended()


@pytest.mark.parametrize("cls", [frames.Forget, frames.Recover, frames.Check, frames.Get, frames.Commit, frames.Put])
def test_long_frames_are_for_those_who_may_send_them(root: Path, cls: type[frames.Frame]) -> None:
    """What is refused anyway is not kept, decoded and weighed first: eight MiB of a list take much more."""
    with lawless(root) as client:
        client.send_head(cls, 64 * 1024 + 1)
        answer = client.next()
        assert isinstance(answer, frames.Farewell) and answer.name == "ProtocolViolation"
    with lawless(root, *VERBS, idle_s=0.2) as client:
        client.send_head(cls, 64 * 1024 + 1)
        answer = client.next()
        assert isinstance(answer, frames.Farewell) and answer.facts["why"] == "idle"


def test_frames_without_end(root: Path, web1: SmallClient) -> None:
    """Puts of the same record for ever take no room; a frame that never ends keeps nothing but a connection."""
    with lawless(root, "put", idle_s=1.0) as client:
        opened(client, web1)
        client.send(frames.Put(web1.envelope(ObjectClass.DATA)[0]))
        same = web1.seal(Kind.DATA, [], b"again and again", 0)
        for _ in range(300):
            client.send(frames.Put(same.record))
        flushed = client.ask(frames.Flush())
        assert isinstance(flushed, frames.Flushed) and flushed.published < 60_000
        client.send_head(frames.Put, frames.RECORD_LIMIT)
        client.send_bytes(b"x" * 1000)
        answer = client.next()
        assert isinstance(answer, frames.Farewell) and answer.facts["why"] == "idle"


@pytest.mark.parametrize("refs", [4097, 10**7, 2**32 - 1])
def test_a_record_that_claims_too_many_refs(root: Path, web1: SmallClient, refs: int) -> None:
    _, envelope_id, _ = web1.envelope(ObjectClass.META)
    head = struct.pack("<5sBBBII32s16s", b"PNBR\x01", 3, 1, 0, refs, 100, bytes(32), envelope_id)
    with lawless(root, "put") as client:
        opened(client, web1)
        client.send(frames.Put(head + bytes(200)))
        with pytest.raises(errors.FormatDamage):
            client.ask(frames.Flush())


def test_refs_that_are_missing_and_a_root_that_is_foreign_or_missing(root: Path, web1: SmallClient) -> None:
    infos, _ = snapshot_infos(root)
    mine, theirs = (next(i for i in infos if i.client == name) for name in ("web1", "web2"))
    missing = web1.seal(Kind.DATA, [], b"never sent", 0).id
    page = web1.seal(Kind.PAGE, [missing], b"page", 1)
    with lawless(root, "put") as client:
        opened(client, web1)
        client.send(frames.Put(web1.envelope(ObjectClass.META)[0]))
        client.send(frames.Put(page.record))
        for request in (frames.Flush(), frames.Flush(), frames.Has(page.id)):
            with pytest.raises(errors.ObjectMissing):  # and nothing works in this session any more
                client.ask(request)
    head = web1.key.client_id
    assert mine.client_id == head
    for bad_root in (theirs.root, page.id, missing):
        with client_of(root, "put") as repository, repository.session(web1.certificate) as session:
            forged = web1.snapshot(bad_root, session.head(), time_ns=time.time_ns())
            with pytest.raises((errors.ObjectMissing, errors.NotAllowed)):
                session.commit(forged)
    assert len(snapshot_infos(root)[0]) == 2


def test_the_first_write_wins(root: Path, web1: SmallClient) -> None:
    objects, _ = web1.objects(FILES)
    before = stored(root)
    other = bytearray(objects[0].record)
    other[100] ^= 1
    body_end = len(other) - 16
    other[body_end:] = blake3(bytes(other[:body_end])).digest(16)
    with lawless(root, "put") as client:
        opened(client, web1)
        for object_class in ObjectClass:
            client.send(frames.Put(web1.envelope(object_class)[0]))
        client.send(frames.Put(bytes(other)))
        assert client.ask(frames.Flush()) == frames.Flushed(0)
    assert stored(root) == before


def test_a_flipped_bit_on_the_way_is_refused(root: Path, web1: SmallClient) -> None:
    fresh = bytearray(web1.seal(Kind.DATA, [], b"fresh", 0).record)
    fresh[-30] ^= 1
    with lawless(root, "put") as client:
        opened(client, web1)
        client.send(frames.Put(web1.envelope(ObjectClass.DATA)[0]))
        client.send(frames.Put(bytes(fresh)))
        with pytest.raises(errors.FormatDamage):
            client.ask(frames.Flush())


# --- quota, disk, sessions, time ----------------------------------------------------------------------------------


def test_a_quota_counts_what_is_pending_and_what_others_sent(root: Path, web1: SmallClient) -> None:
    with lawless(root, "put", bounds=Bounds(quota=400_000)) as client:
        answer = client.ask(frames.OpenSession(web1.certificate, 0))
        assert isinstance(answer, frames.Opened) and answer.used > 100_000 and answer.quota == 400_000
        client.send(frames.Put(web1.envelope(ObjectClass.DATA)[0]))
        for i in range(20):
            client.send(frames.Put(web1.seal(Kind.DATA, [], bytes([i]) * 3, 0).record))
        with pytest.raises(errors.QuotaExceeded) as caught:
            client.ask(frames.Flush())
        assert caught.value.quota == 400_000
    with client_of(root, "put", bounds=Bounds(quota=400_000)) as repository:
        web2 = client_named(root, "web2")
        with repository.session(web2.certificate) as session:  # a quota is each client's own
            backup(web2, session, FILES | {"one more": b"x"})


def test_snapshot_files_count_too(root: Path, web1: SmallClient) -> None:
    with (
        client_of(root, "put", bounds=Bounds(quota=300_000)) as repository,
        repository.session(web1.certificate) as session,
        pytest.raises(errors.QuotaExceeded),
    ):
        for _ in range(60):
            backup(web1, session, FILES)


def test_the_disk_is_never_filled_up(root: Path, web1: SmallClient) -> None:
    with (
        client_of(root, "put", room=100 << 20) as repository,
        repository.session(web1.certificate) as session,
        pytest.raises(errors.DiskFull),
    ):
        backup(web1, session, FILES | {"more": b"x"})


def test_a_closed_session_keeps_its_slot_until_the_connection_ends(root: Path, web1: SmallClient) -> None:
    """The process keeps its place among the index's readers, too, and there are not many of those."""
    with ExitStack() as stack:
        connections = [stack.enter_context(lawless(root, "put")) for _ in range(4)]
        for connection in connections * 2:
            opened(connection, web1)
            connection.ask(frames.CloseSession())
        with lawless(root, "put") as one_more, pytest.raises(errors.Refused):
            one_more.ask(frames.OpenSession(web1.certificate, 0))
    with lawless(root, "put") as afterwards:
        opened(afterwards, web1)


def test_a_client_has_only_so_many_sessions(root: Path, web1: SmallClient) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            opened(stack.enter_context(lawless(root, "put")), web1)
        one_more = stack.enter_context(lawless(root, "put"))
        with pytest.raises(errors.Refused) as caught:
            one_more.ask(frames.OpenSession(web1.certificate, 0))
        assert caught.value.reason == "sessions"
        opened(one_more, client_named(root, "web2"))
    with lawless(root, "put") as client:
        opened(client, web1)


@pytest.mark.parametrize("minutes", [-16, 16, -(10**6), 10**6])
def test_snapshots_of_another_time_are_refused_with_both_times(root: Path, web1: SmallClient, minutes: int) -> None:
    with client_of(root, "put") as repository, repository.session(web1.certificate) as session:
        dated = time.time_ns() + minutes * MINUTE_NS
        wanted = web1.store(session, FILES)
        with pytest.raises(errors.ClientTimeRefused) as caught:
            session.commit(web1.snapshot(wanted, session.head(), time_ns=dated))
        assert caught.value.client_ns == dated
        assert abs(caught.value.server_ns - time.time_ns()) < MINUTE_NS
        near = time.time_ns() + (14 if minutes > 0 else -14) * MINUTE_NS
        session.commit(web1.snapshot(wanted, session.head(), time_ns=near))


def test_an_idle_connection_ends_and_holds_no_lock(root: Path, web1: SmallClient) -> None:
    with lawless(root, "put", idle_s=0.3) as client:
        opened(client, web1)
        answer = client.next()
        assert isinstance(answer, frames.Farewell) and answer.facts["why"] == "idle"
        assert client.serving.ended()
        repository = open_local(str(root))
        with repository.ports.locks.exclusive(5):
            pass
        repository.close()


# --- replays and races --------------------------------------------------------------------------------------------


def test_a_replayed_header_changes_nothing(root: Path, web1: SmallClient) -> None:
    with client_of(root, "put") as repository, repository.session(web1.certificate) as session:
        wanted = web1.store(session, FILES)
        first = web1.snapshot(wanted, session.head(), time_ns=time.time_ns())
        done = session.commit(first)
        backup(web1, session, FILES | {"later": b"x"})
    before = stored(root)
    for _ in range(2):
        with client_of(root, "put") as repository, repository.session(web1.certificate) as session:
            assert session.commit(first) == done
            with pytest.raises(errors.StaleSequence):
                infos, _ = snapshot_infos(root)
                start = next(i for i in infos if i.client == "web1" and i.sequence == 1)
                session.commit(web1.snapshot(wanted, Head(start.sequence, start.id, 0, 1), time_ns=time.time_ns()))
    assert stored(root) == before


def test_two_commits_of_one_number_at_once(root: Path, web1: SmallClient) -> None:
    results: list[object] = []
    barrier = threading.Barrier(2)

    def race(content: bytes) -> None:
        with client_of(root, "put") as repository, repository.session(web1.certificate) as session:
            wanted = web1.store(session, FILES | {"race": content})
            mine = web1.snapshot(wanted, session.head(), time_ns=time.time_ns())
            barrier.wait()
            try:
                results.append(session.commit(mine))
            except errors.StaleSequence as stale:
                results.append(stale)

    web1.envelope(ObjectClass.DATA), web1.envelope(ObjectClass.META)
    threads = [threading.Thread(target=race, args=(content,)) for content in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(type(r).__name__ for r in results) == ["Committed", "StaleSequence"]
    mine = [i for i in snapshot_infos(root)[0] if i.client == "web1"]
    assert [i.sequence for i in mine] == [1, 2] and all(i.complete for i in mine)


# --- a flood ------------------------------------------------------------------------------------------------------

POLICIES = [
    Policy(daily=1),
    Policy(hourly=4, daily=7, weekly=4, monthly=12, yearly=3),
    Policy(within_ns=3600 * SECOND_NS, newest=2, daily=2),
]


def check_a_flood(root: Path, web1: SmallClient, number: int, over_the_wire: bool) -> None:
    """However many snapshots arrive later: for the same `now`, every earlier keep verdict stays.

    "The newest N" is a rule about what is newest, and promises nothing of the kind: it only adds.
    """
    before, _ = snapshot_infos(root)
    now_ns = time.time_ns() + 10 * MINUTE_NS

    def kept(infos: list[SnapshotInfo], policy: Policy) -> set[str]:
        judged = judge(infos, policy, now_ns)
        return {i.name for i, v in judged if v.keep and any("newest" not in why for why in v.reasons)}

    expected = [kept(before, policy) for policy in POLICIES]
    assert all(expected)
    repository = client_of(root, "put") if over_the_wire else local(root)
    with repository as where, where.session(web1.certificate) as session:
        wanted = web1.store(session, FILES)
        for i in range(number):
            skew = (i % 29 - 14) * MINUTE_NS
            session.commit(web1.snapshot(wanted, session.head(), time_ns=time.time_ns() + skew))
    after, _ = snapshot_infos(root)
    assert len(after) == len(before) + number
    for policy, kept_before in zip(POLICIES, expected, strict=True):
        assert kept_before <= kept(after, policy)


def local(root: Path) -> AbstractContextManager[LocalRepository]:
    return closing(open_local(str(root)))


@pytest.mark.parametrize("over_the_wire", [True, False])
def test_a_flood_evicts_nothing(root: Path, web1: SmallClient, over_the_wire: bool) -> None:
    check_a_flood(root, web1, 60, over_the_wire)


@pytest.mark.nightly
@pytest.mark.parametrize("over_the_wire", [True, False])
def test_a_flood_of_ten_thousand_evicts_nothing(root: Path, web1: SmallClient, over_the_wire: bool) -> None:
    check_a_flood(root, web1, 10_000, over_the_wire)


# --- poison -------------------------------------------------------------------------------------------------------


def test_garbage_under_an_id_is_loud_and_stays_in_its_domain(root: Path, web1: SmallClient) -> None:
    """No check without a key can see it; the reader does, and nobody of another domain ever refers to it."""
    honest = web1.seal(Kind.DATA, [], b"what an honest client will want", 0)
    parsed = record_format.parse(honest.record)
    garbage = record_format.finish(parsed.header, b"", bytes(len(parsed.body)))
    with lawless(root, "put") as client:
        opened(client, web1)
        client.send(frames.Put(web1.envelope(ObjectClass.DATA)[0]))
        client.send(frames.Put(garbage))
        assert isinstance(client.ask(frames.Flush()), frames.Flushed)
        there = client.ask(frames.Has(honest.id))
        assert there == frames.Present(b"\1")
    with client_of(root, "put") as repository:
        web2 = client_named(root, "web2")
        with repository.session(web2.certificate) as session:
            same = web2.seal(Kind.DATA, [], b"what an honest client will want", 0)
            assert session.has([same.id]) == [False]
    with client_of(root, "get", "list") as repository, ObjectReader(repository, OWNER) as reader:
        [found] = reader.open_many([honest.id])
        assert isinstance(found.problem, errors.ObjectDamage)
