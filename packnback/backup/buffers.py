"""The plaintext that a backup holds in memory: one bound in bytes, and buffers that are used again.

Memory that is used for the first time costs a page fault for every 4 KiB, which at the speed of the pipeline is
as dear as hashing; so large files are read into a few large buffers that go round. The bound on plaintext is also
what slows the reader down to the speed of the slowest stage.

Nothing here waits or locks: the pipeline calls it under its lock and does the waiting.
"""

from __future__ import annotations

from packnback.ids import MIB

BUFFER_LEN = 8 * MIB


class Buffer:
    """Memory shared by a reader and the jobs whose plaintext lies in it. `users` counts both."""

    __slots__ = ("users", "view")

    def __init__(self, length: int) -> None:
        self.view = memoryview(bytearray(length))
        self.users = 0


class PlaintextBudget:
    """At most `limit` bytes: of buffers, lent or idle, and of other plaintexts that are only counted."""

    def __init__(self, limit: int, buffer_length: int = BUFFER_LEN) -> None:
        self._limit = limit
        self._buffer_length = buffer_length
        self._idle: list[Buffer] = []
        self.held = 0
        """Bytes in use or kept for reuse."""
        self.peak = 0
        """The most that `held` has been."""

    def charge(self, count: int) -> bool:
        """Take `count` bytes of the budget, or return False. Anything fits when nothing else is held."""
        while self._idle and self.held + count > self._limit:
            self._idle.pop()
            self.held -= self._buffer_length
        if self.held and self.held + count > self._limit:
            return False
        self.held += count
        self.peak = max(self.peak, self.held)
        return True

    def refund(self, count: int) -> None:
        """Give back what `charge` took."""
        self.held -= count

    def acquire(self) -> Buffer | None:
        """A buffer with one user, its content undefined; None when the budget does not allow it."""
        if self._idle:
            buffer = self._idle.pop()
        elif self.charge(self._buffer_length):
            buffer = Buffer(self._buffer_length)
        else:
            return None
        buffer.users = 1
        return buffer

    def release(self, buffer: Buffer) -> bool:
        """One user less. True if the buffer is free again."""
        buffer.users -= 1
        if buffer.users:
            return False
        self._idle.append(buffer)
        return True
