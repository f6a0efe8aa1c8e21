"""What the index says of single objects and packs, for whoever has a transaction."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from packnback.errors import IndexDamage
from packnback.format import meta_rows, rows
from packnback.format.pack import RecordRow
from packnback.format.record import split_refs
from packnback.format.rows import ObjectRow, PackRow
from packnback.store.index import ReadTxn

_BATCH = 1_000
"""Rows collected before writing while a table is being scanned."""


def lookup(txn: ReadTxn, object_id: bytes) -> ObjectRow | None:
    """The row of an object, or None."""
    value = txn.get("objects", object_id)
    return None if value is None else rows.decode_object(object_id, value)


def refs_of(txn: ReadTxn, object_id: bytes) -> list[bytes]:
    """The refs of an object; empty for a leaf and for an absent one."""
    value = txn.get("refs", object_id)
    return [] if value is None else split_refs(rows.unseal("refs", object_id, value))


def is_complete(txn: ReadTxn, object_id: bytes) -> bool:
    """Whether the object and everything it needs is there: the meaning of `has`."""
    return txn.get("objects", object_id) is not None and txn.get("incomplete", object_id) is None


def contradicts(txn: ReadTxn, object_id: bytes, facts: tuple[int, int, bytes]) -> bool:
    """Whether a copy with these facts (kind, level, refs) is another object than the one known by its id."""
    known = lookup(txn, object_id)
    return known is not None and (known.kind, known.level, b"".join(refs_of(txn, object_id))) != facts


def location(number: int, record: RecordRow) -> ObjectRow:
    """The row of a record in the pack of this number, as an object."""
    return ObjectRow(number, record.offset, record.length, record.kind, record.level)


def pack_row(txn: ReadTxn, number: int) -> PackRow:
    """The row of a pack that some other row names. Raises IndexDamage when there is none."""
    key = rows.pack_key(number)
    value = txn.get("packs", key)
    if value is None:
        raise IndexDamage("packs", f"pack {number} is missing")
    return rows.decode_pack(key, value)


def next_number(txn: ReadTxn) -> int:
    """The number of the next pack to be adopted."""
    return meta_rows.decode_next_pack(txn.get(meta_rows.TABLE, meta_rows.NEXT_PACK))


def batches(txn: ReadTxn, table: str) -> Iterator[list[tuple[bytes, bytes]]]:
    """All rows of a table in bounded lists, so that the caller may write between them."""
    start = b""
    while batch := list(islice(txn.scan(table, start=start), _BATCH)):
        yield batch
        start = batch[-1][0] + b"\0"
