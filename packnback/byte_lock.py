"""Locks on one byte of a file: open file description locks (fcntl(2), F_OFD_SETLK), which go with the descriptor.

Unlike flock(2) they reach other machines through NFS and SMB; unlike older locks of fcntl, closing another descriptor
of the same file does not take them away.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux."""


def try_lock_byte(fd: int, at: int) -> bool:
    """Lock the byte exclusively; False when somebody else has it. `fd` is open for writing. Raises OSError."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0))
    except (BlockingIOError, PermissionError):  # fcntl(2): "EACCES or EAGAIN"
        return False
    return True


def unlock_byte(fd: int, at: int) -> None:
    """Let go of it, for all copies of the descriptor. Raises OSError."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, at, 1, 0))
