"""What is said over a connection: one class for each frame, and one table that says who may send it.

A frame is ``u32 length ‖ u8 type ‖ body``, little-endian, the length being that of the body. Most bodies are one
CBOR array with the fields in order; bodies that carry records or snapshot files are raw, so that megabytes are
not encoded, decoded and compared. Everything read here may come from an attacker: each type has a limit of its
own, which is looked at before a single byte of the body is kept, and each field a check.

docs/protocol.md mirrors this module.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from packnback.errors import FormatDamage, ProtocolViolation
from packnback.format import cbor
from packnback.format.snapshot import FILE_LIMIT
from packnback.ids import BODY_LIMIT, ID_LEN, KIB, MIB, REFS_LIMIT

Buffer = bytes | bytearray | memoryview

HAS_LIMIT = 4096
"""Ids in one `Has`."""
GET_LIMIT = 1 << 16
"""Ids in one `Get`."""
NAMES_LIMIT = 1 << 17
"""Snapshots, or bad ids, in one request."""
WINDOW = 16 * MIB
"""Bytes of objects that a stream may be ahead of what its reader has asked for (`More`)."""
RECORD_LIMIT = 64 + REFS_LIMIT * ID_LEN + BODY_LIMIT + 16
_OBJECT_HEAD = struct.Struct("<I32sH")


class Side(Enum):
    """The two ends of a connection."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> Side:
        """The other end."""
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT


@dataclass(frozen=True, slots=True)
class Frame:
    """Base of all frames; an event of the protocol."""


# --- from the client ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Frame):
    """The first frame of a client."""

    program: str


@dataclass(frozen=True, slots=True)
class Ping(Frame):
    """Keeps a connection from being given up as idle. Not answered."""


@dataclass(frozen=True, slots=True)
class OpenSession(Frame):
    """Open a session for the client that the certificate names; wait so long for the lock."""

    certificate: bytes
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Has(Frame):
    """Which of these objects (ids, concatenated) are there, complete?"""

    ids: bytes


@dataclass(frozen=True, slots=True)
class Put(Frame):
    """One whole record. Not answered: what is wrong with it is told in the answer to the next request."""

    record: Buffer


@dataclass(frozen=True, slots=True)
class Flush(Frame):
    """Make everything put so far durable."""


@dataclass(frozen=True, slots=True)
class GetHead(Frame):
    """The client's newest snapshot?"""


@dataclass(frozen=True, slots=True)
class Commit(Frame):
    """A snapshot file without receipt: flush, then publish it."""

    snapshot: Buffer


@dataclass(frozen=True, slots=True)
class CloseSession(Frame):
    """End the session; what was put and not flushed is forgotten."""


@dataclass(frozen=True, slots=True)
class BeginReading(Frame):
    """Hold the repository's lock shared until `EndReading`."""

    wait_ms: int


@dataclass(frozen=True, slots=True)
class EndReading(Frame):
    """Let go of the lock."""


@dataclass(frozen=True, slots=True)
class ListSnapshots(Frame):
    """Every snapshot, as far as the repository knows it."""


@dataclass(frozen=True, slots=True)
class ReadSnapshot(Frame):
    """One snapshot file, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Get(Frame):
    """Stream these objects (ids, concatenated) under a number that is not in use. Ends with `StreamEnd`."""

    stream: int
    ids: bytes


@dataclass(frozen=True, slots=True)
class More(Frame):
    """So many bytes of a stream have been consumed: so many more may be sent."""

    stream: int
    count: int


@dataclass(frozen=True, slots=True)
class Cancel(Frame):
    """The rest of a stream is not wanted."""

    stream: int


@dataclass(frozen=True, slots=True)
class AskTime(Frame):
    """The repository's clock, if it can be believed (or with `force`)."""

    force: bool


@dataclass(frozen=True, slots=True)
class Forget(Frame):
    """Forget snapshots, by name."""

    names: list[str]
    force: bool


@dataclass(frozen=True, slots=True)
class Recover(Frame):
    """Take `Forget` back."""

    names: list[str]


