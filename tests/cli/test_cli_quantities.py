"""Sizes, ages, times: what people write, and what is shown to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packnback.cli import quantities
from packnback.errors import UsageError

DAY_NS = 86_400 * 10**9


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("17", 17), ("10B", 10), ("10K", 10 << 10), ("10k", 10 << 10), ("10M", 10 << 20),
        ("1.5G", 3 << 29), ("2T", 2 << 40), ("1P", 1 << 50), ("4MiB", 4 << 20), ("4 MB", 4 << 20), (" 7 ", 7),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert quantities.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1,5G", "10X", "ten", "1e3", "10 M M", "99999999P"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        quantities.parse_size(text)


@pytest.mark.parametrize(
    ("text", "age_ns"),
    [
        ("0", 0), ("90s", 90 * 10**9), ("5m", 300 * 10**9), ("12h", DAY_NS // 2), ("7d", 7 * DAY_NS),
        ("2w", 14 * DAY_NS), ("1y", 365 * DAY_NS), ("1d12h", DAY_NS * 3 // 2),
    ],
)  # fmt: skip
def test_ages(text: str, age_ns: int) -> None:
    assert quantities.parse_age(text) == age_ns


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "7 days", "1.5d", "7D", "999999999999y"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(UsageError):
        quantities.parse_age(text)


def test_percentages() -> None:
    assert quantities.parse_percent("10") == quantities.parse_percent("10%") == 10.0
    for text in ("", "-1", "101", "nan", "all"):
        with pytest.raises(UsageError):
            quantities.parse_percent(text)


def test_tags_and_compression() -> None:
    assert quantities.parse_tag("a=b=c") == ("a", "b=c")
    assert quantities.parse_tag("a=") == ("a", "")
    assert quantities.parse_compression("none") is None
    assert quantities.parse_compression("zstd:19") == 19
    assert quantities.parse_compression("zstd") == 3
    for text in ("a", "=b"):
        with pytest.raises(UsageError):
            quantities.parse_tag(text)
    for text in ("zstd:0", "zstd:20", "zstd:-1", "gzip", "zstd:x", ""):
        with pytest.raises(UsageError):
            quantities.parse_compression(text)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 20, "1.0 MiB"), ((1 << 20) - 1, "1.0 MiB")],
)
def test_shown_sizes(size: int, shown: str) -> None:
    assert quantities.shown_size(size) == shown


@given(st.integers(0, 1 << 60))
def test_what_is_shown_can_be_read_again(size: int) -> None:
    again = quantities.parse_size(quantities.shown_size(size))
    assert abs(again - size) <= size * 0.06 + 1


@given(st.integers(-(1 << 60), 1 << 63))
def test_times_are_rfc3339_in_utc(time_ns: int) -> None:
    shown = quantities.rfc3339(time_ns)
    assert shown.endswith("Z")
    assert len(shown) == len("2026-01-02T03:04:05.123456Z")


def test_a_time() -> None:
    assert quantities.rfc3339(1_767_323_045_123_456_789) == "2026-01-02T03:04:05.123456Z"
    assert quantities.rfc3339(1_767_323_045_123_456_789, fraction=False) == "2026-01-02T03:04:05Z"


def test_counts() -> None:
    assert [quantities.counted(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert quantities.counted(3, "directory") == "3 directories"


def test_durations() -> None:
    assert quantities.shown_duration(3.14) == "3.1 s"
    assert quantities.shown_duration(312) == "5 min 12 s"
    assert quantities.shown_duration(7380) == "2 h 3 min"
