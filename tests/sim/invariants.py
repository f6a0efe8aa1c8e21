"""The invariants I1–I8 of the crash model (docs/crash-model.md), checked on a machine that has just come up."""

from __future__ import annotations

from collections.abc import Callable

import recount
from promised import Promises
from rehearsed import SMALL_FLOOR, RehearsedClient
from simdisk import SimDisk
from simindex import SimIndex, State
from world import World, Wreck

from packnback.errors import NotARepository
from packnback.format import rows
from packnback.store import layout
from packnback.store.check import index_difference
from packnback.store.distrust import Standing
from packnback.store.interface import SnapshotInfo
from packnback.store.objects import is_complete
from packnback.store.reconcile import Reconciled, reconcile
from packnback.store.repository import LocalRepository, read_config

CLIENT = RehearsedClient("recovery", floor=SMALL_FLOOR)
"""Who makes a backup after every crash."""
RECOVERY_FILES = {f"after{i}": bytes([200 + i]) * 40 for i in range(3)}


class Broken(AssertionError):
    """An invariant does not hold."""


def demand(holds: bool, invariant: str, what: object) -> None:
    """Raise `Broken` unless it holds."""
    if not holds:
        raise Broken(f"{invariant}: {what}")


Again = Callable[[World, Promises], None]


def check_wreck(wreck: Wreck, world: World, promises: Promises, again: Again | None = None) -> None:
    """Everything that must hold in what a power cut left of `world`.

    First of the disk as it is, then of a machine started on it, which reconciles, lists, reads all, runs the
    interrupted operation `again`, and makes a new backup.
    """
    promises, started = promises.copy(), world.start(wreck)
    if _is_repository(wreck.disk, promises):
        check_disk(wreck.disk, promises)
        check_rows_are_durable(wreck, promises)
        check_running(started, promises)
    if not wreck.newest:
        return  # I8 has just shown that from here on all states of the index are one
    if again is not None:
        again(started, promises)
    check_goes_on(started, promises)


def _is_repository(disk: SimDisk, promises: Promises) -> bool:
    blobs = World(disk, SimIndex()).blobs()
    try:
        read_config(blobs, "")
    except NotARepository:
        demand(not promises.initialised, "I1", "the repository is gone")
        return False
    made = {*disk.list(""), *(f"{layout.PACKS}/{name}" for name in disk.list(layout.PACKS))}
    demand(made >= {*layout.DIRECTORIES, *layout.PACK_DIRECTORIES}, "init", "a repository without its directories")
    return True


def check_disk(disk: SimDisk, promises: Promises) -> recount.Truth:
    """I1, I2, I3 and I6, straight from the bytes: no index, no engine."""
    try:
        truth = recount.derive(disk)
    except recount.Torn as torn:
        raise Broken(f"I2: {torn}") from None
    demand(truth.rotten <= promises.lost, "I2", "records that are not whole")
    for name, root in promises.protected.items():
        demand(truth.roots.get(name) == root, "I1", f"{name} is gone")
    for name, snapshot_id in promises.ids.items():
        demand(snapshot_id in truth.headers, "chain", f"the header of {name} is gone")
    for name in promises.released:
        demand(name not in truth.roots, "I2", f"{name} is back after its release")
    for name, root in truth.roots.items():
        demand(root in promises.trees, "I2", f"{name} was never begun")
        missing = promises.trees[root].keys() - truth.places.keys() - promises.lost
        if promises.holds(name):
            demand(not missing, "I1/I6", f"{name} needs objects that stand nowhere: {sorted(missing)[:1]}")
    if promises.stands and not promises.lost:
        for name, root in promises.protected.items():
            demand(root in truth.standing, "condemned", f"{name} relies on packs that are")
    if not promises.deleting and not promises.lost:
        demand(truth.complete == truth.places.keys(), "order", "something stands here before what it needs")
    for name, data in promises.put_aside.items():
        _check_put_aside(disk, name, data, promises.repaired)
    return truth


def _check_put_aside(disk: SimDisk, name: str, data: bytes, repaired: bool) -> None:
    in_packs = disk.files(layout.pack_path(name).rpartition("/")[0]).get(layout.pack_path(name))
    aside = disk.files(layout.QUARANTINE).get(f"{layout.QUARANTINE}/{name}.pack")
    demand(data in (in_packs, aside), "quarantine", f"the damaged pack {name} is gone")
    if repaired:
        demand(in_packs is None, "quarantine", f"the damaged pack {name} is back")


