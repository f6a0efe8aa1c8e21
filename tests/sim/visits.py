"""Somebody else at work at the worst moment: another process does its whole work before the n-th operation of ours.

Two processes share a disk and either one index (processes on one machine) or have one each (two machines on a
NAS). What one of them is doing inside an index transaction nobody on the same index can get in between of; so
there the visit waits until the transaction has ended.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from invariants import Again, Broken, check_restores, check_running, check_wreck, demand
from msgspec import structs
from promised import Promises
from scenarios import MAIL, WEB, WEB2, backed_up, files, index_rolled_back
from simdisk import SimDisk
from simindex import SimIndex
from steps import PowerCut
from sweep import SEED, TALLIES, Tally, names_of, said, state_hash
from world import Effort, World

from packnback.store.layout import PACKS
from packnback.store.leases import Lease
from packnback.store.repository import LocalRepository

Work = Callable[[LocalRepository, Promises], None]


class VisitedFs:
    """A file system that lets a visitor in before its operation number `at` (1 is the first; 0 is never)."""

    def __init__(self, disk: SimDisk, at: int, visit: Callable[[], None], busy: Callable[[], bool]) -> None:
        self._disk = disk
        self._at = at
        self._visit = visit
        self._busy = busy
        self.log: list[tuple[str, str]] = []
        self.visited = False

    def let_in(self) -> None:
        """The visit, unless it was made."""
        if self._at and not self.visited:
            self.visited = True
            self._visit()

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._disk, name)

        def visited(path: str, *rest: Any) -> Any:
            self.log.append((name, path))
            if 0 < self._at <= len(self.log) and not self._busy():
                self.let_in()
            return operation(path, *rest)

        return visited


class StaleFs:
    """A file system whose listings (below `prefix`) are those of an earlier time, as a NAS may serve them."""

    def __init__(self, disk: SimDisk, earlier: SimDisk, prefix: str = "") -> None:
        self._disk = disk
        self._earlier = earlier
        self._prefix = prefix

    def list(self, path: str) -> list[str]:
        return (self._earlier if path.startswith(self._prefix) else self._disk).list(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)


def worth_a_visit(log: list[tuple[str, str]]) -> Iterator[int]:
    """The operations before which a visit can make a difference: not each of 256 listings in a row, but some."""
    listings = 0
    for at, (name, path) in enumerate(log, 1):
        if name == "list" and path.startswith(f"{PACKS}/"):
            listings += 1
            if listings % 40 != 1:
                continue
        yield at


@dataclass
class Visits:
    """`host` works, `visitor` comes in; then the host goes on, or the power is cut."""

    name: str
    prepare: Callable[[], tuple[World, Promises]]
    host: Work
    visitor: Work
    one_index: bool = True
    effort: Effort = field(default_factory=lambda: Effort(disks=4, disks_with_tmp=0, indexes=3))
    again: Again | None = None
    """What is done next, on the machine that lives and on one that comes up after the power cut."""
    alive: bool = False
    """Whether the host's lease goes on ticking during a visit that takes its time."""
    has_disk: bool = False
    """Whether the host is the machine that the disk stands in, to which locks mean something."""

    def run(self, every: int = 1) -> Tally:
        """With a visit before every `every`-th operation that is worth one. Raises `Broken`."""
        self._seen: set[Hashable] = set()
        tally = Tally(f"{self.name}, {'one index' if self.one_index else 'two indexes'}")
        base, before = self.prepare()
        _, log = self._once(base, before, at=0, cut=False, tally=tally)
        for at in islice(worth_a_visit(log), 0, None, every):
            for cut in (False, True):
                visited, _ = self._once(base, before, at=at, cut=cut, tally=tally)
                tally.crash_points += visited
        TALLIES.append(tally)
        return tally

    def _once(
        self, base: World, before: Promises, at: int, cut: bool, tally: Tally
    ) -> tuple[bool, list[tuple[str, str]]]:
        world, promises = base.fork(), before.copy()
        promises.one_writer_counts = self.one_index
        theirs = world.index if self.one_index else SimIndex(world.steps, state=world.index.history[-1])

        def visit() -> None:
            self.visitor(world.repository(index=theirs), promises)
            if cut:
                world.steps.crash_at = world.steps.count + 1

        fs = VisitedFs(world.disk, at, visit, self._busy(world))
        hosting = world.repository(fs=fs)
        if self.has_disk:
            hosting.ports = structs.replace(hosting.ports, fenced=True)
        if self.alive:
            _keep_alive(hosting, world)
        try:
            self.host(hosting, promises)
            fs.let_in()
            if not world.steps.crashed and cut:
                world.steps.step("power cut after the last operation")
        except PowerCut:
            pass
        try:
            self._look(world, hosting, theirs, promises, tally)
        except Broken as broken:
            raise Broken(
                f"{broken}\n  {self.name}, visit before {fs.log[at - 1] if at else None}, cut: {cut}"
            ) from None
        return fs.visited, fs.log

    def _busy(self, world: World) -> Callable[[], bool]:
        return lambda: self.one_index and world.index._writing.locked()

    def _look(
        self, world: World, hosting: LocalRepository, theirs: SimIndex, promises: Promises, tally: Tally
    ) -> None:
        if not world.steps.crashed:
            infos = hosting.snapshots()  # as the host sees it, without looking again
            dropped = promises.protected.keys() - {info.name for info in infos}
            demand(not (dropped and self.one_index), "reconcile", f"{dropped} was dropped from the index")
            for info in infos:
                demand(info.complete, "I3", f"{info.name} is listed before what it needs")
                check_restores(hosting, info, promises)
            check_running(world, promises)
            check_running(world, promises, world.repository(index=theirs))
            if self.again is not None:
                later, said_now = world.fork(seed="later"), promises.copy()
                self.again(later, said_now)
                check_running(later, said_now)
        for wreck in world.crash_states(self.effort, random.Random(SEED)):
            tally.states += 1
            key = names_of(wreck.disk), state_hash(wreck.index), wreck.newest, said(promises)
            if key in self._seen:
                continue
            self._seen.add(key)
            tally.checked += 1
            check_wreck(wreck, world, promises, self.again)


