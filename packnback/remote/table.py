"""How each frame looks in bytes, who may send it, and what answers it: one table.

A frame is ``u32 length ‖ u8 type ‖ body``, little-endian, the length being that of the body. Most bodies are one
CBOR array with the fields in order; bodies that carry records or snapshot files are raw, so that megabytes are
not encoded, decoded and compared. Everything read here may come from an attacker: each type has a limit of its
own, which is looked at before a single byte of the body is kept, and each field a check.

docs/protocol.md mirrors this module.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import astuple

from packnback.errors import FormatDamage, ProtocolViolation
from packnback.format import cbor
from packnback.format.snapshot import FILE_LIMIT
from packnback.ids import ID_LEN, KIB, MIB
from packnback.remote import frames as f
from packnback.remote.frames import (
    GET_LIMIT,
    HAS_LIMIT,
    NAMES_LIMIT,
    OBJECT_LIMIT,
    RECORD_LIMIT,
    TROUBLE_LIMIT,
    Buffer,
    Frame,
    Object,
    Side,
)

_OBJECT_HEAD = struct.Struct("<I32sH")

# --- checks of fields ------------------------------------------------------------------------------------------

FieldCheck = Callable[[object], bool]
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
        return [cbor.encode(astuple(frame))]

    def decode(self, cls: type[Frame], body: bytes) -> Frame:
        """The frame; raises ProtocolViolation."""
        try:
            values = cbor.decode(body, cls.__name__)
        except FormatDamage as damage:
            raise ProtocolViolation(cls.__name__, damage.why) from None
        if type(values) is not list or len(values) != len(self.checks):
            raise ProtocolViolation(cls.__name__, "not the fields of this frame")
        for field, value, check in zip(cls.__struct_fields__, values, self.checks, strict=True):
            if not check(value):
                raise ProtocolViolation(cls.__name__, field)
        return cls(*values)


class RawBody:
    """The one field, as it is."""

    def encode(self, frame: Frame) -> list[Buffer]:
        """The body in pieces."""
        return [getattr(frame, frame.__struct_fields__[0])]

    def decode(self, cls: type[Frame], body: bytes) -> Frame:
        """The frame."""
        return cls(body)


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


class Spec(Struct, frozen=True):
    """What the table says of a frame. `limit` is that of the body, in bytes."""

    code: int
    sender: Side
    limit: int
    body: Body
    reply: type[Frame] | None = None
    """The frame that answers a request; None for frames that are not answered in turn."""


_C, _S = Side.CLIENT, Side.SERVER

SPECS: dict[type[Frame], Spec] = {
    f.Hello: Spec(0x01, _C, KIB, CborBody(_text(100))),
    f.Ping: Spec(0x02, _C, 1, CborBody()),
    f.OpenSession: Spec(0x10, _C, 4 * KIB, CborBody(_blob(2 * KIB), _uint), f.Opened),
    f.Has: Spec(0x11, _C, HAS_LIMIT * ID_LEN + 16, CborBody(_ids(HAS_LIMIT)), f.Present),
    f.Put: Spec(0x12, _C, RECORD_LIMIT, RawBody()),
    f.Flush: Spec(0x13, _C, 1, CborBody(), f.Flushed),
    f.GetHead: Spec(0x14, _C, 1, CborBody(), f.HeadIs),
    f.Commit: Spec(0x15, _C, FILE_LIMIT, RawBody(), f.CommittedAs),
    f.CloseSession: Spec(0x16, _C, 1, CborBody(), f.Done),
    f.BeginReading: Spec(0x20, _C, 16, CborBody(_uint), f.Done),
    f.EndReading: Spec(0x21, _C, 1, CborBody(), f.Done),
    f.ListSnapshots: Spec(0x22, _C, 1, CborBody(), f.Snapshots),
    f.ReadSnapshot: Spec(0x23, _C, KIB, CborBody(_text(200)), f.SnapshotFile),
    f.Get: Spec(0x24, _C, GET_LIMIT * ID_LEN + 32, CborBody(_STREAM, _ids(GET_LIMIT))),
    f.More: Spec(0x25, _C, 32, CborBody(_STREAM, _uint)),
    f.Cancel: Spec(0x26, _C, 16, CborBody(_STREAM)),
    f.AskTime: Spec(0x30, _C, 2, CborBody(_flag), f.Time),
    f.Forget: Spec(0x31, _C, 8 * MIB, CborBody(_list(_text(200)), _flag), f.Names),
    f.Recover: Spec(0x32, _C, 8 * MIB, CborBody(_list(_text(200))), f.Names),
    f.Compact: Spec(0x33, _C, 64, CborBody(_uint, _uint, _flag, _flag, _uint), f.Answer),
    f.Check: Spec(
        0x34, _C, NAMES_LIMIT * ID_LEN + 64, CborBody(_flag, _uint, _flag, _ids(NAMES_LIMIT, 0), _uint), f.Answer
    ),
    f.AskStats: Spec(0x35, _C, 2, CborBody(_flag), f.Answer),
    f.AskGaps: Spec(0x36, _C, 1, CborBody(), f.Answer),
    f.AskReleased: Spec(0x37, _C, 1, CborBody(), f.Answer),
    f.Welcome: Spec(0x81, _S, 8 * KIB, CborBody(_text(100), _blob(4 * KIB), _VERBS)),
    f.Failure: Spec(0x82, _S, MIB, CborBody(_text(100), _facts)),
    f.Farewell: Spec(0x83, _S, MIB, CborBody(_text(100), _facts)),
    f.Done: Spec(0x84, _S, 1, CborBody()),
    f.Opened: Spec(0x90, _S, 64, CborBody(_uint, _maybe(_uint))),
    f.Present: Spec(0x91, _S, HAS_LIMIT // 8 + 16, CborBody(_blob(HAS_LIMIT // 8))),
    f.Flushed: Spec(0x93, _S, 16, CborBody(_uint)),
    f.HeadIs: Spec(0x94, _S, 4 * KIB, CborBody(_uint, _blob(KIB), _blob(64), _blob(2 * KIB))),
    f.CommittedAs: Spec(0x95, _S, KIB, CborBody(_text(200), _ID, _uint, _uint)),
    f.Snapshots: Spec(0xA2, _S, MIB, CborBody(_list(_anything), _flag)),
    f.SnapshotFile: Spec(0xA3, _S, FILE_LIMIT + KIB, RawBody()),
    f.Object: Spec(0xA4, _S, OBJECT_LIMIT, ObjectBody()),
    f.Trouble: Spec(0xA5, _S, TROUBLE_LIMIT, CborBody(_STREAM, _ID, _text(100), _facts)),
    f.StreamEnd: Spec(0xA6, _S, 16, CborBody(_STREAM)),
    f.Time: Spec(0xB0, _S, 16, CborBody(_uint)),
    f.Names: Spec(0xB1, _S, 16 * MIB, CborBody(_list(_text(300)))),
    f.Answer: Spec(0xB3, _S, 64 * MIB, CborBody(_anything)),
    f.Progress: Spec(0xB4, _S, 2 * _TEXT_LIMIT, CborBody(_text(16), _text(_TEXT_LIMIT // 4), _uint, _text(100))),
}

BY_CODE: dict[int, type[Frame]] = {spec.code: cls for cls, spec in SPECS.items()}
