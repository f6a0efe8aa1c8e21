"""One end of a connection that asks: requests out, answers in, whoever in this process is asking.

A thread of its own reads everything that comes, at once, and sorts it: answers to the futures of their requests,
objects to their streams. So neither end can be kept from writing by the other one that also wants to write, which
two programs with full pipes between them would be for ever. What may pile up here is bounded: by the number of
requests under way, and for streams by the window that the far side was given.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from packnback.bell import Bell
from packnback.errors import PacknbackError, ProtocolViolation, RemoteFailed
from packnback.events import Watch
from packnback.ids import ID_LEN
from packnback.remote import failures, frames, values
from packnback.remote.channel import Channel
from packnback.remote.frames import STREAMS_MAX, WINDOW, Frame, Side
from packnback.remote.protocol import Closed, Connection
from packnback.store.interface import SnapshotInfo

PING_S = 60.0
"""A far side that hears nothing for ten minutes gives up."""
_CONSUMED_TOLD = WINDOW // 4
_LAST_WORD_S = 1.0
_ROWS_MAX = 300_000
"""Snapshots that are listed; they take about a KiB each."""
_NOTES_MAX = 1_000
"""They are printed; a far side could fill a log with them."""

F = TypeVar("F", bound=Frame)


class Stream:
    """Objects on their way here. For one reader."""

    def __init__(self, number: int, wanted: int) -> None:
        self.number = number
        self.wanted = wanted
        """Objects that are still to come, at the most."""
        self.items: deque[frames.Object | frames.Trouble] = deque()
        self.held = 0
        """What `items` take of the window (`frames.cost`)."""
        self.ended = False
        self.cancelled = False
        self.reader = Bell()
        self.untold = 0
        """What was consumed of the window, and the far side has not been told of."""


class Link:
    """A connection to a server. `lost` makes the error for a connection that broke, once it has."""

    def __init__(self, channel: Channel, host: str, watch: Watch, lost: Callable[[], RemoteFailed]) -> None:
        self._channel = channel
        self._host = host
        self._watch = watch
        self._lost = lost
        self._connection = Connection(Side.CLIENT)
        self._sending = threading.Lock()
        """Held while a frame is written: frames are not to be mixed, and answers come in the order of requests."""
        self._state = threading.Lock()
        self._streams_fewer = threading.Condition(self._state)
        self._pending: deque[Future[Frame]] = deque()
        self._rows: list[SnapshotInfo] = []
        """Of an answer that comes in parts."""
        self._streams: dict[int, Stream] = {}
        self._next_stream = 0
        self._notes = 0
        self._failure: PacknbackError | None = None
        self._closing = threading.Event()
        self.welcome: Future[frames.Welcome] = Future()
        self._reader = threading.Thread(target=self._read, name="link", daemon=True)
        self._pinger = threading.Thread(target=self._ping, name="keep-alive", daemon=True)

    def start(self, program: str) -> frames.Welcome:
        """Greet, and wait to be greeted. Raises what kept that from happening."""
        self._reader.start()
        self.send(frames.Hello(program))
        self._pinger.start()
        self._watch.counters.round_trips += 1
        return self.welcome.result()

    # --- asking -----------------------------------------------------------------------------------------------

    def send(self, frame: Frame) -> None:
        """Send what is not answered."""
        self._send(frame, None)

    def ask(self, frame: Frame) -> Future[Frame]:
        """Send a request; its answer will be in the future."""
        answer: Future[Frame] = Future()
        self._send(frame, answer)
        return answer

    def call(self, frame: Frame, expected: type[F]) -> F:
        """Send a request and wait for its answer. Raises the error that the far side answers with."""
        return self.wait(self.ask(frame), expected)

    def wait(self, answer: Future[Frame], expected: type[F]) -> F:
        """The answer to a request; counts as a round trip."""
        self._watch.counters.round_trips += 1
        found = answer.result()
        assert isinstance(found, expected)  # the protocol has compared it with its table
        return found

    def _send(self, frame: Frame, answer: Future[Frame] | None) -> None:
        with self._sending:
            with self._state:
                if self._failure is not None:
                    raise self._failure
                if self._closing.is_set():
                    raise RemoteFailed(self._host, "connection-lost")
                pieces = self._connection.send(frame)
                if answer is not None:
                    self._pending.append(answer)
            try:
                self._channel.write(pieces)
                return
            except OSError:
                pass
        if self._closing.is_set():  # nobody waits for what the far side may have to say
            raise self._failure or RemoteFailed(self._host, "connection-lost")
        # The far side has gone, and may have said why: the reader is about to find that.
        self._reader.join()
        raise self._failure or self._why_lost()

    def _why_lost(self) -> RemoteFailed:
        """Once both have greeted, there was a connection: whatever the status of ssh, it broke."""
        error = self._lost()
        greeted = self.welcome.done() and self.welcome.exception() is None
        return RemoteFailed(error.host, "connection-lost", error.detail, error.address) if greeted else error

    def _ping(self) -> None:
        while not self._closing.wait(PING_S):
            try:
                self.send(frames.Ping())
            except PacknbackError:
                return  # whoever waits for an answer is told by the reader

    # --- streams ----------------------------------------------------------------------------------------------

    def open_stream(self, ids: bytes) -> Stream:
        """Ask for objects (ids, concatenated). Waits until the far side can have one more stream open."""
        with self._state:
            while len(self._streams) >= STREAMS_MAX:
                if self._failure is not None:
                    raise self._failure
                self._streams_fewer.wait()
            self._next_stream += 1
            stream = Stream(self._next_stream, len(ids) // ID_LEN)
            self._streams[stream.number] = stream
        self._watch.counters.round_trips += 1
        self.send(frames.Get(stream.number, ids))
        return stream

    def next_item(self, stream: Stream) -> frames.Object | frames.Trouble | None:
        """The next object of a stream, None at its end."""
        while True:
            with self._state:
                if stream.items:
                    item = stream.items.popleft()
                    stream.held -= frames.cost(item)
                    stream.untold += frames.cost(item)
                    tell = stream.untold if stream.untold >= _CONSUMED_TOLD and not stream.ended else 0
                    stream.untold -= tell
                    break
                if stream.ended:
                    return None
                if self._failure is not None:
                    raise self._failure
            stream.reader.wait()
        if tell:
            self.send(frames.More(stream.number, tell))
        return item

    def cancel(self, stream: Stream) -> None:
        """The rest is not wanted. What is under way already is thrown away when it comes."""
        with self._state:
            if stream.ended or stream.cancelled:
                return
            stream.cancelled = True
            stream.items.clear()
            if self._failure is not None:
                return
        self.send(frames.Cancel(stream.number))

    # --- what comes ---------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while True:
                with self._state:
                    frame = self._connection.next_event()
                    if frame is not None and not isinstance(frame, Closed | frames.Progress):
                        self._sort(frame)
                        continue
                if isinstance(frame, frames.Progress):
                    self._tell(frame)  # who is told may take his time, and nobody else is to wait for him
                    continue
                if isinstance(frame, Closed):
                    raise self._why_lost()
                data = self._channel.read()
                with self._state:
                    self._connection.receive(data or b"")
        except PacknbackError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001  whatever it is, whoever waits has to hear of it
            self._fail(RemoteFailed(self._host, "internal", f"{type(error).__name__}: {error}"))

    def _sort(self, frame: Frame) -> None:
        match frame:
            case frames.Welcome():
                self.welcome.set_result(frame)
            case frames.Farewell():
                raise failures.understand(frame.name, frame.facts, self._host)
            case frames.Object() | frames.Trouble():
                self._add_to_stream(frame)
            case frames.StreamEnd():
                stream = self._streams.pop(frame.stream, None)
                if stream is None:
                    raise ProtocolViolation("StreamEnd", "of no stream")
                stream.ended = True
                stream.reader.ring()
                self._streams_fewer.notify()
            case frames.Failure():
                self._pending.popleft().set_exception(failures.understand(frame.name, frame.facts, self._host))
            case frames.Snapshots():
                self._add_rows(frame)
            case _:
                self._pending.popleft().set_result(frame)

    def _add_rows(self, frame: frames.Snapshots) -> None:
        """Taken apart as they come: what is no row, however large, is not kept until the last one has come."""
        self._rows += [values.decode(SnapshotInfo, row) for row in frame.rows]
        if len(self._rows) > _ROWS_MAX:
            raise ProtocolViolation("Snapshots", "no end of them")
        if not frame.more:
            rows, self._rows = self._rows, []
            self._pending.popleft().set_result(frames.Snapshots(rows, False))

    def _add_to_stream(self, item: frames.Object | frames.Trouble) -> None:
        stream = self._streams.get(item.stream)
        if stream is None:
            raise ProtocolViolation(type(item).__name__, "of no stream")
        stream.wanted -= 1
        stream.held += frames.cost(item)
        if stream.wanted < 0 or stream.held > WINDOW + frames.OBJECT_LIMIT:
            raise ProtocolViolation(type(item).__name__, "more than was asked for")
        if stream.cancelled:
            return
        stream.items.append(item)
        stream.reader.ring()

    def _tell(self, frame: frames.Progress) -> None:
        progress = self._watch.progress
        if frame.kind == "begin":
            progress.begin(frame.text, frame.amount or None, frame.unit)
        elif frame.kind == "advance":
            progress.advance(frame.amount)
        else:
            self._notes += 1
            if self._notes > _NOTES_MAX:
                raise ProtocolViolation("Progress", "no end of notes")
            progress.note(frame.text)

    def _fail(self, error: PacknbackError) -> None:
        with self._state:
            if self._failure is not None:
                return  # what comes of the first failure is no other one
            self._failure = error
            waiting = [*self._pending]
            self._pending.clear()
            for stream in self._streams.values():
                stream.reader.ring()
            self._streams_fewer.notify_all()
        if not self.welcome.done():
            self.welcome.set_exception(error)
        for answer in waiting:
            answer.set_exception(error)

    # --- the end ------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether there is still somebody to talk to."""
        return self._failure is None

    def abandon(self) -> None:
        """Let nobody wait for the far side any more, neither for an answer nor for it to read."""
        self._closing.set()
        self._channel.give_up()
        self._fail(RemoteFailed(self._host, "connection-lost"))

    def hang_up(self) -> None:
        """Say nothing more. The caller then closes the channel's writing end, which ends the far side.

        A ping that is just being written is waited for: the number of a closed descriptor may soon be another file's.
        """
        self._closing.set()
        if self._sending.acquire(timeout=_LAST_WORD_S):
            self._sending.release()

    def join(self, timeout_s: float) -> bool:
        """Whether everything that the far side said has been read, after at most so many seconds."""
        if self._reader.ident is not None:
            self._reader.join(timeout_s)
        return not self._reader.is_alive()
