"""Power cuts at every step of everything that writes, and a look at every state that may be found afterwards."""

from __future__ import annotations

import pytest
from scenarios import BY_NAME, SCENARIOS, Scenario, same_backup
from sweep import NIGHTLY, Sweep, small_packs
from world import Effort


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    small_packs(monkeypatch)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name.replace(" ", "-"))
def test_no_power_cut_breaks_an_invariant(scenario: Scenario, pytestconfig: pytest.Config) -> None:
    effort = NIGHTLY if pytestconfig.getoption("--nightly") else Effort()
    tally = Sweep(scenario, effort).run()
    assert tally.checked > tally.crash_points / 4, tally


def test_what_a_killed_process_left_is_made_safe_before_anybody_builds_on_it(pytestconfig: pytest.Config) -> None:
    effort = NIGHTLY if pytestconfig.getoption("--nightly") else Effort()
    tally = Sweep(BY_NAME["first backup"], effort).run_killed(same_backup)
    assert tally.checked > tally.crash_points / 4, tally
