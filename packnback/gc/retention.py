"""Which snapshots a policy keeps: a pure function of receipts and the present time.

Whoever owns a client can send as many snapshots as he likes, with any time of his own in them. So nothing here
looks at client time, each client is judged by itself, and every rule is such that *nothing which arrives later
can evict what was kept earlier*: a bucket (an hour, a day, an ISO week, a month, a year, in UTC) keeps its first
snapshot, not its last, and "the newest N" only ever adds. Buckets are counted back from now, empty ones
included, so that a flood cannot push old buckets out either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from msgspec import Struct, field
from msgspec.structs import astuple

from packnback.errors import ClockRefused

BACKWARDS_NS = 15 * 60 * 10**9
"""The clock may be this much behind the newest receipt or marker …"""
FORWARDS_NS = 60 * 86_400 * 10**9
"""… and this much ahead of it, before it is not believed."""
_DAY_NS = 86_400 * 10**9


class Policy(Struct, frozen=True):
    """What to keep. None and 0 mean: this rule keeps nothing."""

    within_ns: int | None = None
    newest: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    @property
    def empty(self) -> bool:
        """Whether no rule keeps anything."""
        return not any(astuple(self))


class Candidate(Struct, frozen=True):
    """A live, complete snapshot as retention sees it."""

    name: str
    client_id: bytes
    received_ns: int
    counter: int


class Verdict(Struct):
    """Whether a snapshot stays, and why."""

    keep: bool = False
    reasons: list[str] = field(default_factory=list)

    def add(self, reason: str) -> None:
        """One more reason to keep it."""
        self.keep = True
        self.reasons.append(reason)


def _hour(ns: int) -> int:
    return ns // (3600 * 10**9)


def _day(ns: int) -> int:
    return ns // _DAY_NS


def _week(ns: int) -> int:
    return (ns // _DAY_NS + 3) // 7  # 1970-01-01 was a Thursday; ISO weeks begin on Mondays


def _month(ns: int) -> int:
    moment = datetime.fromtimestamp(ns // 10**9, UTC)
    return moment.year * 12 + moment.month


def _year(ns: int) -> int:
    return datetime.fromtimestamp(ns // 10**9, UTC).year


_BUCKETS: tuple[tuple[str, str, Callable[[int], int]], ...] = (
    ("hourly", "hour", _hour),
    ("daily", "day", _day),
    ("weekly", "week", _week),
    ("monthly", "month", _month),
    ("yearly", "year", _year),
)


def decide(candidates: Iterable[Candidate], policy: Policy, now_ns: int) -> dict[str, Verdict]:
    """The verdict for each candidate, by its name. Each client's newest snapshot is always kept."""
    verdicts: dict[str, Verdict] = {}
    by_client: dict[bytes, list[Candidate]] = {}
    for candidate in candidates:
        by_client.setdefault(candidate.client_id, []).append(candidate)
    for arrived in by_client.values():
        arrived.sort(key=lambda c: (c.received_ns, c.counter, c.name))
        verdicts.update(_decide_client(arrived, policy, now_ns))
    return verdicts


def _decide_client(arrived: Sequence[Candidate], policy: Policy, now_ns: int) -> dict[str, Verdict]:
    verdicts = {c.name: Verdict() for c in arrived}
    verdicts[arrived[-1].name].add("newest of its client")
    for candidate in arrived[-policy.newest :] if policy.newest else ():
        verdicts[candidate.name].add(f"one of the newest {policy.newest}")
    if policy.within_ns:
        for candidate in arrived:
            if candidate.received_ns >= now_ns - policy.within_ns:
                verdicts[candidate.name].add("within the time to keep all")
    for rule, unit, bucket_of in _BUCKETS:
        wanted, seen = getattr(policy, rule), set()
        for candidate in arrived if wanted else ():
            bucket = bucket_of(candidate.received_ns)
            if bucket not in seen and bucket_of(now_ns) - bucket < wanted:
                verdicts[candidate.name].add(f"first of its {unit}")
            seen.add(bucket)
    for verdict in verdicts.values():
        if not verdict.keep:
            verdict.reasons.append("no rule keeps it")
    return verdicts


def guard_clock(now_ns: int, newest_ns: int | None) -> None:
    """Refuse (ClockRefused) to delete by a clock that went backwards or leapt.

    `newest_ns` is the time of the newest receipt or marker, None when there is none.
    """
    if newest_ns is not None and not newest_ns - BACKWARDS_NS <= now_ns <= newest_ns + FORWARDS_NS:
        raise ClockRefused(now_ns, newest_ns)
