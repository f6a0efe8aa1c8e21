"""A server that was taken over and lies about what it holds: memory is bounded, nothing false is believed.

In front of a real server stands a `Crook`, who hears every frame of both sides and may change what the client gets.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from msgspec.structs import replace
from served import Pipes, PipeTransport, Serving, backup, client_of
from smallclient import OWNER, SmallClient
from test_remote_hostile import INFO, Liar, lied_to

from packnback import errors
from packnback.backup.save import SaveOptions, save
from packnback.events import Watch
from packnback.format import config, record, snapshot
from packnback.ids import Kind
from packnback.remote import frames, values
from packnback.remote.client import RemoteRepository
from packnback.remote.frames import STREAMS_MAX, Frame, Side
from packnback.remote.protocol import Closed, Connection
from packnback.restore.objects import ObjectReader
from packnback.restore.snapshot import open_snapshot
from packnback.restore.verify import verify
from packnback.store.local import create_local, open_local

FILES = {f"file{i}": bytes([i]) * (1000 * i) for i in range(1, 8)}
CONFIG = config.Config(bytes(16), OWNER.bundle.raw)
Lie = Callable[[Frame], list[Frame]]


class Crook:
    """Passes on what client and server say; what the server says goes through `lie` first."""

    def __init__(self, serving: Serving, lie: Lie) -> None:
        self.pipes = Pipes()
        self._serving = serving
        self._lie = lie
        self._client, self._server = Connection(Side.SERVER), Connection(Side.CLIENT)
        self._lock = threading.Lock()
        for run in (self._up, self._down):
            threading.Thread(target=run, daemon=True).start()

    def _up(self) -> None:
        self._pass(self._client, self.pipes.server, self._server, self._serving.pipes.client, lambda frame: [frame])

    def _down(self) -> None:
        self._pass(self._server, self._serving.pipes.client, self._client, self.pipes.server, self._lie)

    def _pass(self, ear: Connection, source: object, mouth: Connection, target: object, lie: Lie) -> None:
        while True:
            with self._lock:
                frame = ear.next_event()
                pieces = [] if frame is None or isinstance(frame, Closed) else [mouth.send(f) for f in lie(frame)]
            if isinstance(frame, Closed):
                os.close(target._write_fd)  # type: ignore[attr-defined]
                return
            if frame is None:
                data = source.read()  # type: ignore[attr-defined]
                with self._lock:
                    ear.receive(data)
            for piece in pieces:
                with suppress(BrokenPipeError):
                    target.write(piece)  # type: ignore[attr-defined]


@contextmanager
def through(root: Path, lie: Lie, *verbs: str) -> Iterator[RemoteRepository]:
    """The real client of a real server, with a crook between them."""
    serving = Serving(root, *verbs)
    crook = Crook(serving, lie)
    repository = RemoteRepository(PipeTransport(crook.pipes.client), "ssh://far/r", "far", verbs, Watch())
    try:
        yield repository
    finally:
        repository.close()
        assert serving.ended()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "repo"
    repository = create_local(str(path), OWNER.bundle.raw)
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        backup(client, session, FILES)
    repository.close()
    return path


def ids_of(root: Path) -> list[bytes]:
    return [
        found.id
        for path in sorted((root / "packs").rglob("*.pack"))
        for _, found in record.scan(path.read_bytes())
        if found.kind != Kind.ENVELOPE
    ]


# --- memory -------------------------------------------------------------------------------------------------------


def endless(frame: Callable[[int], Frame]) -> Callable[[Frame], list[Frame]]:
    return lambda asked: [frame(asked.stream)] * 3000 if isinstance(asked, frames.Get) else []


TROUBLE = {"what": "w", "why": "y" * 10_000}


@pytest.mark.parametrize(
    "frame",
    [
        lambda stream: frames.Trouble(stream, bytes(32), "FormatDamage", TROUBLE),
        lambda stream: frames.Object(stream, bytes(32), b"", b""),
        lambda stream: frames.Object(stream, bytes(32), bytes(1 << 11), b""),
    ],
    ids=["troubles", "objects of nothing", "envelopes"],
)
@pytest.mark.parametrize("asked_for", [1, 2500])
def test_nothing_piles_up_that_was_not_asked_for(frame: Callable[[int], Frame], asked_for: int) -> None:
    """Not even while nobody reads: no more than was asked for, and no more than the window."""
    with lied_to(endless(frame)) as (repository, _):
        stream = repository._link.open_stream(bytes(32) * asked_for)
        repository._link._reader.join(30)
        assert isinstance(repository._link._failure, errors.ProtocolViolation)
        assert len(stream.items) <= asked_for
        assert sum(map(frames.cost, stream.items)) <= frames.WINDOW + frames.OBJECT_LIMIT


NOTE = frames.Progress("note", "what everybody should know", 0, "")


def test_nothing_is_printed_for_a_far_side_that_was_not_asked_for_anything_long() -> None:
    def chatter(asked: Frame) -> list[Frame]:
        return [NOTE] if isinstance(asked, frames.GetHead) else []

    with lied_to(chatter) as (repository, _), pytest.raises(errors.ProtocolViolation):
        repository._link.call(frames.GetHead(), frames.HeadIs)


def test_a_far_side_does_not_fill_a_log_with_notes() -> None:
    told: list[str] = []
    with lied_to(lambda asked: [NOTE] * 5000 if isinstance(asked, frames.AskGaps) else []) as (repository, _):
        repository._link._watch.progress = Told(told)
        with pytest.raises(errors.ProtocolViolation):
            repository.gaps()
    assert len(told) == 1000


class Told:
    def __init__(self, told: list[str]) -> None:
        self._told = told

    def begin(self, phase: str, total: int | None, unit: str) -> None:
        """Not of interest."""

    def advance(self, amount: int) -> None:
        """Not of interest."""

    def note(self, message: str) -> None:
        self._told.append(message)


def test_all_objects_missing_fit_into_the_window(root: Path) -> None:
    """The same from the honest end: troubles wait for the reader, too, and do not stop for good."""
    wanted = [bytes(28) + n.to_bytes(4, "big") for n in range(3000)]
    with client_of(root, "get", "list") as repository:
        found = list(repository.fetch(wanted))
    assert sorted(each.id for each in found) == wanted
    assert all(isinstance(each.problem, errors.ObjectMissing) for each in found)


@pytest.mark.parametrize(
    "row", [[[]] * 300_000, values.encode(replace(INFO, client="x" * 900_000))], ids=["heavy", "long"]
)
def test_rows_that_are_none_are_not_kept_until_the_last_one(row: object) -> None:
    def answers(frame: Frame) -> list[Frame]:
        return [frames.Snapshots([row], True)] if isinstance(frame, frames.ListSnapshots) else []

    with lied_to(answers) as (repository, _), pytest.raises(errors.ProtocolViolation):
        repository.snapshots()  # the second part never comes: it is not waited for


# --- objects ------------------------------------------------------------------------------------------------------


def other_object(frame: Frame, state: list[frames.Object]) -> list[Frame]:
    """Each object with the body of the one before it."""
    if not isinstance(frame, frames.Object):
        return [frame]
    state.append(frame)
    return [replace(frame, record=state[-2].record)] if len(state) > 1 else [frame]


def relabelled(frame: Frame, state: list[frames.Object]) -> list[Frame]:
    """Each record under the id of the one before it, header included."""
    if not isinstance(frame, frames.Object):
        return [frame]
    state.append(frame)
    if len(state) == 1:
        return [frame]
    before = bytes(state[-2].record)
    return [replace(frame, record=before[:12] + frame.id + before[44:])]


def flipped(frame: Frame, state: list[frames.Object]) -> list[Frame]:
    if not isinstance(frame, frames.Object):
        return [frame]
    raw = bytearray(frame.record)
    raw[-40] ^= 1
    return [replace(frame, record=bytes(raw))]


def cut(frame: Frame, state: list[frames.Object]) -> list[Frame]:
    return [replace(frame, record=bytes(frame.record)[:-1])] if isinstance(frame, frames.Object) else [frame]


def dropped(frame: Frame, state: list[frames.Object]) -> list[Frame]:
    return [] if isinstance(frame, frames.Object) else [frame]


def without_envelope(frame: Frame, state: list[frames.Object]) -> list[Frame]:
    return [replace(frame, envelope=b"")] if isinstance(frame, frames.Object) else [frame]


def not_asked_for(frame: Frame, state: list[frames.Object]) -> list[Frame]:
    return [replace(frame, id=bytes(32))] if isinstance(frame, frames.Object) else [frame]


LIES = [other_object, relabelled, flipped, cut, dropped, without_envelope, not_asked_for]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_objects_that_are_not_what_was_asked_for(root: Path, lie: Callable[..., list[Frame]]) -> None:
    """Each is told as damage of that object, or opens to what it should: never to anything else."""
    state: list[frames.Object] = []
    wanted = ids_of(root)
    local = open_local(str(root))
    with local.reading(), ObjectReader(local, OWNER) as reader:
        truth = {opened.id: opened.plaintext for opened in reader.open_many(wanted)}
    local.close()
    with (
        through(root, lambda frame: lie(frame, state), "get", "list") as repository,
        ObjectReader(repository, OWNER) as reader,
    ):
        found = list(reader.open_many(wanted))
    assert {opened.id for opened in found} == set(wanted) and len(found) == len(wanted)
    for opened in found:
        assert isinstance(opened.problem, errors.Damage | errors.EnvelopeRejected) or (
            opened.problem is None and opened.plaintext == truth[opened.id]
        )
    # Asked twice for what did not open, a liar that gives out the object before may each time be right about one.
    assert sum(opened.problem is not None for opened in found) >= len(wanted) - 2


def test_many_threads_that_ask_again_open_no_more_streams_than_they_may(root: Path) -> None:
    """Every object is damaged, and more threads than a connection has streams ask for it once more."""
    wanted = ids_of(root)
    assert len(wanted) > 2 * STREAMS_MAX
    for _ in range(5):
        with (
            through(root, lambda frame: without_envelope(frame, []), "get", "list") as repository,
            ObjectReader(repository, OWNER, workers=3 * STREAMS_MAX) as reader,
        ):
            found = list(reader.open_many(wanted))
        assert {opened.id for opened in found} == set(wanted)
        assert all(isinstance(opened.problem, errors.Damage | errors.EnvelopeRejected) for opened in found)


def test_a_stream_that_is_cut_off_is_no_end(root: Path) -> None:
    """The server dies in the middle of an object: an error, not a short answer."""
    serving = Serving(root, "get", "list")
    pipes = Pipes()
    repository_thread = threading.Thread(target=relay_until, args=(serving, pipes, 3000), daemon=True)
    repository_thread.start()
    repository = RemoteRepository(PipeTransport(pipes.client), "ssh://far/r", "far", ["get"], Watch())
    with pytest.raises(errors.RemoteFailed):
        list(repository.fetch(ids_of(root)))
    repository.close()
    serving.pipes.client.close()
    assert serving.ended()


def relay_until(serving: Serving, pipes: Pipes, bytes_down: int) -> None:
    """Pass bytes on, and hang up after so many of the server's."""

    def up() -> None:
        with suppress(OSError):
            while data := pipes.server.read():
                serving.pipes.client.write([data])

    threading.Thread(target=up, daemon=True).start()
    config_and_all = 2700
    left = bytes_down + config_and_all
    while left > 0:
        data = (serving.pipes.client.read() or b"")[:left]
        left -= len(data)
        pipes.server.write([data])
    os.close(pipes.server._write_fd)


