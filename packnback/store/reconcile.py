"""Reconcile: make the index equal to what the directories say. Crash recovery, catching up with another
machine, and rebuilding from nothing are this one function, so the rarely needed one is the often tested one.

The order is the safety:

1. Read which names the index knows. Only these can be removed later: a name that somebody publishes while we
   list is not ours to doubt.
2. List ``snapshots/``, ``forgotten/``, ``headers/``, ``condemned/``, *then* ``packs/``: packs are published before
   the snapshot that needs them, and before the list that condemns what they replace, so every snapshot that we see
   has its packs in our listing, and so has every list.
3. Sync each directory from which something will be adopted: a name that we see may still be lost in a power
   cut, and a row must never name what could be lost.
4. In a write transaction adopt first, then remove, each removal confirmed by the file's absence *inside* the
   transaction; any other error of the disk aborts everything. If anything was removed, recount from scratch.

Adopting many packs is done in several transactions, so that memory stays bounded. Each leaves the index of a
part of the directories, which is as good a starting point as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from msgspec import Struct, field

from packnback.errors import BlobMissing, IndexDamage
from packnback.format import meta_rows, rows
from packnback.format.condemned import CondemnedList
from packnback.format.rows import SnapshotRow
from packnback.format.snapshot import KeptHeader
from packnback.ids import ObjectClass
from packnback.store import adoption, bulk, layout, rot
from packnback.store.adoption import FoundPack
from packnback.store.index import Index, ReadTxn, T, WriteTxn
from packnback.store.ledger import Ledger, changing
from packnback.store.objects import next_number
from packnback.store.truth import DIRECTORY_OF, Names, Truth, listed_names

_BATCH_RECORDS = 50_000
"""About so many records are adopted in one transaction."""
class Reconciled(Struct, frozen=True):
    """What changed in the index."""

    adopted_packs: int = 0
    adopted_snapshots: int = 0
    removed: int = 0


def known_names(txn: ReadTxn) -> Names:
    """The names that the index knows."""
    return Names(
        {key for key, _ in txn.scan("pack_names")},
        {table: {rows.name_of(table, *row) for row in txn.scan(table)} for table in DIRECTORY_OF},
    )


def reconcile(truth: Truth, index: Index, *, alone: bool = False) -> Reconciled:
    """Bring the index up to the directories. The caller holds the lock, shared or exclusive.

    `alone` tells that nobody else uses the index, nor will when this has failed: then less memory is needed.

    Raises IndexDamage for an index to be thrown away, be it another repository's.
    """
    done = _bring_up(truth, index, alone=alone)
    rot.bring_up(truth, index)
    return done


def _bring_up(truth: Truth, index: Index, *, alone: bool) -> Reconciled:
    with index.read() as txn:
        marked = _is_marked(truth, txn)
        _check_packs(txn)
        unordered = _is_unordered(txn)
        before = known_names(txn)
    if not marked:
        index.write(lambda txn: txn.put(meta_rows.TABLE, meta_rows.JUDGED_BY, _judged_by(truth)))
    listed = _listed_after_what_went(truth, before)
    new, gone = listed.minus(before), before.minus(listed)
    if not new and not gone and not unordered:
        return Reconciled()
    _settle(truth, new)
    _adopt_packs(truth, index, new.packs, alone=alone)
    others = _read_others(truth, new)
    removed = index.write(lambda txn: _adopt_and_remove(truth, txn, others, gone))
    if _needs_order(index, removed=bool(removed)):
        index.write(lambda txn: _rebuild_in_order(truth, txn))
    return Reconciled(len(new.packs), len(new.others["snapshots"]), removed)


def _listed_after_what_went(truth: Truth, before: Names) -> Names:
    """The names that the directories hold, listed once more after it was seen that a pack has gone.

    What is needed of a pack is copied before it goes, where nobody waits for locks while we list: into one whose
    directory we may have listed before that.
    """
    listed = listed_names(truth)
    while gone := before.minus(listed).packs:
        listed = listed_names(truth)
        if before.minus(listed).packs == gone:
            break
    return listed


def _judged_by(truth: Truth) -> bytes:
    return meta_rows.encode_judged_by(truth.repository_id, truth.owner_bundle)


def _is_unordered(txn: ReadTxn) -> bool:
    return txn.get(meta_rows.TABLE, meta_rows.UNORDERED) is not None


def _is_marked(truth: Truth, txn: ReadTxn) -> bool:
    """Whether the index says whose it is. Raises IndexDamage when it is another repository's, or another version's,
    or was filled under a config that was not the right one: its files were judged by other rules.
    """
    value = txn.get(meta_rows.TABLE, meta_rows.JUDGED_BY)
    if value is not None and value != _judged_by(truth):
        rows.unseal(meta_rows.TABLE, meta_rows.JUDGED_BY, value)
        raise IndexDamage(meta_rows.TABLE, "belongs to another repository or version")
    return value is not None


def _settle(truth: Truth, new: Names) -> None:
    directories = {f"{layout.PACKS}/{name[:1].hex()}" for name in new.packs}
    directories |= {DIRECTORY_OF[table] for table, names in new.others.items() if names}
    for directory in sorted(directories):
        truth.blobs.settle(directory)


def _check_packs(txn: ReadTxn) -> None:
    """Raise IndexDamage where packs were lost from one table and not from the others.

    Packs that it did not know by name would be adopted a second time, and their objects taken for copies.
    """
    packs = txn.count("packs")
    if packs != txn.count("pack_names") or (not packs and txn.count("objects")):
        raise IndexDamage("pack_names", "does not fit the packs")


# --- packs -------------------------------------------------------------------------------------------------


def _adopt_packs(truth: Truth, index: Index, names: set[bytes], *, alone: bool) -> None:
    """Adopt packs in bounded transactions, or in one where nothing stands and many come."""
    truth.watch.progress.begin("reading packs", None, "packs")
    if len(names) >= bulk.MANY_PACKS and _adopt_sorted(truth, index, names, alone=alone):
        return
    for batch in _batches(_leaves_first(truth, sorted(names))):
        index.write(_adopting(batch))
        truth.watch.progress.advance(len(batch))


def _adopt_sorted(truth: Truth, index: Index, names: set[bytes], *, alone: bool) -> bool:
    """Adopt packs by way of sorted rows. False, and nothing is done, where an index knows packs already."""
    with index.read() as txn:
        if txn.count("pack_names"):
            return False
        first = next_number(txn)
    with bulk.SortedPacks(truth.blobs, truth.watch, sorted(names), first) as packs:
        if not alone:
            return index.write(lambda txn: _settled(txn, packs.adopt))
        for step in packs.steps():
            index.write(partial(_settled, adopt=step))
        return True


def _leaves_first(truth: Truth, names: list[bytes]) -> Iterator[FoundPack]:
    """The packs as found, those of data first: what refers to them then finds them there.

    Only a matter of speed. The footers of meta packs are read twice rather than kept, to bound memory.
    """
    later = []
    for found in adoption.find_packs(truth.blobs, names, truth.watch.counters):
        if len(names) > 1 and found.footer is not None and found.footer.object_class == ObjectClass.META:
            later.append(found.name)
        else:
            yield found
    yield from adoption.find_packs(truth.blobs, later, truth.watch.counters)


def _batches(packs: Iterable[FoundPack]) -> Iterator[list[FoundPack]]:
    batch: list[FoundPack] = []
    records = 0
    for found in packs:
        batch.append(found)
        records += len(found.footer.records) if found.footer else 1
        if records >= _BATCH_RECORDS:
            yield batch
            batch, records = [], 0
    if batch:
        yield batch


def _adopting(batch: list[FoundPack]) -> Callable[[WriteTxn], None]:
    def adopt(ledger: Ledger) -> None:
        ledger.adopt_packs(batch)

    return partial(_settled, adopt=adopt)


def _settled(txn: WriteTxn, adopt: Callable[[Ledger], T]) -> T:
    """Let a ledger adopt packs, and note what contradicts itself."""
    with changing(txn) as ledger:
        done = adopt(ledger)
    if ledger.conflicts:
        txn.put(meta_rows.TABLE, meta_rows.UNORDERED, meta_rows.encode_unordered())
    return done


def _needs_order(index: Index, *, removed: bool) -> bool:
    with index.read() as txn:
        if _is_unordered(txn):
            return True
        return removed and any(rows.decode_pack(key, value).conflicts for key, value in txn.scan("packs"))


def _rebuild_in_order(truth: Truth, txn: WriteTxn) -> None:
    """Adopt everything anew, in the order of the packs' names.

    For when two packs disagree about an object: which one counts must not depend on which was seen first, so
    the smallest name wins, always. In one transaction, however large: sessions are at work on this index, and
    must not find it empty; nor may a crash leave it half in order.
    """
    names = known_names(txn)
    _clear(txn)
    for batch in _batches(adoption.find_packs(truth.blobs, sorted(names.packs), truth.watch.counters)):
        with changing(txn) as ledger:
            for found in batch:  # each by itself: what comes first counts
                ledger.adopt_packs([found])
    others = _read_others(truth, Names(set(), names.others))
    _adopt_and_remove(truth, txn, others, Names(set(), {table: set() for table in DIRECTORY_OF}))
    txn.delete(meta_rows.TABLE, meta_rows.UNORDERED)


def _clear(txn: WriteTxn) -> None:
    for table in rows.TABLES:
        if table != meta_rows.TABLE:
            txn.clear(table)


# --- everything else ------------------------------------------------------------------------------------------


class _Others(Struct):
    snapshots: dict[str, SnapshotRow] = field(default_factory=dict)
    markers: dict[str, int] = field(default_factory=dict)
    batches: dict[str, tuple[int, list[KeptHeader]]] = field(default_factory=dict)
    condemned: dict[str, tuple[int, CondemnedList | None]] = field(default_factory=dict)


def _read_others(truth: Truth, new: Names) -> _Others:
    """Parse the new files before the transaction begins; those that vanished meanwhile are left out."""
    others = _Others()
    for name in sorted(new.others["snapshots"]):
        if not adoption.can_be_snapshot(name):
            others.snapshots[name] = SnapshotRow(rows.DAMAGED, reason="not a snapshot's name")
            continue
        try:
            data = adoption.read_or_problem(truth.blobs, f"{layout.SNAPSHOTS}/{name}")
        except BlobMissing:
            continue
        others.snapshots[name] = adoption.find_snapshot(name, data, truth.repository_id, truth.owner_bundle)
    for name in new.others["markers"]:
        others.markers[name] = adoption.marker_status(name)
    for name in sorted(new.others["batches"]):
        if not adoption.can_be_batch(name):
            others.batches[name] = rows.DAMAGED, []
            continue
        try:
            data = adoption.read_or_problem(truth.blobs, f"{layout.HEADERS}/{name}")
        except BlobMissing:
            continue
        status, headers = adoption.find_batch(name, data)
        others.batches[name] = status, list(headers or ())
    for name in sorted(new.others["condemned"]):
        if not adoption.can_be_batch(name):
            others.condemned[name] = rows.DAMAGED, None
            continue
        try:
            data = adoption.read_or_problem(truth.blobs, f"{layout.CONDEMNED}/{name}")
        except BlobMissing:
            continue
        others.condemned[name] = adoption.find_condemned(name, data)
    return others


def live_roots(truth: Truth) -> dict[str, bytes]:
    """Name → root of every snapshot that counts, read from the files and from nothing else."""
    found = _read_others(truth, listed_names(truth))
    released = {kept.id for _, headers in found.batches.values() for kept in headers}
    return {
        name: row.root for name, row in found.snapshots.items() if row.status == rows.GOOD and row.id not in released
    }


def _adopt_and_remove(truth: Truth, txn: WriteTxn, others: _Others, gone: Names) -> int:
    """The last transaction: header batches before snapshots, adoptions before removals."""
    with changing(txn) as ledger:
        for name, (status, headers) in others.batches.items():
            ledger.adopt_batch(name, headers, status)
        ledger.adopt_snapshots(others.snapshots)
        for name, status in others.markers.items():
            ledger.adopt_marker(name, status)
        for name, (status, condemned) in others.condemned.items():
            ledger.adopt_condemned(name, condemned, status)
        removed = _remove(truth, txn, ledger, gone)
        if ledger.stale:
            ledger.recount()
    return removed


def _remove(truth: Truth, txn: WriteTxn, ledger: Ledger, gone: Names) -> int:
    drops = {
        "snapshots": ledger.drop_snapshot,
        "markers": ledger.drop_marker,
        "batches": ledger.drop_batch,
        "condemned": ledger.drop_condemned,
    }
    removed = 0
    for table, drop in drops.items():
        for name in sorted(gone.others[table]):
            if not truth.blobs.exists(f"{DIRECTORY_OF[table]}/{name}"):
                drop(name)
                removed += 1
    numbers = []
    for pack in sorted(gone.packs):
        value = txn.get("pack_names", pack)
        if value is not None and not truth.blobs.exists(layout.pack_path(pack.hex())):
            numbers.append(rows.decode_number(pack, value))
    if numbers:
        ledger.drop_packs(numbers)
    return removed + len(numbers)
