"""Compaction where no lock keeps other machines out: in two steps, a day apart, by the same command run twice.

A backup on another machine may have been told that an object is stored, and be about to publish a snapshot that
needs it, in the moment in which we find that nobody does. So nothing is deleted that was not *condemned* before: by a
list in ``condemned/``, which everybody sees. What stands only in condemned packs is still read, but counts for
nothing when somebody asks whether it has to be stored (`packnback.store.condemned`), and a session acknowledges no
snapshot that relies on it (`packnback.store.session`).

The order, each step durable before the next begins:

1. Take a lease (`packnback.store.leases`), then the lock, for what it is worth; reconcile; refuse if there is damage.
2. Which lists are due? Those that are a day old by the clock of the file server *and* by ours, and that everybody who
   is at work knew when he began. After that, reconcile once more: whoever had ended by then has published his
   snapshot, and we see it.
3. Release expired snapshots (`packnback.gc.release`), plan, and derive the counts again (`packnback.gc.confirm`).
4. Copy what is needed and stands only in condemned packs: of snapshots that were published in spite of a list.
5. Delete the packs of the due lists, after one more look at the directories: those of which every live object also
   stands, verified, in a pack that is not condemned. Before that they are put on one more list, which outlives
   them; after it a barrier.
6. Copy the live records of the packs to be rewritten into new packs (`packnback.gc.rewrite`).
7. Condemn what is superfluous now: publish the list.
8. Take away the lists that are a day old and of which every pack has gone.

Why this holds:

- *Being condemned is for ever.* What is needed of a condemned pack is copied, never is the pack taken off its list.
  So what step 5 has found out stays true, however long we are stopped before we delete; two compactions on two
  machines may both copy, both condemn the other's copies even, and the next run copies once more before it deletes.
- *A snapshot is published after a look at the lists.* To lose what it needs, its writer would have to be stopped
  between that look and the publication for as long as packs stay condemned. He would still notice: before he
  acknowledges it he looks again, and the list that outlives the packs is there for a day, however old the listing of
  ``packs/`` is that he is shown.
- *Clocks.* Leases hold up deletion whatever clocks say. The day is on top of that, for writers that were taken
  for dead, and for listings that come out of a cache (NFS, a minute). It is measured twice, by two clocks, each
  against itself: the server's, which stamped the list and stamps our lease, and that of the machines which compact,
  under the same guard as retention (``--force`` overrides that one). One that is wrong postpones at most.
- Killed anywhere, nothing is lost: there are copies too many, or packs condemned, and the next run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress

from msgspec import Struct

from packnback.errors import BlobMissing, DamageBlocks, DiskFull, SnapshotUnknown
from packnback.format import condemned as condemned_format
from packnback.format import rows
from packnback.gc.compaction import Compacted, CompactOptions, ballast, measure, refuse_damage
from packnback.gc.condemned_lists import drop_lists, lists_without_packs, packs_of, publish_list
from packnback.gc.confirm import confirm_counts
from packnback.gc.forget import check_clock
from packnback.gc.plan import Plan, make_plan
from packnback.gc.release import release, to_release
from packnback.gc.rewrite import Rewriting
from packnback.gc.whatif import drop_snapshots, pack_uses, what_if
from packnback.store import layout, leases
from packnback.store.condemned import condemned_lists, condemned_packs
from packnback.store.index import ReadTxn, WriteTxn
from packnback.store.interface import SnapshotInfo
from packnback.store.leases import Lease
from packnback.store.lock import Held
from packnback.store.repository import LocalRepository

CONDEMNED_NS = 24 * 3_600 * 10**9
"""A pack is deleted no sooner than this after it was condemned, and a list no sooner after it was written."""
_ATTEMPTS = 3


def compact_in_two_steps(repository: LocalRepository, options: CompactOptions) -> Compacted:
    """Run a compaction; see the module's docstring. Raises Locked, ClockRefused, DamageBlocks."""
    ports = repository.ports
    with repository.leased("compaction") as lease, ports.locks.exclusive(options.wait_s) as held, ballast(repository):
        repository.reconcile()
        repository.learn(lease)
        now_ns = check_clock(repository, options.force)
        server_ns = lease.clock_ns() if lease is not None else now_ns
        ages = _Ages(repository, now_ns, server_ns, by_server_alone=options.force)
        due, held_up_by = _due(repository, ages, lease, options)
        expired = _refuse_or_expired(repository, options, now_ns)
        if options.dry_run:
            done = _foresee(repository, expired, options.max_waste, due)
        else:
            released = _release(repository, options, now_ns, expired)
            done = _Steps(repository, held, options, released, due).run()
            drop_lists(repository, ages.older(lists_without_packs(repository), CONDEMNED_NS))
        done.held_up_by = held_up_by
        _tell_condemned(repository, done)
        return done


# --- what is due ------------------------------------------------------------------------------------------------


