"""The index port: ordered tables of bytes, read in snapshots, written in transactions.

The index is a view of what stands in the repository's directories, so all that is asked of it is that a
transaction is all or nothing, durable when `Index.write` returns, and isolated. What keys and values mean is
decided elsewhere (`packnback.format`); which store holds them, in `packnback.store.lmdb_index`.

Rules for callers, held by every implementation:

- One live transaction per thread, and a short one: the store may have to wait for all transactions to end
  before it can grow. A function that needs a transaction takes it as an argument. A second one on the same
  thread raises `RuntimeError`. Nor may a transaction wait for another thread's: it would wait for ever.
- The body given to `Index.write` may run more than once; each run starts from the committed state. It keeps
  its results in what it returns. Outside the transaction it does only what may be done again: publishing a blob
  whose name is its own, deleting what may be gone already.
- A scan ends before its table is written to: collect the rows first. Going on with it raises `RuntimeError`.
- Keys have 1 to `KEY_LIMIT` bytes, others raise `ValueError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from packnback.format import rows

T = TypeVar("T")

KEY_LIMIT = 100
"""Longest key, in bytes."""

TABLES = rows.TABLES
"""Every table there is. Naming another one raises `KeyError`."""


class ReadTxn(Protocol):
    """The tables as they were when the transaction began."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value at `key`, or None."""

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values at `keys`, in their order, None for those that are absent."""

    def scan(self, table: str, prefix: bytes = b"", start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Rows whose key starts with `prefix`, ascending, from `start` (inclusive) on."""

    def last(self, table: str, prefix: bytes = b"", before: bytes | None = None) -> tuple[bytes, bytes] | None:
        """The last row whose key starts with `prefix`, of those whose key is less than `before`; None without any."""

    def count(self, table: str) -> int:
        """Number of rows."""


class WriteTxn(ReadTxn, Protocol):
    """A transaction that sees its own changes; nobody else does before it is committed."""

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set the value at `key`, whether or not there was one."""

    def put_many(self, table: str, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """`put` for each pair. Ascending keys are the fastest."""

    def append_many(self, table: str, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """`put_many` of ascending keys that lie behind all others: faster still, and fills its pages.

        Raises `ValueError` for others.
        """

    def put_new(self, table: str, pairs: Sequence[tuple[bytes, bytes]]) -> list[int]:
        """`put` for each pair whose key is not there yet; ascending keys are the fastest.

        Returns the numbers of the pairs that found another value under their key.
        """

    def delete(self, table: str, key: bytes) -> bool:
        """Remove the row at `key`; False when there was none."""

    def clear(self, table: str) -> None:
        """Remove all rows."""


class IndexReader(Protocol):
    """What can be read."""

    def read(self) -> AbstractContextManager[ReadTxn]:
        """A snapshot of all tables."""


class Index(IndexReader, Protocol):
    """A set of tables that outlives the process."""

    @property
    def generation(self) -> int:
        """Changes when the tables were thrown away and made anew behind this handle.

        What the caller knew of them no longer holds: reconcile again.
        """

    def write(self, body: Callable[[WriteTxn], T]) -> T:
        """Run `body` in a write transaction, commit durably, return what it returned.

        Any exception aborts the transaction and goes on to the caller. Raises `errors.DiskFull` when there
        is no room for the change (nothing was changed; the index stays usable).
        """

    def discard(self) -> None:
        """Throw everything away, in whatever state it is: for tables that cannot even be cleared any more."""

    def release_ballast(self) -> None:
        """Give up the disk space that is held back, so that a deletion can be recorded on a full disk."""

    def restore_ballast(self) -> bool:
        """Hold the space back again; False when there is no room for it."""

    def close(self) -> None:
        """End the use of this handle. Closing twice is allowed; using it afterwards raises `RuntimeError`."""
