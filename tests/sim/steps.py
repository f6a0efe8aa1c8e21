"""The one clock of a simulated machine: every operation that could be the last one before a power cut.

The simulated disk and the simulated index share one `Steps`, so that a sweep can cut the power at step 1, 2,
3 … until a run gets through without a cut, and no order of disk and index operations is missed.
"""

from __future__ import annotations

import threading


class PowerCut(BaseException):
    """The machine lost power. Not an `Exception`: no handler of the engine may survive it."""


class Steps:
    """Counts the steps of one life of the machine and cuts its power at step `crash_at` (1 is the first).

    None never cuts. After the cut every step and every `check` raises again: nothing runs on a dead machine.
    """

    def __init__(self, crash_at: int | None = None) -> None:
        self.crash_at = crash_at
        self.count = 0
        self.crashed = False
        self.log: list[str] = []
        self._counting = threading.Lock()

    def step(self, what: str) -> None:
        """One step, named for the log. Raises `PowerCut` when it is the fatal one, or comes after it."""
        with self._counting:
            self.check()
            self.count += 1
            self.log.append(what)
            if self.crash_at is not None and self.count >= self.crash_at:
                self.crashed = True
        self.check()

    def check(self) -> None:
        """For operations that change nothing and are not steps: they too fail on a dead machine."""
        if self.crashed:
            raise PowerCut(f"at step {self.count}: {self.log[-1]}")