class _Ages(Struct):
    """How old lists are, by two clocks, each against itself."""

    repository: LocalRepository
    now_ns: int
    server_ns: int
    by_server_alone: bool

    def older(self, names: Iterable[str], age_ns: int) -> list[str]:
        """Those of the lists that are at least this old."""
        with self.repository.ports.index.read() as txn:
            written = condemned_lists(txn)
        return [name for name in names if name in written and self._age_ns(name, written[name]) >= age_ns]

    def _age_ns(self, name: str, written_ns: int) -> int:
        try:
            by_server = self.server_ns - self.repository.ports.blobs.modified_ns(f"{layout.CONDEMNED}/{name}")
        except BlobMissing:  # somebody has taken it away
            return -1
        return by_server if self.by_server_alone else min(by_server, self.now_ns - written_ns)


def _due(
    repository: LocalRepository, ages: _Ages, lease: Lease | None, options: CompactOptions
) -> tuple[set[str], list[str]]:
    """(the lists whose packs may go, who is at work and keeps others from being among them)."""
    ports = repository.ports
    own = lease.holder if lease is not None else ""
    if not options.dry_run:
        leases.sweep(ports.blobs, own, ages.server_ns, CONDEMNED_NS)
    with ports.index.read() as txn:
        pending = [name for name in condemned_lists(txn) if packs_of(txn, [name])]
    old = set(ages.older(pending, CONDEMNED_NS))
    if not old:
        return set(), []
    if options.dry_run:
        at_work = [seen for seen in leases.others(ports.blobs, own).values() if not old <= seen.knows]
    else:
        ports.watch.progress.begin("looking for other machines at work", None, "")
        at_work = leases.unaware(ports.blobs, old, own, sleep=ports.sleep, monotonic=ports.monotonic)
    for seen in leases.others(ports.blobs, own).values() if at_work else ():
        old &= seen.knows
    repository.reconcile()
    return old, sorted({seen.what for seen in at_work})


# --- releasing ----------------------------------------------------------------------------------------------------


def _refuse_or_expired(repository: LocalRepository, options: CompactOptions, now_ns: int) -> list[SnapshotInfo]:
    infos = repository.snapshots()
    expired = to_release(infos, options.grace_ns, now_ns)
    refuse_damage(repository, infos, expired, options.force)
    return expired


