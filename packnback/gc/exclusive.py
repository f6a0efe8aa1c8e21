"""Compaction under a lock that keeps everybody out.

The order, each step durable before the next begins:

1. Take the lock exclusively, reconcile, and refuse to go on while there is damage: an object that cannot be read
   may need what looks like garbage.
2. Release expired snapshots (`packnback.gc.release`).
3. Plan from the counts. If nothing is to be deleted, stop here: no pack has been read.
4. Derive the counts again from the footers of the meta packs and compare: those that decide are confirmed or
   nothing is deleted (`packnback.gc.confirm`).
5. Delete the packs without a live record: on a full disk, this makes room for the rest.
6. Copy the live records of the packs to be rewritten into new packs (`packnback.gc.rewrite`). When the disk is
   full, go on with what was copied by then.
7. Delete. Before each pack goes (in 5, too) it is checked once more that every live object in it also stands,
   verified, in a pack that stays.
8. A barrier, then reconcile takes the rows away.

Killed anywhere, it has lost nothing, and the next run finishes the job.

Where there is no such lock, see `packnback.gc.condemn`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from packnback.errors import DiskFull, Locked
from packnback.format import rows
from packnback.gc.compaction import Compacted, CompactOptions, ballast, measure, refuse_damage
from packnback.gc.condemned_lists import drop_lists, lists_without_packs
from packnback.gc.confirm import confirm_counts
from packnback.gc.forget import check_clock
from packnback.gc.plan import Plan, make_plan
from packnback.gc.release import release, to_release
from packnback.gc.rewrite import Rewriting
from packnback.gc.whatif import drop_snapshots, pack_uses, what_if
from packnback.store import layout
from packnback.store.condemned import condemned_packs
from packnback.store.index import WriteTxn
from packnback.store.interface import SnapshotInfo
from packnback.store.lock import Held
from packnback.store.repository import LocalRepository
from packnback.store.truth import names_in


def compact_alone(repository: LocalRepository, options: CompactOptions) -> Compacted:
    """Run a compaction; see the module's docstring. Raises Locked, ClockRefused, DamageBlocks, DiskFull."""
    with repository.ports.locks.exclusive(options.wait_s) as held, ballast(repository):
        repository.reconcile()
        now_ns = check_clock(repository, options.force)
        infos = repository.snapshots()
        expired = to_release(infos, options.grace_ns, now_ns)
        refuse_damage(repository, infos, expired, options.force)
        if options.dry_run:
            return _foresee(repository, expired, options.max_waste)
        return _compact(repository, held, expired, options.max_waste)


def _compact(repository: LocalRepository, held: Held, expired: Sequence[SnapshotInfo], max_waste: float) -> Compacted:
    repository.ports.blobs.sweep_tmp()
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
    """Steps 5 to 8 of the module's docstring."""

    def __init__(self, repository: LocalRepository, held: Held, plan: Plan, done: Compacted, generation: int) -> None:
        self._repository = repository
        self._held = held
        self._plan = plan
        self._done = done
        self._rewriting = Rewriting(repository, generation, {*plan.drop, *plan.rewrite})
        self._deleted: set[bytes] = set()

    def run(self) -> None:
        """Raises DiskFull only after all this."""
        rewriting, done = self._rewriting, self._done
        self._delete(self._plan.drop)
        full: DiskFull | None = None
        try:
            rewriting.copy(self._plan.rewrite)
        except DiskFull as error:
            full = error
        self.delete()
        done.packs_rewritten, done.bytes_written = rewriting.packs, rewriting.bytes_written
        done.rotten = rewriting.rotten
        done.bytes_freed -= done.bytes_written
        self._repository.reconcile()
        if full is not None:
            raise full

    def delete(self) -> None:
        """Delete the packs that are not needed any more: no other than those that were dead, or are copied."""
        self._delete(self._rewriting.copied.union(self._plan.drop) - self._deleted)

    def _delete(self, names: Iterable[bytes]) -> None:
        """Delete those of the packs that pass their last check; then a barrier."""
        self._confirm_alone()
        blobs, rewriting = self._repository.ports.blobs, self._rewriting
        for name in sorted(names, key=rewriting.meta_first):
            if not rewriting.goes(name) or not rewriting.is_superfluous(name):
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
        with self._rewriting.reading() as txn:
            known = {rows.name_of("snapshots", *row) for row in txn.scan("snapshots")}
        if not known.issuperset(names_in(self._repository.truth, layout.SNAPSHOTS)):
            raise Locked(f"{self._repository.location}/{layout.LOCK}", "another machine")
