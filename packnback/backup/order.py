"""What may be stored before what: a listing only after everything that was handed in before it.

A repository takes a record only when all that it refers to is there. Whoever hands in a listing knows the ids in
it, so the objects were handed in earlier; hence the rule, which needs no look at refs: a meta record waits until
every data object with a lower number is settled (stored or known), and meta records keep their order.

Not locked: the pipeline calls it under its lock.
"""

from __future__ import annotations

from collections import deque

from packnback.backup.job import Job
from packnback.ids import MIB, Kind

META_SLICE = 4 * MIB
"""Meta records are put in portions of this many bytes, when there is no hurry."""


class Order:
    """Numbers all jobs, and lets meta jobs go when their turn has come."""

    def __init__(self) -> None:
        self._next = 0
        self._data: dict[int, None] = {}
        self._meta: deque[Job] = deque()
        self._ready: list[Job] = []
        self._ready_bytes = 0
        self.unsettled = 0
        """Jobs that are neither stored nor known."""

    def enter(self, job: Job) -> None:
        """A job is handed in."""
        job.number = self._next
        self._next += 1
        self.unsettled += 1
        if job.kind == Kind.DATA:
            self._data[job.number] = None
        else:
            self._meta.append(job)

    def settle(self, job: Job) -> None:
        """A job is stored, or known to be."""
        job.settled = True
        self.unsettled -= 1
        if job.kind == Kind.DATA:
            del self._data[job.number]

    def take_meta(self, *, hurry: bool) -> list[Job]:
        """Sealed meta jobs whose turn it is, in order: a portion, or all there are if there is a hurry."""
        oldest_data = next(iter(self._data), self._next)
        while self._meta and self._meta[0].number < oldest_data:
            job = self._meta[0]
            if not job.settled:
                if job.sealed is None:
                    break
                self._ready.append(job)
                self._ready_bytes += job.record_length
            self._meta.popleft()
        if self._ready_bytes < META_SLICE and not hurry:
            return []
        jobs, self._ready, self._ready_bytes = self._ready, [], 0
        return jobs
