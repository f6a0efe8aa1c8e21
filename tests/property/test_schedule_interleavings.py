"""The pipeline's schedule under every order of its threads that a seed can think of: nobody sleeps for ever.

The threads are played one step at a time: a worker asks for a task or has done one, the session's thread likewise,
and the caller hands in, waits for room, asks, and drains. Who found nothing to do sleeps until he is woken, exactly
as with a condition; so a wake-up that is forgotten ends in a state where nobody can go on, which the test sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from packnback.backup import disguise, order, schedule
from packnback.backup.job import Job
from packnback.backup.schedule import Hurry, Question, Schedule, Wakes
from packnback.backup.ticket import Ticket
from packnback.events import Counters
from packnback.ids import Kind

PLAINTEXT, SEALED, META = 100, 90, 60
STEPS_MOST = 20_000

Wait = tuple[Callable[[], Any], Hurry]


@pytest.fixture(autouse=True, scope="module")
def small_bounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "PLAINTEXT_LIMIT", PLAINTEXT)
        patch.setattr(schedule, "SEALED_LIMIT", SEALED)
        patch.setattr(schedule, "META_LIMIT", META)
        patch.setattr(disguise, "PACK_WORTH", 50)
        patch.setattr(disguise, "BATCH_IDS", 4)
        patch.setattr(disguise, "SLICE_BYTES", 20)
        patch.setattr(order, "META_SLICE", 30)
        yield


class Resolver:
    def wait_for(self, ticket: Ticket) -> None:
        raise AssertionError("nobody waits here but the play's caller")


class Play:
    """All threads of a pipeline, as steps that `random` chooses among."""

    def __init__(self, random: Random, workers: int) -> None:
        self.random = random
        self.schedule = Schedule(Wakes(self._ring, self._wake_one, self._wake_all, self._wake_session), Counters())
        self.workers: list[str | Callable[[], None]] = ["awake"] * workers
        self.session: str | Callable[[], None] = "awake"
        self.rung = False
        self.repository: set[bytes] = set()
        self.stored: list[bytes] = []
        self.pending: set[bytes] = set()
        """What was put since the last flush."""
        self.sealed_peak = 0

    # --- wake-ups, as conditions and bells do them --------------------------------------------------------------

    def _ring(self) -> None:
        self.rung = True

    def _wake_one(self) -> None:
        asleep = [i for i, state in enumerate(self.workers) if state == "asleep"]
        if asleep:
            self.workers[self.random.choice(asleep)] = "awake"

    def _wake_all(self) -> None:
        self.workers = ["awake" if state == "asleep" else state for state in self.workers]

    def _wake_session(self) -> None:
        if self.session == "asleep":
            self.session = "awake"

    # --- steps --------------------------------------------------------------------------------------------------

    def _work(self, i: int) -> None:
        state = self.workers[i]
        if callable(state):
            self.workers[i] = "awake"
            state()
        elif job := self.schedule.take_to_seal():
            self.schedule.let_go(job)
            self.workers[i] = lambda: self._seal(job)
        elif job := self.schedule.take_to_hash():
            object_id = b"%r" % (job.plaintext,)
            self.workers[i] = lambda: self.schedule.hashed(job, object_id)
        else:
            self.workers[i] = "asleep"

    def _seal(self, job: Job) -> None:
        length = max(1, job.size // self.random.choice((1, 1, 3)))
        job.sealed = SimpleNamespace(record=bytes(length))  # type: ignore[assignment]
        self.schedule.sealed(job)
        self.sealed_peak = max(self.sealed_peak, self.schedule.shuffle.held)

    def _serve(self) -> None:
        state = self.session
        if callable(state):
            self.session = "awake"
            state()
        elif batch := self.schedule.take_to_look_up():
            known = [job.id in self.repository | self.pending for job in batch]  # open packs count
            self.session = lambda: self.schedule.looked_up(batch, known)
        elif question := self.schedule.take_question():
            answers = [i in self.repository for i in question.ids]
            self.session = lambda: self.schedule.answered(question, answers)
        elif jobs := self.schedule.take_to_put():
            self.stored += [job.id for job in jobs]
            self.pending.update(job.id for job in jobs)
            self.session = lambda: self.schedule.put(jobs)
        elif self.schedule.flush_due:
            self.repository |= self.pending
            self.session = self.schedule.flushed
        else:
            self.session = "asleep"

    def _nobody_sleeps_over_work(self, waiting: bool) -> None:
        planned = self.schedule
        if planned._to_hash or (planned._to_seal and planned.shuffle.has_room):
            assert set(self.workers) != {"asleep"}
        if planned._to_look_up or planned._questions or planned.shuffle._ready or (waiting and planned.flush_due):
            assert self.session != "asleep"

    def run(self, caller: Iterator[Wait]) -> None:
        """Until `caller` has ended. Fails when nobody can take a step."""
        waits, waiting = next(caller, None), False
        for _ in range(STEPS_MOST):
            if waits is None:
                return
            self._nobody_sleeps_over_work(waiting)
            steps: list[Callable[[], None]] = [
                lambda i=i: self._work(i)  # type: ignore[misc]
                for i, state in enumerate(self.workers)
                if state != "asleep"
            ]
            if self.session != "asleep":
                steps.append(self._serve)
            if not waiting or self.rung:
                step = self.random.choice([None, *steps])
                if step is None:
                    waiting, self.rung = True, False
                    condition, hurry = waits
                    if condition():
                        self.schedule.hurry = Hurry.NONE
                        waits, waiting = next(caller, None), False
                    else:
                        self.schedule.hurry = hurry
                        self.schedule.send_early()
                    continue
            else:
                assert steps, f"nobody can go on: {vars(self.schedule)}"
                step = self.random.choice(steps)
            step()
        raise AssertionError("no end")


def backup(play: Play, count: int) -> Iterator[Wait]:
    """A caller: data of all sizes, some of it twice, listings of it, questions, and a drain now and then."""
    random, planned = play.random, play.schedule
    ids: list[bytes] = []
    tickets: list[Ticket] = []
    for number in range(count):
        what = random.random()
        if what < 0.7:
            size = random.choice((1, 5, 20, 60, 150))
            plaintext = (random.randrange(count), size)
            job = Job(Kind.DATA, 0, b"", plaintext, size, None, Ticket(Resolver()))  # type: ignore[arg-type]
            yield lambda size=size: planned.plaintext.charge(size), Hurry.ROOM  # type: ignore[misc]
            assert job.ticket is not None
            tickets.append(job.ticket)
            planned.enter_data(job)
        elif what < 0.85:
            yield lambda: planned.meta_bytes < META, Hurry.ALL
            size = random.choice((1, 10, 40))
            job = Job(Kind.PAGE, 1, b"", (-number, size), size)  # type: ignore[arg-type]
            ids.append(b"%r" % ((-number, size),))
            planned.enter_meta(job, ids[-1])
        elif what < 0.9 and tickets:
            ticket = random.choice(tickets)
            yield lambda ticket=ticket: ticket.id is not None, Hurry.NONE  # type: ignore[misc]
        elif what < 0.97:
            question = Question([b"something"])
            planned.enter_question(question)
            yield lambda question=question: question.answers is not None, Hurry.NONE  # type: ignore[misc]
        else:
            planned.flush_wanted = True
            yield lambda: not planned.flush_wanted, Hurry.ALL
    planned.flush_wanted = True
    yield lambda: not planned.flush_wanted, Hurry.ALL
    assert {ticket.id for ticket in tickets} | set(ids) <= play.repository


@given(seed=st.integers(0, 2**64 - 1), workers=st.integers(1, 3), count=st.integers(0, 120))
def test_nobody_sleeps_for_ever_and_all_is_stored_once(seed: int, workers: int, count: int) -> None:
    note(f"seed {seed}, {workers} workers, {count} objects")
    play = Play(Random(seed), workers)
    play.run(backup(play, count))
    assert len(play.stored) == len(set(play.stored)) == play.schedule.objects_new
    assert play.schedule.plaintext.held == play.schedule.meta_bytes == play.schedule.shuffle.held == 0
    assert play.schedule.plaintext.peak <= max(PLAINTEXT, 150)
    assert play.sealed_peak <= SEALED + workers * 150
