"""Locks without files, for a simulated machine: `packnback.store.lock.Locks` in memory.

One object stands for the two lock files of one repository during one life of the machine: every handle on the
repository shares it, and after a power cut there is a new one, because no lock survives its holder.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from steps import Steps

from packnback.errors import Locked, StorageFailed


class SimLocks:
    """See `packnback.store.lock.Locks`."""

    def __init__(self, steps: Steps | None = None) -> None:
        self._steps = steps if steps is not None else Steps()
        self._changed = threading.Condition()
        self._sessions = 0
        self._compacting = False
        self._compactions_waiting = 0

    def shared(self, wait_s: float, *, reading: bool = False) -> SimHeld:
        self._steps.check()
        with self._changed:
            if not self._changed.wait_for(
                lambda: not self._compacting and not self._compactions_waiting, timeout=wait_s
            ):
                raise Locked("lock", "compaction", wait_s)
            self._sessions += 1
        return SimHeld(self, exclusive=False)

    def exclusive(self, wait_s: float) -> SimHeld:
        self._steps.check()
        with self._changed:
            self._compactions_waiting += 1
            try:
                if not self._changed.wait_for(lambda: not self._compacting and not self._sessions, timeout=wait_s):
                    raise Locked("lock", "compaction" if self._compacting else "session", wait_s)
                self._compacting = True
            finally:
                self._compactions_waiting -= 1
                self._changed.notify_all()
        return SimHeld(self, exclusive=True)

    def _release(self, exclusive: bool) -> None:
        with self._changed:
            if exclusive:
                self._compacting = False
            else:
                self._sessions -= 1
            self._changed.notify_all()


class SimHeld:
    """See `packnback.store.lock.Held`."""

    def __init__(self, locks: SimLocks, exclusive: bool) -> None:
        self._locks = locks
        self._exclusive = exclusive
        self._held = True

    @property
    def locked(self) -> bool:
        return self._held

    def confirm(self) -> None:
        if not self._held:
            raise StorageFailed("lock", "lock", "it is not held")

    def release(self) -> None:
        if self._held:
            self._held = False
            self._locks._release(self._exclusive)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
