"""The data path of a backup: from plaintext to records in the repository, on all cores, in bounded memory.

::

    caller ──► hash ──► look up ──► compress, seal ──► shuffle ──► put ──► flush
               workers  session     workers            (data)      session

The caller's thread reads and cuts, and goes first where cores are few: all others live on what it reads. Workers
hash, and seal what the repository lacks. One thread makes all calls of the session, which need not be thread-safe;
look-ups go before puts, and puts are small, so that workers do not run dry while a pack is being published.

Order of writes: an envelope before its first record; data in shuffled pack's worths; a listing after everything
that was handed in before it (`order`). Nothing is durable before `drain` returns.

Bounds: plaintext PLAINTEXT_LIMIT, sealed data SEALED_LIMIT, listings META_LIMIT bytes. The caller is made to wait
for room. Batches that hide the order of chunks (`disguise`) are sent early in two cases only: at the end, and when
a bound would otherwise hold everything up.

An exception in any thread stops all of them, and every later call of the caller raises it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from packnback.backup.buffers import Buffer, PlaintextBudget
from packnback.backup.disguise import LookupBatch, Shuffle
from packnback.backup.job import Job
from packnback.backup.order import Order
from packnback.backup.priority import step_back
from packnback.backup.sealing import Sealer
from packnback.backup.ticket import Ticket
from packnback.bell import Bell
from packnback.crypto.derive import Buffer as Bytes
from packnback.crypto.keys import PutKey
from packnback.events import Watch
from packnback.ids import MIB, Kind, ObjectClass
from packnback.store.interface import Session

PLAINTEXT_LIMIT = 72 * MIB
"""Two batches of look-ups and some more: one is sealed while the next one fills."""
SEALED_LIMIT = 48 * MIB
META_LIMIT = 24 * MIB
COMPRESSION = 3
WORKERS_MAX = 8

T = TypeVar("T")
_STAGES = ("hash", "look-up", "compress", "seal", "publish", "waiting")


class _Hurry(IntEnum):
    """Whether batches may leave before they are full."""

    NONE = 0
    ROOM = 1
    """The caller waits for room: ids that wait for company are asked for, once nothing else is under way."""
    ALL = 2
    """Everything is to be stored now."""


class Question:
    """Ids that the repository is asked for."""

    __slots__ = ("answers", "ids")

    def __init__(self, ids: Sequence[bytes]) -> None:
        self.ids = ids
        self.answers: list[bool] | None = None


class Pipeline:
    """Stores objects through `session`. A context manager: leaving it without `drain` abandons what is under way.

    All methods are for one thread, the caller's. `compression` is a zstd level or None.
    """

    def __init__(
        self,
        session: Session,
        put_key: PutKey,
        repository_id: bytes,
        *,
        compression: int | None = COMPRESSION,
        watch: Watch | None = None,
        workers: int | None = None,
    ) -> None:
        self.sealer = Sealer(put_key, repository_id, compression)
        self.objects_new = 0
        self.objects_known = 0
        self.bytes_new = 0
        """Plaintext of new objects."""
        self.bytes_sealed = 0
        """Records of new objects."""
        self._session = session
        self._counters = (watch or Watch()).counters
        self._spent_ns = dict.fromkeys(_STAGES, 0)

        self._lock = threading.Lock()
        self._caller = Bell()
        """Not a condition: the caller is the thread that may be interrupted."""
        self._work = threading.Condition(self._lock)
        self._calls = threading.Condition(self._lock)
        self._stopped = False
        self._failure: BaseException | None = None
        self._hurry = _Hurry.NONE
        self._flush_wanted = False

        self._plaintext = PlaintextBudget(PLAINTEXT_LIMIT)
        self._meta_bytes = 0
        self._order = Order()
        self._to_hash: deque[Job] = deque()
        self._underway: set[bytes] = set()
        """Ids between their hashing and their being put, which the repository cannot know of."""
        self._lookups = {object_class: LookupBatch() for object_class in ObjectClass}
        self._to_look_up: deque[list[Job]] = deque()
        self._questions: deque[Question] = deque()
        self._to_seal: deque[Job] = deque()
        self._shuffle = Shuffle(SEALED_LIMIT)
        self._hashing = self._looking_up = self._sealing = 0

        count = workers or min(len(os.sched_getaffinity(0)), WORKERS_MAX)
        self._threads = [
            threading.Thread(target=self._run_aside, args=(self._next_task,), name="seal") for _ in range(count)
        ]
        self._threads.append(threading.Thread(target=self._run, args=(self._next_call,), name="session"))

    # --- the caller's side ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            # An interrupt. The session's thread may be waiting for a far side that does not read or answer.
            self._session.abandon()
        self.close()

    def close(self) -> None:
        """Stop all threads; what was not drained is abandoned. May be called again."""
        with self._lock:
            self._stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    @property
    def timings(self) -> dict[str, float]:
        """Seconds spent in each stage, summed over threads; ``waiting`` is the caller's time in here."""
        with self._lock:
            return {stage: spent / 1e9 for stage, spent in self._spent_ns.items()}

    @property
    def plaintext_peak(self) -> int:
        """The most bytes of plaintext that were held at once."""
        return self._plaintext.peak

    @property
    def sealed_peak(self) -> int:
        """The most bytes of sealed data records that were held at once."""
        return self._shuffle.peak

    def new_ticket(self) -> Ticket:
        """A ticket for an object that is still being put together; pass it to `add_data` in the end."""
        return Ticket(self)

    def add_data(self, plaintext: Bytes, *, ticket: Ticket | None = None, lease: Buffer | None = None) -> Ticket:
        """Store a data object of up to 16 MiB. The ticket gets its id soon.

        With `lease`, the plaintext lies in that buffer, and stays there untouched until it is not needed any
        more; otherwise it must never change.
        """
        ticket = ticket or Ticket(self)
        size = len(plaintext)
        job = Job(Kind.DATA, 0, b"", plaintext, size, lease, ticket)
        if lease is None:
            self._wait_until(lambda: self._plaintext.charge(size), _Hurry.ROOM)
        with self._lock:
            self._check()
            if lease is not None:
                lease.users += 1
            ticket.size = size
            ticket.submitted = True
            self._order.enter(job)
            self._to_hash.append(job)
            self._work.notify()
        return ticket

    def add_meta(self, kind: Kind, level: int, refs: Sequence[bytes], plaintext: bytes) -> bytes:
        """Store an object that refers to others (ascending ids, all handed in before); returns its id."""
        job = Job(kind, level, b"".join(refs), plaintext, len(plaintext))
        began = time.perf_counter_ns()
        object_id = self.sealer.object_id(kind, job.refs, plaintext)
        spent = time.perf_counter_ns() - began
        self._wait_until(lambda: self._meta_bytes < META_LIMIT, _Hurry.ALL)
        with self._lock:
            self._spent_ns["hash"] += spent
            self._meta_bytes += job.size
            self._order.enter(job)
            self._named(job, object_id)
        return object_id

    def acquire_buffer(self) -> Buffer:
        """A buffer to read into; waits until the budget for plaintext has room for one."""
        return self._wait_until(self._plaintext.acquire, _Hurry.ROOM)

    def hold_buffer(self, buffer: Buffer) -> None:
        """Keep a buffer that is held already for one more user, who has to give it back too."""
        with self._lock:
            buffer.users += 1

    def release_buffer(self, buffer: Buffer) -> None:
        """Give a buffer back; jobs that lie in it keep it from being lent again."""
        with self._lock:
            self._plaintext.release(buffer)
            self._caller.ring()

    def wait_for(self, ticket: Ticket) -> None:
        """Return when `ticket` has its id."""
        if not ticket.submitted:
            raise RuntimeError("waiting for an object that is still being put together")
        self._wait_until(lambda: ticket.id is not None, _Hurry.NONE)

    def ask(self, ids: Sequence[bytes]) -> Question:
        """Ask, without waiting, which of the objects `ids` (ascending) the repository has."""
        question = Question(ids)
        with self._lock:
            self._check()
            self._questions.append(question)
            self._calls.notify()
        return question

    def answer(self, question: Question) -> list[bool]:
        """For each of the ids, whether the object and everything it needs is there; waits for it."""
        self._wait_until(lambda: question.answers is not None, _Hurry.NONE)
        return question.answers or []

    def drain(self) -> None:
        """Return when everything that was handed in is durable in the repository."""
        with self._lock:
            self._check()
            self._flush_wanted = True
        self._wait_until(lambda: not self._flush_wanted, _Hurry.ALL)

    def _wait_until(self, condition: Callable[[], T | None], hurry: _Hurry) -> T:
        """Wait for something true from `condition`, asked under the lock; `hurry` says what may be sent early."""
        while True:
            with self._lock:
                self._check()
                if result := condition():
                    self._hurry = _Hurry.NONE
                    return result
                self._hurry = hurry
                self._send_early()
            began = time.perf_counter_ns()
            self._caller.wait()
            waited = time.perf_counter_ns() - began
            with self._lock:
                self._spent_ns["waiting"] += waited

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._stopped:
            raise RuntimeError("the pipeline is closed")

    # --- threads ---------------------------------------------------------------------------------------------

    def _run_aside(self, next_step: Callable[[], Callable[[], None] | None]) -> None:
        step_back()
        self._run(next_step)

    def _run(self, next_step: Callable[[], Callable[[], None] | None]) -> None:
        try:
            while (step := next_step()) is not None:
                step()
        except BaseException as error:  # noqa: BLE001  whatever it is, it is the caller who has to hear of it
            with self._lock:
                self._failure = self._failure or error
                self._stop()

    def _stop(self) -> None:
        self._stopped = True
        self._caller.ring()
        self._work.notify_all()
        self._calls.notify_all()

    def _next_task(self) -> Callable[[], None] | None:
        """What a worker does next. Sealing goes first, as it frees memory."""
        with self._lock:
            while not self._stopped:
                if self._to_seal and self._shuffle.has_room:
                    self._sealing += 1
                    return partial(self._seal, self._to_seal.popleft())
                if self._to_hash:
                    self._hashing += 1
                    return partial(self._hash, self._to_hash.popleft())
                self._work.wait()
        return None

    def _next_call(self) -> Callable[[], None] | None:
        """What the session's thread does next. Look-ups go first, as workers wait for them."""
        with self._lock:
            while not self._stopped:
                if self._to_look_up:
                    self._looking_up += 1
                    return partial(self._look_up, self._to_look_up.popleft())
                if self._questions:
                    return partial(self._answer, self._questions.popleft())
                jobs = self._shuffle.slice() or self._order.take_meta(hurry=self._hurry is _Hurry.ALL)
                if jobs:
                    return partial(self._put, jobs)
                if self._flush_wanted and not self._order.unsettled:
                    return self._flush
                self._calls.wait()
        return None

    def _send_early(self) -> None:
        """Send what only waits for company, if the caller waits for that and nothing else can come before."""
        if self._hurry is _Hurry.NONE or self._to_hash or self._hashing:
            return
        busy = bool(self._to_look_up or self._looking_up or self._to_seal or self._sealing)
        if self._hurry is _Hurry.ALL or not busy:
            for lookup in self._lookups.values():
                if jobs := lookup.take():
                    self._to_look_up.append(jobs)
                    busy = True
        if self._hurry is _Hurry.ALL and not busy:
            self._shuffle.shuffle()
        self._calls.notify()

    # --- stages -------------------------------------------------------------------------------------------------

    def _hash(self, job: Job) -> None:
        began = time.perf_counter_ns()
        object_id = self.sealer.object_id(job.kind, job.refs, job.plaintext)
        spent = time.perf_counter_ns() - began
        with self._lock:
            self._spent_ns["hash"] += spent
            self._hashing -= 1
            self._named(job, object_id)
            self._send_early()

    def _named(self, job: Job, object_id: bytes) -> None:
        """A job has its id: see whether the repository has it, unless this run is about to store it anyway."""
        self._counters.bytes_hashed += job.size
        job.id = object_id
        if job.ticket is not None:
            job.ticket.id = object_id
            self._caller.ring()
        if object_id in self._underway:
            self._known(job)
            return
        self._underway.add(object_id)
        if batch := self._lookups[job.object_class].add(job):
            self._to_look_up.append(batch)
            self._calls.notify()

    def _known(self, job: Job) -> None:
        self.objects_known += 1
        self._let_go(job)
        if job.kind != Kind.DATA:
            self._meta_bytes -= job.size
        self._order.settle(job)
        self._calls.notify()

    def _let_go(self, job: Job) -> None:
        """The plaintext is not needed any more."""
        job.plaintext = b""
        if job.lease is not None:
            self._plaintext.release(job.lease)
            job.lease = None
        elif job.kind == Kind.DATA:
            self._plaintext.refund(job.size)
        if self._hurry is _Hurry.ROOM:
            self._hurry = _Hurry.NONE  # until the caller has looked whether this is room enough
        self._caller.ring()

    def _look_up(self, jobs: list[Job]) -> None:
        began = time.perf_counter_ns()
        known = self._session.has([job.id for job in jobs])
        spent = time.perf_counter_ns() - began
        with self._lock:
            self._spent_ns["look-up"] += spent
            self._looking_up -= 1
            for job, there in zip(jobs, known, strict=True):
                if there:
                    self._underway.remove(job.id)
                    self._known(job)
                else:
                    self.objects_new += 1
                    self.bytes_new += job.size
                    self._to_seal.append(job)
            self._work.notify_all()
            self._send_early()

    def _seal(self, job: Job) -> None:
        began = time.perf_counter_ns()
        payload = self.sealer.compress(job.kind, job.plaintext)
        compressed = time.perf_counter_ns()
        unsealed = self.sealer.lay_out(job.kind, job.level, job.refs, job.id, payload)
        del payload
        with self._lock:
            self._let_go(job)
        job.sealed = self.sealer.seal(unsealed)
        sealed = time.perf_counter_ns()
        with self._lock:
            self._spent_ns["compress"] += compressed - began
            self._spent_ns["seal"] += sealed - compressed
            self.bytes_sealed += job.record_length
            self._sealing -= 1
            if job.kind == Kind.DATA:
                something_to_put = self._shuffle.add(job)
            else:
                self._meta_bytes += job.record_length - job.size
                something_to_put = True
            # Each thread that is woken wants the interpreter, which the caller's thread is busy with.
            if something_to_put or self._flush_wanted:
                self._calls.notify()
            self._send_early()

    def _answer(self, question: Question) -> None:
        began = time.perf_counter_ns()
        answers = self._session.has(question.ids)
        with self._lock:
            self._spent_ns["look-up"] += time.perf_counter_ns() - began
            question.answers = answers
            self._caller.ring()

    def _put(self, jobs: list[Job]) -> None:
        began = time.perf_counter_ns()
        records: list[bytes | bytearray] = []
        for job in jobs:
            if job.sealed is None:
                raise RuntimeError("an object is put before it was sealed")
            if not job.sealed.envelope.stored:
                job.sealed.envelope.stored = True
                records.append(job.sealed.envelope.record)
            records.append(job.sealed.record)
        self._session.put(records)
        spent = time.perf_counter_ns() - began
        with self._lock:
            self._spent_ns["publish"] += spent
            for job in jobs:
                self._underway.remove(job.id)
                self._order.settle(job)
                if job.kind == Kind.DATA:
                    self._shuffle.done(job.record_length)
                else:
                    self._meta_bytes -= job.record_length
                job.sealed = None
            self._work.notify_all()
            self._caller.ring()
            self._send_early()

    def _flush(self) -> None:
        began = time.perf_counter_ns()
        self._session.flush()
        with self._lock:
            self._spent_ns["publish"] += time.perf_counter_ns() - began
            self._flush_wanted = False
            self._caller.ring()
