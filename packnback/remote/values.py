"""Values that cross the wire inside of frames: structs as lists of their fields, checked field by field.

What arrives is believed in its shape and in nothing else. Limits on the whole are those of the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from msgspec import Struct
from msgspec.structs import astuple, replace

from packnback.errors import ProtocolViolation
from packnback.format.snapshot import Receipt, snapshot_name
from packnback.gc.compaction import Compacted
from packnback.gc.maintenance import Checked, Released
from packnback.ids import CLIENT_ID_LEN, DOMAIN_ID_LEN, HASH_LEN, ID_LEN
from packnback.store.check import CheckReport
from packnback.store.damage import Finding
from packnback.store.interface import SnapshotInfo
from packnback.store.repair import Repaired
from packnback.store.sizes import Stats

T = TypeVar("T", bound=Struct)
_FINDINGS = "list[Finding]"
_TOUCHES_MAX = 1 << 24
"""Snapshots that all findings together name: a list that many share is short here, and told with each of them."""
_CLIENT_LIMIT = 255
"""Characters of a client's name: no certificate has a longer one."""


def encode(value: Any) -> Any:
    """A value as CBOR can hold it."""
    if isinstance(value, Struct):
        fields = zip(type(value).__annotations__.values(), astuple(value), strict=True)
        return [encode_findings(item) if kind == _FINDINGS else encode(item) for kind, item in fields]
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(cls: type[T], value: object) -> T:
    """The `cls` that was encoded. Raises ProtocolViolation."""
    declared = cls.__annotations__
    if type(value) is not list or len(value) != len(declared):
        raise ProtocolViolation(cls.__name__, "not its fields")
    made = cls(*(_READERS[kind](item) for kind, item in zip(declared.values(), value, strict=True)))
    if isinstance(made, SnapshotInfo):
        _check_info(made)
    return made


def encode_findings(findings: Sequence[Finding]) -> list[Any]:
    """Findings, with what many of them touch said once: a lost pack touches the same snapshots with each object."""
    touched = {affects: number for number, affects in enumerate(dict.fromkeys(f.affects for f in findings))}
    return [
        [list(affects) for affects in touched],
        [[f.kind, f.what, f.why, touched[f.affects], f.pack] for f in findings],
    ]


def decode_findings(value: object) -> list[Finding]:
    """Findings. Raises ProtocolViolation."""
    if type(value) is not list or len(value) != 2 or type(value[0]) is not list or type(value[1]) is not list:
        raise ProtocolViolation("Finding", "not its fields")
    touched = [tuple(_items(str)(affects)) for affects in value[0]]
    found, touches = [], 0
    for row in value[1]:
        if type(row) is not list or len(row) != len(Finding.__annotations__):
            raise ProtocolViolation("Finding", "not its fields")
        kind, what, why, number, pack = row
        if type(number) is not int or not 0 <= number < len(touched):
            raise ProtocolViolation("Finding", "affects")
        touches += len(touched[number])
        if touches > _TOUCHES_MAX:
            raise ProtocolViolation("Finding", "more than anybody could read")
        found.append(replace(decode(Finding, [kind, what, why, [], pack]), affects=touched[number]))
    return found


def decode_released(value: object) -> list[Released]:
    """A list of released snapshots. Raises ProtocolViolation."""
    return _list_of(Released)(value)


def decode_sizes(value: object) -> dict[str, int]:
    """Sizes by snapshot name. Raises ProtocolViolation."""
    return cast("dict[str, int]", _map_of(int)(value))


def _check_info(info: SnapshotInfo) -> None:
    lengths = (len(info.id), len(info.client_id), len(info.domain_id), len(info.prev), len(info.root))
    if lengths != (HASH_LEN, CLIENT_ID_LEN, DOMAIN_ID_LEN, HASH_LEN, ID_LEN):
        raise ProtocolViolation("SnapshotInfo", "ids of a wrong length")
    if not 0 < info.sequence < 1 << 64 or info.name != snapshot_name(info.client_id, info.sequence):
        raise ProtocolViolation("SnapshotInfo", "a name that is not its own")
    if len(info.client) > _CLIENT_LIMIT:
        raise ProtocolViolation("SnapshotInfo", "no name of a client")


def _exactly(expected: type, *, or_none: bool = False) -> Callable[[object], Any]:
    def read(value: object) -> Any:
        if type(value) is not expected and not (or_none and value is None):
            raise ProtocolViolation("value", f"not {expected.__name__}")
        if type(value) is int and not -(1 << 63) <= value < 1 << 64:
            raise ProtocolViolation("value", "integer out of range")
        return value

    return read


def _items(expected: type) -> Callable[[object], list[Any]]:
    def read(value: object) -> list[Any]:
        if type(value) is not list or not all(type(item) is expected for item in value):
            raise ProtocolViolation("value", f"not a list of {expected.__name__}")
        return value

    return read


def _list_of(cls: type[T]) -> Callable[[object], list[T]]:
    def read(value: object) -> list[T]:
        if type(value) is not list:
            raise ProtocolViolation("value", "not a list")
        return [decode(cls, item) for item in value]

    return read


def _map_of(expected: type) -> Callable[[object], dict[str, Any]]:
    def read(value: object) -> dict[str, Any]:
        if type(value) is not dict or not all(type(k) is str and type(v) is expected for k, v in value.items()):
            raise ProtocolViolation("value", "not a map")
        return value

    return read


_READERS: dict[str, Callable[[object], Any]] = {
    "str": _exactly(str),
    "bytes": _exactly(bytes),
    "int": _exactly(int),
    "bool": _exactly(bool),
    "int | None": _exactly(int, or_none=True),
    "list[str]": _items(str),
    "list[bytes]": _items(bytes),
    "tuple[str, ...]": lambda value: tuple(_items(str)(value)),
    "dict[str, str]": _map_of(str),
    _FINDINGS: decode_findings,
    "Receipt": lambda value: decode(Receipt, value),
    "CheckReport": lambda value: decode(CheckReport, value),
    "Repaired | None": lambda value: None if value is None else decode(Repaired, value),
}
"""By the declared type of a field."""

CROSSING = (SnapshotInfo, Compacted, Checked, Stats, Finding, Released)
"""What crosses the wire as a whole; a test sends each of them there and back."""
