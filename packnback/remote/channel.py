"""Bytes to and from the other end, over two file descriptors: pipes, or standard input and output."""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Mapping, Sequence

from packnback.ids import MIB
from packnback.remote.frames import Buffer

READ_LIMIT = 1 * MIB
_PIECES_AT_ONCE = 16
_LOOK_EVERY_S = 0.1


class Channel:
    """Reads from one descriptor and writes to another; one reader and one writer at a time.

    With `patience_s` a write is given up when the other end has taken nothing for so many seconds, with
    `may_give_up` when another thread says so.
    """

    def __init__(
        self, read_fd: int, write_fd: int, patience_s: float | None = None, *, may_give_up: bool = False
    ) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._patience_s = patience_s
        self._waker = os.pipe() if may_give_up else None
        """A pipe in which there is something to read once `give_up` was called."""
        self._deserted = False
        self._look_again_at = 0.0
        for fd in (read_fd, write_fd):
            _widen(fd)
        self._blocked = os.get_blocking(write_fd)
        if patience_s is not None or may_give_up:
            os.set_blocking(write_fd, False)

    def read(self, timeout_s: float | None = None) -> bytes | None:
        """What has come, at least a byte; ``b""`` at the end; None if nothing came in `timeout_s` seconds."""
        if timeout_s is not None and not self.readable(timeout_s):
            return None
        while True:
            try:
                return os.read(self._read_fd, READ_LIMIT)
            except ConnectionResetError:
                return b""
            except BlockingIOError:  # both descriptors are one socket, which does not block
                self.readable(None)

    def readable(self, timeout_s: float | None) -> bool:
        """Whether `read` would not have to wait, after at most `timeout_s` seconds."""
        return bool(_ready({self._read_fd: select.POLLIN}, timeout_s))

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Write all of it. Raises BrokenPipeError when nobody is there to read it any more, TimeoutError when
        somebody is and does not, or when it was given up.
        """
        awaited = {self._write_fd: select.POLLOUT}
        if self._waker is not None:
            awaited[self._waker[0]] = select.POLLIN
        left = [memoryview(piece) for piece in pieces if len(piece)]
        while left:
            try:
                written = os.writev(self._write_fd, left[:_PIECES_AT_ONCE])
            except BlockingIOError:
                if _ready(awaited, self._patience_s) != {self._write_fd}:
                    raise TimeoutError from None
                continue
            except ConnectionResetError as error:  # a socket's word for it
                raise BrokenPipeError(error.errno, error.strerror) from None
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]

    @property
    def deserted(self) -> bool:
        """Whether nobody is left to read what is written here. Looked at ten times a second at the most."""
        now = time.monotonic()
        if not self._deserted and now >= self._look_again_at:
            self._look_again_at = now + _LOOK_EVERY_S
            self._deserted = bool(_ready({self._write_fd: 0}, 0.0))
        return self._deserted

    def give_up(self) -> None:
        """Let a write that waits raise TimeoutError; only with `may_give_up`. For another thread."""
        if self._waker is not None:
            os.write(self._waker[1], b"!")

    def detach(self) -> None:
        """Leave the descriptors as they were found: whoever else has them open (a shell) may expect them to block."""
        os.set_blocking(self._write_fd, self._blocked)

    def release(self) -> None:
        """Close what was opened here. The two descriptors are their owner's."""
        for fd in self._waker or ():
            os.close(fd)
        self._waker = None

    def close(self) -> None:
        """Close everything."""
        self.release()
        for fd in {self._read_fd, self._write_fd}:
            os.close(fd)


def _ready(events: Mapping[int, int], timeout_s: float | None) -> set[int]:
    """The descriptors for which what is awaited of them has come after at most `timeout_s` seconds."""
    poll = select.poll()
    for fd, event in events.items():
        poll.register(fd, event)
    return {fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)}


def _widen(fd: int) -> None:
    """Let a pipe hold more than 64 KiB, so that either side is woken less often. Others are left as they are."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, MIB)
    except OSError:
        return  # no pipe, or more than this user may have: it works as it is, only slower
