"""Compaction: release what has expired, then give back the space, without being able to read a byte.

The order, each step durable before the next begins:

1. Take the lock exclusively, reconcile, and refuse to go on while there is damage: an object that cannot be read
   may need what looks like garbage.
2. Release expired snapshots (`packnback.gc.release`).
3. Plan from the counts. If nothing is to be deleted, stop here: no pack has been read.
4. Derive the counts again from the footers of the meta packs and compare: those that decide are confirmed or
   nothing is deleted (`packnback.gc.confirm`).
5. Delete the packs without a live record: on a full disk, this makes room for the rest.
6. Copy the live records of the packs to be rewritten, byte for byte, each checksum checked, into new packs;
   publish each, then adopt it. A pack with rot in a live record is left as it is. When the disk is full, go on
   with what was copied by then.
7. Delete. Before each pack goes (in 5, too) it is checked once more that every live object in it also stands,
   verified, in a pack that stays.
8. A barrier, then reconcile takes the rows away.

Killed anywhere, it has lost nothing, and the next run finishes the job.

All this needs a lock that keeps everybody out. Where there is none, see `packnback.gc.condemn`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct, field

from packnback.errors import DamageBlocks, DiskFull, Locked, StorageFailed
from packnback.format import rows
from packnback.format.pack import RecordRow
from packnback.gc.condemned_lists import drop_lists, lists_without_packs
from packnback.gc.confirm import confirm_counts
from packnback.gc.copies import ROT, Copies, read_envelopes, read_records
from packnback.gc.forget import check_clock
from packnback.gc.plan import Plan, make_plan
from packnback.gc.release import markers_left, release, returned_files, to_release
from packnback.gc.whatif import drop_snapshots, pack_uses, what_if
from packnback.ids import ObjectClass
from packnback.store import adoption, layout
from packnback.store.condemned import condemned_packs
from packnback.store.index import ReadTxn, WriteTxn
from packnback.store.interface import SnapshotInfo
from packnback.store.ledger import changing
from packnback.store.lock import Held
from packnback.store.objects import lookup, pack_row
from packnback.store.packer import Packer
from packnback.store.quarantine import put_aside_snapshots
from packnback.store.reconcile import names_in
from packnback.store.repository import LocalRepository
from packnback.store.scrub import found_damaged

DEFAULT_GRACE_NS = 7 * 86_400 * 10**9
DEFAULT_MAX_WASTE = 0.10


class CompactOptions(Struct, frozen=True):
    """How to compact. `force` overrides the clock guard and the refusal because of missing objects."""

    grace_ns: int = DEFAULT_GRACE_NS
    max_waste: float = DEFAULT_MAX_WASTE
    force: bool = False
    dry_run: bool = False
    wait_s: float = 0.0


class Compacted(Struct):
    """What a compaction did, or with `dry_run` would do. Bytes are those of packs."""

    released: list[str] = field(default_factory=list)
    """Names of snapshots."""
    objects_dropped: int = 0
    packs_rewritten: int = 0
    packs_deleted: int = 0
    bytes_freed: int = 0
    bytes_written: int = 0
    bytes_total: int = 0
    bytes_live: int = 0
    rotten: list[str] = field(default_factory=list)
    """Packs that were left alone because a live record in them is damaged."""
    condemned: int = 0
    """Packs that wait for being deleted by a later run (`packnback.gc.condemn`)."""
    bytes_condemned: int = 0
    due_ns: int | None = None
    """When the first of them may go."""
    held_up_by: list[str] = field(default_factory=list)
    """Who is at work on other machines, and may need packs that are due."""


def compact(repository: LocalRepository, options: CompactOptions) -> Compacted:
    """Run a compaction. Raises Locked, ClockRefused, DamageBlocks; see the module's docstring."""
    if not repository.ports.fenced:
        # Imported here because it is built on this module.
        from packnback.gc.condemn import compact_in_two_steps

        return compact_in_two_steps(repository, options)
    with repository.ports.locks.exclusive(options.wait_s) as held, ballast(repository):
        repository.reconcile()
        now_ns = check_clock(repository, options.force)
        infos = repository.snapshots()
        expired = to_release(infos, options.grace_ns, now_ns)
        refuse_damage(repository, infos, expired, options.force)
        if options.dry_run:
            return _foresee(repository, expired, options.max_waste)
        return _compact(repository, held, expired, options.max_waste)


