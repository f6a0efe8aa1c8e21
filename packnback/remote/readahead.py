"""Reading ahead of a server: what the client sends is taken while a pack is being written.

A server that waits for its disk to sync a pack does not read; the wire and the client then wait for it, too, as soon
as the few MiB between the two are full. On a disk that takes as long for a pack as the wire does, that is half of
the time. So a thread of its own reads, as far ahead as a bound allows.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue

from packnback.bell import Bell
from packnback.ids import KIB, MIB
from packnback.remote.channel import Channel
from packnback.remote.frames import Buffer

AHEAD_LIMIT = 40 * MIB
"""Bytes that are read ahead: what a client sends while a pack of 32 MiB is written, and then some."""
_PIECE = 1 * KIB
"""Each piece counts for so much more: a client that sends single bytes would fill fifty times the memory."""


class ReadAhead:
    """A channel whose `read` finds what has come already. For one reader; its thread lives until the stream ends."""

    def __init__(self, channel: Channel, limit: int = AHEAD_LIMIT) -> None:
        self._channel = channel
        self._limit = limit
        self._came: SimpleQueue[bytes | Exception] = SimpleQueue()
        self._lock = threading.Lock()
        self._held = 0
        self._room = Bell()
        self._end: bytes | Exception | None = None
        threading.Thread(target=self._run, name="read-ahead", daemon=True).start()

    def _run(self) -> None:
        try:
            while data := self._channel.read() or b"":
                with self._lock:
                    self._held += len(data) + _PIECE
                self._came.put(data)
                while not self._has_room():
                    self._room.wait()
            self._came.put(b"")
        except Exception as error:  # noqa: BLE001  whatever it is, the reader has to hear of it
            self._came.put(error)

    def _has_room(self) -> bool:
        with self._lock:
            return self._held < self._limit

    def read(self, timeout_s: float | None = None) -> bytes | None:
        """See `Channel.read`. What went wrong, or the end, is told once everything before it was read, and again."""
        found: bytes | Exception
        if self._end is not None:
            found = self._end
        else:
            try:
                found = self._came.get(timeout_s != 0, timeout_s)
            except Empty:
                return None
        if isinstance(found, Exception):
            self._end = found
            raise found
        if not found:
            self._end = found
        with self._lock:
            self._held -= len(found) + _PIECE
        self._room.ring()
        return found

    @property
    def deserted(self) -> bool:
        """See `Channel.deserted`. What was read ahead of somebody who has gone is worth nothing."""
        return self._channel.deserted

    def write(self, pieces: Sequence[Buffer]) -> None:
        """See `Channel.write`."""
        self._channel.write(pieces)
