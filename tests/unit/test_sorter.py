"""The sorter: what comes out is what went in, in order, in lists that are not too long."""

from __future__ import annotations

import errno
import itertools
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packnback import sorter as sorter_module
from packnback.sorter import Sorter


@given(
    batches=st.lists(st.lists(st.binary(min_size=3, max_size=3), max_size=40), max_size=12),
    run_rows=st.integers(1, 30),
    list_rows=st.sampled_from([4, 8, 64]),
    sampled=st.sampled_from([1, 2, 4]),
)
def test_sorts(batches: list[list[bytes]], run_rows: int, list_rows: int, sampled: int) -> None:
    with pytest.MonkeyPatch.context() as patched, Sorter(3, run_rows=run_rows) as sorter:
        patched.setattr(sorter_module, "LIST_ROWS", list_rows)
        patched.setattr(sorter_module, "SAMPLED", sampled)
        for batch in batches:
            sorter.add(iter(batch))
        everything = sorted(itertools.chain(*batches))
        for _ in range(2):
            assert list(itertools.chain(*sorter.in_order())) == everything
        sorter.add([b"aaa"])
        assert list(itertools.chain(*sorter.in_order())) == sorted([*everything, b"aaa"])


@pytest.mark.parametrize("prefix", [b"", b"the same"])
def test_lists_are_of_bounded_length(monkeypatch: pytest.MonkeyPatch, prefix: bytes) -> None:
    """Whatever the rows begin with, and although each run has another range of them."""
    monkeypatch.setattr(sorter_module, "LIST_ROWS", 1024)
    monkeypatch.setattr(sorter_module, "SAMPLED", 16)
    chance = random.Random(1)
    rows = [prefix + bytes([run]) + chance.randbytes(8) for run in range(20) for _ in range(1000)]
    with Sorter(len(rows[0]), run_rows=700) as sorter:
        for at in range(0, len(rows), 100):
            sorter.add(rows[at : at + 100])
        lists = list(sorter.in_order())
    assert list(itertools.chain(*lists)) == sorted(rows)
    runs = len(rows) // 700 + 1
    assert max(map(len, lists)) <= 1024 + runs * 16
    assert len(lists) <= 2 * len(rows) // 1024


def test_rows_that_are_all_equal() -> None:
    with Sorter(4, run_rows=10) as sorter:
        for _ in range(100):
            sorter.add([b"same"] * 7)
        assert list(itertools.chain(*sorter.in_order())) == [b"same"] * 700


def test_the_file_is_in_its_directory_and_has_no_name(tmp_path: Path) -> None:
    with Sorter(1, str(tmp_path), run_rows=1) as sorter:
        sorter.add([b"a"])
        assert not list(tmp_path.iterdir())
        assert any(str(tmp_path) in os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.exists())


def test_no_room_is_said() -> None:
    with Sorter(1, "/nowhere/at/all", run_rows=2) as sorter:
        sorter.add([b"a"])
        with pytest.raises(OSError) as caught:
            sorter.add([b"b"])
        assert caught.value.errno == errno.ENOENT
