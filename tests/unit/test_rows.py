"""Rows of the index: the short way to a snapshot's receipt agrees with the long one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packnback.errors import IndexDamage
from packnback.format import rows
from packnback.format.rows import SnapshotRow
from packnback.format.snapshot import Receipt

KEY = b"0123456789abcdef-0000000000000001.snap"


@given(
    st.sampled_from([rows.GOOD, rows.RELEASED]),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(0, (1 << 64) - 1),
    st.text(max_size=20),
)
def test_the_receipt_of_a_snapshot(status: int, time_ns: int, counter: int, client: str) -> None:
    row = SnapshotRow(status, time_ns=1, receipt=Receipt(time_ns, counter, 3), client=client)
    value = rows.encode_snapshot(KEY, row)
    assert rows.decode_snapshot(KEY, value) == row
    assert rows.receipt_of_snapshot(KEY, value) == (status, time_ns, counter)
    with pytest.raises(IndexDamage):
        rows.receipt_of_snapshot(KEY, value[:-1] + bytes((value[-1] ^ 1,)))


@pytest.mark.parametrize("status", [rows.DAMAGED, rows.NEWER])
def test_a_snapshot_without_a_receipt(status: int) -> None:
    value = rows.encode_snapshot(KEY, SnapshotRow(status, reason="r"))
    assert rows.receipt_of_snapshot(KEY, value) == (status, 0, 0)
