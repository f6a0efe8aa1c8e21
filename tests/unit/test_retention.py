"""Retention: nothing that arrives later may change a verdict that kept something, and the guard on the clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packnback.errors import ClockRefused
from packnback.gc.retention import BACKWARDS_NS, FORWARDS_NS, Candidate, Policy, decide, guard_clock

HOUR = 3600 * 10**9
DAY = 24 * HOUR
NOW = 1_780_000_000 * 10**9

times = st.integers(NOW - 800 * DAY, NOW)
small = st.integers(0, 12)
buckets = st.builds(Policy, hourly=small, daily=small, weekly=small, monthly=small, yearly=small)
histories = st.lists(st.tuples(st.sampled_from([b"a" * 16, b"b" * 16]), times), min_size=1, max_size=40)


def candidates(history: list[tuple[bytes, int]]) -> list[Candidate]:
    """In order of arrival: receipt times never fall, counters rise."""
    ordered = sorted(history, key=lambda item: item[1])
    return [Candidate(f"s{i:03}", client, at, i) for i, (client, at) in enumerate(ordered)]


@given(histories, buckets, st.integers(1, 40))
def test_later_arrivals_change_no_keep_verdict_under_bucket_rules(
    history: list[tuple[bytes, int]], policy: Policy, cut: int
) -> None:
    arrived = candidates(history)
    earlier, whole = decide(arrived[:cut], policy, NOW), decide(arrived, policy, NOW)
    for name, verdict in earlier.items():
        kept_by_rule = [r for r in verdict.reasons if r.startswith("first of its")]
        assert set(kept_by_rule) <= set(whole[name].reasons)
        assert whole[name].keep or not kept_by_rule


@given(histories, st.lists(times, max_size=300), buckets)
def test_a_flood_from_one_client_changes_nothing_for_another(
    history: list[tuple[bytes, int]], flood: list[int], policy: Policy
) -> None:
    mine = [c for c in candidates(history) if c.client_id == b"a" * 16]
    attack = [Candidate(f"x{i}", b"z" * 16, at, 1000 + i) for i, at in enumerate(flood)]
    both = decide(mine + attack, policy, NOW)
    assert decide(mine, policy, NOW) == {c.name: both[c.name] for c in mine}


@given(histories, st.builds(Policy, newest=small, within_ns=st.integers(1, 900 * DAY)), buckets)
def test_newest_and_within_only_add(history: list[tuple[bytes, int]], adding: Policy, base: Policy) -> None:
    both = Policy(adding.within_ns, adding.newest, base.hourly, base.daily, base.weekly, base.monthly, base.yearly)
    arrived = candidates(history)
    less, more = decide(arrived, base, NOW), decide(arrived, both, NOW)
    assert all(more[name].keep for name, verdict in less.items() if verdict.keep)


def test_first_of_each_day_is_kept_and_empty_days_count() -> None:
    midnight = NOW - NOW % DAY
    arrived = [
        Candidate("old", b"a", midnight - 5 * DAY, 0),
        Candidate("two days ago, first", b"a", midnight - 2 * DAY + HOUR, 1),
        Candidate("two days ago, second", b"a", midnight - 2 * DAY + 2 * HOUR, 2),
        Candidate("today", b"a", midnight + HOUR, 3),
    ]
    verdicts = decide(arrived, Policy(daily=3), midnight + 2 * HOUR)
    kept = [c.name for c in arrived if verdicts[c.name].keep]
    assert kept == ["two days ago, first", "today"]


@pytest.mark.parametrize("rule", ["hourly", "daily", "weekly", "monthly", "yearly"])
def test_each_bucket_rule_keeps_as_many_buckets_as_asked(rule: str) -> None:
    arrived = [Candidate(f"s{i}", b"a", NOW - i * HOUR, 10_000 - i) for i in range(24 * 900)]
    verdicts = decide(arrived, Policy(**{rule: 2}), NOW)
    assert sum(v.keep for v in verdicts.values()) in (2, 3)  # two buckets, and the newest if it is not a first


def test_weeks_begin_on_monday() -> None:
    monday = 1_780_272_000 * 10**9  # 2026-06-01 00:00 UTC
    arrived = [Candidate("sunday", b"a", monday - HOUR, 0), Candidate("monday", b"a", monday + HOUR, 1)]
    verdicts = decide(arrived, Policy(weekly=1), monday + DAY)
    assert [verdicts["sunday"].keep, verdicts["monday"].keep] == [False, True]


@pytest.mark.parametrize("off", [-BACKWARDS_NS - 1, FORWARDS_NS + 1])
def test_a_clock_that_leapt_is_not_believed(off: int) -> None:
    with pytest.raises(ClockRefused):
        guard_clock(NOW + off, NOW)


@pytest.mark.parametrize("off", [-BACKWARDS_NS, 0, FORWARDS_NS])
def test_a_clock_within_bounds_is_believed(off: int) -> None:
    guard_clock(NOW + off, NOW)
    guard_clock(NOW + off, None)
