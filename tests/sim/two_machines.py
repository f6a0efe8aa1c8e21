"""Compaction without a lock that fences: each step cut short anywhere, and somebody on another machine at any moment.

The machines share a disk and nothing else: each has an index and locks of its own. Time passes in `World.sleep`.
"""

from __future__ import annotations

from collections.abc import Callable

import recount
from invariants import check_disk, demand
from msgspec.structs import replace
from promised import Promises
from scenarios import COMPACT, WEB2, Scenario, files, forgotten
from simindex import SimIndex
from visits import StaleFs, Visits, Work
from world import World, copy_of

from packnback.errors import ObjectMissing, StorageFailed
from packnback.gc.compact import compact
from packnback.gc.compaction import Compacted
from packnback.store.layout import CONDEMNED, LEASES
from packnback.store.repository import LocalRepository

DAY_S = 25 * 3_600.0
Prepare = Callable[[], tuple[World, Promises]]


def run(repository: LocalRepository, promises: Promises) -> Compacted:
    """One compaction of everything, whichever step that may be."""
    promises.deleting = True
    promises.releasing |= {name for name, gone in promises.forgotten.items() if gone}
    done = compact(repository, replace(COMPACT, force=promises.may_lack))
    promises.released |= promises.releasing
    return done


def once(world: World, promises: Promises) -> None:
    run(world.repository(), promises)


def settle(world: World, promises: Promises) -> None:
    """After whatever it was: a run a day, and soon there is nothing left to do, and nothing that is condemned."""
    for _ in range(4):
        run(world.repository(), promises)
        world.sleep(DAY_S)
    run(world.repository(), promises)
    demand(not world.disk.list(CONDEMNED), "I7", "condemned lists are left")
    demand(not world.disk.list(LEASES), "I7", "leases are left")
    truth = recount.derive(world.disk)
    for name, root in promises.protected.items():
        demand(root in truth.standing, "I1/I6", f"{name} is not whole in the end")
    before = world.disk.files()
    again = run(world.repository(), promises)
    demand(world.disk.files() == before, "I7", f"one more run changed something: {again}")


# --- what was there before -------------------------------------------------------------------------------------


def shared() -> tuple[World, Promises]:
    """Three backups, the first forgotten, on a disk that other machines have too."""
    world, promises = forgotten()
    world.fenced = False
    return world, promises


def condemned() -> tuple[World, Promises]:
    """The same after the first step, and a day."""
    world, promises = shared()
    once(world, promises)
    world.sleep(DAY_S)
    return world.fork(seed="the next day"), promises


def needed_again() -> tuple[World, Promises]:
    """The same, but right after the first step, somebody whom an old listing was shown relied on condemned packs."""
    world, promises = shared()
    earlier, known = copy_of(world.disk), SimIndex(state=world.index.history[-1])
    once(world, promises)
    promises.backup(world.repository(fs=StaleFs(world.disk, earlier), index=known), WEB2, files(0, 9))
    promises.stands = False
    world.sleep(DAY_S)
    return world.fork(seed="the next day"), promises


STEPS = (
    Scenario("first step", shared, once, settle),
    Scenario("second step", condemned, once, settle),
    Scenario("second step, needed again", needed_again, once, settle),
    Scenario(
        "backup of what is condemned",
        condemned,
        lambda world, promises: back_up(world.repository(), promises),
        settle,
    ),
)
STEPS_BY_NAME = {scenario.name: scenario for scenario in STEPS}


# --- who meets whom -----------------------------------------------------------------------------------------------


def back_up(repository: LocalRepository, promises: Promises) -> None:
    """The files of the snapshot that was forgotten: the objects of most of them nobody else needs."""
    promises.backup(repository, WEB2, files(0, 9))


def back_up_stubbornly(repository: LocalRepository, promises: Promises) -> None:
    """Whoever is told that something has gone meanwhile begins again; and that is the end of it."""
    try:
        back_up(repository, promises)
    except ObjectMissing:
        demand(promises.may_lack, "leases", "a backup that was alive has lost what it relied on")
        back_up(repository, promises)
    except StorageFailed:  # stopped for a day in the middle of writing a file, which then was taken for litter
        back_up(repository, promises)


def condemn(repository: LocalRepository, promises: Promises) -> None:
    promises.stands = False
    run(repository, promises)


def both_steps(repository: LocalRepository, promises: Promises) -> None:
    """Somebody compacts, and again the next day, while we are stopped."""
    promises.stands = False
    run(repository, promises)
    repository.ports.sleep(DAY_S)
    run(repository, promises)


def both_steps_past_a_dead_man(repository: LocalRepository, promises: Promises) -> None:
    promises.may_lack = True
    both_steps(repository, promises)


def forget_and_recover(repository: LocalRepository, promises: Promises) -> None:
    name = next(name for name in promises.protected if promises.forgotten.get(name) is not True)
    promises.forget(repository, [name])
    promises.recover(repository, [name])


def meeting(name: str, prepare: Prepare, host: Work, visitor: Work, **how: bool) -> Visits:
    return Visits(name, prepare, host, visitor, one_index=False, again=settle, **how)


MEETINGS = (
    meeting("first step during a backup", shared, back_up, condemn),
    meeting("both steps during a backup", shared, back_up_stubbornly, both_steps, alive=True),
    meeting("both steps during a backup that is stopped", shared, back_up_stubbornly, both_steps_past_a_dead_man),
    meeting(
        "both steps during a backup where the disk is",
        shared,
        back_up_stubbornly,
        both_steps_past_a_dead_man,
        has_disk=True,
    ),
    meeting("second step during a backup", condemned, back_up_stubbornly, condemn),
    meeting("backup during the first step", shared, condemn, back_up),
    meeting("backup during the second step", condemned, condemn, back_up),
    meeting("two first steps", shared, condemn, condemn),
    meeting("two second steps", condemned, condemn, condemn),
    meeting("two second steps, needed again", needed_again, condemn, condemn),
    meeting("both steps during a second step", condemned, condemn, both_steps),
    meeting("forget and recover during the second step", condemned, condemn, forget_and_recover),
)
MEETINGS_BY_NAME = {visits.name: visits for visits in MEETINGS}


# --- what an old listing may not do ------------------------------------------------------------------------------


def twice(repository: LocalRepository, promises: Promises) -> None:
    run(repository, promises)
    run(repository, promises)


def old_listing(prepare: Prepare, compactions: Work, prefix: str = "") -> None:
    """Compactions, and then a backup on a machine that is shown what was there just before the last of them."""
    world, promises = prepare()
    earlier, known = copy_of(world.disk), SimIndex(state=world.index.history[-1])
    compactions(world.repository(), promises)
    back_up(world.repository(fs=StaleFs(world.disk, earlier, prefix), index=known), promises)
    promises.stands = False
    check_disk(world.disk, promises)
    settle(world, promises)


def in_a_hurry() -> None:
    """Compaction upon compaction: nothing is deleted that an old listing does not show as condemned."""
    old_listing(shared, twice)


def after_deletion() -> None:
    """The packs are gone, but the listing still has them; that of the lists is new."""
    old_listing(condemned, condemn, "packs/")