# --- answers ------------------------------------------------------------------------------------------------------

ANSWERS: dict[str, Frame] = {
    "of another request": frames.Flushed(0),
    "of none": frames.Time(0),
    "an object of no stream": frames.Object(7, bytes(32), b"", b"x"),
    "the end of no stream": frames.StreamEnd(7),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_replies_out_of_order(answer: str) -> None:
    liar = Liar(lambda frame: [], config.encode(CONFIG))
    repository = RemoteRepository(PipeTransport(liar.pipes.client), "ssh://far/r", "far", ["put"], Watch())
    asked = repository._link.ask(frames.OpenSession(b"", 0))
    unruly = Connection(Side.SERVER)
    unruly.send(frames.Welcome("x", config.encode(CONFIG), []))
    unruly._awaited.append(type(ANSWERS[answer]))  # it does not keep its own rules
    liar.pipes.server.write(unruly.send(ANSWERS[answer]))
    with pytest.raises(errors.ProtocolViolation):
        asked.result(30)
    with pytest.raises(errors.ProtocolViolation):
        repository.snapshots()
    repository.close()


@pytest.mark.parametrize("change", [{"id": bytes(32)}, {"name": snapshot.snapshot_name(bytes(16), 9)}])
def test_an_acknowledgement_of_something_else_is_none(root: Path, change: dict[str, object]) -> None:
    def lie(frame: Frame) -> list[Frame]:
        return [replace(frame, **change)] if isinstance(frame, frames.CommittedAs) else [frame]  # type: ignore[arg-type]

    with through(root, lie, "put") as repository:
        client = SmallClient(repository.config.repository_id)
        with repository.session(client.certificate) as session, pytest.raises(errors.ProtocolViolation):
            backup(client, session, FILES | {"new": b"x"})


def test_a_lie_in_has_is_refused_or_found_by_verify(tmp_path: Path, root: Path) -> None:
    """ "I have all of that": an honest store behind the liar does not take the snapshot. One that lies there as well
    has not got the objects, and `verify` says which, and what they were needed for.
    """

    def lie(frame: Frame) -> list[Frame]:
        return [frames.Present(b"\x07")] if isinstance(frame, frames.Present) else [frame]

    with through(root, lie, "put") as repository:
        client = SmallClient(repository.config.repository_id)
        with repository.session(client.certificate) as session, pytest.raises(errors.ObjectMissing):
            backup(client, session, {"new": b"never sent"})
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("precious")
    earlier = set((root / "packs").rglob("*.pack"))
    with client_of(root, "put") as repository:
        options = SaveOptions(paths=[bytes(tmp_path / "source")], state_directory=bytes(tmp_path / "state"))
        save(repository, OWNER.put_key("web9"), options)
    never_sent = set()
    for path in set((root / "packs").rglob("*.pack")) - earlier:
        ids = {found.id for _, found in record.scan(path.read_bytes()) if found.kind == Kind.DATA}
        if ids:
            never_sent |= ids
            path.unlink()
    with client_of(root, "get", "list") as repository, ObjectReader(repository, OWNER) as reader:
        report = verify(reader, repository.snapshots()[-1:])
    assert set(report.bad) == never_sent != set()
    assert [each.path for each in report.affected] == [bytes(tmp_path / "source/file")[1:]]


# --- history ------------------------------------------------------------------------------------------------------


def test_another_repository_later_on(tmp_path: Path, root: Path) -> None:
    """The first one was pinned. It costs nothing to make another with the same public keys."""
    second = create_local(str(tmp_path / "second"), OWNER.bundle.raw)
    second.close()
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("secret")
    options = SaveOptions(paths=[bytes(tmp_path / "source")], state_directory=bytes(tmp_path / "state"))
    key = OWNER.put_key("web9")
    with client_of(root, "put") as repository:
        save(repository, key, options)
    with client_of(tmp_path / "second", "put") as repository, pytest.raises(errors.WrongRepository):
        save(repository, key, options)
    assert not list((tmp_path / "second/snapshots").iterdir())
    assert not list((tmp_path / "second/packs").rglob("*.pack"))


def test_an_old_head_is_an_alarm_and_stores_nothing(tmp_path: Path, root: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("secret")
    options = SaveOptions(paths=[bytes(tmp_path / "source")], state_directory=bytes(tmp_path / "state"))
    key = OWNER.put_key("web9")
    heads: list[frames.HeadIs] = []

    def keep(frame: Frame) -> list[Frame]:
        heads.extend([frame] if isinstance(frame, frames.HeadIs) else [])
        return [frame]

    def replay(frame: Frame) -> list[Frame]:
        return [old] if isinstance(frame, frames.HeadIs) else [frame]

    for _ in range(2):
        with through(root, keep, "put") as repository:
            save(repository, key, options)
    old = next(head for head in heads if head.header)
    packs = sorted((root / "packs").rglob("*.pack"))
    for _ in range(2):
        with through(root, replay, "put") as repository, pytest.raises(errors.ChainAlarm) as caught:
            save(repository, key, options)
        assert caught.value.state == "rollback"
    old = frames.HeadIs(0, b"", b"", b"")
    with through(root, replay, "put") as repository, pytest.raises(errors.ChainAlarm):
        save(repository, key, options)
    assert sorted((root / "packs").rglob("*.pack")) == packs
    with client_of(root, "put") as repository:
        save(repository, key, options)


def test_an_account_of_a_snapshot_that_differs_from_what_is_signed(root: Path) -> None:
    """Whose it is, which number, what it is of: the list is believed in nothing once a snapshot is opened."""
    for change in ({"client": "boss"}, {"partial": True}, {"prev": b"p" * 32}, {"root": b"r" * 32}):

        def lie(frame: Frame, change: dict[str, object] = change) -> list[Frame]:
            if not isinstance(frame, frames.Snapshots):
                return [frame]
            infos = [values.decode(type(INFO), row) for row in frame.rows]
            rows = [values.encode(replace(info, **change)) for info in infos]  # type: ignore[arg-type]
            return [frames.Snapshots(rows, frame.more)]

        with through(root, lie, "get", "list") as repository, ObjectReader(repository, OWNER) as reader:
            [info] = repository.snapshots()
            with pytest.raises(errors.SnapshotDamage):
                open_snapshot(reader, info)


def test_a_snapshot_of_one_name_for_another(root: Path) -> None:
    with client_of(root, "put") as repository:
        client = SmallClient(repository.config.repository_id)
        with repository.session(client.certificate) as session:
            backup(client, session, FILES | {"later": b"x"})
    local = open_local(str(root))
    with local.reading():
        first, _ = local.snapshots()
        old = local.read_snapshot(first.name)
    local.close()

    def lie(frame: Frame) -> list[Frame]:
        return [frames.SnapshotFile(old)] if isinstance(frame, frames.SnapshotFile) else [frame]

    with through(root, lie, "get", "list") as repository, ObjectReader(repository, OWNER) as reader:
        infos = repository.snapshots()
        assert open_snapshot(reader, infos[0]).info.name == first.name
        with pytest.raises(errors.SnapshotDamage):
            open_snapshot(reader, infos[1])


def test_progress_of_any_kind_is_harmless() -> None:
    noise = [frames.Progress(kind, "x", 1 << 62, "y") for kind in ("begin", "advance", "note", "?")]
    lie = [*noise, frames.Answer([[], []])]
    with lied_to(lambda asked: lie if isinstance(asked, frames.AskGaps) else []) as (repository, _):
        assert repository.gaps() == []
