"""The rows of the index: the one authority over every key and value that stands in LMDB.

The index is a view, a pure function of the names in ``packs/``, ``snapshots/``, ``forgotten/``, ``headers/`` and
``condemned/``; it is not part of the repository's format and may change with any version (`LAYOUT` says which).
Every value ends with a 4-byte CRC-32 over key and value, so that a torn or misplaced row is noticed.

=============  =====================================  ==========================================================
table          key                                    value
=============  =====================================  ==========================================================
``objects``    id                                     primary location, kind, level
``more``       id ‖ pack number                       a further location
``refs``       id (of every object that is no leaf)   the refs, concatenated
``counts``     id (of every live object)              how many live objects and snapshots refer to it
``incomplete`` id (present, but not all it needs)     —
``waiting``    absent or incomplete id ‖ referrer     —
``roots``      root id ‖ snapshot name                —
``packs``      pack number                            name, size, status, class, records, bytes, live bytes
``pack_names`` pack name (32)                         pack number
``usage``      client id ‖ pack number                bytes of the client's records in that pack
``snapshots``  file name                              status and what `SnapshotInfo` tells
``markers``    file name                              status
``batches``    file name                              status
``released``   client id ‖ sequence ‖ batch (32)      id, prev, epoch, domain, receipt
``condemned``  file name                              status, time
``doomed``     pack name (32) ‖ condemned list (32)   —
``meta``       name                                   see `packnback.format.meta_rows`
=============  =====================================  ==========================================================

Counts and completeness stand in tables of their own, not in the object's row: recounting then clears two
small tables instead of rewriting millions of rows, and committing touches only what becomes live.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from msgspec import Struct, field

from packnback.errors import IndexDamage
from packnback.format.snapshot import Receipt

LAYOUT = 3
TABLES = (
    "objects",
    "more",
    "refs",
    "counts",
    "incomplete",
    "waiting",
    "roots",
    "packs",
    "pack_names",
    "usage",
    "snapshots",
    "markers",
    "batches",
    "released",
    "condemned",
    "doomed",
    "meta",
)

GOOD, DAMAGED, NEWER = 0, 1, 2
"""Status of a file: parsed; cannot be parsed; written by a newer version."""
RELEASED = 3
"""Status of a snapshot file that came back although its header is kept as released: it counts for nothing."""

_CHECK = struct.Struct("<I")
_RESIDUE = 0x2144DF1C
"""CRC-32 of anything that is followed by its own CRC-32 (little-endian)."""
_OBJECT = struct.Struct("<IQIBB")
_OBJECT_KIND_AT = struct.calcsize("<IQI")
OBJECT_LEN = _OBJECT.size + _CHECK.size
"""Length of a value of ``objects``."""
_MORE = struct.Struct("<QI")
_PACK = struct.Struct("<32sQBBIQQI")
_SNAPSHOT = struct.Struct("<32s16s16sIQ32s32sqqQQBBQ")
_SNAPSHOT_RECEIPT, _SNAPSHOT_RECEIPT_AT = struct.Struct("<qQ"), struct.calcsize("<32s16s16sIQ32s32sq")
_RELEASED = struct.Struct("<32s32s16sIqQQB")
_NUMBER = struct.Struct(">I")
_SEQUENCE = struct.Struct(">Q")
_COUNT = struct.Struct("<I")
_USAGE = struct.Struct("<Q")
_CONDEMNED = struct.Struct("<Bq")


def seal(key: bytes, value: bytes) -> bytes:
    """The value with its check."""
    return value + _CHECK.pack(zlib.crc32(value, zlib.crc32(key)))


def unseal(table: str, key: bytes, value: bytes) -> bytes:
    """The value without its check; raises IndexDamage when they do not fit."""
    if len(value) < 4 or zlib.crc32(value, zlib.crc32(key)) != _RESIDUE:
        raise IndexDamage(table, f"row {key.hex()}")
    return value[:-4]


def _unpack(layout: struct.Struct, table: str, key: bytes, packed: bytes) -> tuple[Any, ...]:
    """The fields of a key or value; raises IndexDamage where they do not fit."""
    try:
        return layout.unpack(packed)
    except struct.error:
        raise IndexDamage(table, f"row {key.hex()}") from None


def name_of(table: str, key: bytes, value: bytes) -> str:
    """The file's name that is the key of a row; raises IndexDamage when it cannot be one."""
    unseal(table, key, value)
    return _text(table, key, key)


def _text(table: str, key: bytes, encoded: bytes) -> str:
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        raise IndexDamage(table, f"row {key.hex()}") from None


class ObjectRow(NamedTuple):
    """Where an object stands (its primary location) and what it is. (A tuple, because there are millions.)"""

    pack: int
    offset: int
    length: int
    kind: int
    level: int


