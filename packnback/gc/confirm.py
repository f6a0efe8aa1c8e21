"""Before anything is deleted: are the counts in the index what the directories say?

The counts were kept up, change by change, by every session that ever wrote here. Before packs go because of them,
they are derived once more from what cannot have drifted: which snapshots there are is read from their files, who
refers to whom from the footers of the meta packs. The result is compared with whole tables, read from end to end,
because single look-ups could be led astray by a damaged inner node of the index.

Packs of data are not read. Which data objects stand where is the index's word alone at this point; a wrong one
cannot do harm, because a pack is deleted only after its own footer was read, and each live object in it was found,
verified, in a pack that stays. Only when the index says that something needed stands nowhere, every footer is
read: it may be wrong, and the object in a pack that looks dead.
"""

from __future__ import annotations

from collections.abc import Iterator

from packnback.errors import BlobMissing, DamageBlocks, IndexDamage, PackDamage, Unreadable, UnsupportedVersion
from packnback.format import rows
from packnback.format.pack import Footer
from packnback.ids import ID_LEN, ObjectClass
from packnback.store import adoption
from packnback.store.check import index_difference
from packnback.store.index import ReadTxn
from packnback.store.mark import mark
from packnback.store.objects import lookup, refs_of
from packnback.store.reconcile import live_roots, reconcile
from packnback.store.repository import LocalRepository


def confirm_counts(repository: LocalRepository) -> None:
    """Raise DamageBlocks unless the counts are confirmed. The caller holds the lock alone, and has reconciled.

    Memory in proportion to the number of objects with refs.
    """
    try:
        with repository.ports.index.read() as txn:
            difference, absent = _difference(repository, txn)
    except IndexDamage as damage:
        difference, absent = f"table {damage.path}: {damage.why}", False
    if difference is None and absent:
        difference = _whole_difference(repository)
    if difference is not None:
        raise DamageBlocks("the index does not agree with the packs", [difference])


def _whole_difference(repository: LocalRepository) -> str | None:
    """The first difference from an index that was made from nothing."""
    with repository.ports.scratch_index() as fresh:
        reconcile(repository.truth, fresh, alone=True)
        return index_difference(repository.ports.index, fresh)


def _difference(repository: LocalRepository, txn: ReadTxn) -> tuple[str | None, bool]:
    """(what contradicts the directories, or None; whether something that is needed is absent)."""
    roots = live_roots(repository.truth)
    if {root + name.encode() for name, root in roots.items()} != {key for key, _ in txn.scan("roots")}:
        return "table roots", False
    inner: set[bytes] = set()
    for name, footer in _meta_footers(repository, txn):
        if footer is None:
            return f"pack {name.hex()} cannot be read", False
        for record in footer.records:
            known = lookup(txn, record.id)
            stored = txn.get("refs", record.id)
            if known is None or stored is None or rows.unseal("refs", record.id, stored) != record.refs:
                return f"object {record.id.hex()}", False
            inner.add(record.id)
    if len(inner) != txn.count("refs"):
        return "table refs", False
    marked = mark(roots.values(), inner, lambda object_id: refs_of(txn, object_id))
    comparison = _Comparison(txn, marked)
    difference = comparison.run()
    repository.ports.watch.counters.objects_marked += comparison.marked
    return difference, comparison.absent


def _meta_footers(repository: LocalRepository, txn: ReadTxn) -> Iterator[tuple[bytes, Footer | None]]:
    """The footer of every pack that may hold objects with refs; None for one that cannot be read."""
    truth = repository.truth
    for key, value in txn.scan("packs"):
        pack = rows.decode_pack(key, value)
        if pack.object_class == ObjectClass.DATA:
            continue
        try:
            yield pack.name, adoption.read_footer(truth.blobs, pack.name, truth.watch.counters)[1]
        except (PackDamage, UnsupportedVersion, BlobMissing, Unreadable):
            yield pack.name, None


_END = b"\xff" * (ID_LEN + 1)
"""Greater than any id."""


class _Comparison:
    """The objects, their counts as they stand and as they should be, side by side in one ascending pass."""

    def __init__(self, txn: ReadTxn, marked: Iterator[tuple[bytes, int]]) -> None:
        self._txn = txn
        self._expected = marked
        self._counts = txn.scan("counts")
        self.marked = 0
        self.absent = False

    def run(self) -> str | None:
        """The first difference, or None."""
        live: dict[int, int] = {}
        due, due_count = next(self._expected, (_END, 0))
        held, held_value = next(self._counts, (_END, b""))
        for object_id, value in self._txn.scan("objects"):
            while due < object_id:
                self.absent = True
                due, due_count = next(self._expected, (_END, 0))
            if due != object_id and held != object_id:
                continue  # dead, as it should be
            if due != held or rows.decode_count(held, held_value) != due_count:
                return f"count of {min(due, held).hex()}"
            row = rows.decode_object(object_id, value)
            live[row.pack] = live.get(row.pack, 0) + row.length
            self.marked += 1
            due, due_count = next(self._expected, (_END, 0))
            held, held_value = next(self._counts, (_END, b""))
        if held != _END:
            return f"count of {held.hex()}"
        self.absent |= due != _END
        return self._wrong_pack(live)

    def _wrong_pack(self, live: dict[int, int]) -> str | None:
        for key, value in self._txn.scan("packs"):
            pack = rows.decode_pack(key, value)
            if pack.live_bytes != live.get(rows.number_of(key), 0):
                return f"live bytes of pack {pack.name.hex()}"
        return None
