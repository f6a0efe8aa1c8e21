"""The crash sweep: run, cut the power at step k, look at every state that may be found; then at step k + 1."""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from itertools import count

import pytest
from invariants import Broken, check_wreck
from promised import Promises
from scenarios import Run, Scenario
from simdisk import SimDisk
from simindex import State
from steps import PowerCut, Steps
from world import Effort, World, Wreck

from packnback.store import packer

SEED = 11
NIGHTLY = Effort(disks=60, disks_with_tmp=10, indexes=12)


@dataclass(slots=True)
class Tally:
    """What one sweep looked at."""

    scenario: str
    crash_points: int = 0
    states: int = 0
    """Pairs of a disk and an index that may be found."""
    checked: int = 0
    """Those of them that differ in anything that somebody looks at."""

    def __str__(self) -> str:
        return f"{self.scenario}: {self.crash_points} crash points, {self.states} states, {self.checked} different"


TALLIES: list[Tally] = []
"""Of this test run; printed at its end by tests/conftest.py."""


def small_packs(monkeypatch: pytest.MonkeyPatch, records: int = 3) -> None:
    """Packs of so many records: a backup of a few files then makes several."""
    monkeypatch.setattr(packer, "RECORDS_LIMIT", records)


@dataclass
class Sweep:
    """One sweep over one scenario."""

    scenario: Scenario
    effort: Effort = field(default_factory=Effort)
    seed: int = SEED

    def run(self) -> Tally:
        """Raises `Broken`, with the step at which the power was cut, at the first state that must not be."""
        tally = Tally(self.scenario.name)
        rng = random.Random(f"{self.seed} {self.scenario.name}")
        base, before = self.scenario.prepare()
        seen: set[Hashable] = set()
        for crash_at in count(self.scenario.first_cut):
            world, promises = base.fork(Steps(crash_at)), before.copy()
            try:
                self.scenario.run(world, promises)
            except PowerCut:
                tally.crash_points += 1
            self._look(world, promises, rng, tally, seen)
            if not world.steps.crashed:
                break
        if not tally.crash_points:
            raise AssertionError(f"{self.scenario.name}: nothing was run")
        TALLIES.append(tally)
        return tally

    def run_killed(self, next_process: Run) -> Tally:
        """The same with a killed process instead of a power cut: the machine lives, the next process meets what is
        there and not yet safe, does its work, and only when that is acknowledged the power goes."""
        tally = Tally(f"{self.scenario.name}, killed; then another")
        rng = random.Random(f"{self.seed} {tally.scenario}")
        base, before = self.scenario.prepare()
        seen: set[Hashable] = set()
        for killed_at in count(self.scenario.first_cut):
            world, promises = base.fork(Steps(killed_at)), before.copy()
            try:
                self.scenario.run(world, promises)
            except PowerCut:
                tally.crash_points += 1
            else:
                break
            world.restart(Steps())
            next_process(world, promises)
            self._look(world, promises, rng, tally, seen)
        TALLIES.append(tally)
        return tally

    def _look(self, world: World, promises: Promises, rng: random.Random, tally: Tally, seen: set[Hashable]) -> None:
        told = said(promises)
        for wreck in world.crash_states(self.effort, rng):
            tally.states += 1
            key = names_of(wreck.disk), state_hash(wreck.index), wreck.newest, told
            if key in seen:
                continue
            seen.add(key)
            tally.checked += 1
            check(wreck, world, promises, self.scenario, self.seed)


def check(wreck: Wreck, world: World, promises: Promises, scenario: Scenario, seed: int) -> None:
    """`check_wreck`, saying where it was when something does not hold, whatever it is that went wrong."""
    where = f"scenario {scenario.name!r}, power cut {world.steps.count}, seed {seed}"
    try:
        check_wreck(wreck, world, promises, scenario.again)
    except Broken as broken:
        raise Broken(f"{broken}\n  {where}, after: {world.steps.log[-4:]}") from None
    except Exception as error:
        raise Broken(f"the machine does not come up: {error!r}\n  {where}, after: {world.steps.log[-4:]}") from error


def names_of(disk: SimDisk) -> Hashable:
    """All that anybody looks at: every name and every byte outside ``tmp/``."""
    made = frozenset(disk.list("")), frozenset(disk.list("packs")) if "packs" in disk.list("") else None
    return made, frozenset((path, data) for path, data in disk.files().items() if not path.startswith("tmp/"))


def state_hash(state: State) -> Hashable:
    """Equal for states of the index with equal rows."""
    return tuple(hash(frozenset(table.rows.items())) for table in state.values())


def said(promises: Promises) -> Hashable:
    """Equal for promises that demand the same."""
    plain = replace(promises, trees={}, records={})
    return repr([sorted(value) if isinstance(value, set) else value for value in vars(plain).values()])