def encode_object(key: bytes, row: ObjectRow) -> bytes:
    """Row of ``objects``."""
    return seal(key, _OBJECT.pack(*row))


def encode_objects(pairs: Iterable[tuple[bytes, ObjectRow]]) -> list[tuple[bytes, bytes]]:
    """Many rows of ``objects``, as (key, value)."""
    pack, check, crc = _OBJECT.pack, _CHECK.pack, zlib.crc32
    return [(key, (value := pack(*row)) + check(crc(value, crc(key)))) for key, row in pairs]


def decode_object(key: bytes, value: bytes) -> ObjectRow:
    """Row of ``objects``."""
    return ObjectRow._make(_unpack(_OBJECT, "objects", key, unseal("objects", key, value)))


def split_object(key: bytes, value: bytes) -> tuple[int, bytes]:
    """(pack number, everything else, encoded): to compare millions of rows."""
    row = unseal("objects", key, value)
    return int.from_bytes(row[:4], "little"), row[4:]


def pack_of_object(value: bytes) -> int:
    """The pack number alone, unchecked: to pick rows out of millions, which are then decoded."""
    return int.from_bytes(value[:4], "little")


def more_key(object_id: bytes, pack: int) -> bytes:
    """Key of ``more``."""
    return object_id + _NUMBER.pack(pack)


def kind_of_object(value: bytes) -> int:
    """The kind alone, unchecked, like `pack_of_object`."""
    return value[_OBJECT_KIND_AT]


def split_more_key(key: bytes) -> tuple[bytes, int]:
    """(object id, pack number) of a key of ``more``."""
    return key[:32], _unpack(_NUMBER, "more", key, key[32:])[0]


def encode_more(key: bytes, offset: int, length: int) -> bytes:
    """Row of ``more``."""
    return seal(key, _MORE.pack(offset, length))


def decode_more(key: bytes, value: bytes) -> tuple[int, int]:
    """(offset, length)."""
    offset, length = _unpack(_MORE, "more", key, unseal("more", key, value))
    return offset, length


def encode_count(key: bytes, count: int) -> bytes:
    """Row of ``counts``."""
    return seal(key, _COUNT.pack(count))


def decode_count(key: bytes, value: bytes) -> int:
    """The count."""
    count: int = _unpack(_COUNT, "counts", key, unseal("counts", key, value))[0]
    return count


class PackRow(Struct):
    """A pack: `record_bytes` are those of its objects, `live_bytes` of the live ones whose primary it is.

    The rest of `size` is framing: magic, footer, trailer and envelopes.
    """

    name: bytes
    size: int
    status: int = GOOD
    object_class: int = 0
    records: int = 0
    record_bytes: int = 0
    live_bytes: int = 0
    conflicts: int = 0
    """Objects that another pack (of a smaller name) has with another kind, level or refs."""


def pack_key(number: int) -> bytes:
    """Key of ``packs``."""
    return _NUMBER.pack(number)


def encode_pack(key: bytes, row: PackRow) -> bytes:
    """Row of ``packs``."""
    return seal(
        key,
        _PACK.pack(
            row.name, row.size, row.status, row.object_class, row.records, row.record_bytes, row.live_bytes,
            row.conflicts,
        ),
    )  # fmt: skip


def decode_pack(key: bytes, value: bytes) -> PackRow:
    """Row of ``packs``."""
    return PackRow(*_unpack(_PACK, "packs", key, unseal("packs", key, value)))


def encode_number(key: bytes, number: int) -> bytes:
    """Row of ``pack_names``."""
    return seal(key, _NUMBER.pack(number))


def decode_number(key: bytes, value: bytes) -> int:
    """Row of ``pack_names``: the pack's number."""
    number: int = _unpack(_NUMBER, "pack_names", key, unseal("pack_names", key, value))[0]
    return number


def number_of(key: bytes) -> int:
    """Pack number of a key of ``packs``."""
    number: int = _unpack(_NUMBER, "packs", key, key)[0]
    return number


def usage_key(client_id: bytes, number: int) -> bytes:
    """Key of ``usage``."""
    return client_id + _NUMBER.pack(number)


def split_usage_key(key: bytes) -> tuple[bytes, int]:
    """(client id, pack number) of a key of ``usage``."""
    return key[:16], _unpack(_NUMBER, "usage", key, key[16:])[0]


def encode_usage(key: bytes, used: int) -> bytes:
    """Row of ``usage``."""
    return seal(key, _USAGE.pack(used))


def decode_usage(key: bytes, value: bytes) -> int:
    """Bytes."""
    used: int = _unpack(_USAGE, "usage", key, unseal("usage", key, value))[0]
    return used


