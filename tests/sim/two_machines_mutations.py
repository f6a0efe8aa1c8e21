"""Deliberate faults in compaction without a lock: each must make a sweep or a meeting of two machines fail.

See `mutations`, and docs/crash-model.md for the list and for the faults that are harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mutations import Mutation, Patch, Proof, no_sync_of_bytes
from sweep import Sweep
from two_machines import MEETINGS_BY_NAME, STEPS_BY_NAME, after_deletion, in_a_hurry

from packnback.errors import ObjectMissing
from packnback.gc import condemn
from packnback.gc.rewrite import Rewriting
from packnback.store import leases
from packnback.store.objects import is_complete
from packnback.store.repository import LocalRepository
from packnback.store.session import LocalSession

Steps = condemn._Steps


def condemned_before_copied(patch: Patch) -> None:
    """Packs are condemned before what is needed of them has been copied."""
    rewrite = Steps._rewrite

    def faulty(self: Any) -> None:
        plan = self._todo.plan
        condemn.publish_list(self._repository, [*plan.drop, *plan.rewrite])
        rewrite(self)

    patch.setattr(Steps, "_rewrite", faulty)
    patch.setattr(Steps, "_condemn", lambda self: None)


def not_resurrected(patch: Patch) -> None:
    """What has become needed again is deleted with its condemned pack."""
    patch.setattr(Steps, "_rescue", lambda self: None)
    patch.setattr(Steps, "_rewrite", lambda self: None)
    patch.setattr(Rewriting, "is_superfluous", lambda self, name: True)


def due_at_once(patch: Patch) -> None:
    """Condemned packs may go whenever the next compaction comes."""
    patch.setattr(condemn._Ages, "older", lambda self, names, age_ns: list(names))


def no_list_that_outlives_the_packs(patch: Patch) -> None:
    """Packs are deleted, and then their list, and nothing says any more that they were condemned."""
    delete_due, publish_list = Steps._delete_due, condemn.publish_list

    def faulty(self: Any) -> None:
        patch.setattr(condemn, "publish_list", lambda repository, packs: "")
        delete_due(self)
        patch.setattr(condemn, "publish_list", publish_list)

    patch.setattr(Steps, "_delete_due", faulty)


def leases_not_looked_at(patch: Patch) -> None:
    """Whoever is at work, packs are deleted after a day."""
    patch.setattr(leases, "unaware", lambda *rest, **more: [])


def lease_after_the_first_look(patch: Patch) -> None:
    """A session reconciles first, and takes its lease when it is told what is there."""
    leased, learn = LocalRepository.leased, LocalRepository.learn

    @contextmanager
    def faulty(self: LocalRepository, what: str, *, at_once: bool = True) -> Iterator[Any]:
        with leased(self, what, at_once=False) as lease:
            yield lease

    def late(self: LocalRepository, lease: Any) -> None:
        learn(self, lease)
        if lease is not None:
            lease.tick()

    patch.setattr(LocalRepository, "leased", faulty)
    patch.setattr(LocalRepository, "learn", late)


def not_looked_at_again(patch: Patch) -> None:
    """A snapshot is acknowledged without one more look at the lists and packs."""
    secure = LocalSession._secure

    def faulty(self: Any, file: Any) -> None:
        if file not in vars(self).setdefault("looked", []):
            self.looked.append(file)
            secure(self, file)

    patch.setattr(LocalSession, "_secure", faulty)


def lists_not_looked_at_where_the_disk_is(patch: Patch) -> None:
    """The machine that has the disk relies on its lock alone."""
    patch.setattr(LocalSession, "_unfenced_deletion", property(lambda self: not self._fenced))


def condemned_packs_relied_on(patch: Patch) -> None:
    """A session takes for stored what stands only in condemned packs."""

    def has(self: Any, txn: Any, ids: Sequence[bytes]) -> list[bool]:
        return [self._is_open(i) or is_complete(txn, i) for i in ids]

    def secure(self: Any, file: Any) -> None:
        self._current.catch_up()
        if not self._current.read(lambda txn: is_complete(txn, file.header.root)):
            raise ObjectMissing(file.header.root)

    patch.setattr(LocalSession, "_has", has)
    patch.setattr(LocalSession, "_secure", secure)


def stepping(name: str) -> Proof:
    return Sweep(STEPS_BY_NAME[name]).run


def meeting(name: str) -> Proof:
    return MEETINGS_BY_NAME[name].run


_LOST = "the machine does not come up: DamageBlocks(what='incomplete snapshots'"
"""The run after that finds that something is missing."""

TWO_MACHINES = (
    Mutation(
        "condemned list: bytes not synced", no_sync_of_bytes("condemned/"), stepping("first step"), "I2: condemned/"
    ),
    Mutation("packs condemned before they are copied", condemned_before_copied, stepping("first step"), "condemned"),
    Mutation("needed again and deleted", not_resurrected, stepping("second step, needed again"), _LOST),
    Mutation("packs deleted without waiting", due_at_once, in_a_hurry, "I1/I6"),
    Mutation("lists gone with their packs", no_list_that_outlives_the_packs, after_deletion, "I1/I6"),
    Mutation("leases not looked at", leases_not_looked_at, meeting("both steps during a backup"), "leases"),
    Mutation(
        "lease after the first look", lease_after_the_first_look, meeting("both steps during a backup"), "leases"
    ),
    Mutation(
        "snapshot acknowledged without a last look",
        not_looked_at_again,
        meeting("both steps during a backup that is stopped"),
        "I",
    ),
    Mutation(
        "lists not looked at where the disk is",
        lists_not_looked_at_where_the_disk_is,
        meeting("both steps during a backup where the disk is"),
        "I",
    ),
    Mutation("condemned packs relied on", condemned_packs_relied_on, meeting("backup during the second step"), "I"),
)
