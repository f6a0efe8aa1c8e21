"""A repository that stands among the files that are backed up: it is left out.

Its packs would be stored as files, in new packs, which the next backup would store as files: the repository would
grow by at least its newest packs each time, and no deduplication could help, as every pack is encrypted anew.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable

from packnback.errors import UsageError

Identity = tuple[int, int]
"""(device, inode) of a directory."""


def identity(location: str) -> Identity | None:
    """The directory of a repository, or None if it is not on this machine. `location` is a path or a URL."""
    if not location.startswith("/"):
        return None
    try:
        status = os.stat(location)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def refuse_roots_inside(paths: Iterable[bytes], repository: Identity | None) -> None:
    """Raise UsageError if one of the (absolute) paths is the repository's directory, or lies in it."""
    for path in paths:
        above = path
        while repository is not None and above != b"/":
            try:
                status = os.stat(above)
            except OSError:
                break
            if (status.st_dev, status.st_ino) == repository:
                raise UsageError(f"{os.fsdecode(path)} is part of the repository that it would be backed up into")
            above = posixpath.dirname(above)
