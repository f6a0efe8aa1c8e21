"""Rewriting: the live records of packs that are to go are copied, byte for byte, into new packs.

Each checksum is checked on the way, and each new pack is published, then adopted. A pack with rot in a live record
stays as it is. Before a pack goes, by whatever way (`packnback.gc.exclusive`, `packnback.gc.condemn`), it is looked
at once more here: every live object in it also has to stand, verified, in a pack that stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

from packnback.errors import BlobMissing, DamageBlocks, DiskFull, PacknbackError, StorageFailed, UnsupportedVersion
from packnback.format import rows
from packnback.format.pack import RecordRow
from packnback.gc.copies import ROT, Copies, read_envelopes, read_records
from packnback.ids import ObjectClass
from packnback.store import adoption, layout, rot
from packnback.store.index import ReadTxn, WriteTxn
from packnback.store.ledger import changing
from packnback.store.objects import lookup, pack_row
from packnback.store.packer import Packer
from packnback.store.repository import LocalRepository


class Rewriting:
    """One rewriting, as planned from the index of that `generation`, and from no other one.

    The lock keeps nobody from throwing the index away, which needs none; and an empty one says of every object
    that nobody needs it. `leaving` are the packs on which nobody may rely, for they are to go; `condemned` are those
    of them that will go whatever is found in them.
    """

    def __init__(
        self,
        repository: LocalRepository,
        generation: int,
        leaving: Collection[bytes],
        condemned: Collection[bytes] = (),
    ) -> None:
        self._repository = repository
        self._generation = generation
        self._truth = repository.truth
        self._index = repository.ports.index
        self._packers = {c: Packer(repository.ports.random) for c in ObjectClass}
        self._pending: dict[int, list[bytes]] = {c: [] for c in ObjectClass}
        """Packs that were read to their end, but some of their records wait in a packer."""
        self._outputs: set[bytes] = set()
        self._copies = Copies(repository.truth)
        self._condemned = set(condemned)
        self._leaving = self._condemned.union(leaving)
        self.copied: set[bytes] = set()
        """Packs of which every live record is in an output."""
        self.packs = 0
        """Packs whose live records were read."""
        self.bytes_written = 0
        self.rotten: list[str] = []
        """Packs that were left alone because a live record in them is damaged."""

    @contextmanager
    def reading(self) -> Iterator[ReadTxn]:
        """A transaction on the index that the plan was made from. Raises StorageFailed when it is gone."""
        with self._index.read() as txn:
            if self._index.generation != self._generation:
                raise StorageFailed("compact", self._repository.location, "the index was thrown away meanwhile")
            yield txn

    def condemn(self, names: Collection[bytes]) -> None:
        """Nobody may rely on these any more."""
        self._condemned.update(names)
        self._leaving.update(names)

    def goes(self, name: bytes) -> bool:
        """Whether a pack is still to go, and is none that was written here."""
        return name in self._leaving and name not in self._outputs

    # --- copying --------------------------------------------------------------------------------------------

    def copy(self, names: Sequence[bytes]) -> None:
        """Copy the live records of these packs; publish and adopt what comes of it. Raises DiskFull."""
        progress = self._repository.ports.watch.progress
        progress.begin("rewriting packs", len(names), "packs")
        for name in names:
            self._copy_live(name)
            progress.advance(1)
        for object_class in (ObjectClass.DATA, ObjectClass.META):
            self._publish(object_class)

    def _copy_live(self, name: bytes) -> None:
        try:
            _, footer = adoption.read_footer(self._truth.blobs, name, self._truth.watch.counters)
            with self.reading() as txn:
                live = [row for row in footer.records if self._is_live_here(txn, row, name)]
                self._confirm_live(txn, name, sum(row.length for row in live))
            copies = read_records(self._truth, name, live)
            envelopes = read_envelopes(self._truth, name, footer, live)
        except BlobMissing:
            if self._repository.ports.fenced:
                raise
            return  # a compaction elsewhere has deleted it, having copied what is needed
        except ROT as problem:
            self._keep_rotten(name, problem)
            return
        self.packs += 1
        for row, (data, record) in zip(live, copies, strict=True):
            packer = self._packers[footer.object_class]
            packer.add(data, record, envelopes[row.envelope])
            if packer.full:
                self._publish(footer.object_class)
        self._pending[footer.object_class].append(name)
        if not self._packers[footer.object_class]:
            self._note_copied(footer.object_class)

    def _note_copied(self, object_class: ObjectClass) -> None:
        self.copied.update(self._pending[object_class])
        self._pending[object_class].clear()

    def _keep_rotten(self, name: bytes, problem: PacknbackError) -> None:
        if name not in self._condemned:
            self._leaving.discard(name)
        self.rotten.append(name.hex())
        if not isinstance(problem, UnsupportedVersion):
            with suppress(DiskFull):
                rot.note(self._truth, self._index, name, None)

    def _confirm_live(self, txn: ReadTxn, name: bytes, found: int) -> None:
        """What was found by single lookups has to add up to what was confirmed by reading whole tables.

        A flipped bit in an inner node of the index hides rows from lookups and from nothing else.
        """
        value = txn.get("pack_names", name)
        expected = pack_row(txn, rows.decode_number(name, value)).live_bytes if value is not None else 0
        if found != expected:
            detail = f"pack {name.hex()}: {found} of {expected} live bytes"
            raise DamageBlocks("the index contradicts itself", [detail])

    def _is_live_here(self, txn: ReadTxn, row: RecordRow, name: bytes) -> bool:
        """Whether this is the primary copy of a live object."""
        found = lookup(txn, row.id)
        return found is not None and txn.get("counts", row.id) is not None and pack_row(txn, found.pack).name == name

    def _publish(self, object_class: ObjectClass) -> None:
        packer = self._packers[object_class]
        if not packer:
            return
        built = packer.finish()
        self._truth.blobs.publish(layout.pack_path(built.name.hex()), built.buffers)
        self._outputs.add(built.name)
        self.bytes_written += built.size

        def adopt(txn: WriteTxn) -> None:
            with changing(txn) as ledger:
                ledger.adopt_packs([built.found])

        self._index.write(adopt)
        self._note_copied(object_class)

    # --- the last look --------------------------------------------------------------------------------------

    def meta_first(self, name: bytes) -> tuple[int, bytes]:
        """To sort by: deleted in this order, a crash leaves dead data without its dead pages, not the reverse."""
        with self.reading() as txn:
            value = txn.get("pack_names", name)
            row = pack_row(txn, rows.decode_number(name, value)) if value is not None else None
        return -(row.object_class if row else 0), name

    def is_superfluous(self, name: bytes) -> bool:
        """Whether every live object of the pack also stands, verified, in a pack that stays."""
        try:
            _, footer = adoption.read_footer(self._truth.blobs, name, self._truth.watch.counters)
        except ROT as problem:
            self._keep_rotten(name, problem)
            return False
        with self.reading() as txn:
            for row in footer.records:
                if txn.get("counts", row.id) is not None and not self._stands_elsewhere(txn, row):
                    return False
        return True

    def _stands_elsewhere(self, txn: ReadTxn, row: RecordRow) -> bool:
        found = lookup(txn, row.id)
        if found is None:
            return False
        places = [found.pack, *(rows.split_more_key(key)[1] for key, _ in txn.scan("more", row.id))]
        names = [pack_row(txn, number).name for number in places]
        staying = [name for name in names if name not in self._leaving]
        return any(name in self._outputs or self._copies.are_whole(name, row) for name in staying)
