"""The ledger: adopting and dropping packs and snapshots in the index, with completeness and counts kept right.

Two facts are derived for every object, and both cost in proportion to what changed:

- *complete*: the object is present and all its refs are complete (and its level is what its refs make it).
  Rows in ``waiting`` lead from an absent or incomplete object to those that need it, so that its arrival wakes
  exactly them.
- *count*: snapshots whose root it is, plus live objects that refer to it; live means a count above zero. Going
  from 0 to 1 activates the refs, from 1 to 0 releases them, by a work-list.

Incomplete objects stay readable and counted: damage never turns into deletion. Removing packs can break
anything, so whoever removed something calls `recount`, which derives both facts from scratch.

Everything here happens inside one write transaction of the index. The caller calls `settle` at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from packnback.errors import IndexDamage
from packnback.format import rows
from packnback.format.pack import Footer, RecordRow
from packnback.format.record import REF_KINDS, level_of, split_refs
from packnback.format.rows import ObjectRow, PackRow, ReleasedRow, SnapshotRow
from packnback.format.snapshot import KeptHeader, decode_header, decode_receipt, snapshot_name
from packnback.ids import ID_LEN, Kind
from packnback.store.index import ReadTxn, WriteTxn

_BATCH = 20_000
"""Rows collected before writing while a table is being scanned."""


def lookup(txn: ReadTxn, object_id: bytes) -> ObjectRow | None:
    """The row of an object, or None."""
    value = txn.get("objects", object_id)
    return None if value is None else rows.decode_object(object_id, value)


def is_complete(txn: ReadTxn, object_id: bytes) -> bool:
    """Whether the object and everything it needs is there: the meaning of `has`."""
    return txn.get("objects", object_id) is not None and txn.get("incomplete", object_id) is None


def contradicts(txn: ReadTxn, object_id: bytes, facts: tuple[int, int, bytes]) -> bool:
    """Whether a copy with these facts (kind, level, refs) is another object than the one known by its id."""
    known = lookup(txn, object_id)
    if known is None:
        return False
    stored = txn.get("refs", object_id)
    refs = b"" if stored is None else rows.unseal("refs", object_id, stored)
    return (known.kind, known.level, refs) != facts


def used_bytes(txn: ReadTxn, client_id: bytes) -> int:
    """Bytes of all records of a client, dead or alive: what its quota is compared with."""
    return sum(rows.decode_usage(key, value) for key, value in txn.scan("usage", client_id))


def pack_row(txn: ReadTxn, number: int) -> PackRow:
    """The row of a pack that some other row names."""
    key = rows.pack_key(number)
    value = txn.get("packs", key)
    if value is None:
        raise IndexDamage("packs", f"pack {number} is missing")
    return rows.decode_pack(key, value)


class Ledger:
    """One write transaction's changes to objects, packs and snapshots."""

    def __init__(self, txn: WriteTxn) -> None:
        self.txn = txn
        self.conflicts = 0
        """Adopted copies that differ from another in kind, level or refs: the caller must rebuild in order."""
        self._packs: dict[int, PackRow] = {}
        self._waiting = txn.count("waiting")
        self._roots = txn.count("roots")
        number = txn.get("meta", b"next pack")
        self._next = int.from_bytes(rows.unseal("meta", b"next pack", number), "big") if number else 1

    def settle(self) -> None:
        """Write what is still only in memory. Nothing may be changed through this ledger afterwards."""
        for number, row in self._packs.items():
            key = rows.pack_key(number)
            self.txn.put("packs", key, rows.encode_pack(key, row))
        self._packs.clear()
        value = self._next.to_bytes(4, "big")
        self.txn.put("meta", b"next pack", rows.seal(b"next pack", value))

    # --- packs ------------------------------------------------------------------------------------------

    def adopt_pack(self, name: bytes, size: int, footer: Footer | None, status: int = rows.GOOD) -> None:
        """Add a pack and a row for every record of it. `footer` is None for one that cannot be parsed."""
        if self.txn.get("pack_names", name) is not None:
            return
        number, self._next = self._next, self._next + 1
        row = PackRow(name, size, status)
        self._packs[number] = row
        self.txn.put("pack_names", name, rows.encode_number(name, number))
        if footer is None:
            return
        row.object_class = footer.object_class
        row.records = len(footer.records)
        row.record_bytes = sum(r.length for r in footer.records)
        self._count_usage(number, footer)
        for record in sorted(footer.records, key=lambda r: r.level):
            known = lookup(self.txn, record.id)
            if known is None:
                self._adopt_object(number, record)
            else:
                self._adopt_copy(number, record, known)

    def _count_usage(self, number: int, footer: Footer) -> None:
        """A record belongs to the client that its envelope names, wherever compaction has moved it."""
        used: dict[bytes, int] = {}
        for record in footer.records:
            client_id = footer.envelopes[record.envelope].client_id
            used[client_id] = used.get(client_id, 0) + record.length
        for client_id, length in used.items():
            key = rows.usage_key(client_id, number)
            self.txn.put("usage", key, rows.encode_usage(key, length))

    def _adopt_object(self, number: int, record: RecordRow) -> None:
        object_id, refs = record.id, record.ref_list
        location = ObjectRow(number, record.offset, record.length, record.kind, record.level)
        self.txn.put("objects", object_id, rows.encode_object(object_id, location))
        if record.kind != Kind.DATA:
            self.txn.put("refs", object_id, rows.seal(object_id, record.refs))
        missing = [r for r in refs if not is_complete(self.txn, r)]
        whole = not missing and self._fits(record.kind, record.level, refs)
        if not whole:
            self.txn.put("incomplete", object_id, rows.seal(object_id, b""))
            self._wait(object_id, missing)
        count = self._arrived_count(object_id)
        if count:
            self.txn.put("counts", object_id, rows.encode_count(object_id, count))
            self._pack(number).live_bytes += record.length
            self._activate(refs)
        if whole:
            self._wake(object_id)

    def _fits(self, kind: int, level: int, refs: Sequence[bytes]) -> bool:
        """Whether kind and level are what the (present) refs allow."""
        found = [lookup(self.txn, r) for r in refs]
        known = [row for row in found if row is not None]
        return (
            len(known) == len(found)
            and all(row.kind in REF_KINDS[kind] for row in known)
            and level == level_of([row.level for row in known], kind)
        )

    def _wait(self, object_id: bytes, missing: Iterable[bytes]) -> None:
        for ref in missing:
            key = ref + object_id
            self.txn.put("waiting", key, rows.seal(key, b""))
            self._waiting += 1

    def _arrived_count(self, object_id: bytes) -> int:
        """The count of an object that has just arrived: all who refer to it have been waiting for it."""
        count = 0
        if self._waiting:
            waiting = [key[ID_LEN:] for key, _ in self.txn.scan("waiting", object_id)]
            count += sum(self.txn.get("counts", referrer) is not None for referrer in waiting)
        if self._roots:
            count += sum(1 for _ in self.txn.scan("roots", object_id))
        return count

    def _wake(self, arrived: bytes) -> None:
        """`arrived` is complete now; so may be those who waited for it, and those who waited for them."""
        work = [arrived]
        while work and self._waiting:
            object_id = work.pop()
            keys = [key for key, _ in self.txn.scan("waiting", object_id)]
            for key in keys:
                self.txn.delete("waiting", key)
                self._waiting -= 1
                referrer = key[ID_LEN:]
                refs, row = self.refs(referrer), lookup(self.txn, referrer)
                if row is None or not all(is_complete(self.txn, r) for r in refs):
                    continue
                if self._fits(row.kind, row.level, refs):
                    self.txn.delete("incomplete", referrer)
                    work.append(referrer)

    def _adopt_copy(self, number: int, record: RecordRow, known: ObjectRow) -> None:
        object_id, row = record.id, self._pack(number)
        same = known.kind == record.kind and known.level == record.level
        if not same or (known.kind != Kind.DATA and b"".join(self.refs(object_id)) != record.refs):
            row.conflicts += 1
            self.conflicts += 1
            return
        if row.name > self._pack(known.pack).name:
            self._put_more(object_id, number, record.offset, record.length)
            return
        self._put_more(object_id, known.pack, known.offset, known.length)
        self._move(object_id, known, ObjectRow(number, record.offset, record.length, known.kind, known.level))

    def _put_more(self, object_id: bytes, number: int, offset: int, length: int) -> None:
        key = rows.more_key(object_id, number)
        self.txn.put("more", key, rows.encode_more(key, offset, length))

    def _move(self, object_id: bytes, old: ObjectRow, new: ObjectRow) -> None:
        """Make another location the primary one; live bytes go with it."""
        self.txn.put("objects", object_id, rows.encode_object(object_id, new))
        if self.txn.get("counts", object_id) is not None:
            self._pack(old.pack).live_bytes -= old.length
            self._pack(new.pack).live_bytes += new.length

    def drop_packs(self, numbers: Sequence[int]) -> None:
        """Forget packs and every location in them; objects that stand nowhere else lose their row.

        The caller has seen that the files are gone, and calls `recount` before `settle`.
        """
        gone = set(numbers)
        for number in gone:
            self.txn.delete("pack_names", self._pack(number).name)
            self.txn.delete("packs", rows.pack_key(number))
            del self._packs[number]
        for key in [key for key, _ in self.txn.scan("usage")]:
            if rows.split_usage_key(key)[1] in gone:
                self.txn.delete("usage", key)
        for batch in self._batches("more"):
            for key, _ in batch:
                if rows.split_more_key(key)[1] in gone:
                    self.txn.delete("more", key)
        for batch in self._batches("objects"):
            for object_id, value in batch:
                row = rows.decode_object(object_id, value)
                if row.pack in gone:
                    self._drop_location(object_id, row)

    def _drop_location(self, object_id: bytes, row: ObjectRow) -> None:
        others = []
        for key, value in self.txn.scan("more", object_id):
            number = rows.split_more_key(key)[1]
            others.append((self._pack(number).name, number, rows.decode_more(key, value)))
        if not others:
            self.txn.delete("objects", object_id)
            self.txn.delete("refs", object_id)
            return
        _, number, (offset, length) = min(others)
        self.txn.delete("more", rows.more_key(object_id, number))
        moved = ObjectRow(number, offset, length, row.kind, row.level)
        self.txn.put("objects", object_id, rows.encode_object(object_id, moved))

    # --- snapshots, markers, header batches ---------------------------------------------------------------

    def adopt_snapshot(self, name: str, row: SnapshotRow) -> None:
        """Add a snapshot file; its root is activated unless its header is known as released."""
        key = name.encode()
        if self.txn.get("snapshots", key) is not None:
            return
        if row.status == rows.GOOD and self._is_released(row):
            row = replace(row, status=rows.RELEASED)
        self.txn.put("snapshots", key, rows.encode_snapshot(key, row))
        if row.status == rows.GOOD:
            self._add_root(row.root, key)

    def _is_released(self, row: SnapshotRow) -> bool:
        prefix = rows.released_key(row.client_id, row.sequence, b"")
        kept = (rows.decode_released(key, value) for key, value in self.txn.scan("released", prefix))
        return any(r.id == row.id for r in kept)

    def _add_root(self, root: bytes, name: bytes) -> None:
        key = root + name
        self.txn.put("roots", key, rows.seal(key, b""))
        self._roots += 1
        self._activate([root])

    def drop_snapshot(self, name: str) -> None:
        """Forget a snapshot file: its root is released."""
        key = name.encode()
        value = self.txn.get("snapshots", key)
        if value is None:
            return
        row = rows.decode_snapshot(key, value)
        self.txn.delete("snapshots", key)
        if row.status == rows.GOOD:
            self._drop_root(row.root, key)

    def _drop_root(self, root: bytes, name: bytes) -> None:
        self.txn.delete("roots", root + name)
        self._roots -= 1
        self._release([root])

    def adopt_marker(self, name: str, status: int = rows.GOOD) -> None:
        """Add a marker's name."""
        key = name.encode()
        self.txn.put("markers", key, rows.seal(key, bytes((status,))))

    def drop_marker(self, name: str) -> None:
        """Forget a marker's name."""
        self.txn.delete("markers", name.encode())

    def adopt_batch(self, name: str, headers: Sequence[KeptHeader] | None, status: int = rows.GOOD) -> None:
        """Add a batch of kept headers; snapshot files that they name count for nothing from now on."""
        key = name.encode()
        if self.txn.get("batches", key) is not None:
            return
        self.txn.put("batches", key, rows.seal(key, bytes((status,))))
        for kept in headers or ():
            header = decode_header(kept.header)
            row = ReleasedRow(kept.id, header.prev, header.domain_id, header.epoch, decode_receipt(kept.receipt))
            released = rows.released_key(header.client_id, header.sequence, bytes.fromhex(name))
            self.txn.put("released", released, rows.encode_released(released, row))
            self._retire(snapshot_name(header.client_id, header.sequence), kept.id)

    def _retire(self, name: str, snapshot_id: bytes) -> None:
        key = name.encode()
        value = self.txn.get("snapshots", key)
        row = rows.decode_snapshot(key, value) if value else None
        if row is not None and row.status == rows.GOOD and row.id == snapshot_id:
            self.txn.put("snapshots", key, rows.encode_snapshot(key, replace(row, status=rows.RELEASED)))
            self._drop_root(row.root, key)

    def drop_batch(self, name: str) -> None:
        """Forget a batch; the caller calls `recount`, which looks at returned snapshot files again."""
        self.txn.delete("batches", name.encode())
        batch = bytes.fromhex(name) if len(name) == 2 * ID_LEN else b""
        for key in [key for key, _ in self.txn.scan("released")]:
            if key.endswith(batch) and batch:
                self.txn.delete("released", key)

    # --- counts -------------------------------------------------------------------------------------------

    def refs(self, object_id: bytes) -> list[bytes]:
        """The refs of an object; empty for a leaf and for an absent one."""
        value = self.txn.get("refs", object_id)
        return [] if value is None else split_refs(rows.unseal("refs", object_id, value))

    def _activate(self, ids: Iterable[bytes]) -> None:
        """One more live referrer for each id."""
        work = list(ids)
        while work:
            object_id = work.pop()
            value = self.txn.get("counts", object_id)
            if value is not None:
                count = rows.decode_count(object_id, value)
                self.txn.put("counts", object_id, rows.encode_count(object_id, count + 1))
                continue
            row = lookup(self.txn, object_id)
            if row is None:
                continue  # counted when it arrives
            self.txn.put("counts", object_id, rows.encode_count(object_id, 1))
            self._pack(row.pack).live_bytes += row.length
            if row.kind != Kind.DATA:
                work += self.refs(object_id)

    def _release(self, ids: Iterable[bytes]) -> None:
        """One live referrer less for each id."""
        work = list(ids)
        while work:
            object_id = work.pop()
            value = self.txn.get("counts", object_id)
            if value is None:
                continue  # absent
            count = rows.decode_count(object_id, value) - 1
            if count:
                self.txn.put("counts", object_id, rows.encode_count(object_id, count))
                continue
            self.txn.delete("counts", object_id)
            row = lookup(self.txn, object_id)
            if row is not None:
                self._pack(row.pack).live_bytes -= row.length
                work += self.refs(object_id)

    def recount(self) -> None:
        """Derive completeness, counts and live bytes from scratch, from what rows there are."""
        for table in ("counts", "incomplete", "waiting", "roots"):
            self.txn.clear(table)
        self._waiting = self._roots = 0
        for key, _ in list(self.txn.scan("packs")):
            self._pack(rows.number_of(key)).live_bytes = 0
        self._recomplete()
        for key, value in list(self.txn.scan("snapshots")):
            row = rows.decode_snapshot(key, value)
            if row.status not in (rows.GOOD, rows.RELEASED):
                continue
            status = rows.RELEASED if self._is_released(row) else rows.GOOD
            if status != row.status:
                self.txn.put("snapshots", key, rows.encode_snapshot(key, replace(row, status=status)))
            if status == rows.GOOD:
                self._add_root(row.root, key)

    def _recomplete(self) -> None:
        """One pass over the objects that have refs, in order of their level."""
        by_level: dict[int, list[bytes]] = {}
        for object_id, _ in self.txn.scan("refs"):
            row = lookup(self.txn, object_id)
            if row is not None:
                by_level.setdefault(row.level, []).append(object_id)
        for level in sorted(by_level):
            for object_id in by_level[level]:
                refs, row = self.refs(object_id), lookup(self.txn, object_id)
                missing = [r for r in refs if not is_complete(self.txn, r)]
                if missing or row is None or not self._fits(row.kind, row.level, refs):
                    self.txn.put("incomplete", object_id, rows.seal(object_id, b""))
                    self._wait(object_id, missing)

    # --- rows in memory -------------------------------------------------------------------------------------

    def _pack(self, number: int) -> PackRow:
        row = self._packs.get(number)
        if row is None:
            row = self._packs[number] = pack_row(self.txn, number)
        return row

    def _batches(self, table: str) -> Iterator[list[tuple[bytes, bytes]]]:
        """All rows of a table in bounded lists, so that the caller may write between them."""
        start = b""
        while batch := list(islice(self.txn.scan(table, start=start), _BATCH)):
            yield batch
            start = batch[-1][0] + b"\0"