@dataclass(frozen=True, slots=True)
class Compact(Frame):
    """Compact: grace in ns, waste in millionths."""

    grace_ns: int
    max_waste_ppm: int
    force: bool
    dry_run: bool
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Check(Frame):
    """Check: sample in millionths of all packs; `repair` needs the verb ``compact`` too."""

    read_data: bool
    sample_ppm: int
    repair: bool
    bad: bytes
    wait_ms: int


@dataclass(frozen=True, slots=True)
class AskStats(Frame):
    """Sizes; with `alone` also what each snapshot alone holds."""

    alone: bool


@dataclass(frozen=True, slots=True)
class AskGaps(Frame):
    """Where history has holes?"""


@dataclass(frozen=True, slots=True)
class AskReleased(Frame):
    """Which snapshots were released?"""


# --- from the server ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome(Frame):
    """The first frame of a server: its version, the repository's config file, the verbs that it allows."""

    program: str
    config: bytes
    verbs: list[str]


@dataclass(frozen=True, slots=True)
class Failure(Frame):
    """The answer to a request that failed: an error's class, and its facts."""

    name: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Farewell(Frame):
    """An error that ends the connection."""

    name: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Done(Frame):
    """It is done."""


@dataclass(frozen=True, slots=True)
class Opened(Frame):
    """The session is open. Bytes that the client's records take, and its quota, if there is one."""

    used: int
    quota: int | None


@dataclass(frozen=True, slots=True)
class Present(Frame):
    """A bit for each id of `Has`, lowest bit first."""

    bits: bytes


@dataclass(frozen=True, slots=True)
class Flushed(Frame):
    """Everything is durable. Bytes that this session has published."""

    published: int


@dataclass(frozen=True, slots=True)
class HeadIs(Frame):
    """The client's head: time of receipt, and the signed header with its certificate; all empty without one."""

    received_ns: int
    header: bytes
    signature: bytes
    certificate: bytes


@dataclass(frozen=True, slots=True)
class CommittedAs(Frame):
    """The snapshot is published. No counter: put clients are not told how much others store."""

    name: str
    id: bytes
    received_ns: int
    published: int


@dataclass(frozen=True, slots=True)
class Snapshots(Frame):
    """Some snapshots (`packnback.remote.values`), and whether more are to come."""

    rows: list[Any]
    more: bool


@dataclass(frozen=True, slots=True)
class SnapshotFile(Frame):
    """A snapshot file, with its receipt."""

    data: Buffer


@dataclass(frozen=True, slots=True)
class Object(Frame):
    """An object of a stream. An empty envelope means: that of the stream's object before."""

    stream: int
    id: bytes
    envelope: bytes
    record: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Trouble(Frame):
    """An object of a stream that cannot be had."""

    stream: int
    id: bytes
    name: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StreamEnd(Frame):
    """Nothing more comes of a stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Time(Frame):
    """The repository's clock."""

    now_ns: int


@dataclass(frozen=True, slots=True)
class Names(Frame):
    """What was done, by name."""

    names: list[str]


@dataclass(frozen=True, slots=True)
class Answer(Frame):
    """A value of `packnback.remote.values`."""

    value: Any


@dataclass(frozen=True, slots=True)
class Progress(Frame):
    """How a long request is getting on: ``begin`` (phase, total, unit), ``advance`` (amount) or ``note``."""

    kind: str
    text: str
    amount: int
    unit: str


# --- checks of fields ------------------------------------------------------------------------------------------

FieldCheck = Callable[[object], bool]
PPM = 1_000_000
_TEXT_LIMIT = 64 * KIB


def _uint(value: object) -> bool:
    return cbor.is_uint(value)


def _flag(value: object) -> bool:
    return type(value) is bool


def _anything(value: object) -> bool:
    return True


def _blob(most: int, least: int = 0) -> FieldCheck:
    return lambda value: type(value) is bytes and least <= len(value) <= most


def _ids(most: int, least: int = 1) -> FieldCheck:
    return lambda value: (
        type(value) is bytes and len(value) % ID_LEN == 0 and least * ID_LEN <= len(value) <= most * ID_LEN
    )


