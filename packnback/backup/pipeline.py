"""The data path of a backup: from plaintext to records in the repository, on all cores, in bounded memory.

::

    caller ──► hash ──► look up ──► compress, seal ──► shuffle ──► put ──► flush
               workers  session     workers            (data)      session

The caller's thread reads and cuts, and goes first where cores are few: all others live on what it reads. Workers
hash, and seal what the repository lacks. One thread makes all calls of the session, which need not be thread-safe;
look-ups go before puts, and puts are small, so that workers do not run dry while a pack is being published.

Order of writes: an envelope before its first record; data in shuffled pack's worths; a listing after everything
that was handed in before it (`order`). Nothing is durable before `drain` returns.

What is where, what may go next, and the bounds that make the caller wait are in `schedule`. Here are the threads, and
what they do.

An exception in any thread stops all of them, and every later call of the caller raises it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from packnback.backup.buffers import Buffer
from packnback.backup.job import Job
from packnback.backup.priority import step_back
from packnback.backup.schedule import META_LIMIT, Hurry, Question, Schedule, Wakes
from packnback.backup.sealing import Sealer
from packnback.backup.ticket import Ticket
from packnback.bell import Bell
from packnback.crypto.derive import Buffer as Bytes
from packnback.crypto.keys import PutKey
from packnback.errors import StorageFailed
from packnback.events import Watch
from packnback.ids import Kind
from packnback.oserrors import reason_of
from packnback.store.interface import Session

COMPRESSION = 3
WORKERS_MAX = 8

T = TypeVar("T")
_STAGES = ("hash", "look-up", "compress", "seal", "publish", "waiting")


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
        self._session = session
        self._spent_ns = dict.fromkeys(_STAGES, 0)

        self._lock = threading.Lock()
        self._caller = Bell()
        """Not a condition: the caller is the thread that may be interrupted."""
        self._work = threading.Condition(self._lock)
        self._calls = threading.Condition(self._lock)
        self._stopped = False
        self._failure: BaseException | None = None
        wakes = Wakes(self._caller.ring, self._work.notify, self._work.notify_all, self._calls.notify)
        self._schedule = Schedule(wakes, (watch or Watch()).counters)

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
    def objects_new(self) -> int:
        """Objects that the repository did not have."""
        return self._schedule.objects_new

    @property
    def objects_known(self) -> int:
        """Objects that it had, or that were handed in twice."""
        return self._schedule.objects_known

    @property
    def bytes_new(self) -> int:
        """Plaintext of new objects."""
        return self._schedule.bytes_new

    @property
    def bytes_sealed(self) -> int:
        """Records of new objects."""
        return self._schedule.bytes_sealed

    @property
    def plaintext_peak(self) -> int:
        """The most bytes of plaintext that were held at once."""
        return self._schedule.plaintext.peak

    @property
    def sealed_peak(self) -> int:
        """The most bytes of sealed data records that were held at once."""
        return self._schedule.shuffle.peak

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
            self._wait_until(lambda: self._schedule.plaintext.charge(size), Hurry.ROOM)
        with self._lock:
            self._check()
            if lease is not None:
                lease.users += 1
            ticket.size = size
            ticket.submitted = True
            self._schedule.enter_data(job)
        return ticket

    def id_of_data(self, plaintext: Bytes) -> bytes:
        """The id that a data object has or would have."""
        return self.sealer.object_id(Kind.DATA, b"", plaintext)

    def add_meta(self, kind: Kind, level: int, refs: Sequence[bytes], plaintext: bytes) -> bytes:
        """Store an object that refers to others (ascending ids, all handed in before); returns its id."""
        job = Job(kind, level, b"".join(refs), plaintext, len(plaintext))
        began = time.perf_counter_ns()
        object_id = self.sealer.object_id(kind, job.refs, plaintext)
        spent = time.perf_counter_ns() - began
        self._wait_until(lambda: self._schedule.meta_bytes < META_LIMIT, Hurry.ALL)
        with self._lock:
            self._spent_ns["hash"] += spent
            self._schedule.enter_meta(job, object_id)
        return object_id

    def acquire_buffer(self) -> Buffer:
        """A buffer to read into; waits until the budget for plaintext has room for one."""
        return self._wait_until(self._schedule.plaintext.acquire, Hurry.ROOM)

    def hold_buffer(self, buffer: Buffer) -> None:
        """Keep a buffer that is held already for one more user, who has to give it back too."""
        with self._lock:
            buffer.users += 1

    def release_buffer(self, buffer: Buffer) -> None:
        """Give a buffer back; jobs that lie in it keep it from being lent again."""
        with self._lock:
            self._schedule.plaintext.release(buffer)
            self._caller.ring()

    def wait_for(self, ticket: Ticket) -> None:
        """Return when `ticket` has its id."""
        if not ticket.submitted:
            raise RuntimeError("waiting for an object that is still being put together")
        self._wait_until(lambda: ticket.id is not None, Hurry.NONE)

    def ask(self, ids: Sequence[bytes]) -> Question:
        """Ask, without waiting, which of the objects `ids` (ascending) the repository has."""
        question = Question(ids)
        with self._lock:
            self._check()
            self._schedule.enter_question(question)
        return question

    def answer(self, question: Question) -> list[bool]:
        """For each of the ids, whether the object and everything it needs is there; waits for it."""
        self._wait_until(lambda: question.answers is not None, Hurry.NONE)
        return question.answers or []

    def drain(self) -> None:
        """Return when everything that was handed in is durable in the repository."""
        with self._lock:
            self._check()
            self._schedule.flush_wanted = True
        self._wait_until(lambda: not self._schedule.flush_wanted, Hurry.ALL)

    def _wait_until(self, condition: Callable[[], T | None], hurry: Hurry) -> T:
        """Wait for something true from `condition`, asked under the lock; `hurry` says what may be sent early."""
        while True:
            with self._lock:
                self._check()
                if result := condition():
                    self._schedule.hurry = Hurry.NONE
                    return result
                self._schedule.hurry = hurry
                self._schedule.send_early()
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
        except OSError as error:
            # Not as one: the caller is reading files, and would leave out this one and that one, for ever.
            self._fail(StorageFailed("write to", "the repository", reason_of(error)))
        except BaseException as error:  # noqa: BLE001  whatever it is, it is the caller who has to hear of it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
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
                if job := self._schedule.take_to_seal():
                    return partial(self._seal, job)
                if job := self._schedule.take_to_hash():
                    return partial(self._hash, job)
                self._work.wait()
        return None

    def _next_call(self) -> Callable[[], None] | None:
        """What the session's thread does next. Look-ups go first, as workers wait for them."""
        with self._lock:
            while not self._stopped:
                if batch := self._schedule.take_to_look_up():
                    return partial(self._look_up, batch)
                if question := self._schedule.take_question():
                    return partial(self._answer, question)
                if jobs := self._schedule.take_to_put():
                    return partial(self._put, jobs)
                if self._schedule.flush_due:
                    return self._flush
                self._calls.wait()
        return None

    # --- stages -------------------------------------------------------------------------------------------------

    def _hash(self, job: Job) -> None:
        began = time.perf_counter_ns()
        object_id = self.sealer.object_id(job.kind, job.refs, job.plaintext)
        spent = time.perf_counter_ns() - began
        with self._lock:
            self._spent_ns["hash"] += spent
            self._schedule.hashed(job, object_id)

    def _look_up(self, jobs: list[Job]) -> None:
        began = time.perf_counter_ns()
        known = self._session.has([job.id for job in jobs])
        spent = time.perf_counter_ns() - began
        with self._lock:
            self._spent_ns["look-up"] += spent
            self._schedule.looked_up(jobs, known)

    def _seal(self, job: Job) -> None:
        began = time.perf_counter_ns()
        payload = self.sealer.compress(job.kind, job.plaintext)
        compressed = time.perf_counter_ns()
        unsealed = self.sealer.lay_out(job.kind, job.level, job.refs, job.id, payload)
        del payload
        with self._lock:
            self._schedule.let_go(job)
        job.sealed = self.sealer.seal(unsealed)
        sealed = time.perf_counter_ns()
        with self._lock:
            self._spent_ns["compress"] += compressed - began
            self._spent_ns["seal"] += sealed - compressed
            self._schedule.sealed(job)

    def _answer(self, question: Question) -> None:
        began = time.perf_counter_ns()
        answers = self._session.has(question.ids)
        with self._lock:
            self._spent_ns["look-up"] += time.perf_counter_ns() - began
            self._schedule.answered(question, answers)

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
            self._schedule.put(jobs)

    def _flush(self) -> None:
        began = time.perf_counter_ns()
        self._session.flush()
        with self._lock:
            self._spent_ns["publish"] += time.perf_counter_ns() - began
            self._schedule.flushed()
