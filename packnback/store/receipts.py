"""The newest receipt, kept beside the rows that it follows from: every commit asks for it, and histories grow long.

Snapshot files stay for years, and the headers of released ones for ever. Looking at all of them took 10,000 commits
in a row longer than all else that they did.
"""

from __future__ import annotations

from packnback.format import meta_rows, rows
from packnback.format.meta_rows import NEWEST_RECEIPT, NO_RECEIPT, Newest
from packnback.format.rows import SnapshotRow
from packnback.store.index import ReadTxn, WriteTxn


def newest_receipt(txn: ReadTxn) -> Newest:
    """The newest receipt, as the ledger has kept it."""
    return meta_rows.decode_newest(txn.get(meta_rows.TABLE, NEWEST_RECEIPT))


def derive_newest(txn: ReadTxn) -> Newest:
    """The newest receipt, by a look at all of them."""
    top = max((rows.decode_released(key, value).receipt.counter for key, value in txn.scan("released")), default=0)
    received: int | None = None
    for key, value in txn.scan("snapshots"):
        status, time_ns, counter = rows.receipt_of_snapshot(key, value)
        top = max(top, counter)
        if status == rows.GOOD and (received is None or time_ns > received):
            received = time_ns
    return Newest(top, received)


class Receipts:
    """What one transaction's changes make of the newest receipt. `settle` writes it."""

    def __init__(self, txn: WriteTxn) -> None:
        self._txn = txn
        self._before = self._now = newest_receipt(txn)
        self._to_be_derived = False

    def add(self, row: SnapshotRow) -> None:
        """A snapshot file is adopted, whatever its status."""
        if row.status in (rows.GOOD, rows.RELEASED):
            self.add_kept(row.receipt.counter)
        if row.status == rows.GOOD:
            times = (self._now.received_ns, row.receipt.time_ns)
            self._now = self._now._replace(received_ns=max(time_ns for time_ns in times if time_ns is not None))

    def add_kept(self, counter: int) -> None:
        """A kept header is adopted, with this counter in its receipt."""
        self._now = self._now._replace(counter=max(self._now.counter, counter))

    def remove(self, row: SnapshotRow) -> None:
        """A snapshot file goes, or does not count any more."""
        if row.receipt.counter == self._now.counter or row.receipt.time_ns == self._now.received_ns:
            self.derive()

    def derive(self) -> None:
        """More has changed than can be followed: `settle` looks at all there is."""
        self._to_be_derived = True

    def settle(self) -> None:
        """Write it, if it has changed."""
        if self._to_be_derived:
            self._now = derive_newest(self._txn)
        if self._now == self._before:
            return
        if self._now == NO_RECEIPT:
            self._txn.delete(meta_rows.TABLE, NEWEST_RECEIPT)
        else:
            self._txn.put(meta_rows.TABLE, NEWEST_RECEIPT, meta_rows.encode_newest(self._now))
