"""Snapshot metadata: the sealed part of a snapshot file.

The plaintext starts with 88 fixed bytes, ``client id 16 ‖ u64 sequence ‖ prev 32 ‖ root 32``, which bind it to
its header, and goes on with a CBOR map. Unknown keys are kept out of the way of older readers: they are ignored.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from packnback.errors import FormatDamage
from packnback.format import cbor

_FIXED = struct.Struct("<16sQ32s32s")
FIXED_LEN = _FIXED.size
_WHAT = "snapshot metadata"


class Metadata(Struct, frozen=True):
    """What a snapshot says about itself, readable with a list key."""

    host: str
    paths: tuple[bytes, ...]
    """What was asked for: absolute paths, or the one name of a stream."""
    started_ns: int
    files: int = 0
    directories: int = 0
    bytes: int = 0
    unreadable: int = 0
    """Files that could not be read."""
    tags: dict[str, str] = field(default_factory=dict)
    users: dict[int, str] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)
    program: str = ""


def encode(binding: tuple[bytes, int, bytes, bytes], m: Metadata) -> bytes:
    """The plaintext; `binding` is (client id, sequence, prev, root)."""
    return _FIXED.pack(*binding) + cbor.encode(
        {
            "host": m.host,
            "paths": list(m.paths),
            "started": m.started_ns,
            "files": m.files,
            "directories": m.directories,
            "bytes": m.bytes,
            "unreadable": m.unreadable,
            "tags": dict(sorted(m.tags.items())),
            "users": dict(sorted(m.users.items())),
            "groups": dict(sorted(m.groups.items())),
            "program": m.program,
        }
    )


def decode(plaintext: bytes) -> tuple[tuple[bytes, int, bytes, bytes], Metadata]:
    """(binding, metadata); the caller compares the binding with the header. Raises FormatDamage."""
    if len(plaintext) < FIXED_LEN:
        raise FormatDamage(_WHAT, "cut short")
    value = cbor.decode(plaintext[FIXED_LEN:], _WHAT)
    cbor.expect(type(value) is dict, _WHAT, "shape")
    metadata = Metadata(
        host=_take(value, "host", lambda x: type(x) is str),
        paths=tuple(_take(value, "paths", lambda x: type(x) is list and all(type(p) is bytes for p in x))),
        started_ns=_take(value, "started", lambda x: type(x) is int and -(1 << 63) <= x < 1 << 63),
        files=_take(value, "files", cbor.is_uint),
        directories=_take(value, "directories", cbor.is_uint),
        bytes=_take(value, "bytes", cbor.is_uint),
        unreadable=_take(value, "unreadable", cbor.is_uint),
        tags=_take(value, "tags", lambda x: _is_map(x, str)),
        users=_take(value, "users", lambda x: _is_map(x, int)),
        groups=_take(value, "groups", lambda x: _is_map(x, int)),
        program=_take(value, "program", lambda x: type(x) is str),
    )
    return _FIXED.unpack_from(plaintext), metadata


def _take(value: dict[Any, Any], key: str, fits: Callable[[Any], bool]) -> Any:
    cbor.expect(key in value and fits(value[key]), _WHAT, key)
    return value[key]


def _is_map(value: object, keys: type) -> bool:
    return type(value) is dict and all(type(k) is keys and type(v) is str for k, v in value.items())
