"""A file system whose files have content, and no size: run as ``made_up.py DIRECTORY MOUNTPOINT``.

Through FUSE, as programs that convert documents while they are read (rclone, for one) present them: stat(2) says
that a file is empty. What is read is what stands in DIRECTORY at that moment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import mfusepy


class MadeUp(mfusepy.Operations):  # type: ignore[misc]  it has no types
    """Everything below a directory, files without their sizes, and all times the same."""

    use_ns = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """See getattr(3)."""
        status = os.lstat(self._at(path))
        return {"st_mode": status.st_mode, "st_nlink": 1, "st_size": 0, "st_mtime": 10**18, "st_ctime": 10**18}

    def readdir(self, path: str, fh: int) -> list[str]:
        """See readdir(3)."""
        return [".", "..", *os.listdir(self._at(path))]

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """See read(2)."""
        if path == "/unreadable":
            raise mfusepy.FuseOSError(5)
        return self._at(path).read_bytes()[offset : offset + size]

    def _at(self, path: str) -> Path:
        return self._directory / path.lstrip("/")


if __name__ == "__main__":
    mfusepy.FUSE(MadeUp(Path(sys.argv[1])), sys.argv[2], foreground=True, direct_io=True)
