"""The rows of the index's table ``meta``: what is kept beside the rows that follow from the directories' names.

====================  =============================================================================================
key                   value
====================  =============================================================================================
``judged by``         layout of the rows (u8), repository id, hash of the owner's bundle (16)
``next pack``         number of the next pack to be adopted (u32, big-endian)
``newest receipt``    highest counter (u64), latest time in ns (i64), whether there is one (u8); no row for none
``unordered``         empty: copies that contradict each other were adopted, and what won may not be the smallest
                      name's yet
``read at`` ‖ name    when a pack was read last, in ns (u64), and whether anything in it was damaged (u8)
====================  =============================================================================================

Each is sealed like all rows (`packnback.format.rows`).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from blake3 import blake3

from packnback.errors import IndexDamage
from packnback.format import rows

TABLE = "meta"
JUDGED_BY = b"judged by"
NEXT_PACK = b"next pack"
NEWEST_RECEIPT = b"newest receipt"
UNORDERED = b"unordered"
_READ_AT = b"read at "

_NEXT_PACK = struct.Struct(">I")
_NEWEST = struct.Struct("<QqB")
_LAST_READ = struct.Struct("<QB")


class Newest(NamedTuple):
    """The newest receipt, over all clients."""

    counter: int
    """The highest counter over all snapshots and kept headers; 0 when there is none."""
    received_ns: int | None
    """The latest time of any snapshot that is not released: what a clock is compared with.

    Kept headers do not count. A clock that once was years ahead would otherwise keep everybody from backing up for
    as long, with no way out; like this, giving up what it had stamped is one.
    """


NO_RECEIPT = Newest(0, None)


class LastRead(NamedTuple):
    """What is known of the last time that a pack was read from end to end."""

    time_ns: int
    damaged: bool


UNREAD = LastRead(-1, False)


def encode_judged_by(repository_id: bytes, owner_bundle: bytes) -> bytes:
    """Row ``judged by``: by which rules files were judged."""
    return rows.seal(JUDGED_BY, bytes((rows.LAYOUT,)) + repository_id + blake3(owner_bundle).digest(16))


def encode_next_pack(number: int) -> bytes:
    """Row ``next pack``."""
    return rows.seal(NEXT_PACK, _NEXT_PACK.pack(number))


def decode_next_pack(value: bytes | None) -> int:
    """Row ``next pack``; the first number where there is no row."""
    return 1 if value is None else _unpack(_NEXT_PACK, NEXT_PACK, value)[0]


def encode_newest(newest: Newest) -> bytes:
    """Row ``newest receipt``."""
    counter, received_ns = newest
    return rows.seal(NEWEST_RECEIPT, _NEWEST.pack(counter, received_ns or 0, received_ns is not None))


def decode_newest(value: bytes | None) -> Newest:
    """Row ``newest receipt``; `NO_RECEIPT` where there is no row."""
    if value is None:
        return NO_RECEIPT
    counter, received_ns, is_received = _unpack(_NEWEST, NEWEST_RECEIPT, value)
    return Newest(counter, received_ns if is_received else None)


def encode_unordered() -> bytes:
    """Row ``unordered``."""
    return rows.seal(UNORDERED, b"")


def read_at_key(pack: bytes) -> bytes:
    """Key of the row for a pack, by its name."""
    return _READ_AT + pack


def encode_last_read(key: bytes, read: LastRead) -> bytes:
    """Row ``read at``."""
    return rows.seal(key, _LAST_READ.pack(*read))


def decode_last_read(key: bytes, value: bytes | None) -> LastRead:
    """Row ``read at``; `UNREAD` where there is no row."""
    if value is None:
        return UNREAD
    time_ns, damaged = _unpack(_LAST_READ, key, value)
    return LastRead(time_ns, bool(damaged))


def _unpack(layout: struct.Struct, key: bytes, value: bytes) -> tuple[int, ...]:
    body = rows.unseal(TABLE, key, value)
    if len(body) != layout.size:
        raise IndexDamage(TABLE, f"row {key.hex()}")
    return layout.unpack(body)
