"""Small files that a machine must not forget: replaced as a whole, durable when a call returns, checked on reading.

::

    "PNBS" 1 ‖ kind ‖ u16 0 ‖ CBOR ‖ BLAKE3(all preceding)[:16]

They hold hashes, numbers and names, and no secret. A damaged one is an error, never an empty one: what was
forgotten would be taken for what never was. Replacing writes and syncs a new file, renames it over the old one
and syncs the directory; a lock file beside it, which is never replaced, lets one process at a time do that.
"""

from __future__ import annotations

import fcntl
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from blake3 import blake3

from packnback.errors import DiskFull, FormatDamage, StateDamaged, StateUnusable
from packnback.format import cbor
from packnback.ids import CHECKSUM_LEN
from packnback.oserrors import NO_ROOM, reason_of, sync_directory

_MAGIC = b"PNBS\x01"
_FRONT_LEN = 8


def state_directory() -> bytes:
    """``$XDG_STATE_HOME/packnback``, by default in ``~/.local/state`` (XDG base directory specification).

    Raises StateUnusable for a user who has no home.
    """
    base = os.environb.get(b"XDG_STATE_HOME", b"")
    if not base.startswith(b"/"):
        base = posixpath.join(posixpath.expanduser(b"~"), b".local", b"state")
    if not base.startswith(b"/"):
        raise StateUnusable("find", "~/.local/state", "there is no home directory")
    return posixpath.join(base, b"packnback")


class StateFile:
    """One file. `kind` tells the sorts of state file apart, one letter each."""

    def __init__(self, path: bytes, kind: bytes) -> None:
        self.path = posixpath.abspath(path)
        self._front = _MAGIC + kind + bytes(2)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other process holds this file, and hold it."""
        with self._telling("lock"):
            _make_directory(posixpath.dirname(self.path))
            fd = os.open(self.path + b".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self._telling("lock"):
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def load(self) -> Any:
        """What was stored last, as CBOR values; None if nothing ever was. Raises StateDamaged."""
        with self._telling("read"):
            try:
                with open(self.path, "rb") as file:
                    data = file.read()
            except FileNotFoundError:
                return None
        body, checksum = data[:-CHECKSUM_LEN], data[-CHECKSUM_LEN:]
        if blake3(body).digest(CHECKSUM_LEN) != checksum:
            raise self.damaged("its checksum does not hold")
        if not body.startswith(self._front):
            raise self.damaged("it is of another kind or a later version")
        try:
            return cbor.decode(body[_FRONT_LEN:], "state")
        except FormatDamage as damage:
            raise self.damaged(damage.why) from damage

    def store(self, value: Any) -> None:
        """Replace what was stored; durable on return. The caller holds the lock."""
        body = self._front + cbor.encode(value)
        directory = posixpath.dirname(self.path)
        temporary = self.path + b".new"
        with self._telling("write"):
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(body + blake3(body).digest(CHECKSUM_LEN))
                file.flush()
                os.fsync(fd)
            os.rename(temporary, self.path)
            _sync_directory(directory)

    def damaged(self, why: str) -> StateDamaged:
        """The error for content that cannot be right."""
        return StateDamaged(os.fsdecode(self.path), why)

    @contextmanager
    def _telling(self, operation: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = os.fsdecode(self.path)
            if error.errno in NO_ROOM:
                raise DiskFull(path) from error
            raise StateUnusable(operation, path, reason_of(error)) from error


def _make_directory(path: bytes) -> None:
    """Make a directory and what is missing above it, durably."""
    if os.path.isdir(path):
        return
    above = posixpath.dirname(path)
    _make_directory(above)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return  # another process was faster; if it is no directory, opening a file in it will tell
    _sync_directory(above)


def _sync_directory(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_directory(fd)
    finally:
        os.close(fd)