def check_rows_are_durable(wreck: Wreck, promises: Promises) -> None:
    """I4 before anything is mended: no index that was ever committed names a pack that may be lost."""
    if promises.deleting or promises.put_aside:
        return
    for name in pack_names(wreck.index):
        path = layout.pack_path(name.hex())
        demand(path in wreck.disk.files(path.rpartition("/")[0]), "I4", f"a row names {path}, which was lost")


def pack_names(state: State) -> list[bytes]:
    """The packs that a state of the index knows."""
    return list(state["pack_names"].rows)


def check_running(world: World, promises: Promises, repository: LocalRepository | None = None) -> None:
    """Everything that must hold of a repository that somebody has just opened."""
    repository = repository or world.repository()
    with repository.reading(wait_s=0):
        check_index(repository, world.disk)
        infos = {info.name: info for info in repository.snapshots()}
        damaged = repository.damaged_files()
    demand(not damaged, "I2", damaged)
    for name in promises.protected:
        demand(name in infos, "I1", f"{name} is not listed")
    for name, forgotten in promises.forgotten.items():
        if name in infos:
            demand((infos[name].forgotten_ns is not None) == forgotten, "forget", f"{name} is not as was said")
    counters = [info.receipt.counter for info in infos.values()]
    distinct = len(set(counters)) == len(counters)
    demand(distinct or not promises.one_writer_counts, "receipts", "two snapshots with one number")
    for info in infos.values():
        check_restores(repository, info, promises)


def check_index(repository: LocalRepository, disk: SimDisk) -> None:
    """I3, I4, I5 and I8 after a reconcile."""
    index = repository.ports.index
    truth = recount.derive(disk)
    with index.read() as txn:
        wrong = recount.contradiction(txn, truth)
        has = {object_id for object_id in truth.places if is_complete(txn, object_id)}
        complete = sorted(has)
        standing = {i for i, stands in zip(complete, Standing().all_of(txn, complete), strict=True) if stands}
        lacking = {root: Standing().lacking(txn, root) for root in truth.roots.values() if root in has}
        phantoms = {rows.split_more_key(key)[0] for key, _ in txn.scan("more")} - truth.places.keys()
    demand(wrong is None, "I5", wrong)
    demand(not phantoms, "I4", "locations of nothing")
    demand(has == truth.complete, "I3", "has is not what is complete")
    demand(standing == truth.standing, "I3", "has is not what stands without condemned packs")
    for root, found in lacking.items():
        demand(bool(found) == (root not in truth.standing), "I3", "what lacks is not what is condemned")
    fresh = SimIndex()
    reconcile(repository.truth, fresh)
    difference = index_difference(index, fresh)
    demand(difference is None, "I8", difference)
    demand(repository.reconcile() == Reconciled(), "I8", "a second reconcile found something to do")


def check_restores(repository: LocalRepository, info: SnapshotInfo, promises: Promises) -> None:
    """I1, I2, I3: every object of the snapshot can be fetched, and is the very record that the client sealed."""
    demand(info.root in promises.trees, "I2", f"{info.name} was never begun")
    if not promises.holds(info.name):
        return
    tree = promises.trees[info.root]
    hurt = promises.lost & tree.keys()
    demand(info.complete or bool(hurt), "I3", f"{info.name} is not complete")
    for fetched in repository.fetch(sorted(tree.keys() - promises.lost)):
        demand(fetched.problem is None, "I1", f"{info.name}: {fetched.id.hex()}: {fetched.problem!r}")
        demand(bytes(fetched.record) in promises.records[fetched.id], "I1", f"{fetched.id.hex()} has other bytes")


def check_goes_on(world: World, promises: Promises) -> None:
    """After a crash one can go on: the next backup succeeds, restores, and leaves an index that is right."""
    repository = world.repository()
    name = promises.backup(repository, CLIENT, RECOVERY_FILES)
    infos = {info.name: info for info in repository.snapshots()}
    demand(name in infos and infos[name].complete, "I1", "the backup after the crash")
    check_restores(repository, infos[name], promises)
    check_index(repository, world.disk)
