"""Hiding the order of a file's chunks from the repository.

Who knows in which order chunks were cut recognises a known large file by the sequence of their lengths. So ids
are asked for in sorted batches, and data records leave in shuffled ones; both are large. Neither class waits or
locks: the pipeline calls them under its lock.
"""

from __future__ import annotations

from collections import deque
from random import SystemRandom

from packnback.backup.job import Job
from packnback.ids import MIB

PACK_WORTH = 32 * MIB
"""Bytes in a full pack."""
BATCH_IDS = 64
"""A batch of look-ups has at least this many ids, or plaintexts worth a pack."""
SLICE_BYTES = 4 * MIB
"""Records that are put in one call: what a look-up may have to wait for."""


class LookupBatch:
    """Ids on their way to `has`."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._bytes = 0

    def add(self, job: Job) -> list[Job] | None:
        """One more id; the whole batch when it is large enough."""
        self._jobs.append(job)
        self._bytes += job.size
        if len(self._jobs) >= BATCH_IDS or self._bytes >= PACK_WORTH:
            return self.take()
        return None

    def take(self) -> list[Job]:
        """What has been collected, by id; possibly nothing."""
        jobs, self._jobs, self._bytes = self._jobs, [], 0
        return sorted(jobs, key=lambda job: job.id)


class Shuffle:
    """Sealed data records: collected until they are a pack's worth, then shuffled, then given out in slices.

    `bytes_limit` bounds what is held, whether collected, ready, or out and not yet `done`.
    """

    def __init__(self, bytes_limit: int) -> None:
        self._limit = bytes_limit
        self._random = SystemRandom()
        self._collected: list[Job] = []
        self._collected_bytes = 0
        self._ready: deque[Job] = deque()
        self.held = 0
        """Bytes of records that are held."""
        self.peak = 0

    @property
    def has_room(self) -> bool:
        """Whether more may be sealed."""
        return self.held < self._limit

    def add(self, job: Job) -> bool:
        """Collect a sealed job. True if there is something to put now."""
        self._collected.append(job)
        self._collected_bytes += job.record_length
        self.held += job.record_length
        self.peak = max(self.peak, self.held)
        if self._collected_bytes >= PACK_WORTH:
            self.shuffle()
        return bool(self._ready)

    def shuffle(self) -> None:
        """Make what was collected ready, however little it is."""
        self._random.shuffle(self._collected)
        self._ready.extend(self._collected)
        self._collected, self._collected_bytes = [], 0

    def slice(self) -> list[Job]:
        """The next records to put; none when a pack's worth is still being collected."""
        jobs: list[Job] = []
        count = 0
        while self._ready and count < SLICE_BYTES:
            jobs.append(self._ready.popleft())
            count += jobs[-1].record_length
        return jobs

    def done(self, count: int) -> None:
        """`count` bytes of records are out of our hands."""
        self.held -= count
