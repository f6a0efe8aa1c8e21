"""Waking the thread that waits, when that may be the one that Ctrl-C interrupts.

Python raises KeyboardInterrupt between any two steps of the main thread's code. `with lock:` on a lock of
`threading` is safe all the same, as it is one step. A `threading.Condition` is not, be it entered or waited for: its
lock stays taken, or is given back without having been taken, and whoever cleans up waits for ever ("Note on signal
handlers and exceptions" in the documentation of Python's `signal`). So the main thread looks under a lock whether
there is something to do, and waits for a bell without one.
"""

from __future__ import annotations

from queue import SimpleQueue


class Bell:
    """For any number of threads that ring, and one that waits."""

    def __init__(self) -> None:
        self._rings: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        """Wake whoever waits, or will wait next. To be called after what he waits for has come, under its lock."""
        if self._rings.empty():
            self._rings.put(None)

    def wait(self) -> None:
        """Return when it has been rung since the last time. That is a hint: look again, under the lock."""
        self._rings.get()
