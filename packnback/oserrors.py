"""What the operating system says, in the terms of the error tree. Its numbers are sorted here, and nowhere else."""

from __future__ import annotations

import errno
import os
from typing import Final

from packnback.errors import DiskFull, Failed, StorageFailed

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Nothing more fits on the disk, or into the user's share of it."""
NO_ROOM: Final = NO_SPACE | {errno.EFBIG}
"""The same for files whose size is ours to choose: one that may not grow is as good as a full disk."""
NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""A file cannot have two names on this file system, or no more of them."""
_NO_DIRECTORY_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})


def reason_of(error: OSError) -> str:
    """What it says, without number and path."""
    return error.strerror or str(error) or type(error).__name__


def failure(operation: str, path: str, error: OSError) -> Failed:
    """The tree's error for an `operation` on `path` that failed: DiskFull or StorageFailed."""
    return DiskFull(path) if error.errno in NO_ROOM else StorageFailed(operation, path, reason_of(error))


def sync_directory(fd: int) -> bool:
    """fsync(2) of an open directory; False where the file system (SMB, some FUSE) knows no such thing.

    There names are durable when the file server says so, or never. Raises OSError.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
        return False
    return True
