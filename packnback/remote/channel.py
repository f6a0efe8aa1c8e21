"""Bytes to and from the other end, over two file descriptors: pipes, or standard input and output."""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Sequence

from packnback.ids import MIB
from packnback.remote.frames import Buffer

READ_LIMIT = 1 * MIB
_PIECES_AT_ONCE = 16


class Channel:
    """Reads from one descriptor and writes to another; one reader and one writer at a time."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        for fd in (read_fd, write_fd):
            _widen(fd)

    def read(self, timeout_s: float | None = None) -> bytes | None:
        """What has come, at least a byte; ``b""`` at the end; None if nothing came in `timeout_s` seconds."""
        if timeout_s is not None and not self.readable(timeout_s):
            return None
        try:
            return os.read(self._read_fd, READ_LIMIT)
        except ConnectionResetError:
            return b""

    def readable(self, timeout_s: float) -> bool:
        """Whether `read` would not have to wait, after at most `timeout_s` seconds."""
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Write all of it. Raises BrokenPipeError when nobody is there to read it any more."""
        left = [memoryview(piece) for piece in pieces if len(piece)]
        while left:
            written = os.writev(self._write_fd, left[:_PIECES_AT_ONCE])
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]

    def close(self) -> None:
        """Close both descriptors."""
        for fd in {self._read_fd, self._write_fd}:
            os.close(fd)


def _widen(fd: int) -> None:
    """Let a pipe hold more than 64 KiB, so that either side is woken less often. Others are left as they are."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, MIB)
    except OSError:
        return  # no pipe, or more than this user may have: it works as it is, only slower
