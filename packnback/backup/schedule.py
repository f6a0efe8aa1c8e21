"""Where every object is on its way through the pipeline, and what may be done next.

The decisions of `packnback.backup.pipeline`, without its threads: nothing here waits or locks, and all of it is
called under the pipeline's lock. Whom a change concerns is woken through `Wakes`, and nobody else: each thread that
is woken wants the interpreter, which the caller's thread is busy with.

Bounds: plaintext PLAINTEXT_LIMIT, sealed data SEALED_LIMIT, listings META_LIMIT bytes. Batches that hide the order of
chunks (`disguise`) are sent early in two cases only: at the end, and when a bound would otherwise hold everything up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

from packnback.backup.buffers import PlaintextBudget
from packnback.backup.disguise import LookupBatch, Shuffle
from packnback.backup.job import Job
from packnback.backup.order import Order
from packnback.events import Counters
from packnback.ids import MIB, Kind, ObjectClass

PLAINTEXT_LIMIT = 72 * MIB
"""Two batches of look-ups and some more: one is sealed while the next one fills."""
SEALED_LIMIT = 48 * MIB
META_LIMIT = 24 * MIB


class Hurry(IntEnum):
    """Whether batches may leave before they are full."""

    NONE = 0
    ROOM = 1
    """The caller waits for room: ids that wait for company are asked for, once nothing else is under way."""
    ALL = 2
    """Everything is to be stored now."""


class Wakes(NamedTuple):
    """How those are woken for whom there is something to do."""

    caller: Callable[[], None]
    worker: Callable[[], None]
    all_workers: Callable[[], None]
    session: Callable[[], None]


class Question:
    """Ids that the repository is asked for."""

    __slots__ = ("answers", "ids")

    def __init__(self, ids: Sequence[bytes]) -> None:
        self.ids = ids
        self.answers: list[bool] | None = None


class Schedule:
    """All objects that were handed in and are not yet settled."""

    def __init__(self, wakes: Wakes, counters: Counters) -> None:
        self.objects_new = 0
        self.objects_known = 0
        self.bytes_new = 0
        """Plaintext of new objects."""
        self.bytes_sealed = 0
        """Records of new objects."""
        self.hurry = Hurry.NONE
        self.flush_wanted = False
        self.plaintext = PlaintextBudget(PLAINTEXT_LIMIT)
        self.meta_bytes = 0
        """Of listings, sealed or not."""
        self.shuffle = Shuffle(SEALED_LIMIT)
        self._wakes = wakes
        self._counters = counters
        self._order = Order()
        self._to_hash: deque[Job] = deque()
        self._underway: set[bytes] = set()
        """Ids between their hashing and their being put, which the repository cannot know of."""
        self._lookups = {object_class: LookupBatch() for object_class in ObjectClass}
        self._to_look_up: deque[list[Job]] = deque()
        self._questions: deque[Question] = deque()
        self._to_seal: deque[Job] = deque()
        self._hashing = self._looking_up = self._sealing = 0

    # --- what the caller hands in ------------------------------------------------------------------------------

    def enter_data(self, job: Job) -> None:
        """A data object; its plaintext is charged to the budget already."""
        self._order.enter(job)
        self._to_hash.append(job)
        self._wakes.worker()

    def enter_meta(self, job: Job, object_id: bytes) -> None:
        """A listing, which has its id already."""
        self.meta_bytes += job.size
        self._order.enter(job)
        self._named(job, object_id)

    def enter_question(self, question: Question) -> None:
        """Ids to ask for; nothing waits for that but the caller, in the end."""
        self._questions.append(question)
        self._wakes.session()

    def send_early(self) -> None:
        """Send what only waits for company, if the caller waits for that and nothing else can come before."""
        if self.hurry is Hurry.NONE or self._to_hash or self._hashing:
            return
        busy = bool(self._to_look_up or self._looking_up or self._to_seal or self._sealing)
        if self.hurry is Hurry.ALL or not busy:
            for lookup in self._lookups.values():
                if jobs := lookup.take():
                    self._to_look_up.append(jobs)
                    busy = True
        if self.hurry is Hurry.ALL and not busy:
            self.shuffle.shuffle()
        self._wakes.session()

    # --- what is to be done next ---------------------------------------------------------------------------------

    def take_to_seal(self) -> Job | None:
        """An object that the repository lacks, if there is room for its record."""
        if not self._to_seal or not self.shuffle.has_room:
            return None
        self._sealing += 1
        return self._to_seal.popleft()

    def take_to_hash(self) -> Job | None:
        """An object that has no id yet."""
        if not self._to_hash:
            return None
        self._hashing += 1
        return self._to_hash.popleft()

    def take_to_look_up(self) -> list[Job] | None:
        """A batch of objects, by id."""
        if not self._to_look_up:
            return None
        self._looking_up += 1
        return self._to_look_up.popleft()

    def take_question(self) -> Question | None:
        """The oldest question."""
        return self._questions.popleft() if self._questions else None

    def take_to_put(self) -> list[Job]:
        """Sealed objects that may be put now, in this order; possibly none."""
        return self.shuffle.slice() or self._order.take_meta(hurry=self.hurry is Hurry.ALL)

    @property
    def flush_due(self) -> bool:
        """Whether a flush is wanted, and everything has been put."""
        return self.flush_wanted and not self._order.unsettled

    # --- what was done -------------------------------------------------------------------------------------------

    def hashed(self, job: Job, object_id: bytes) -> None:
        """A job of `take_to_hash` has its id."""
        self._hashing -= 1
        self._named(job, object_id)
        self.send_early()

    def _named(self, job: Job, object_id: bytes) -> None:
        """See whether the repository has the object, unless this run is about to store it anyway."""
        self._counters.bytes_hashed += job.size
        job.id = object_id
        if job.ticket is not None:
            job.ticket.id = object_id
            self._wakes.caller()
        if object_id in self._underway:
            self._known(job)
            return
        self._underway.add(object_id)
        if batch := self._lookups[job.object_class].add(job):
            self._to_look_up.append(batch)
            self._wakes.session()

    def _known(self, job: Job) -> None:
        self.objects_known += 1
        self.let_go(job)
        if job.kind != Kind.DATA:
            self.meta_bytes -= job.size
        self._order.settle(job)
        self._wakes.session()

    def let_go(self, job: Job) -> None:
        """The plaintext is not needed any more."""
        job.plaintext = b""
        if job.lease is not None:
            self.plaintext.release(job.lease)
            job.lease = None
        elif job.kind == Kind.DATA:
            self.plaintext.refund(job.size)
        if self.hurry is Hurry.ROOM:
            self.hurry = Hurry.NONE  # until the caller has looked whether this is room enough
        self._wakes.caller()

    def looked_up(self, jobs: Sequence[Job], known: Sequence[bool]) -> None:
        """The repository has told which of a batch of `take_to_look_up` it has."""
        self._looking_up -= 1
        for job, there in zip(jobs, known, strict=True):
            if there:
                self._underway.remove(job.id)
                self._known(job)
            else:
                self.objects_new += 1
                self.bytes_new += job.size
                self._to_seal.append(job)
        self._wakes.all_workers()
        self.send_early()

    def answered(self, question: Question, answers: list[bool]) -> None:
        """The repository has answered one of `take_question`."""
        question.answers = answers
        self._wakes.caller()

    def sealed(self, job: Job) -> None:
        """A job of `take_to_seal` has its record."""
        self.bytes_sealed += job.record_length
        self._sealing -= 1
        if job.kind == Kind.DATA:
            something_to_put = self.shuffle.add(job)
        else:
            self.meta_bytes += job.record_length - job.size
            something_to_put = True
        if something_to_put or self.flush_wanted:
            self._wakes.session()
        self.send_early()

    def put(self, jobs: Sequence[Job]) -> None:
        """The repository has taken what `take_to_put` gave."""
        for job in jobs:
            self._underway.remove(job.id)
            self._order.settle(job)
            if job.kind == Kind.DATA:
                self.shuffle.done(job.record_length)
            else:
                self.meta_bytes -= job.record_length
            job.sealed = None
        self._wakes.all_workers()
        self._wakes.caller()
        self.send_early()

    def flushed(self) -> None:
        """Everything that was put is durable."""
        self.flush_wanted = False
        self._wakes.caller()
