"""A far side that lies, and bytes that nobody meant: the client gives up nothing, and neither end falls over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from served import Pipes, PipeTransport, Serving, backup, client_of, lawless, stored
from smallclient import OWNER, SmallClient

from packnback import errors
from packnback.backup.save import SaveOptions, save
from packnback.crypto.certificate import issue
from packnback.crypto.keys import OwnerKey
from packnback.crypto.sign import sign_snapshot
from packnback.events import Watch
from packnback.format import config, snapshot
from packnback.gc.compaction import Compacted
from packnback.gc.maintenance import Checked, Released
from packnback.remote import failures, frames, values
from packnback.remote.client import RemoteRepository
from packnback.remote.frames import Frame, Side
from packnback.remote.protocol import Closed, Connection
from packnback.remote.server import VERBS, Role
from packnback.remote.serving import serve
from packnback.store.check import CheckReport
from packnback.store.damage import Finding
from packnback.store.interface import SnapshotInfo
from packnback.store.local import create_local, open_local
from packnback.store.repair import Repaired
from packnback.store.sizes import Stats

CONFIG = config.Config(bytes(16), OWNER.bundle.raw)
Answers = Callable[[Frame], list[Frame]]


class Liar:
    """A far side that answers what `answers` says, and keeps what it was sent."""

    def __init__(self, answers: Answers, welcome: bytes) -> None:
        self.pipes = Pipes()
        self.heard: list[Frame] = []
        self._answers = answers
        self._welcome = welcome
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        connection, channel = Connection(Side.SERVER), self.pipes.server
        channel.write(connection.send(frames.Welcome("liar", self._welcome, list(VERBS))))
        while True:
            event = connection.next_event()
            if event is None:
                connection.receive(channel.read() or b"")
            elif isinstance(event, Closed):
                channel.close()
                return
            else:
                self.heard.append(event)
                try:
                    for answer in self._answers(event):
                        channel.write(connection.send(answer))
                except BrokenPipeError:  # it was believed no longer
                    return


def silent(frame: Frame) -> list[Frame]:
    return []


@contextmanager
def lied_to(answers: Answers, welcome: bytes = config.encode(CONFIG)) -> Iterator[tuple[RemoteRepository, Liar]]:
    """The real client of a liar."""
    liar = Liar(answers, welcome)
    repository = RemoteRepository(PipeTransport(liar.pipes.client), "ssh://far/r", "far", ["put"], Watch())
    try:
        yield repository, liar
    finally:
        repository.close()


# --- configuration ------------------------------------------------------------------------------------------------


def test_another_receiver_key_in_the_config_gets_nothing(tmp_path: Path) -> None:
    mallory = OwnerKey(b"m" * 32)
    (tmp_path / "secret").write_bytes(b"x" * 100_000)
    welcome = config.encode(replace(CONFIG, owner_bundle=mallory.bundle.raw))
    with lied_to(silent, welcome) as (repository, liar):
        options = SaveOptions(paths=[bytes(tmp_path)], state_directory=bytes(tmp_path / "state"))
        with pytest.raises(errors.WrongOwner):
            save(repository, OWNER.put_key("web1"), options)
    assert [type(frame) for frame in liar.heard] == [frames.Hello]


@pytest.mark.parametrize("extra", [b"encryption: none", b"\0", b""])
def test_a_config_that_offers_something_else_is_refused(extra: bytes) -> None:
    good = config.encode(CONFIG)
    offered = good + extra if extra else b""
    with pytest.raises(errors.ConfigDamage), lied_to(silent, offered):
        pass


# --- answers ------------------------------------------------------------------------------------------------------


def head_of(client: SmallClient, **changes: object) -> frames.HeadIs:
    """A genuine head, with some of its parts replaced."""
    file = snapshot.decode_file(client.snapshot(client.key.domain_id[:8] + bytes(24), None), receipt=False)
    genuine = frames.HeadIs(1, file.header_bytes, file.signature, file.certificate)
    return replace(genuine, **changes)  # type: ignore[arg-type]


WEB1 = SmallClient(CONFIG.repository_id)
MALLORY = OwnerKey(b"m" * 32).put_key("web1")


def self_certified_head() -> frames.HeadIs:
    """Everything fits, and the signature holds; only that it was not the owner who certified the key."""
    key = WEB1.key
    certificate = issue(
        MALLORY.sign_seed,
        owner_id=key.owner_id,
        client_id=key.client_id,
        domain_id=key.domain_id,
        epoch=key.epoch,
        verify_key=MALLORY.certificate.verify_key,
        name=key.name,
    )
    genuine = head_of(WEB1)
    return replace(genuine, certificate=certificate.raw, signature=sign_snapshot(MALLORY.sign_seed, genuine.header))


HEADS = {
    "nobody's signature": head_of(WEB1, signature=bytes(64)),
    "another client's": head_of(SmallClient(CONFIG.repository_id, "web2")),
    "another repository's": head_of(SmallClient(b"another one's id")),
    "another owner's": head_of(WEB1, certificate=MALLORY.certificate.raw),
    "signed under a certificate of its own making": self_certified_head(),
    "altered": head_of(WEB1, header=WEB1.snapshot(bytes(32), None, time_ns=5)[:204]),
    "junk": head_of(WEB1, header=b"junk"),
}


@pytest.mark.parametrize("lie", HEADS)
def test_a_head_is_believed_only_with_the_clients_signature(lie: str) -> None:
    def answers(frame: Frame) -> list[Frame]:
        match frame:
            case frames.OpenSession():
                return [frames.Opened(0, None)]
            case frames.GetHead():
                return [HEADS[lie]]
            case frames.CloseSession():
                return [frames.Done()]
            case _:
                return []

    with (
        lied_to(answers) as (repository, _),
        repository.session(WEB1.certificate) as session,
        pytest.raises((errors.Damage, errors.KeyProblem)),
    ):
        session.head()


@pytest.mark.parametrize("bits", [b"", b"\xff\xff", b"\x80", b"\x10"])
def test_has_with_another_number_of_answers(bits: bytes) -> None:
    def answers(frame: Frame) -> list[Frame]:
        match frame:
            case frames.OpenSession():
                return [frames.Opened(0, None)]
            case frames.Has():
                return [frames.Present(bits)]
            case frames.CloseSession():
                return [frames.Done()]
            case _:
                return []

    with (
        lied_to(answers) as (repository, _),
        repository.session(WEB1.certificate) as session,
        pytest.raises(errors.ProtocolViolation),
    ):
        session.has([bytes(32)] * 4)


def test_more_of_a_stream_than_was_asked_for_is_not_kept() -> None:
    """Memory is bounded by the window, whatever comes."""

    def answers(frame: Frame) -> list[Frame]:
        if isinstance(frame, frames.Get):
            return [frames.Object(frame.stream, bytes(32), b"", bytes(4 << 20)) for _ in range(20)]
        return []

    with lied_to(answers) as (repository, _), pytest.raises(errors.ProtocolViolation):
        objects = repository.fetch([bytes(32)])
        next(objects)
        time.sleep(1)
        list(objects)


def test_a_list_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packnback.remote.link._ROWS_MAX", 1000)

    def answers(frame: Frame) -> list[Frame]:
        if isinstance(frame, frames.ListSnapshots):
            return [frames.Snapshots([0] * 500, True)] * 10
        return []

    with lied_to(answers) as (repository, _), pytest.raises(errors.ProtocolViolation):
        repository.snapshots()


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 62) | st.binary(max_size=33) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=18) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@pytest.mark.parametrize("cls", values.CROSSING)
@given(value=VALUE)
def test_values_of_any_shape_raise_only_a_violation(cls: type, value: object) -> None:
    try:
        values.decode(cls, value)
    except errors.ProtocolViolation:
        return


INFO = SnapshotInfo(
    snapshot.snapshot_name(bytes(16), 3), bytes(32), bytes(16), "web1", bytes(16), 1, 3, bytes(32), bytes(32), 5,
    snapshot.Receipt(1, 2, 3, True), False, None, True, 99,
)  # fmt: skip
FINDING = Finding("pack", "ab", "checksum", ("x.snap",))


@pytest.mark.parametrize(
    "value",
    [
        INFO,
        replace(INFO, forgotten_ns=7),
        FINDING,
        Released(bytes(16), 3, bytes(32)),
        Compacted(["x.snap"], 1, 2, 3, 4, 5, 6, 7, ["ab"]),
        Compacted(condemned=1, bytes_condemned=2, due_ns=3, held_up_by=["backup of web1"]),
        Stats(1, 2, 3, 4, 5, 6),
        Checked(CheckReport(1, 2, 3, [FINDING], ["x"]), {"a": "b"}, None, [FINDING]),
        Checked(CheckReport(), {}, Repaired(["ab"], 3, [bytes(32)]), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_cross_the_wire(value: object) -> None:
    assert values.decode(type(value), values.encode(value)) == value


@pytest.mark.parametrize("change", [{"name": "../config"}, {"id": b""}, {"root": bytes(31)}, {"sequence": 4}])
def test_snapshots_under_names_that_are_not_theirs(change: dict[str, object]) -> None:
    with pytest.raises(errors.ProtocolViolation):
        values.decode(SnapshotInfo, values.encode(replace(INFO, **change)))  # type: ignore[arg-type]


# --- bytes that nobody meant --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzzed") / "repo"
    repository = create_local(str(path), OWNER.bundle.raw)
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        backup(client, session, {"a": b"1" * 5000, "b": b"2"})
    repository.close()
    return path


def requests() -> st.SearchStrategy[Frame]:
    """Requests of a right shape, with nonsense in them."""
    blob, name, flag = st.binary(max_size=200), st.text(max_size=50), st.booleans()
    ids = st.integers(1, 3).map(lambda n: bytes(range(32)) * n)
    return st.one_of(
        st.builds(frames.OpenSession, blob | st.just(WEB1.certificate), st.just(0)),
        st.builds(frames.Has, ids),
        st.builds(frames.Put, blob),
        st.builds(frames.Commit, blob),
        st.builds(frames.ReadSnapshot, name),
        st.builds(frames.Get, st.integers(0, 3), ids),
        st.builds(frames.More, st.integers(0, 3), st.integers(0, 1 << 40)),
        st.builds(frames.Cancel, st.integers(0, 3)),
        st.builds(frames.Forget, st.lists(name, max_size=3), flag),
        st.builds(frames.Recover, st.lists(name, max_size=3)),
        st.builds(frames.Check, flag, st.integers(0, 10**7), st.just(False), st.just(b""), st.just(0)),
        st.sampled_from(
            [
                frames.Flush(), frames.GetHead(), frames.CloseSession(), frames.Ping(), frames.BeginReading(0),
                frames.EndReading(), frames.ListSnapshots(), frames.AskStats(True), frames.AskGaps(),
                frames.AskReleased(),
            ]
        ),
    )  # fmt: skip


@settings(max_examples=25)
@given(sent=st.lists(requests() | st.binary(min_size=1, max_size=60), max_size=12))
def test_whatever_a_client_sends_the_server_ends_in_good_order(root: Path, sent: list[Frame | bytes]) -> None:
    before = stored(root)
    with lawless(root, *VERBS) as client:
        for each in sent:
            try:
                if isinstance(each, bytes):
                    client.send_bytes(each)
                else:
                    client.send(each)
            except BrokenPipeError:
                break
    failure = client.serving.failure
    assert failure is None or not (isinstance(failure, errors.RemoteFailed) and failure.why == "internal")
    assert stored(root) == before


def test_streams_can_be_interleaved_cancelled_and_bounded(root: Path) -> None:
    with client_of(root, "get", "list") as repository:
        [info] = repository.snapshots()
        one, two = repository.fetch([info.root]), repository.fetch([info.root, bytes(32)])
        first = next(two)
        found = {fetched.id: fetched.problem for fetched in (first, *one, *two)}
        assert found[info.root] is None
        assert isinstance(found[bytes(32)], errors.ObjectMissing)
        abandoned = repository.fetch([info.root] * 1)
        next(abandoned)
        abandoned.close()
        assert repository.read_snapshot(info.name)


def test_too_many_streams_are_too_many(root: Path) -> None:
    with lawless(root, "get") as client:
        connection = Connection(Side.CLIENT)
        connection.send(frames.Hello("x"))
        wire = [connection.send(frames.Get(number, bytes(32))) for number in range(5)]
        client.send_bytes(b"".join(piece for pieces in wire for piece in pieces))
        while not isinstance(seen := client.next(), frames.Farewell):
            assert isinstance(seen, frames.Trouble | frames.StreamEnd)
        assert seen.name == "ProtocolViolation"


def test_a_far_side_that_prints_instead_of_speaking() -> None:
    pipes = Pipes()
    pipes.server.write([b"bash: packnback: command not found\n"])
    pipes.server.close()
    with pytest.raises(errors.ProtocolViolation) as caught:
        RemoteRepository(PipeTransport(pipes.client), "ssh://far/r", "far", ["put"], Watch())
    assert "command not found" in caught.value.why


def test_a_connection_that_ended_is_an_error_in_every_call(root: Path) -> None:
    serving = Serving(root, *VERBS, idle_s=0.3)
    repository = RemoteRepository(PipeTransport(serving.pipes.client), "ssh://far/r", "far", list(VERBS), Watch())
    with pytest.raises(errors.RemoteFailed), repository.session(WEB1.certificate) as session:
        assert serving.ended()
        for _ in range(3):
            session.put([bytes(1 << 20)])
        session.flush()
    for call in (repository.snapshots, lambda: list(repository.fetch([bytes(32)])), repository.gaps):
        with pytest.raises(errors.RemoteFailed) as caught:
            call()
        assert caught.value.why == "idle"
    repository.close()


def test_a_repository_that_is_none_is_told(tmp_path: Path) -> None:
    pipes = Pipes()
    with pytest.raises(errors.NotARepository):
        serve(str(tmp_path / "nothing"), Role(), pipes.server)
    pipes.server.close()
    with pytest.raises(errors.NotARepository) as caught:
        RemoteRepository(PipeTransport(pipes.client), "ssh://far/r", "far", ["put"], Watch())
    assert str(tmp_path) not in str(caught.value)


def test_a_client_with_nothing_to_say_is_not_given_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packnback.remote.link.PING_S", 0.2)
    with client_of(root, "list", idle_s=1.5) as repository:
        time.sleep(3)
        assert repository.snapshots()


def test_a_lock_that_somebody_holds_is_told_and_not_waited_for(root: Path) -> None:
    holder = open_local(str(root))
    with client_of(root, "put", "list") as repository, holder.ports.locks.exclusive(0):
        for attempt in (repository.reading(0.0), repository.session(WEB1.certificate, 0.0)):
            with pytest.raises(errors.PacknbackError) as caught, attempt:
                pass
            assert isinstance(caught.value, errors.Locked)
            assert str(root) not in str(caught.value)
    holder.close()


def test_long_facts_fit_into_their_frame() -> None:
    told = failures.tell(errors.DamageBlocks("files", ["\u20ac" * 5000] * 5000), redact=False)
    connection, client = Connection(Side.SERVER), Connection(Side.CLIENT)
    client.receive(b"".join(connection.send(frames.Farewell(*told))))
    assert isinstance(client.next_event(), frames.Farewell)