class SnapshotRow(Struct, frozen=True):
    """A snapshot file. Of a damaged one only `status` and `reason` mean anything."""

    status: int
    id: bytes = bytes(32)
    client_id: bytes = bytes(16)
    domain_id: bytes = bytes(16)
    epoch: int = 0
    sequence: int = 0
    prev: bytes = bytes(32)
    root: bytes = bytes(32)
    time_ns: int = 0
    receipt: Receipt = field(default_factory=lambda: Receipt(0, 0, 0))
    flags: int = 0
    size: int = 0
    client: str = ""
    reason: str = ""


def encode_snapshot(key: bytes, row: SnapshotRow) -> bytes:
    """Row of ``snapshots``: status, then the fixed fields and the client's name, or the reason."""
    if row.status in (DAMAGED, NEWER):
        return seal(key, bytes((row.status,)) + row.reason.encode())
    fixed = _SNAPSHOT.pack(
        row.id, row.client_id, row.domain_id, row.epoch, row.sequence, row.prev, row.root, row.time_ns,
        row.receipt.time_ns, row.receipt.counter, row.receipt.bytes_added, row.receipt.self_stamped,
        row.flags, row.size,
    )  # fmt: skip
    return seal(key, bytes((row.status,)) + fixed + row.client.encode())


def decode_snapshot(key: bytes, value: bytes) -> SnapshotRow:
    """Row of ``snapshots``."""
    body = unseal("snapshots", key, value)
    if body[0] in (DAMAGED, NEWER):
        return SnapshotRow(body[0], reason=_text("snapshots", key, body[1:]))
    f = _unpack(_SNAPSHOT, "snapshots", key, body[1 : 1 + _SNAPSHOT.size])
    receipt = Receipt(f[8], f[9], f[10], bool(f[11]))
    name = _text("snapshots", key, body[1 + _SNAPSHOT.size :])
    return SnapshotRow(
        body[0], f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], receipt, flags=f[12], size=f[13], client=name
    )


def receipt_of_snapshot(key: bytes, value: bytes) -> tuple[int, int, int]:
    """(status, receipt time in ns, receipt counter) alone; zeros when the file is not GOOD or RELEASED.

    Decodes three fields of fourteen: histories are long.
    """
    status = unseal("snapshots", key, value)[0]
    if status in (DAMAGED, NEWER):
        return status, 0, 0
    packed = value[1 + _SNAPSHOT_RECEIPT_AT :][: _SNAPSHOT_RECEIPT.size]
    time_ns, counter = _unpack(_SNAPSHOT_RECEIPT, "snapshots", key, packed)
    return status, time_ns, counter


class ReleasedRow(Struct, frozen=True):
    """The kept header of a released snapshot."""

    id: bytes
    prev: bytes
    domain_id: bytes
    epoch: int
    receipt: Receipt


def released_key(client_id: bytes, sequence: int, batch: bytes) -> bytes:
    """Key of ``released``."""
    return client_id + _SEQUENCE.pack(sequence) + batch


def split_released_key(key: bytes) -> tuple[bytes, int, bytes]:
    """(client id, sequence, batch) of a key of ``released``."""
    return key[:16], _unpack(_SEQUENCE, "released", key, key[16:24])[0], key[24:]


def encode_released(key: bytes, row: ReleasedRow) -> bytes:
    """Row of ``released``."""
    r = row.receipt
    fixed = _RELEASED.pack(
        row.id, row.prev, row.domain_id, row.epoch, r.time_ns, r.counter, r.bytes_added, r.self_stamped
    )
    return seal(key, fixed)


def decode_released(key: bytes, value: bytes) -> ReleasedRow:
    """Row of ``released``."""
    f = _unpack(_RELEASED, "released", key, unseal("released", key, value))
    return ReleasedRow(f[0], f[1], f[2], f[3], Receipt(f[4], f[5], f[6], bool(f[7])))


def encode_condemned(key: bytes, status: int, time_ns: int = 0) -> bytes:
    """Row of ``condemned``."""
    return seal(key, _CONDEMNED.pack(status, time_ns))


def decode_condemned(key: bytes, value: bytes) -> tuple[int, int]:
    """(status, time in ns by the clock of whoever wrote the list)."""
    status, time_ns = _unpack(_CONDEMNED, "condemned", key, unseal("condemned", key, value))
    return status, time_ns


def doomed_key(pack: bytes, condemned: str) -> bytes:
    """Key of ``doomed``."""
    return pack + bytes.fromhex(condemned)


def split_doomed_key(key: bytes) -> tuple[bytes, str]:
    """(pack name, name of the list) of a key of ``doomed``."""
    return key[:32], key[32:].hex()
