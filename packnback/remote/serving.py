"""``packnback serve``: a server on a repository in a directory, and its progress told over the same connection."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from packnback.errors import PacknbackError, StorageFailed
from packnback.events import Watch
from packnback.oserrors import reason_of
from packnback.remote import failures, frames
from packnback.remote.channel import Channel
from packnback.remote.frames import Side
from packnback.remote.protocol import Connection
from packnback.remote.readahead import ReadAhead
from packnback.remote.server import Role, Server
from packnback.store.local import open_local

_FILES_KEPT = 4096
"""Markers, header batches and new packs have to be made for anything to be deleted."""


def serve(path: str, role: Role, channel: Channel) -> None:
    """Serve the repository in the directory `path` until the client is gone.

    What keeps it from being served, or ends that early, is told to the client, and raised.
    """
    progress = _Telling()
    try:
        repository = open_local(path, Watch(progress=progress), partial(_sleep, channel))
    except PacknbackError as error:
        told = failures.tell(error, redact=not role.allows("check"))
        with suppress(BrokenPipeError, TimeoutError):
            channel.write(Connection(Side.SERVER).send(frames.Farewell(*told)))
        raise
    try:
        server = Server(repository, role, _reading_ahead(channel), room=partial(_room, path))
        progress.send = server.tell_progress
        server.run()
    finally:
        repository.close()


def _reading_ahead(channel: Channel) -> Channel | ReadAhead:
    try:
        return ReadAhead(channel)
    except RuntimeError:  # no thread is to be had
        return channel


def _sleep(channel: Channel, seconds: float) -> None:
    """Wait for a lock, as long as there is a client who waits. Raises BrokenPipeError."""
    if channel.deserted:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    time.sleep(seconds)


def _room(path: str) -> int:
    """Bytes that are free, and none once there are hardly any files left that could be made."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        raise StorageFailed("look at", path, reason_of(error)) from error
    if found.f_files and found.f_favail < _FILES_KEPT:
        return 0
    return found.f_bavail * found.f_frsize


class _Telling:
    """A progress port that turns into frames, at most a few in a second."""

    _PAUSE_S = 0.25

    def __init__(self) -> None:
        self.send: Callable[[frames.Progress], None] = lambda frame: None
        self._amount = 0
        self._next_at = 0.0

    def begin(self, phase: str, total: int | None, unit: str) -> None:
        """See `packnback.events.Progress`. A total of 0 stands for one that is not known."""
        self._amount, self._next_at = 0, 0.0
        self.send(frames.Progress("begin", phase, total or 0, unit))

    def advance(self, amount: int) -> None:
        """See `packnback.events.Progress`."""
        self._amount += amount
        if time.monotonic() >= self._next_at:
            self.send(frames.Progress("advance", "", self._amount, ""))
            self._amount, self._next_at = 0, time.monotonic() + self._PAUSE_S

    def note(self, message: str) -> None:
        """See `packnback.events.Progress`."""
        self.send(frames.Progress("note", message[:4096], 0, ""))
