"""Trying a change of the index without making it: a transaction that is always aborted.

So a dry run and the real one go through the same code, and what forgetting a snapshot would free is measured
by releasing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from packnback.format import rows
from packnback.gc.plan import PackUse
from packnback.store.index import Index, ReadTxn, WriteTxn
from packnback.store.ledger import changing

T = TypeVar("T")


class _Aborted(Exception):
    """Ends the transaction."""


def what_if(index: Index, body: Callable[[WriteTxn], T]) -> T:
    """What `body` returns when it runs in a write transaction of which nothing remains."""
    results: list[T] = []

    def run(txn: WriteTxn) -> None:
        results[:] = [body(txn)]
        raise _Aborted

    with suppress(_Aborted):
        index.write(run)
    return results[0]


def pack_uses(txn: ReadTxn) -> Iterator[PackUse]:
    """Every pack, as a plan sees it."""
    for key, value in txn.scan("packs"):
        row = rows.decode_pack(key, value)
        yield PackUse(row.name, row.size, row.object_class, row.record_bytes, row.live_bytes)


def drop_snapshots(txn: WriteTxn, names: Iterable[str]) -> None:
    """Take the roots of these snapshots away."""
    with changing(txn) as ledger:
        for name in names:
            ledger.drop_snapshot(name)


def exclusive_bytes(index: Index, name: str) -> int:
    """What a snapshot alone holds: the bytes of the records that would die with it. Changes nothing."""

    def body(txn: WriteTxn) -> int:
        with changing(txn) as ledger:
            ledger.drop_snapshot(name)
        return ledger.bytes_released

    return what_if(index, body)
