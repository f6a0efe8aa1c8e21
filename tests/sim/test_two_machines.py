"""Compaction in two steps, where no lock keeps the other machine out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scenarios import Scenario
from sweep import NIGHTLY, Sweep, small_packs
from two_machines import MEETINGS, STEPS, after_deletion, in_a_hurry
from visits import Visits
from world import Effort


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    small_packs(monkeypatch)


@pytest.mark.parametrize("scenario", STEPS, ids=lambda s: s.name.replace(" ", "-"))
def test_no_power_cut_during_a_step_breaks_an_invariant(scenario: Scenario, pytestconfig: pytest.Config) -> None:
    effort = NIGHTLY if pytestconfig.getoption("--nightly") else Effort(disks=6, indexes=3)
    tally = Sweep(scenario, effort).run()
    assert tally.checked > tally.crash_points / 4, tally


@pytest.mark.parametrize("visits", MEETINGS, ids=lambda v: v.name.replace(" ", "-"))
def test_another_machine_between_any_two_operations_breaks_nothing(
    visits: Visits, pytestconfig: pytest.Config
) -> None:
    tally = visits.run(every=1 if pytestconfig.getoption("--nightly") else 5)
    assert tally.crash_points > 10, tally


@pytest.mark.parametrize("shown", [in_a_hurry, after_deletion])
def test_an_old_listing_loses_nothing(shown: Callable[[], None]) -> None:
    shown()