def _release(
    repository: LocalRepository, options: CompactOptions, now_ns: int, expired: Sequence[SnapshotInfo]
) -> list[str]:
    """Release what has expired; the names. Somebody else may be releasing the same."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return _released(repository, expired)
        except SnapshotUnknown:
            repository.reconcile()
            expired = _refuse_or_expired(repository, options, now_ns)
    return _released(repository, expired)


def _released(repository: LocalRepository, expired: Sequence[SnapshotInfo]) -> list[str]:
    release(repository, expired)
    return [info.name for info in expired]


# --- the two steps ----------------------------------------------------------------------------------------------


class _Todo(Struct, frozen=True):
    """What a run has before it. Names of packs."""

    plan: Plan
    """For the packs that are not condemned."""
    rescued: tuple[bytes, ...]
    """Condemned packs in which something stands that is needed and stands nowhere else."""
    condemned: frozenset[bytes]
    due: frozenset[bytes]


def _todo(txn: ReadTxn, max_waste: float, due: Collection[str]) -> _Todo:
    condemned = frozenset(condemned_packs(txn))
    uses = list(pack_uses(txn))
    return _Todo(
        make_plan([use for use in uses if use.name not in condemned], max_waste),
        tuple(use.name for use in uses if use.name in condemned and use.live_bytes),
        condemned,
        frozenset(packs_of(txn, due)),
    )


class _Steps:
    """Steps 4 to 7 of the module's docstring."""

    def __init__(
        self,
        repository: LocalRepository,
        held: Held,
        options: CompactOptions,
        released: Sequence[str],
        due: Collection[str],
    ) -> None:
        self._repository, self._held, self._due_lists = repository, held, due
        self._blobs, self._index = repository.ports.blobs, repository.ports.index
        with self._index.read() as txn:
            generation = self._index.generation
            self._todo = _todo(txn, options.max_waste, due)
        plan = self._todo.plan
        self._rewriting = Rewriting(repository, generation, {*plan.drop, *plan.rewrite}, self._todo.condemned)
        self._done = Compacted(list(released), rotten=self._rewriting.rotten)

    def run(self) -> Compacted:
        """Raises DiskFull only after all that can be done on a full disk."""
        todo, rewriting, done = self._todo, self._rewriting, self._done
        if not todo.plan.empty or todo.rescued or todo.due:
            _confirm(self._repository)
            with self._index.read() as txn:
                objects = txn.count("objects")
            full = self._unless_full(self._rescue)
            self._delete_due()
            full = full or self._unless_full(self._rewrite)
            full = self._unless_full(self._condemn) or full
            done.packs_rewritten, done.bytes_written = rewriting.packs, rewriting.bytes_written
            self._repository.reconcile()
            with self._index.read() as txn:
                done.objects_dropped = objects - txn.count("objects")
            if full is not None:
                raise full
        with self._index.read() as txn:
            measure(txn, done)
        return done

    def _unless_full(self, step: Callable[[], None]) -> DiskFull | None:
        try:
            step()
        except DiskFull as error:
            return error
        return None

    def _rescue(self) -> None:
        """Step 4."""
        self._rewriting.copy(self._todo.rescued)

    def _rewrite(self) -> None:
        """Step 6."""
        self._rewriting.copy(self._todo.plan.rewrite)

    def _delete_due(self) -> None:
        """Step 5. Meta packs go first, see `Rewriting.meta_first`."""
        if not self._todo.due:
            return
        self._held.confirm()
        self._repository.reconcile()
        blobs = self._blobs
        with self._index.read() as txn:
            still = packs_of(txn, self._due_lists)
        going = self._superfluous(sorted(still, key=self._rewriting.meta_first))
        full = self._unless_full(lambda: self._list(going))
        for name in going:
            path = layout.pack_path(name.hex())
            with suppress(BlobMissing):  # here and below: another machine was faster
                size = blobs.size(path)
                blobs.delete(path)
                self._done.bytes_freed += size
                self._done.packs_deleted += 1
        for unpublished in self._unpublished():
            with suppress(BlobMissing):
                blobs.delete(f"{layout.TMP}/{unpublished}")
        blobs.barrier()
        if full is not None:  # now there is room
            self._list(going)

    def _list(self, names: Sequence[bytes]) -> None:
        if names:
            publish_list(self._repository, names)

    def _unpublished(self) -> set[str]:
        """What stood in ``tmp/`` when the due lists were written, left there by writers that have died."""
        names: set[str] = set()
        for due in self._due_lists:
            with suppress(BlobMissing):
                data = self._blobs.read(f"{layout.CONDEMNED}/{due}")
                names.update(condemned_format.decode(data).unpublished)
        return names

    def _condemn(self) -> None:
        """Step 7."""
        plan, rewriting = self._todo.plan, self._rewriting
        chosen = {*plan.drop, *rewriting.copied.intersection(plan.rewrite)}
        self._list(self._superfluous(sorted(name for name in chosen if rewriting.goes(name))))

    def _superfluous(self, names: Iterable[bytes]) -> list[bytes]:
        with self._index.read() as txn:
            self._rewriting.condemn(condemned_packs(txn))  # another machine may have condemned some meanwhile
        found = []
        for name in names:
            with suppress(BlobMissing):
                if self._rewriting.is_superfluous(name):
                    found.append(name)
        return found


def _confirm(repository: LocalRepository) -> None:
    """`confirm_counts`, while others go on publishing: what has just arrived is no contradiction."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(DamageBlocks):
            confirm_counts(repository)
            return
        repository.reconcile()
    confirm_counts(repository)


# --- telling ------------------------------------------------------------------------------------------------------


def _foresee(
    repository: LocalRepository, expired: Sequence[SnapshotInfo], max_waste: float, due: Collection[str]
) -> Compacted:
    """What would happen, in a transaction of which nothing remains."""
    result = Compacted([info.name for info in expired])

    def body(txn: WriteTxn) -> _Todo:
        drop_snapshots(txn, result.released)
        measure(txn, result)
        todo = _todo(txn, max_waste, due)
        going = {use.name: use.size for use in pack_uses(txn) if use.name in todo.due}
        numbers = {rows.decode_number(name, txn.get("pack_names", name) or b"") for name in going}
        result.bytes_freed, result.packs_deleted = sum(going.values()), len(going)
        result.objects_dropped = sum(
            rows.pack_of_object(value) in numbers and txn.get("counts", object_id) is None
            for object_id, value in txn.scan("objects")
        )
        return todo

    plan = what_if(repository.ports.index, body).plan
    result.packs_rewritten, result.bytes_written = len(plan.rewrite), plan.bytes_copied
    with repository.ports.index.read() as txn:
        chosen = {*plan.rewrite, *plan.drop}
        result.bytes_condemned = sum(use.size for use in pack_uses(txn) if use.name in chosen) - result.bytes_freed
    result.condemned = len(chosen) - result.packs_deleted
    return result


def _tell_condemned(repository: LocalRepository, done: Compacted) -> None:
    """How many packs wait, and until when. A dry run has said already by how many more, or fewer."""
    with repository.ports.index.read() as txn:
        lists = condemned_lists(txn)
        packs = packs_of(txn, lists)
        waiting = {use.name: use.size for use in pack_uses(txn) if use.name in packs}
        written = [time_ns for name, time_ns in lists.items() if packs_of(txn, [name])]
    done.condemned += len(waiting)
    done.bytes_condemned += sum(waiting.values())
    done.due_ns = min(written) + CONDEMNED_NS if written else None
