"""Sizes, ages and times, as people write and read them.

Sizes: ``10M`` is 10 MiB (units B K M G T P, powers of 1024, with or without ``iB``). Ages: ``7d`` (units s m h d
w y; a year has 365 days), several may be joined: ``1d12h``. Times are RFC 3339 in UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from packnback.errors import UsageError

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[BKMGTP]?)(iB|B)?", re.IGNORECASE)
_AGE = re.compile(r"(\d+)\s*([smhdwy])")
_AGES = re.compile(r"(\d+\s*[smhdwy])+")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_UNITS = "BKMGTP"
_LIMIT = 1 << 62


def parse_size(text: str) -> int:
    """``10M`` → bytes. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size such as 500K, 10M or 1.5G")
    size = int(float(match["number"]) * 1024 ** _UNITS.index(match["unit"].upper() or "B"))
    if size > _LIMIT:
        raise UsageError(f"{text!r} is too large")
    return size


def parse_age(text: str) -> int:
    """``7d`` → nanoseconds. A bare ``0`` is an age, too. Raises UsageError."""
    text = text.strip()
    if text == "0":
        return 0
    if _AGES.fullmatch(text) is None:
        raise UsageError(f"{text!r} is not an age such as 12h, 7d or 1y")
    age_ns = sum(int(number) * _SECONDS[unit] for number, unit in _AGE.findall(text)) * 10**9
    if age_ns > _LIMIT:
        raise UsageError(f"{text!r} is too long")
    return age_ns


def parse_percent(text: str) -> float:
    """``10`` or ``10%`` → 10.0. Raises UsageError outside 0 … 100."""
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise UsageError(f"{text!r} is not a percentage from 0 to 100")
    return percent


def parse_tag(text: str) -> tuple[str, str]:
    """``K=V`` → (K, V). Raises UsageError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{text!r} is not a tag; write KEY=VALUE")
    return key, value


def parse_compression(text: str) -> int | None:
    """``none`` → None, ``zstd:N`` (or ``zstd``, which is ``zstd:3``) → the level. Raises UsageError."""
    if text == "none":
        return None
    name, _, level = text.partition(":")
    if name != "zstd" or (level and not level.isdecimal()) or not 1 <= int(level or 3) <= 19:
        raise UsageError(f"{text!r} is not a compression; write none, or zstd:N with N from 1 to 19")
    return int(level or 3)


def shown_size(size: int) -> str:
    """Bytes for people: ``3.4 MiB``."""
    value, unit = float(size), 0
    while value >= 1023.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}iB"


def counted(number: int, thing: str) -> str:
    """``1 file``, ``2 files``, ``3 directories``."""
    if number == 1:
        return f"1 {thing}"
    return f"{number} {thing[:-1] + 'ie' if thing.endswith('y') else thing}s"


def told_entries(files: int, directories: int, others: int, *, unchanged: int = 0) -> str:
    """``9 files (3 unchanged), 4 directories and 1 other``: the same words for a backup and its restore."""
    told = [counted(files, "file") + (f" ({unchanged} unchanged)" if unchanged else "")]
    told.append(counted(directories, "directory"))
    if others:  # symlinks, fifos, devices
        told.append(counted(others, "other"))
    return f"{', '.join(told[:-1])} and {told[-1]}"


def shown_duration(seconds: float) -> str:
    """Seconds for people: ``3.1 s``, ``5 min 12 s``, ``2 h 3 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def rfc3339(time_ns: int, *, fraction: bool = True) -> str:
    """Nanoseconds since 1970 as RFC 3339 in UTC, to the microsecond or to the second."""
    seconds, rest = divmod(time_ns, 10**9)
    moment = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None, microsecond=rest // 1000)
    return moment.isoformat(timespec="microseconds" if fraction else "seconds") + "Z"
