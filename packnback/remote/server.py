"""A server: one repository, one connection, and nothing that its role does not allow.

One thread takes one frame after the other and answers it. Objects are streamed in between: whenever nothing has
come from the client, the next object of a stream that its reader has room for is sent.

The repository's lock is held, shared, only while a session is open, a reader has asked for it (`BeginReading`), or
a request or a stream is being answered: a connection that idles keeps nobody from compacting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from typing import Any

from msgspec import Struct, field

import packnback
from packnback.errors import (
    FormatDamage,
    NotAllowed,
    PacknbackError,
    ProtocolViolation,
    RemoteFailed,
    SnapshotUnknown,
)
from packnback.format import config as config_format
from packnback.format import snapshot
from packnback.gc.compaction import CompactOptions
from packnback.gc.maintenance import CheckOptions, LocalMaintenance
from packnback.ids import ID_LEN
from packnback.remote import failures, frames, values
from packnback.remote.channel import Channel
from packnback.remote.frames import STREAMS_MAX, WINDOW, Frame, Side
from packnback.remote.intake import Bounds, Intake, open_intake
from packnback.remote.protocol import Closed, Connection
from packnback.remote.readahead import ReadAhead
from packnback.remote.slots import Slots
from packnback.remote.table import SPECS
from packnback.store.interface import Fetched
from packnback.store.repository import LocalRepository

VERBS = ("put", "list", "get", "forget", "compact", "check")
IDLE_S = 600.0
"""A client that sends nothing, or takes nothing, for so long is gone."""
WAIT_MAX_S = 3600.0
_ROWS_AT_ONCE = 500


class Role(Struct, frozen=True):
    """What a connection may do. By default, nothing."""

    verbs: frozenset[str] = frozenset()
    bounds: Bounds = field(default_factory=Bounds)

    def allows(self, *verbs: str) -> bool:
        """Whether all of these verbs are allowed."""
        return self.verbs.issuperset(verbs)

    @property
    def refused(self) -> frozenset[type[Frame]]:
        """The requests that take a verb which is not allowed."""
        return frozenset(frame for frame, (verbs, _) in _HANDLERS.items() if not self.allows(*verbs))


class _Stream(Struct):
    objects: Iterator[Fetched]
    hold: ExitStack
    credit: int = WINDOW
    envelope: bytes = b""


class Server:
    """Serves one connection. `room` tells the free bytes on the repository's disk."""

    def __init__(
        self,
        repository: LocalRepository,
        role: Role,
        channel: Channel | ReadAhead,
        *,
        room: Callable[[], int],
        idle_s: float = IDLE_S,
    ) -> None:
        self._repository = repository
        self._maintenance = LocalMaintenance(repository)
        self._role = role
        self._channel = channel
        self._room = room
        self._idle_s = idle_s
        self._connection = Connection(Side.SERVER, role.refused)
        self._streams: dict[int, _Stream] = {}
        self._intake: Intake | None = None
        self._session = ExitStack()
        self._slots = Slots(repository.location)
        self._reading = ExitStack()
        self._is_reading = False
        self._holds = 0
        self._lock = ExitStack()
        self._tells_progress = False

    # --- the loop -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the client closes. Whatever else ends it is told to the client, and raised."""
        config = config_format.encode(self._repository.config)
        verbs = sorted(self._role.verbs)
        try:
            self._send(frames.Welcome(f"packnback {packnback.__version__}", config, verbs))
            while self._step():
                pass
        except BrokenPipeError:
            return
        except TimeoutError:
            # It has stopped reading, but not hung up. Nothing can be told to it any more.
            raise RemoteFailed("", "idle") from None
        except PacknbackError as error:
            self._part(error)
            raise
        except Exception as error:
            # What it was is for whoever looks after this machine; the client learns that it was not its fault.
            told = RemoteFailed("", "internal")
            self._part(told)
            raise told from error
        finally:
            with closing(self._slots), self._lock, self._reading, self._session:
                for stream in self._streams.values():
                    stream.hold.close()

    def _part(self, error: PacknbackError) -> None:
        with suppress(BrokenPipeError, TimeoutError):
            self._send(frames.Farewell(*self._told(error)))

    def _step(self) -> bool:
        """One frame, or one object of a stream; False when the client has closed, or does not listen any more."""
        if self._channel.deserted:
            return False
        frame = self._connection.next_event()
        if frame is None:
            ready = [n for n, stream in self._streams.items() if stream.credit > 0]
            data = self._channel.read(0.0 if ready else self._idle_s)
            if data is not None:
                self._connection.receive(data)
            elif ready:
                self._send_object(ready[0])
            else:
                raise RemoteFailed("", "idle")
            return True
        if isinstance(frame, Closed):
            return False
        self._answer(frame)
        return True

    def _answer(self, frame: Frame) -> None:
        handler = _HANDLERS.get(type(frame))
        if handler is None:
            return  # greetings and pings: that they came is all there is to them
        verbs, answer = handler
        try:
            for verb in verbs:
                if not self._role.allows(verb):
                    raise NotAllowed(verb, "role")
            reply = answer(self, frame)
        except (ProtocolViolation, RemoteFailed):
            raise
        except PacknbackError as error:
            if SPECS[type(frame)].reply is None:
                raise
            reply = frames.Failure(*self._told(error))
        if reply is not None:
            self._send(reply)

    def _told(self, error: PacknbackError) -> tuple[str, dict[str, Any]]:
        return failures.tell(error, redact=not self._role.allows("check"))

    def _send(self, frame: Frame) -> None:
        self._channel.write(self._connection.send(frame))

    def tell_progress(self, frame: frames.Progress) -> None:
        """Pass on how a long request is getting on; at other times the client has no business with it."""
        if self._tells_progress:
            self._send(frame)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        self._tells_progress = True
        try:
            yield
        finally:
            self._tells_progress = False

    @contextmanager
    def _held(self, wait_ms: int | None = None) -> Iterator[None]:
        """Hold the lock for reading, together with whoever else here does."""
        if self._holds == 0:
            self._lock.enter_context(self._repository.reading(None if wait_ms is None else _seconds(wait_ms)))
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if self._holds == 0:
                self._lock.close()

    # --- put ----------------------------------------------------------------------------------------------------

    def _open_session(self, frame: frames.OpenSession) -> Frame:
        if self._intake is not None:
            raise ProtocolViolation("OpenSession", "a session is open")
        opened: AbstractContextManager[Intake] = open_intake(
            self._repository, frame.certificate, _seconds(frame.wait_ms), self._role.bounds, self._room, self._slots
        )
        self._intake = self._session.enter_context(opened)
        return frames.Opened(self._intake.used, self._intake.quota)

    def _close_session(self, frame: frames.CloseSession) -> Frame:
        self._intake = None
        self._session.close()
        return frames.Done()

    @property
    def _open_intake(self) -> Intake:
        if self._intake is None:
            raise ProtocolViolation("session", "none is open")
        return self._intake

    def _has(self, frame: frames.Has) -> Frame:
        known = self._open_intake.has(_ids(frame.ids))
        bits = sum(1 << i for i, there in enumerate(known) if there)
        return frames.Present(bits.to_bytes(-(-len(known) // 8), "little"))

    def _put(self, frame: frames.Put) -> None:
        self._open_intake.put(bytes(frame.record))

    def _flush(self, frame: frames.Flush) -> Frame:
        return frames.Flushed(self._open_intake.flush())

    def _head(self, frame: frames.GetHead) -> Frame:
        found = self._open_intake.head()
        if found is None:
            return frames.HeadIs(0, b"", b"", b"")
        head, kept = found
        return frames.HeadIs(head.received_ns, kept.header, kept.signature, kept.certificate)

    def _commit(self, frame: frames.Commit) -> Frame:
        committed, published = self._open_intake.commit(bytes(frame.snapshot))
        return frames.CommittedAs(committed.name, committed.id, committed.received_ns, published)

    # --- list, get ----------------------------------------------------------------------------------------------

    def _begin_reading(self, frame: frames.BeginReading) -> Frame:
        if self._is_reading:
            raise ProtocolViolation("BeginReading", "begun already")
        if not self._role.verbs - {"put"}:
            raise NotAllowed("list", "role")
        self._reading.enter_context(self._held(frame.wait_ms))
        self._is_reading = True
        return frames.Done()

    def _end_reading(self, frame: frames.EndReading) -> Frame:
        self._is_reading = False
        self._reading.close()
        return frames.Done()

    def _list(self, frame: frames.ListSnapshots) -> Frame:
        with self._held():
            rows = [values.encode(info) for info in self._repository.snapshots()]
        while len(rows) > _ROWS_AT_ONCE:
            self._send(frames.Snapshots(rows[:_ROWS_AT_ONCE], True))
            rows = rows[_ROWS_AT_ONCE:]
        return frames.Snapshots(rows, False)

    def _read_snapshot(self, frame: frames.ReadSnapshot) -> Frame:
        try:
            if snapshot.parse_name(frame.name)[2] != "snap":
                raise SnapshotUnknown(frame.name)
        except FormatDamage:
            raise SnapshotUnknown(frame.name) from None
        with self._held():
            return frames.SnapshotFile(self._repository.read_snapshot(frame.name))

    def _get(self, frame: frames.Get) -> None:
        if frame.stream in self._streams or len(self._streams) >= STREAMS_MAX:
            raise ProtocolViolation("Get", "number of the stream, or too many of them")
        hold = ExitStack()
        hold.enter_context(self._held())
        self._streams[frame.stream] = _Stream(self._repository.fetch(_ids(frame.ids)), hold)

    def _more(self, frame: frames.More) -> None:
        stream = self._streams.get(frame.stream)
        if stream is not None:  # it may just have ended
            stream.credit = min(stream.credit + frame.count, WINDOW)

    def _cancel(self, frame: frames.Cancel) -> None:
        if frame.stream in self._streams:
            self._end_stream(frame.stream)

    def _end_stream(self, number: int) -> None:
        self._streams.pop(number).hold.close()
        self._send(frames.StreamEnd(number))

    def _send_object(self, number: int) -> None:
        stream = self._streams.pop(number)
        self._streams[number] = stream  # behind the others: each gets its turn
        fetched = next(stream.objects, None)
        if fetched is None:
            self._end_stream(number)
            return
        frame: frames.Object | frames.Trouble
        if fetched.problem is not None:
            frame = frames.Trouble(number, fetched.id, *self._told(fetched.problem))
        else:
            envelope = b"" if fetched.envelope == stream.envelope else fetched.envelope
            stream.envelope = fetched.envelope
            frame = frames.Object(number, fetched.id, envelope, fetched.record)
        stream.credit -= frames.cost(frame)
        self._send(frame)

    # --- forget, compact, check -----------------------------------------------------------------------------------

    def _time(self, frame: frames.AskTime) -> Frame:
        with self._held():
            return frames.Time(self._maintenance.clock(force=frame.force))

    def _forget(self, frame: frames.Forget) -> Frame:
        with self._held():
            return frames.Names(self._maintenance.forget(frame.names, force=frame.force))

    def _recover(self, frame: frames.Recover) -> Frame:
        with self._held():
            return frames.Names(self._maintenance.recover(frame.names))

    def _compact(self, frame: frames.Compact) -> Frame:
        self._refuse_own_lock("compact")
        waste, wait_s = frame.max_waste_ppm / frames.PPM, _seconds(frame.wait_ms)
        options = CompactOptions(frame.grace_ns, waste, frame.force, frame.dry_run, wait_s)
        with self._telling():
            return frames.Answer(values.encode(self._maintenance.compact(options)))

    def _check(self, frame: frames.Check) -> Frame:
        self._refuse_own_lock("check")
        if frame.repair and not self._role.allows("compact"):
            raise NotAllowed("compact", "role")
        percent = min(frame.sample_ppm / (frames.PPM / 100), 100.0)
        options = CheckOptions(frame.read_data, percent, frame.repair, _ids(frame.bad), _seconds(frame.wait_ms))
        with self._telling():
            return frames.Answer(values.encode(self._maintenance.check(options)))

    def _refuse_own_lock(self, what: str) -> None:
        if self._holds or self._intake is not None:
            raise ProtocolViolation(what, "while this connection holds the lock itself")

    def _stats(self, frame: frames.AskStats) -> Frame:
        with self._held():
            alone = self._maintenance.held_alone() if frame.alone else {}
            return frames.Answer([values.encode(self._maintenance.stats()), alone])

    def _gaps(self, frame: frames.AskGaps) -> Frame:
        with self._held():
            return frames.Answer(values.encode_findings(self._maintenance.gaps()))

    def _released(self, frame: frames.AskReleased) -> Frame:
        with self._held():
            return frames.Answer(values.encode(self._maintenance.released()))


def _ids(joined: bytes) -> list[bytes]:
    return [joined[at : at + ID_LEN] for at in range(0, len(joined), ID_LEN)]


def _seconds(wait_ms: int) -> float:
    return min(wait_ms / 1000, WAIT_MAX_S)


_HANDLERS: dict[type[Frame], tuple[tuple[str, ...], Callable[[Server, Any], Frame | None]]] = {
    frames.OpenSession: (("put",), Server._open_session),
    frames.Has: (("put",), Server._has),
    frames.Put: (("put",), Server._put),
    frames.Flush: (("put",), Server._flush),
    frames.GetHead: (("put",), Server._head),
    frames.Commit: (("put",), Server._commit),
    frames.CloseSession: (("put",), Server._close_session),
    frames.BeginReading: ((), Server._begin_reading),
    frames.EndReading: ((), Server._end_reading),
    frames.ListSnapshots: (("list",), Server._list),
    frames.ReadSnapshot: (("list",), Server._read_snapshot),
    frames.AskGaps: (("list",), Server._gaps),
    frames.AskReleased: (("list",), Server._released),
    frames.AskStats: (("list",), Server._stats),
    frames.Get: (("get",), Server._get),
    frames.More: (("get",), Server._more),
    frames.Cancel: (("get",), Server._cancel),
    frames.AskTime: (("forget",), Server._time),
    frames.Forget: (("forget",), Server._forget),
    frames.Recover: (("forget",), Server._recover),
    frames.Compact: (("compact",), Server._compact),
    frames.Check: (("check",), Server._check),
}
"""For each request, the verbs that it needs and what answers it."""
