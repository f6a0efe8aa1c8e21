"""The ledger: adopting and dropping packs and snapshots in the index, with completeness and counts kept right.

Two facts are derived for every object, and both cost in proportion to what changed:

- *complete*: the object is present and all its refs are complete (`packnback.store.completeness`).
- *count*: snapshots whose root it is, plus live objects that refer to it (`packnback.store.liveness`).

Incomplete objects stay readable and counted: damage never turns into deletion. Removing what was live can break
anything: then `stale` is set, and the caller calls `recount`, which derives both facts from scratch.

Everything here happens inside one write transaction of the index, and is whole when `changing` has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from packnback.format import meta_rows, rows
from packnback.format.condemned import CondemnedList
from packnback.format.pack import RecordRow
from packnback.format.rows import ObjectRow, ReleasedRow, SnapshotRow
from packnback.format.snapshot import KeptHeader, decode_header, decode_receipt, snapshot_name
from packnback.ids import ID_LEN, Kind
from packnback.store.adoption import FoundPack, PackFacts, pack_facts
from packnback.store.completeness import Completeness
from packnback.store.condemned import condemned_numbers
from packnback.store.index import WriteTxn
from packnback.store.liveness import Liveness
from packnback.store.objects import batches, location, lookup, next_number, refs_of
from packnback.store.receipts import Receipts

_Arrival = tuple[int, RecordRow]
"""A record in the pack of this number."""


@contextmanager
def changing(txn: WriteTxn) -> Iterator[Ledger]:
    """A ledger for changes within `txn`; at the end they are settled."""
    ledger = Ledger(txn)
    yield ledger
    ledger.settle()


class Ledger:
    """One write transaction's changes to objects, packs and snapshots. Made by `changing`."""

    def __init__(self, txn: WriteTxn) -> None:
        self.txn = txn
        self.conflicts = 0
        """Adopted copies that differ from another in kind, level or refs: the caller must rebuild in order."""
        self.stale = False
        """Counts or completeness no longer follow from what there is: the caller must `recount`."""
        self._live = Liveness(txn)
        self._complete = Completeness(txn)
        self._receipts = Receipts(txn)
        self._condemned = condemned_numbers(txn)
        self._known_roots: set[bytes] | None = None
        self._roots = txn.count("roots")
        self.next_number = next_number(txn)

    def settle(self) -> None:
        """Write what is still only in memory. Nothing may be changed through this ledger afterwards."""
        self._live.settle()
        self._receipts.settle()
        self.txn.put(meta_rows.TABLE, meta_rows.NEXT_PACK, meta_rows.encode_next_pack(self.next_number))

    @property
    def bytes_released(self) -> int:
        """Bytes of the records that have died by now because nothing refers to them any more."""
        return self._live.bytes_released

    # --- packs ------------------------------------------------------------------------------------------

    def adopt_packs(self, packs: Iterable[FoundPack]) -> None:
        """Add packs and a row for each record. The result is the same in any order, unless there are conflicts."""
        arrivals: list[_Arrival] = []
        for found in packs:
            if self.txn.get("pack_names", found.name) is None:
                number = self.adopt_name(pack_facts(found))
                records = found.footer.records if found.footer is not None else ()
                arrivals += ((number, record) for record in records)
        data = [arrival for arrival in arrivals if arrival[1].kind == Kind.DATA]
        data.sort(key=lambda arrival: arrival[1].id)
        self._adopt_data(data)
        inner = [arrival for arrival in arrivals if arrival[1].kind != Kind.DATA]
        for number, record in sorted(inner, key=lambda arrival: arrival[1].level):
            known = lookup(self.txn, record.id)
            if known is None:
                self._adopt_inner(number, record)
            else:
                self.adopt_copy(record.id, location(number, record), record.refs, known)

    def adopt_name(self, facts: PackFacts) -> int:
        """Add a pack that is not known, without its objects. Returns its number: the next one that is free."""
        number, self.next_number = self.next_number, self.next_number + 1
        name = facts.row.name
        self._live.add_pack(number, replace(facts.row))
        self.txn.put("pack_names", name, rows.encode_number(name, number))
        if self.txn.count("doomed") and any(True for _ in self.txn.scan("doomed", name)):
            self._condemned.add(number)
        for client_id, length in facts.used.items():
            key = rows.usage_key(client_id, number)
            self.txn.put("usage", key, rows.encode_usage(key, length))
        return number

    def _adopt_data(self, arrivals: Sequence[_Arrival]) -> None:
        """Objects of data, ascending by id: they need nothing, so all are complete."""
        found = rows.encode_objects((record.id, location(number, record)) for number, record in arrivals)
        known = self.txn.put_new("objects", found)
        copies = [arrivals[i] for i in known]
        if self._complete.waiting or self._roots:
            others = set(known)
            fresh = [arrival for i, arrival in enumerate(arrivals) if i not in others]
            for number, record in fresh:
                self._count_arrived(number, record)
            for _, record in fresh:
                self._complete.wake(record.id)
        for number, record in copies:
            row = lookup(self.txn, record.id)
            if row is not None:
                self.adopt_copy(record.id, location(number, record), b"", row)

    def put_inner(self, number: int, records: Iterable[RecordRow]) -> None:
        """Add a pack's objects that need others, without a look at these: `recount` judges them all."""
        self.stale = True
        for record in records:
            known = lookup(self.txn, record.id)
            if known is None:
                self._put_inner(number, record)
            else:
                self.adopt_copy(record.id, location(number, record), record.refs, known)

    def _put_inner(self, number: int, record: RecordRow) -> None:
        object_id = record.id
        self.txn.put("objects", object_id, rows.encode_object(object_id, location(number, record)))
        self.txn.put("refs", object_id, rows.seal(object_id, record.refs))

    def _adopt_inner(self, number: int, record: RecordRow) -> None:
        """An object that needs others."""
        object_id, refs = record.id, record.ref_list
        self._put_inner(number, record)
        whole = self._complete.judge(object_id, record.kind, record.level, refs)
        if self._count_arrived(number, record):
            self._live.activate(refs)
        if whole:
            self._complete.wake(object_id)

    def _count_arrived(self, number: int, record: RecordRow) -> int:
        """Count an object that has just arrived: all who refer to it have been waiting for it."""
        waiting = self._complete.waiting_for(record.id)
        count = sum(self.txn.get("counts", referrer) is not None for referrer in waiting)
        if record.id in self._root_ids():
            count += sum(1 for _ in self.txn.scan("roots", record.id))
        if count:
            self.txn.put("counts", record.id, rows.encode_count(record.id, count))
            self._live.pack(number).live_bytes += record.length
        return count

    def _root_ids(self) -> set[bytes]:
        if self._known_roots is None:
            self._known_roots = {key[:ID_LEN] for key, _ in self.txn.scan("roots")} if self._roots else set()
        return self._known_roots

    def adopt_copy(self, object_id: bytes, copy: ObjectRow, refs: bytes, known: ObjectRow) -> None:
        """Add a further location of an object that is `known`."""
        same = known.kind == copy.kind and known.level == copy.level
        if not same or (known.kind != Kind.DATA and b"".join(refs_of(self.txn, object_id)) != refs):
            self._live.pack(copy.pack).conflicts += 1
            self.conflicts += 1
            return
        if self._rank(copy.pack) > self._rank(known.pack):
            self._put_more(object_id, copy.pack, copy.offset, copy.length)
            return
        self._put_more(object_id, known.pack, known.offset, known.length)
        self._move(object_id, known, copy)

    def _rank(self, number: int) -> tuple[bool, bytes]:
        """The primary location of an object is the one in the pack of the lowest rank: condemned ones last."""
        return number in self._condemned, self._live.pack(number).name

    def _put_more(self, object_id: bytes, number: int, offset: int, length: int) -> None:
        key = rows.more_key(object_id, number)
        self.txn.put("more", key, rows.encode_more(key, offset, length))

    def _move(self, object_id: bytes, old: ObjectRow, new: ObjectRow) -> None:
        """Make another location the primary one; live bytes go with it."""
        self.txn.put("objects", object_id, rows.encode_object(object_id, new))
        if self.txn.get("counts", object_id) is not None:
            self._live.pack(old.pack).live_bytes -= old.length
            self._live.pack(new.pack).live_bytes += new.length

    def drop_packs(self, numbers: Iterable[int]) -> None:
        """Forget packs and every location in them; objects that stand nowhere else lose their rows.

        The caller has seen that the files are gone. If all that is lost was dead, counts do not change, and of
        the other objects only dead ones can have become incomplete. Otherwise `stale` is set.
        """
        gone = {number: self._live.pack(number) for number in numbers}
        for number, pack in gone.items():
            self.txn.delete("pack_names", pack.name)
            self.txn.delete("packs", rows.pack_key(number))
            for key in (meta_rows.read_at_key(pack.name), meta_rows.damaged_key(pack.name)):
                self.txn.delete(meta_rows.TABLE, key)
        for key in [key for key, _ in self.txn.scan("usage")]:
            if rows.split_usage_key(key)[1] in gone:
                self.txn.delete("usage", key)
        for batch in batches(self.txn, "more"):
            for key, _ in batch:
                if rows.split_more_key(key)[1] in gone:
                    self.txn.delete("more", key)
        lost = False
        for batch in batches(self.txn, "objects"):
            for object_id, value in batch:
                if rows.pack_of_object(value) in gone:
                    lost |= self._drop_location(object_id, rows.decode_object(object_id, value))
        self._live.forget_packs(gone)
        if lost and not self.stale:
            self._complete.judge_the_dead()

    def _drop_location(self, object_id: bytes, row: ObjectRow) -> bool:
        """Take the primary location away; whether the object is gone with it."""
        others = []
        for key, value in self.txn.scan("more", object_id):
            number = rows.split_more_key(key)[1]
            others.append((self._rank(number), number, rows.decode_more(key, value)))
        if others:
            _, number, (offset, length) = min(others)
            self.txn.delete("more", rows.more_key(object_id, number))
            self._move(object_id, row, ObjectRow(number, offset, length, row.kind, row.level))
            return False
        if self.txn.get("counts", object_id) is not None:
            self.stale = True
        self._complete.forget(object_id)
        self.txn.delete("objects", object_id)
        self.txn.delete("refs", object_id)
        return True

    # --- snapshots, markers, header batches ---------------------------------------------------------------

    def adopt_snapshot(self, name: str, row: SnapshotRow) -> None:
        """Add a snapshot file; its root is activated unless its header is known as released."""
        self.adopt_snapshots({name: row})

    def adopt_snapshots(self, found: Mapping[str, SnapshotRow]) -> None:
        """Add snapshot files. The first ones of a repository are counted in one go, others by what they change."""
        first, roots = not self.txn.count("counts"), []
        for name, row in found.items():
            key = name.encode()
            if self.txn.get("snapshots", key) is not None:
                continue
            if row.status == rows.GOOD and self._is_released(row):
                row = replace(row, status=rows.RELEASED)
            self.txn.put("snapshots", key, rows.encode_snapshot(key, row))
            self._receipts.add(row)
            if row.status == rows.GOOD:
                self._put_root(row.root, key)
                roots.append(row.root)
        if first and roots:
            self._live.count_all()
            return
        for root in roots:
            self._live.activate([root])

    def _is_released(self, row: SnapshotRow) -> bool:
        prefix = rows.released_key(row.client_id, row.sequence, b"")
        kept = (rows.decode_released(key, value) for key, value in self.txn.scan("released", prefix))
        return any(r.id == row.id for r in kept)

    def _put_root(self, root: bytes, name: bytes) -> None:
        key = root + name
        self.txn.put("roots", key, rows.seal(key, b""))
        self._roots += 1
        self._known_roots = None

    def drop_snapshot(self, name: str) -> None:
        """Forget a snapshot file: its root is released."""
        key = name.encode()
        value = self.txn.get("snapshots", key)
        if value is None:
            return
        row = rows.decode_snapshot(key, value)
        self.txn.delete("snapshots", key)
        self._receipts.remove(row)
        if row.status == rows.GOOD:
            self._drop_root(row.root, key)

    def _drop_root(self, root: bytes, name: bytes) -> None:
        self.txn.delete("roots", root + name)
        self._roots -= 1
        self._known_roots = None
        self._live.release([root])

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
            self._receipts.add_kept(row.receipt.counter)
            self._retire(snapshot_name(header.client_id, header.sequence), kept.id)

    def _retire(self, name: str, snapshot_id: bytes) -> None:
        key = name.encode()
        value = self.txn.get("snapshots", key)
        row = rows.decode_snapshot(key, value) if value else None
        if row is not None and row.status == rows.GOOD and row.id == snapshot_id:
            self.txn.put("snapshots", key, rows.encode_snapshot(key, replace(row, status=rows.RELEASED)))
            self._receipts.remove(row)
            self._drop_root(row.root, key)

    def drop_batch(self, name: str) -> None:
        """Forget a batch. Snapshot files that it named count again: `recount` looks at them."""
        self.stale = True
        self.txn.delete("batches", name.encode())
        for key in [key for key, _ in self.txn.scan("released")]:
            if rows.split_released_key(key)[2].hex() == name:
                self.txn.delete("released", key)
        self._receipts.derive()

    # --- condemned packs ---------------------------------------------------------------------------------

    def adopt_condemned(self, name: str, condemned: CondemnedList | None, status: int = rows.GOOD) -> None:
        """Add a condemned list: what stands elsewhere as well is counted there from now on."""
        key = name.encode()
        if self.txn.get("condemned", key) is not None:
            return
        time_ns = condemned.time_ns if condemned is not None else 0
        self.txn.put("condemned", key, rows.encode_condemned(key, status, time_ns))
        for pack in condemned.packs if condemned is not None else ():
            doomed = rows.doomed_key(pack, name)
            self.txn.put("doomed", doomed, rows.seal(doomed, b""))
        self._choose_primaries()

    def drop_condemned(self, name: str) -> None:
        """Forget a condemned list."""
        self.txn.delete("condemned", name.encode())
        for key in [key for key, _ in self.txn.scan("doomed")]:
            if rows.split_doomed_key(key)[1] == name:
                self.txn.delete("doomed", key)
        self._choose_primaries()

    def _choose_primaries(self) -> None:
        """Choose again, of every object that stands in several packs, where it is counted."""
        before, self._condemned = self._condemned, condemned_numbers(self.txn)
        if before == self._condemned:
            return
        for batch in batches(self.txn, "more"):
            for object_id in sorted({key[:ID_LEN] for key, _ in batch}):
                self._choose_primary(object_id)

    def _choose_primary(self, object_id: bytes) -> None:
        row = lookup(self.txn, object_id)
        if row is None:
            return
        numbers = [rows.split_more_key(key)[1] for key, _ in self.txn.scan("more", object_id)]
        best = min(numbers, key=self._rank, default=row.pack)
        if self._rank(best) >= self._rank(row.pack):
            return
        key = rows.more_key(object_id, best)
        offset, length = rows.decode_more(key, self.txn.get("more", key) or b"")
        self.txn.delete("more", key)
        self._put_more(object_id, row.pack, row.offset, row.length)
        self._move(object_id, row, ObjectRow(best, offset, length, row.kind, row.level))

    # --- from scratch -------------------------------------------------------------------------------------

    def recount(self) -> None:
        """Derive completeness, counts and live bytes from scratch, from what rows there are."""
        self._complete.judge_everything()
        self.txn.clear("roots")
        self._roots = 0
        for key, value in list(self.txn.scan("snapshots")):
            row = rows.decode_snapshot(key, value)
            if row.status not in (rows.GOOD, rows.RELEASED):
                continue
            status = rows.RELEASED if self._is_released(row) else rows.GOOD
            if status != row.status:
                self.txn.put("snapshots", key, rows.encode_snapshot(key, replace(row, status=status)))
            if status == rows.GOOD:
                self._put_root(row.root, key)
        self._live.count_all()
        self._receipts.derive()
        self.stale = False
