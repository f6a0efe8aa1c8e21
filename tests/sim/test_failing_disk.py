"""The disk refuses at every step of everything that writes, and the program lives to tell: full, or failing.

Other than after a power cut somebody is there who handles the error, and may do it wrong: half a change that is
undone too far, a row for something that was never written, a deletion because nothing could be read. Afterwards the
disk has room again, the next process goes on, and only then the power is cut.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Hashable
from contextlib import suppress
from itertools import count

import pytest
from invariants import check_running
from scenarios import SCENARIOS, Scenario
from steps import Steps
from sweep import SEED, TALLIES, Tally, check, names_of, said, small_packs, state_hash
from world import Effort

from packnback.errors import DiskFull, PacknbackError, StorageFailed

EFFORT = Effort(disks=3, disks_with_tmp=0, indexes=2)
NIGHTLY = Effort(disks=20, disks_with_tmp=2, indexes=6)


class Refusing(Steps):
    """Steps of which number `at` fails; with `full`, all later ones too that need space."""

    def __init__(self, at: int, code: int, *, full: bool = False) -> None:
        super().__init__()
        self._at = at
        self._code = code
        self._full = full
        self.refused = 0

    def step(self, what: str) -> None:
        super().step(what)
        later = self._full and self.count > self._at and what.startswith(("create", "append", "index commit"))
        if self.count == self._at or later:
            self.refused += 1
            if what == "index committed":
                raise StorageFailed("commit", what, "nobody knows whether it was")
            if what == "index commit":
                raise DiskFull(what) if self._code == errno.ENOSPC else StorageFailed("commit", what, "EIO")
            raise OSError(self._code, what)


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    small_packs(monkeypatch)


@pytest.mark.parametrize(
    "how", ["no room any more", "an error once", pytest.param("no room once", marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("scenario", SCENARIOS[1:], ids=lambda s: s.name.replace(" ", "-"))
def test_no_refusal_of_the_disk_breaks_an_invariant(
    scenario: Scenario, how: str, pytestconfig: pytest.Config
) -> None:
    effort = NIGHTLY if pytestconfig.getoption("--nightly") else EFFORT
    code = errno.EIO if how == "an error once" else errno.ENOSPC
    base, before = scenario.prepare()
    tally, seen = Tally(f"{scenario.name}, {how}"), set[Hashable]()
    for at in count(1):
        steps = Refusing(at, code, full=how == "no room any more")
        world, promises = base.fork(steps), before.copy()
        with suppress(PacknbackError):
            scenario.run(world, promises)
        if not steps.refused:
            break
        tally.crash_points += 1
        world.restart(Steps())
        with world.repository().reading(wait_s=0):
            pass
        for wreck in world.crash_states(effort, random.Random(SEED)):
            tally.states += 1
            key = names_of(wreck.disk), state_hash(wreck.index), wreck.newest, said(promises)
            if key not in seen:
                seen.add(key)
                tally.checked += 1
                check(wreck, world, promises, scenario, SEED)
        check_running(world, promises)  # last, because it makes everything safe
    TALLIES.append(tally)
    assert tally.crash_points > 1
