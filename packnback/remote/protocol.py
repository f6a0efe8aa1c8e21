"""The protocol as a state machine without I/O: bytes in, events out; events in, bytes out.

Each end sends a greeting line, ``packnback-wire 1``, and then frames (`packnback.remote.frames`): a client first
`Hello`, a server first `Welcome` (or `Farewell`, when it cannot serve). After that, requests are answered in the
order in which they were sent, each with the frame that the table names for it, or with `Failure`; a client need
not wait for one answer before it sends the next request. Frames of streams, progress and pings come in between.

The style is that of h11: `receive` takes what came, `next_event` gives one event at a time, `send` gives the
bytes of one. What the other end must not send raises ProtocolViolation, and goes on doing so.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Set

from packnback.errors import ProtocolViolation, RemoteVersion
from packnback.ids import KIB
from packnback.remote.frames import (
    Answer,
    Buffer,
    Failure,
    Farewell,
    Frame,
    Hello,
    Progress,
    Side,
    Snapshots,
    Welcome,
)
from packnback.remote.inbox import Inbox
from packnback.remote.table import BY_CODE, SPECS

VERSION = 1
_GREETING = b"packnback-wire "
_GREETING_LIMIT = 32
_HEAD = struct.Struct("<IB")
_UNWELCOME_LIMIT = 64 * KIB
"""A frame that will be refused anyway is neither kept nor decoded beyond this length: that would only cost memory."""
_SHOWN = 300
"""Bytes of something else than a greeting that are told: a shell's complaint, a message of the day."""


class Closed(Frame, frozen=True):
    """The other end has ended the connection; `cut` when it did so in the middle of a frame."""

    cut: bool


_FIRST: dict[Side, tuple[type[Frame], ...]] = {Side.CLIENT: (Hello,), Side.SERVER: (Welcome, Farewell)}


class Connection:
    """One end of a connection. Not thread-safe: sending and receiving touch one queue, which callers lock."""

    def __init__(self, side: Side, unwelcome: Set[type[Frame]] = frozenset()) -> None:
        """`unwelcome` are frames that will be refused: they may come, but only short."""
        self._side = side
        self._unwelcome = unwelcome
        self._inbox = Inbox()
        self._ended = False
        self._failure: ProtocolViolation | RemoteVersion | None = None
        self._greeted = False
        self._heard_greeting = False
        self._first_sent = False
        self._first_heard = False
        self._awaited: deque[type[Frame]] = deque()
        """Answers that requests are waiting for, in order."""

    @property
    def outstanding(self) -> int:
        """Requests that have not been answered."""
        return len(self._awaited)

    # --- out ------------------------------------------------------------------------------------------------

    def send(self, frame: Frame) -> list[Buffer]:
        """The bytes of a frame, in pieces. Raises ValueError for a frame that this end may not send now."""
        cls = type(frame)
        spec = SPECS[cls]
        if spec.sender is not self._side:
            raise ValueError(f"{cls.__name__} is not for the {self._side.value} to send")
        if not self._first_sent and cls not in _FIRST[self._side]:
            raise ValueError(f"{cls.__name__} cannot be the first frame")
        body = spec.body.encode(frame)
        length = sum(len(piece) for piece in body)
        if length > spec.limit:
            raise ValueError(f"{cls.__name__} of {length} bytes; {spec.limit} are the limit")
        if self._side is Side.CLIENT and spec.reply is not None:
            self._awaited.append(spec.reply)
        elif self._side is Side.SERVER:
            self._answer(frame)
        self._first_sent = True
        head = _HEAD.pack(length, spec.code)
        if not self._greeted:
            self._greeted = True
            head = b"%s%d\n%s" % (_GREETING, VERSION, head)
        return [head, *body]

    def _answer(self, frame: Frame) -> None:
        """Strike out the request that `frame` answers; ValueError when it does not answer the oldest one."""
        cls = type(frame)
        if cls is Failure or cls in _REPLIES:
            if not self._awaited or (cls is not Failure and self._awaited[0] is not cls):
                raise ValueError(f"{cls.__name__} answers nothing")
            if not (isinstance(frame, Snapshots) and frame.more):
                self._awaited.popleft()

    # --- in -------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take what came; nothing at all (``b""``) means that the other end has closed."""
        if data:
            self._inbox.add(data)
        else:
            self._ended = True

    def next_event(self) -> Frame | None:
        """The next event, or None when more has to come first. Raises ProtocolViolation, RemoteVersion."""
        if self._failure is not None:
            raise self._failure
        try:
            return self._next_event()
        except (ProtocolViolation, RemoteVersion) as failure:
            self._failure = failure
            self._inbox.clear()
            raise

    def _next_event(self) -> Frame | None:
        if not self._heard_greeting and not self._hear_greeting():
            return Closed(bool(self._inbox)) if self._ended else None
        inbox = self._inbox
        if len(inbox) >= _HEAD.size:
            length, code = _HEAD.unpack(inbox.peek(_HEAD.size))
            cls = self._expect(code, length)
            if len(inbox) >= _HEAD.size + length:
                inbox.take(_HEAD.size)
                frame = SPECS[cls].body.decode(cls, inbox.take(length))
                self._heard(frame)
                return frame
        return Closed(bool(inbox)) if self._ended else None

    def _hear_greeting(self) -> bool:
        """Whether the greeting has come. What is none is refused as soon as that can be told."""
        line, newline, _ = self._inbox.peek(_GREETING_LIMIT).partition(b"\n")
        number = line[len(_GREETING) :] if line.startswith(_GREETING) else b""
        if newline and number.isdigit():
            if int(number) != VERSION:
                raise RemoteVersion(VERSION, int(number))
            self._inbox.take(len(line) + 1)
            self._heard_greeting = True
            return True
        if not newline and len(line) < _GREETING_LIMIT and (number.isdigit() or _GREETING.startswith(line)):
            return False
        shown = self._inbox.peek(_SHOWN).decode("utf-8", "replace").strip()
        raise ProtocolViolation("greeting", shown)

    def _expect(self, code: int, length: int) -> type[Frame]:
        """The class of a frame that may come now, of a length that it may have."""
        cls = BY_CODE.get(code)
        if cls is None:
            raise ProtocolViolation("frame", f"type {code:#04x}")
        spec = SPECS[cls]
        if spec.sender is self._side:
            raise ProtocolViolation(cls.__name__, "not for this end to send")
        if length > (min(spec.limit, _UNWELCOME_LIMIT) if cls in self._unwelcome else spec.limit):
            raise ProtocolViolation(cls.__name__, f"{length} bytes")
        is_first = cls in _FIRST[self._side.other]
        if self._first_heard != (not is_first) and cls is not Farewell:
            raise ProtocolViolation(cls.__name__, "out of turn")
        if cls is Failure or cls in _REPLIES:
            self._expect_answer(cls)
        if cls is Progress and (not self._awaited or self._awaited[0] is not Answer):
            raise ProtocolViolation(cls.__name__, "nothing is under way that would take long")
        return cls

    def _expect_answer(self, cls: type[Frame]) -> None:
        if not self._awaited:
            raise ProtocolViolation(cls.__name__, "nothing was asked")
        if cls is not Failure and self._awaited[0] is not cls:
            raise ProtocolViolation(cls.__name__, f"{self._awaited[0].__name__} was to come")

    def _heard(self, frame: Frame) -> None:
        self._first_heard = True
        if self._side is Side.CLIENT:
            self._answer(frame)
        elif (reply := SPECS[type(frame)].reply) is not None:
            self._awaited.append(reply)


_REPLIES = frozenset(spec.reply for spec in SPECS.values() if spec.reply is not None)
