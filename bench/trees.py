"""Whether two trees are the same: contents, types, modes, times, targets of links."""

from __future__ import annotations

import filecmp
import os
import stat
from pathlib import Path


def differences(wanted: Path, found: Path, limit: int = 10) -> list[str]:
    """What differs, at most `limit` lines of it."""
    lines: list[str] = []
    for folder, folders, names in os.walk(wanted):
        beside = found / os.path.relpath(folder, wanted)
        if not beside.is_dir():
            return [*lines, f"{beside} is missing"]
        for extra in sorted(set(os.listdir(beside)) - {*folders, *names}):
            lines.append(f"{beside / extra} should not be there")
        for name in (*folders, *names):
            why = _difference(os.path.join(folder, name), str(beside / name))
            if why is not None:
                lines.append(f"{beside / name}: {why}")
        if len(lines) >= limit:
            return lines[:limit]
    return lines


def _difference(wanted: str, found: str) -> str | None:
    try:
        a, b = os.lstat(wanted), os.lstat(found)
    except FileNotFoundError:
        return "missing"
    if stat.S_ISLNK(a.st_mode):
        same = stat.S_ISLNK(b.st_mode) and os.readlink(wanted) == os.readlink(found)
        return None if same else "another link"
    if a.st_mode != b.st_mode:
        return f"mode {b.st_mode:o} instead of {a.st_mode:o}"
    if a.st_mtime_ns // 1000 != b.st_mtime_ns // 1000:  # not every tool keeps nanoseconds
        return "another time"
    if stat.S_ISREG(a.st_mode) and not filecmp.cmp(wanted, found, shallow=False):
        return "another content"
    return None
