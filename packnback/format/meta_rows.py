"""The rows of the index's table ``meta``: what is kept beside the rows that follow from the directories' names.

====================  =============================================================================================
key                   value
====================  =============================================================================================
``judged by``         layout of the rows (u8), repository id, hash of the owner's bundle (16)
``next pack``         number of the next pack to be adopted (u32, big-endian)
``newest receipt``    highest counter (u64), latest time in ns (i64), whether there is one (u8); no row for none
``unordered``         empty: copies that contradict each other were adopted, and what won may not be the smallest
                      name's yet
``read at`` ‖ name    when a pack was read last, in ns (u64)
``damaged`` ‖ name    what was damaged in a pack when it was read last: whether all of it (u8), ids of objects; there
                      is no row for a good one
====================  =============================================================================================

Each is sealed like all rows (`packnback.format.rows`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from blake3 import blake3

from packnback.errors import IndexDamage
from packnback.format import rows
from packnback.ids import ID_LEN

TABLE = "meta"
JUDGED_BY = b"judged by"
NEXT_PACK = b"next pack"
NEWEST_RECEIPT = b"newest receipt"
UNORDERED = b"unordered"
_READ_AT = b"read at "
DAMAGED = b"damaged "
"""Prefix of the keys of damaged packs."""

_NEXT_PACK = struct.Struct(">I")
_NEWEST = struct.Struct("<QqB")
_READ = struct.Struct("<Q")


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


UNREAD = -1
"""When a pack was read that nobody has read."""


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


def encode_read_at(key: bytes, time_ns: int) -> bytes:
    """Row ``read at``."""
    return rows.seal(key, _READ.pack(time_ns))


def decode_read_at(key: bytes, value: bytes | None) -> int:
    """Row ``read at``: the time in ns; `UNREAD` where there is no row."""
    return UNREAD if value is None else _unpack(_READ, key, value)[0]


def damaged_key(pack: bytes) -> bytes:
    """Key of the row for a damaged pack, by its name."""
    return DAMAGED + pack


def split_damaged_key(key: bytes) -> bytes:
    """The pack's name."""
    return key[len(DAMAGED) :]


def encode_damaged(key: bytes, ids: Iterable[bytes] | None) -> bytes:
    """Row ``damaged``: the ids of the objects that are damaged there, None for all of the pack."""
    return rows.seal(key, bytes((ids is None,)) + b"".join(ids or ()))


def decode_damaged(key: bytes, value: bytes) -> frozenset[bytes] | None:
    """Row ``damaged``."""
    body = rows.unseal(TABLE, key, value)
    if len(body) % ID_LEN != 1:
        raise IndexDamage(TABLE, f"row {key.hex()}")
    return None if body[0] else frozenset(body[at : at + ID_LEN] for at in range(1, len(body), ID_LEN))


def _unpack(layout: struct.Struct, key: bytes, value: bytes) -> tuple[int, ...]:
    body = rows.unseal(TABLE, key, value)
    if len(body) != layout.size:
        raise IndexDamage(TABLE, f"row {key.hex()}")
    return layout.unpack(body)