def _keep_alive(hosting: LocalRepository, world: World) -> None:
    leased = hosting.leased

    @contextmanager
    def kept(*what: Any, **how: Any) -> Iterator[Lease | None]:
        with leased(*what, **how) as lease:
            if lease is not None:
                world.alive.append(lease)
            try:
                yield lease
            finally:
                world.alive.clear()

    vars(hosting)["leased"] = kept


# --- what meets what -------------------------------------------------------------------------------------------


def read(repository: LocalRepository, promises: Promises) -> None:
    """Open, reconcile, list: on an index that is behind."""
    with repository.reading(wait_s=0):
        repository.snapshots()


def host_backup(repository: LocalRepository, promises: Promises) -> None:
    promises.backup(repository, WEB, files(3, 10))


def host_forget(repository: LocalRepository, promises: Promises) -> None:
    promises.forget(repository, list(promises.acknowledged)[:1])


def visitor_backup(repository: LocalRepository, promises: Promises) -> None:
    """Of the same group, with mostly the same files: whatever the host has stored by then is not stored again."""
    promises.backup(repository, WEB2, files(3, 12))


def visitor_forgets(repository: LocalRepository, promises: Promises) -> None:
    name = list(promises.acknowledged)[1]
    promises.forget(repository, [name])
    promises.recover(repository, [name])


TWO = backed_up((WEB, files(0, 4)), (MAIL, files(0, 3)))
BACKUPS = Visits("backup during a backup", TWO, host_backup, visitor_backup)
READS = Visits("backup during a reconcile", index_rolled_back, read, visitor_backup)
VISITS = (
    READS,
    replace(READS, one_index=False),
    BACKUPS,
    replace(BACKUPS, one_index=False),
    Visits("forget and recover during a backup", TWO, host_backup, visitor_forgets),
    Visits("backup during a forget", TWO, host_forget, visitor_backup),
    Visits("forget and recover during a reconcile", index_rolled_back, read, visitor_forgets, one_index=False),
)