@contextmanager
def ballast(repository: LocalRepository) -> Iterator[None]:
    """Room for the index's transactions on a full disk."""
    repository.ports.index.release_ballast()
    try:
        yield
    finally:
        repository.ports.index.restore_ballast()


def refuse_damage(
    repository: LocalRepository, infos: Sequence[SnapshotInfo], expired: Sequence[SnapshotInfo], force: bool
) -> None:
    """Damage never spreads. An unknown version is not an orphan, and no force makes it one."""
    files = repository.damaged_files()
    if files:
        raise DamageBlocks("unreadable files", [f"{where}/{name}: {why}" for where, name, why in files])
    going = {i.name for i in expired}
    incomplete = [i.name for i in infos if not i.complete and i.name not in going]
    if incomplete and not force:
        raise DamageBlocks("incomplete snapshots", incomplete)
    with repository.read() as txn:
        rotten = found_damaged(txn)
    if rotten and not force:  # else a policy keeps, of two snapshots, the one that cannot be restored
        raise DamageBlocks("packs with damaged records", [name.hex() for name in rotten])
    aside = put_aside_snapshots(repository.ports.blobs)
    if aside and not force:
        raise DamageBlocks("snapshots that were put aside", aside)


def _compact(repository: LocalRepository, held: Held, expired: Sequence[SnapshotInfo], max_waste: float) -> Compacted:
    repository.ports.blobs.sweep_tmp()
    with repository.ports.index.read() as txn:
        left = returned_files(txn) or markers_left(txn)
    if expired or left:
        release(repository, expired)
    done = Compacted([info.name for info in expired])
    with repository.ports.index.read() as txn:
        generation = repository.ports.index.generation
        plan = make_plan(pack_uses(txn), max_waste, condemned_packs(txn))
        objects = txn.count("objects")
    if not plan.empty:
        confirm_counts(repository)
        Run(repository, held, plan, done, generation).run()
    drop_lists(repository, lists_without_packs(repository))
    with repository.ports.index.read() as txn:
        done.objects_dropped = objects - txn.count("objects")
        measure(txn, done)
    return done


def measure(txn: ReadTxn, done: Compacted) -> None:
    uses = list(pack_uses(txn))
    done.bytes_total = sum(u.size for u in uses)
    done.bytes_live = sum(u.size - u.dead_bytes for u in uses if u.live_bytes)


def _foresee(repository: LocalRepository, expired: Sequence[SnapshotInfo], max_waste: float) -> Compacted:
    """What would happen: release and plan, in a transaction of which nothing remains."""
    result = Compacted([info.name for info in expired])

    def body(txn: WriteTxn) -> Plan:
        drop_snapshots(txn, result.released)
        result.objects_dropped = txn.count("objects") - txn.count("counts")
        measure(txn, result)
        return make_plan(pack_uses(txn), max_waste, condemned_packs(txn))

    plan = what_if(repository.ports.index, body)
    result.packs_rewritten, result.packs_deleted = len(plan.rewrite), len(plan.rewrite) + len(plan.drop)
    result.bytes_freed, result.bytes_written = plan.bytes_freed, plan.bytes_copied
    return result


