"""What the crash sweep runs: each scenario prepares a machine at rest, then does the thing that is cut short."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from invariants import demand
from promised import Files, Promises
from rehearsed import SMALL_FLOOR, RehearsedClient
from simdisk import SimDisk
from simindex import SimIndex
from world import World, new_world

from packnback.errors import NotARepository, ObjectMissing
from packnback.format.snapshot import PARTIAL
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.store.layout import PACK_DIRECTORIES
from packnback.store.repair import repair
from packnback.store.repository import read_config

WEB = RehearsedClient("web1", group="web", floor=SMALL_FLOOR)
WEB2 = RehearsedClient("web2", group="web", floor=SMALL_FLOOR)
"""Of the same group as `WEB`: the two share objects."""
MAIL = RehearsedClient("mail", floor=SMALL_FLOOR)

COMPACT = CompactOptions(grace_ns=0, max_waste=0.0)


def files(first: int, last: int, **more: bytes) -> Files:
    """Files with contents of their own, numbered, plus the named ones."""
    return {f"file{i:02}": bytes([i]) * (20 + 11 * i) for i in range(first, last)} | more


Run = Callable[[World, Promises], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`prepare` makes a machine at rest and what was promised by then, `run` is what the power cut meets,
    `again` what is done first after it."""

    name: str
    prepare: Callable[[], tuple[World, Promises]]
    run: Run
    again: Run | None = None
    first_cut: int = 1
    """The step at which the power is cut first."""


def empty() -> tuple[World, Promises]:
    """An empty repository."""
    return new_world(), Promises()


def backed_up(*trees: tuple[RehearsedClient, Files]) -> Callable[[], tuple[World, Promises]]:
    """A repository with these backups, one after the other."""

    def prepare() -> tuple[World, Promises]:
        world, promises = empty()
        for client, tree in trees:
            promises.backup(world.repository(), client, tree)
        return world.fork(), promises

    return prepare


# --- init -----------------------------------------------------------------------------------------------------


def bare() -> tuple[World, Promises]:
    """A machine without a repository."""
    return World(SimDisk(), SimIndex()), Promises(initialised=False)


def init(world: World, promises: Promises) -> None:
    world.init()
    promises.initialised = True


def init_again(world: World, promises: Promises) -> None:
    """An interrupted init is simply run again."""
    try:
        read_config(world.blobs(), "")
    except NotARepository:
        init(world, promises)


# --- backups ----------------------------------------------------------------------------------------------------


def one_backup(world: World, promises: Promises) -> None:
    promises.backup(world.repository(), WEB, files(0, 10))


def same_backup(world: World, promises: Promises) -> None:
    """Another client with the same files: it is told `has` for everything that `one_backup` has left."""
    promises.backup(world.repository(), WEB2, files(0, 10))


def next_backup(world: World, promises: Promises) -> None:
    promises.backup(world.repository(), WEB, files(3, 9, file05=b"changed"))


def two_sessions(world: World, promises: Promises) -> None:
    """Two clients that share objects, a step of one and a step of the other, on one index."""
    left, right = world.repository(), world.repository()
    mine, theirs = files(0, 6), files(3, 9)
    roots = promises.expect(WEB, mine), promises.expect(WEB2, theirs)
    with ExitStack() as stack:
        first = stack.enter_context(left.session(WEB.certificate, wait_s=0))
        second = stack.enter_context(right.session(WEB2.certificate, wait_s=0))
        WEB.store(first, dict(list(mine.items())[:4]))
        WEB2.store(second, theirs)
        WEB.store(first, mine)
        second.flush()
        done = first.commit(WEB.snapshot(roots[0], first.head()))
        promises.acknowledge(done, roots[0])
        done = second.commit(WEB2.snapshot(roots[1], second.head()))
        promises.acknowledge(done, roots[1])


def index_rolled_back() -> tuple[World, Promises]:
    """The index has come back in an early state; the directories are further on."""
    world, promises = backed_up((WEB, files(0, 4)), (MAIL, files(0, 3)), (WEB, files(2, 7)))()
    world.index.history.append(world.index.history[3])
    return world, promises


def pack_lost() -> tuple[World, Promises]:
    """Damage has taken a data pack; nobody has noticed yet."""
    world, promises = backed_up((WEB, files(0, 2)))()
    [path] = [p for p, data in world.disk.files("packs").items() if WEB.objects(files(0, 2))[0][0].record in data]
    world.disk.unlink(path)
    promises.lost = {sealed.id for sealed in WEB.objects(files(0, 2))[0] if not sealed.level}
    promises.deleting = True
    return world.fork(), promises


def hasty_commit(world: World, promises: Promises) -> None:
    """A client that does not ask, but commits the root that it knows from last time."""
    root = promises.expect(WEB, files(0, 2))
    try:
        with world.repository().session(WEB.certificate, wait_s=0) as session:
            session.commit(WEB.snapshot(root, session.head()))
    except ObjectMissing:
        return
    demand(False, "I3", "a snapshot without its objects was acknowledged")


