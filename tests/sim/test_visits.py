"""Two processes, one of which does its whole work between any two operations of the other: no threads, no luck."""

from __future__ import annotations

import pytest
from invariants import check_running
from scenarios import WEB, backed_up, files
from sweep import small_packs
from visits import VISITS, StaleFs, Visits
from world import copy_of


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    small_packs(monkeypatch)


@pytest.mark.parametrize("visits", VISITS, ids=lambda v: f"{v.name}-{1 if v.one_index else 2}".replace(" ", "-"))
def test_a_visit_between_any_two_operations_breaks_nothing(visits: Visits, pytestconfig: pytest.Config) -> None:
    tally = visits.run(every=1 if pytestconfig.getoption("--nightly") else 3)
    assert tally.crash_points > 10, tally


def test_a_stale_listing_removes_no_row() -> None:
    world, promises = backed_up((WEB, files(0, 5)))()
    earlier = copy_of(world.disk)
    promises.backup(world.repository(), WEB, files(2, 9))
    promises.forget(world.repository(), list(promises.acknowledged)[:1])
    stale = world.repository(fs=StaleFs(world.disk, earlier))
    with stale.reading(wait_s=0):
        assert len(stale.snapshots()) == 2
    assert stale.reconcile().removed == 0
    check_running(world, promises)