def _text(most: int = 4 * KIB) -> FieldCheck:
    return lambda value: type(value) is str and len(value) <= most


def _maybe(check: FieldCheck) -> FieldCheck:
    return lambda value: value is None or check(value)


def _list(check: FieldCheck, most: int = NAMES_LIMIT) -> FieldCheck:
    return lambda value: type(value) is list and len(value) <= most and all(check(item) for item in value)


def _facts(value: object) -> bool:
    return type(value) is dict and len(value) <= 16 and all(type(name) is str for name in value)


_ID = _blob(ID_LEN, ID_LEN)
_STREAM: FieldCheck = lambda value: cbor.is_uint(value, 1 << 32)  # noqa: E731  one of a row of checks
_VERBS = _list(_text(32), 32)


# --- bodies --------------------------------------------------------------------------------------------------------


class CborBody:
    """One CBOR array: the fields in order, each with its check."""

    def __init__(self, *checks: FieldCheck) -> None:
        self.checks = checks

    def encode(self, frame: Frame) -> list[Buffer]:
        """The body in pieces."""
        return [cbor.encode([getattr(frame, field.name) for field in fields(frame)])]

    def decode(self, cls: type[Frame], body: bytes) -> Frame:
        """The frame; raises ProtocolViolation."""
        try:
            values = cbor.decode(body, cls.__name__)
        except FormatDamage as damage:
            raise ProtocolViolation(cls.__name__, damage.why) from None
        if type(values) is not list or len(values) != len(self.checks):
            raise ProtocolViolation(cls.__name__, "not the fields of this frame")
        for field, value, check in zip(fields(cls), values, self.checks, strict=True):
            if not check(value):
                raise ProtocolViolation(cls.__name__, field.name)
        return cls(*values)


class RawBody:
    """The one field, as it is."""

    def encode(self, frame: Frame) -> list[Buffer]:
        """The body in pieces."""
        return [getattr(frame, fields(frame)[0].name)]

    def decode(self, cls: type[Frame], body: bytes) -> Frame:
        """The frame."""
        return cls(body)  # type: ignore[call-arg]


class ObjectBody:
    """``u32 stream ‖ id 32 ‖ u16 envelope length ‖ envelope ‖ record``."""

    def encode(self, frame: Frame) -> list[Buffer]:
        """The body in pieces."""
        assert isinstance(frame, Object)
        return [_OBJECT_HEAD.pack(frame.stream, frame.id, len(frame.envelope)) + frame.envelope, frame.record]

    def decode(self, cls: type[Frame], body: bytes) -> Frame:
        """The frame; raises ProtocolViolation."""
        if len(body) < _OBJECT_HEAD.size:
            raise ProtocolViolation("Object", "cut short")
        stream, object_id, envelope_length = _OBJECT_HEAD.unpack_from(body)
        end = _OBJECT_HEAD.size + envelope_length
        if len(body) < end:
            raise ProtocolViolation("Object", "cut short")
        return Object(stream, object_id, body[_OBJECT_HEAD.size : end], memoryview(body)[end:])


Body = CborBody | RawBody | ObjectBody


@dataclass(frozen=True, slots=True)
class Spec:
    """What the table says of a frame. `limit` is that of the body, in bytes."""

    code: int
    sender: Side
    limit: int
    body: Body
    reply: type[Frame] | None = None
    """The frame that answers a request; None for frames that are not answered in turn."""


_C, _S = Side.CLIENT, Side.SERVER