# --- forgetting ---------------------------------------------------------------------------------------------------


def forget_first(world: World, promises: Promises) -> None:
    promises.forget(world.repository(), list(promises.acknowledged)[:1])


def forgotten() -> tuple[World, Promises]:
    """Three backups, the first of which was forgotten: every other of its files is still needed."""
    half = dict(list(files(0, 9).items())[::2])
    world, promises = backed_up((WEB, files(0, 9)), (WEB, half | files(20, 22)), (MAIL, files(0, 4)))()
    first = list(promises.acknowledged)[:1]
    promises.forget(world.repository(), first)
    return world.fork(), promises


def recover_first(world: World, promises: Promises) -> None:
    promises.recover(world.repository(), list(promises.acknowledged)[:1])


# --- repair -----------------------------------------------------------------------------------------------------


def rotten() -> tuple[World, Promises]:
    """One byte of a data record has rotted, in a pack that holds other records as well."""
    world, promises = backed_up((WEB, files(0, 8)), (WEB, files(2, 10)))()
    repository = world.repository()
    victim = WEB.objects(files(0, 8))[0][1]
    for path, data in world.disk.files("packs").items():
        at = data.find(victim.record)
        if at >= 0:
            spoilt = bytearray(data)
            spoilt[at + len(victim.record) // 2] ^= 1
            world.disk.plant(path, bytes(spoilt))
            promises.put_aside[path.rpartition("/")[2].removesuffix(".pack")] = bytes(spoilt)
    assert len(promises.put_aside) == 1
    promises.lost = {victim.id}
    repository.close()
    return world.fork(), promises


def mend(world: World, promises: Promises) -> None:
    repository = world.repository()
    with repository.ports.locks.exclusive(0):
        repository.rebuild()
        repair(repository, suspects=[bytes.fromhex(name) for name in promises.put_aside])
    promises.repaired = True


def mend_and_heal(world: World, promises: Promises) -> None:
    """After the crash: repair once more; then the next backup of the same files uploads what was lost."""
    mend(world, promises)
    promises.backup(world.repository(), WEB, files(0, 8))
    promises.lost = set()
    for info in world.repository().snapshots():
        demand(info.complete, "healing", f"{info.name} is still not complete")


# --- compaction --------------------------------------------------------------------------------------------------


def compact_all(world: World, promises: Promises) -> None:
    """Release what is forgotten, rewrite every pack with waste, delete."""
    promises.deleting = True
    promises.releasing |= {name for name, gone in promises.forgotten.items() if gone}
    compact(world.repository(), COMPACT)
    promises.released |= promises.releasing


def compact_again(world: World, promises: Promises) -> None:
    """I7: the run after a crash finishes; the one after that has nothing to do."""
    compact_all(world, promises)
    names = world.disk.list("tmp")
    demand(not names, "I7", f"left in tmp: {names}")
    before = world.disk.files()
    result = compact(world.repository(), COMPACT)
    demand(world.disk.files() == before, "I7", f"a second run changed something: {result}")
    demand(result.packs_deleted == result.packs_rewritten == 0, "I7", result)
    live = {name for name in promises.acknowledged if name not in promises.released}
    demand({i.name for i in world.repository().snapshots()} >= live, "I1", "snapshots after a compaction")


def with_partial() -> tuple[World, Promises]:
    """A checkpoint that a complete snapshot has superseded, besides a forgotten one."""
    world, promises = forgotten()
    promises.backup(world.repository(), WEB2, files(30, 36), flags=PARTIAL)
    partial = list(promises.acknowledged)[-1]
    promises.backup(world.repository(), WEB2, files(30, 40))
    promises.releasing.add(partial)
    return world.fork(), promises


SCENARIOS = (
    # Most of init makes directories: test_publish_crash cuts there, this one from the last directories on.
    Scenario("init", bare, init, init_again, first_cut=len(PACK_DIRECTORIES)),
    Scenario("first backup", empty, one_backup),
    Scenario("second backup", backed_up((WEB, files(0, 8))), next_backup),
    Scenario("two sessions", backed_up((MAIL, files(0, 3))), two_sessions),
    Scenario("backup with an index rolled back", index_rolled_back, next_backup),
    Scenario("commit without objects", pack_lost, hasty_commit),
    Scenario("forget", backed_up((WEB, files(0, 4)), (WEB, files(2, 6))), forget_first),
    Scenario("recover", forgotten, recover_first),
    Scenario("repair", rotten, mend, mend_and_heal),
    Scenario("compact", forgotten, compact_all, compact_again),
    Scenario("compact with checkpoints", with_partial, compact_all, compact_again),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
