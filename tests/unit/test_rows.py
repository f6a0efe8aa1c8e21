"""Rows of the index: the short way to a snapshot's receipt agrees with the long one, and the rows of ``meta``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packnback.errors import IndexDamage
from packnback.format import meta_rows, rows
from packnback.format.meta_rows import Newest
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


def test_rows_of_meta_that_are_not_there() -> None:
    assert meta_rows.decode_next_pack(None) == 1
    assert meta_rows.decode_newest(None) == meta_rows.NO_RECEIPT
    assert meta_rows.decode_read_at(meta_rows.read_at_key(bytes(32)), None) == meta_rows.UNREAD
    assert meta_rows.UNREAD < 0, "what was never read is read first"


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1), st.integers(-(1 << 63), (1 << 63) - 1))
def test_rows_of_meta(number: int, counter: int, time_ns: int) -> None:
    assert meta_rows.decode_next_pack(meta_rows.encode_next_pack(number)) == number
    for newest in (Newest(counter, time_ns), Newest(counter, None)):
        assert meta_rows.decode_newest(meta_rows.encode_newest(newest)) == newest
    key = meta_rows.read_at_key(bytes(32))
    assert meta_rows.decode_read_at(key, meta_rows.encode_read_at(key, counter)) == counter


@pytest.mark.parametrize("ids", [None, [], [bytes(32)], [bytes(32), b"\1" * 32]])
def test_what_is_damaged_in_a_pack(ids: list[bytes] | None) -> None:
    key = meta_rows.damaged_key(b"\1" * 32)
    assert meta_rows.split_damaged_key(key) == b"\1" * 32
    value = meta_rows.encode_damaged(key, ids)
    assert meta_rows.decode_damaged(key, value) == (ids if ids is None else frozenset(ids))
    with pytest.raises(IndexDamage):
        meta_rows.decode_damaged(key, value[:-1])
    with pytest.raises(IndexDamage):
        meta_rows.decode_damaged(key, rows.seal(key, b"\0xyz"))


def test_rows_of_meta_that_are_damaged() -> None:
    key = meta_rows.read_at_key(b"\1" * 32)
    for decode, sealed_with, value in (
        (meta_rows.decode_next_pack, meta_rows.NEXT_PACK, meta_rows.encode_next_pack(7)),
        (meta_rows.decode_newest, meta_rows.NEWEST_RECEIPT, meta_rows.encode_newest(Newest(7, 8))),
        (lambda v: meta_rows.decode_read_at(key, v), key, meta_rows.encode_read_at(key, 7)),
    ):
        for at in range(len(value)):
            with pytest.raises(IndexDamage):
                decode(value[:at] + bytes((value[at] ^ 1,)) + value[at + 1 :])
        with pytest.raises(IndexDamage):
            decode(rows.seal(sealed_with, value))  # its check holds, its length is another one