SPECS: dict[type[Frame], Spec] = {
    Hello: Spec(0x01, _C, KIB, CborBody(_text(100))),
    Ping: Spec(0x02, _C, 1, CborBody()),
    OpenSession: Spec(0x10, _C, 4 * KIB, CborBody(_blob(2 * KIB), _uint), Opened),
    Has: Spec(0x11, _C, HAS_LIMIT * ID_LEN + 16, CborBody(_ids(HAS_LIMIT)), Present),
    Put: Spec(0x12, _C, RECORD_LIMIT, RawBody()),
    Flush: Spec(0x13, _C, 1, CborBody(), Flushed),
    GetHead: Spec(0x14, _C, 1, CborBody(), HeadIs),
    Commit: Spec(0x15, _C, FILE_LIMIT, RawBody(), CommittedAs),
    CloseSession: Spec(0x16, _C, 1, CborBody(), Done),
    BeginReading: Spec(0x20, _C, 16, CborBody(_uint), Done),
    EndReading: Spec(0x21, _C, 1, CborBody(), Done),
    ListSnapshots: Spec(0x22, _C, 1, CborBody(), Snapshots),
    ReadSnapshot: Spec(0x23, _C, KIB, CborBody(_text(200)), SnapshotFile),
    Get: Spec(0x24, _C, GET_LIMIT * ID_LEN + 32, CborBody(_STREAM, _ids(GET_LIMIT))),
    More: Spec(0x25, _C, 32, CborBody(_STREAM, _uint)),
    Cancel: Spec(0x26, _C, 16, CborBody(_STREAM)),
    AskTime: Spec(0x30, _C, 2, CborBody(_flag), Time),
    Forget: Spec(0x31, _C, 8 * MIB, CborBody(_list(_text(200)), _flag), Names),
    Recover: Spec(0x32, _C, 8 * MIB, CborBody(_list(_text(200))), Names),
    Compact: Spec(0x33, _C, 64, CborBody(_uint, _uint, _flag, _flag, _uint), Answer),
    Check: Spec(
        0x34, _C, NAMES_LIMIT * ID_LEN + 64, CborBody(_flag, _uint, _flag, _ids(NAMES_LIMIT, 0), _uint), Answer
    ),
    AskStats: Spec(0x35, _C, 2, CborBody(_flag), Answer),
    AskGaps: Spec(0x36, _C, 1, CborBody(), Answer),
    AskReleased: Spec(0x37, _C, 1, CborBody(), Answer),
    Welcome: Spec(0x81, _S, 8 * KIB, CborBody(_text(100), _blob(4 * KIB), _VERBS)),
    Failure: Spec(0x82, _S, MIB, CborBody(_text(100), _facts)),
    Farewell: Spec(0x83, _S, MIB, CborBody(_text(100), _facts)),
    Done: Spec(0x84, _S, 1, CborBody()),
    Opened: Spec(0x90, _S, 64, CborBody(_uint, _maybe(_uint))),
    Present: Spec(0x91, _S, HAS_LIMIT // 8 + 16, CborBody(_blob(HAS_LIMIT // 8))),
    Flushed: Spec(0x93, _S, 16, CborBody(_uint)),
    HeadIs: Spec(0x94, _S, 4 * KIB, CborBody(_uint, _blob(KIB), _blob(64), _blob(2 * KIB))),
    CommittedAs: Spec(0x95, _S, KIB, CborBody(_text(200), _ID, _uint, _uint)),
    Snapshots: Spec(0xA2, _S, MIB, CborBody(_list(_anything), _flag)),
    SnapshotFile: Spec(0xA3, _S, FILE_LIMIT + KIB, RawBody()),
    Object: Spec(0xA4, _S, RECORD_LIMIT + 4 * KIB, ObjectBody()),
    Trouble: Spec(0xA5, _S, MIB, CborBody(_STREAM, _ID, _text(100), _facts)),
    StreamEnd: Spec(0xA6, _S, 16, CborBody(_STREAM)),
    Time: Spec(0xB0, _S, 16, CborBody(_uint)),
    Names: Spec(0xB1, _S, 16 * MIB, CborBody(_list(_text(300)))),
    Answer: Spec(0xB3, _S, 64 * MIB, CborBody(_anything)),
    Progress: Spec(0xB4, _S, 2 * _TEXT_LIMIT, CborBody(_text(16), _text(_TEXT_LIMIT // 4), _uint, _text(100))),
}

BY_CODE: dict[int, type[Frame]] = {spec.code: cls for cls, spec in SPECS.items()}