class Run:
    """One rewriting and deleting, as planned from the index of that `generation`, and from no other one.

    The lock keeps nobody from throwing the index away, which needs none; and an empty one says of every object
    that nobody needs it.
    """

    def __init__(self, repository: LocalRepository, held: Held, plan: Plan, done: Compacted, generation: int) -> None:
        self._repository = repository
        self._generation = generation
        self._held = held
        self._truth = repository.truth
        self._index = repository.ports.index
        self._plan = plan
        self._done = done
        self._packers = {c: Packer(repository.ports.random) for c in ObjectClass}
        self._leaving = {*plan.drop, *plan.rewrite}
        self._copied: set[bytes] = set()
        """Packs of which every live record is in an output."""
        self._pending: dict[int, list[bytes]] = {c: [] for c in ObjectClass}
        """Packs that were read to their end, but some of their records wait in a packer."""
        self._outputs: set[bytes] = set()
        self._deleted: set[bytes] = set()
        self._copies = Copies(repository.truth)

    @contextmanager
    def _reading(self) -> Iterator[ReadTxn]:
        """A transaction on the index that the plan was made from. Raises StorageFailed when it is gone."""
        with self._index.read() as txn:
            if self._index.generation != self._generation:
                raise StorageFailed("compact", self._repository.location, "the index was thrown away meanwhile")
            yield txn

    def run(self) -> None:
        """Steps 5 to 8 of the module's docstring. Raises DiskFull only after all this."""
        self.drop()
        full: DiskFull | None = None
        try:
            self.rewrite()
        except DiskFull as error:
            full = error
        self.delete()
        self._repository.reconcile()
        if full is not None:
            raise full

    # --- rewriting ------------------------------------------------------------------------------------------

    def rewrite(self) -> None:
        """Copy the live records of the planned packs; publish and adopt what comes of it."""
        self._rewrite(self._plan.rewrite)

    def _rewrite(self, names: Sequence[bytes]) -> None:
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
            with self._reading() as txn:
                live = [row for row in footer.records if self._is_live_here(txn, row, name)]
                self._confirm_live(txn, name, sum(row.length for row in live))
            copies = read_records(self._truth, name, live)
            envelopes = read_envelopes(self._truth, name, footer, live)
        except ROT:
            self._keep_rotten(name)
            return
        self._done.packs_rewritten += 1
        for row, (data, record) in zip(live, copies, strict=True):
            packer = self._packers[footer.object_class]
            packer.add(data, record, envelopes[row.envelope])
            if packer.full:
                self._publish(footer.object_class)
        self._pending[footer.object_class].append(name)
        if not self._packers[footer.object_class]:
            self._note_copied(footer.object_class)

    def _note_copied(self, object_class: ObjectClass) -> None:
        self._copied.update(self._pending[object_class])
        self._pending[object_class].clear()

    def _keep_rotten(self, name: bytes) -> None:
        self._leaving.discard(name)
        self._done.rotten.append(name.hex())

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
        self._done.bytes_written += built.size

        def adopt(txn: WriteTxn) -> None:
            with changing(txn) as ledger:
                ledger.adopt_pack(built.name, built.size, built.footer)

        self._index.write(adopt)
        self._note_copied(object_class)

    # --- deleting -------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Delete the packs that nothing live stands in."""
        self._delete(self._plan.drop)

    def delete(self) -> None:
        """Delete the packs that are not needed any more: no other than those that were dead, or are copied."""
        self._delete((self._copied.union(self._plan.drop) & self._leaving) - self._deleted)
        self._done.bytes_freed -= self._done.bytes_written

    def _delete(self, names: Iterable[bytes]) -> None:
        """Delete those of the packs that pass their last check; then a barrier.

        Meta packs go first: a crash in between then leaves dead data without its dead pages, not the reverse.
        """
        self._confirm_alone()
        blobs = self._truth.blobs
        for name in sorted(names, key=self._meta_first):
            if name in self._outputs or not self._is_superfluous(name):
                continue
            self._done.bytes_freed += blobs.size(layout.pack_path(name.hex()))
            blobs.delete(layout.pack_path(name.hex()))
            self._deleted.add(name)
            self._done.packs_deleted += 1
        blobs.barrier()

    def _confirm_alone(self) -> None:
        """Raise if the lock was taken away, or somebody whom it does not keep out has published a snapshot: it may
        need what is about to go. (A mount that carries no locks, sshfs for example.)
        """
        self._held.confirm()
        with self._reading() as txn:
            known = {rows.name_of("snapshots", *row) for row in txn.scan("snapshots")}
        if not known.issuperset(names_in(self._truth, layout.SNAPSHOTS)):
            raise Locked(f"{self._repository.location}/{layout.LOCK}", "another machine")

    def _meta_first(self, name: bytes) -> tuple[int, bytes]:
        with self._reading() as txn:
            value = txn.get("pack_names", name)
            row = pack_row(txn, rows.decode_number(name, value)) if value is not None else None
        return -(row.object_class if row else 0), name

    def _is_superfluous(self, name: bytes) -> bool:
        """Whether every live object of the pack also stands, verified, in a pack that stays."""
        try:
            _, footer = adoption.read_footer(self._truth.blobs, name, self._truth.watch.counters)
        except ROT:
            self._keep_rotten(name)
            return False
        with self._reading() as txn:
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
