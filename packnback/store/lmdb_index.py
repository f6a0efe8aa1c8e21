"""The index port on LMDB: handles and transactions. What they stand on: `packnback.store.lmdb_environment`.

Durability is LMDB's own: ``sync=True`` and never ``writemap``, so a commit writes new pages, syncs them, and only
then one meta page through a descriptor opened with O_DSYNC. A power cut leaves a state that was committed. (Only a
scratch index, which nobody will look for after a power cut, does without the syncs: `durable`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import lmdb

from packnback import lmdb_files
from packnback.store.index import KEY_LIMIT, ReadTxn, T, WriteTxn
from packnback.store.index_probe import probe
from packnback.store.lmdb_environment import MAP_SIZE, Environment, attach, detach

if TYPE_CHECKING:
    from lmdb import _Database

__all__ = ["MAP_SIZE", "LmdbIndex", "destroy", "probe"]

destroy = lmdb_files.destroy


# --- transactions --------------------------------------------------------------------------------------------


class _Reader:
    """`ReadTxn` over one LMDB transaction."""

    def __init__(self, txn: lmdb.Transaction[bytes], tables: dict[str, _Database]) -> None:
        self._txn = txn
        self._tables = tables
        self._changes = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        try:
            return self._txn.get(key, None, self._tables[table])
        except lmdb.BadValsizeError:
            _checked(key)
            raise

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        get, database = self._txn.get, self._tables[table]
        try:
            return [get(key, None, database) for key in keys]
        except lmdb.BadValsizeError:
            for key in keys:
                _checked(key)
            raise

    def scan(self, table: str, prefix: bytes = b"", start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        first = prefix if start is None or start < prefix else start
        changes = self._changes
        with self._txn.cursor(self._tables[table]) as cursor:
            if not (cursor.set_range(first) if first else cursor.first()):
                return
            for key, value in cursor.iternext():
                if not key.startswith(prefix):
                    return
                yield key, value
                if self._changes != changes:
                    raise RuntimeError("written to during a scan")

    def last(self, table: str, prefix: bytes = b"", before: bytes | None = None) -> tuple[bytes, bytes] | None:
        bounds = [bound for bound in (before, _behind(prefix)) if bound is not None]
        with self._txn.cursor(self._tables[table]) as cursor:
            found = cursor.prev() if bounds and cursor.set_range(min(bounds)) else cursor.last()
            return cursor.item() if found and cursor.key().startswith(prefix) else None

    def count(self, table: str) -> int:
        return self._txn.stat(self._tables[table])["entries"]


class _Writer(_Reader):
    """`WriteTxn` over one LMDB transaction."""

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._changes += 1
        self._txn.put(_checked(key), value, db=self._tables[table])

    def put_many(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        self._changes += 1
        with self._txn.cursor(self._tables[table]) as cursor:
            cursor.putmulti((_checked(key), value) for key, value in rows)

    def append_many(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        self._changes += 1
        with self._txn.cursor(self._tables[table]) as cursor:
            consumed, added = cursor.putmulti(((_checked(key), value) for key, value in rows), append=True)
        if added < consumed:
            raise ValueError("appended rows do not ascend")

    def put_new(self, table: str, rows: Sequence[tuple[bytes, bytes]]) -> list[int]:
        self._changes += 1
        with self._txn.cursor(self._tables[table]) as cursor:
            consumed, added = cursor.putmulti(((_checked(key), value) for key, value in rows), overwrite=False)
        if added == consumed:
            return []
        found = self.get_many(table, [key for key, _ in rows])
        return [i for i, (row, value) in enumerate(zip(rows, found, strict=True)) if row[1] != value]

    def delete(self, table: str, key: bytes) -> bool:
        self._changes += 1
        return self._txn.delete(_checked(key), db=self._tables[table])

    def clear(self, table: str) -> None:
        self._changes += 1
        self._txn.drop(self._tables[table], delete=False)


def _behind(prefix: bytes) -> bytes | None:
    """The least key that lies behind all that start with `prefix`; None when there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None


def _checked(key: bytes) -> bytes:
    if not 0 < len(key) <= KEY_LIMIT:
        raise ValueError(f"keys have 1 to {KEY_LIMIT} bytes, not {len(key)}")
    return key


# --- the handle ------------------------------------------------------------------------------------------------


class LmdbIndex:
    """`Index` on an LMDB environment. Handles of one process on the same files share the environment."""

    def __init__(self, environment: Environment, ballast_bytes: int) -> None:
        self._environment: Environment | None = environment
        self._ballast_bytes = ballast_bytes

    @classmethod
    def open(
        cls,
        directory: str,
        *,
        map_size: int = MAP_SIZE,
        ballast_bytes: int = lmdb_files.BALLAST_BYTES,
        check_size: bool = True,
        durable: bool = True,
    ) -> Self:
        """Open the index in `directory`, making it when there is none. The parent directory has to exist.

        `map_size` bytes of address space are taken, and more when they turn out to be too few. `ballast_bytes`
        of disk space are held back for `release_ballast`, as far as there is room. Without `check_size` a data
        file that was cut short kills the process: for `packnback.store.index_probe` alone. Without `durable` a power
        cut leaves anything: for an index that does not outlive the process.

        Raises `errors.IndexDamage` for files that LMDB must not be given, `errors.DiskFull` and
        `errors.StorageFailed`.
        """
        index = cls(attach(directory, map_size, check_size=check_size, durable=durable), ballast_bytes)
        try:
            index.restore_ballast()
        except BaseException:
            index.close()
            raise
        return index

    @property
    def generation(self) -> int:
        """How often the files were replaced since the environment was opened."""
        return self._attached().generation

    @contextmanager
    def read(self) -> Iterator[ReadTxn]:
        """See `Index.read`."""
        environment = self._attached()
        txn, entered = environment.begin(write=False)
        try:
            yield _Reader(txn, environment.tables)
        except lmdb.Error as error:
            raise environment.explained("read", error) from error
        finally:
            environment.end(txn, entered)

    def write(self, body: Callable[[WriteTxn], T]) -> T:
        """See `Index.write`."""
        environment = self._attached()
        while True:
            txn, entered = environment.begin(write=True)
            map_size = environment.map_size
            try:
                result = body(_Writer(txn, environment.tables))
                txn.commit()
                return result
            except lmdb.MapFullError:
                pass  # aborted below; then there is more room, and the body runs again
            except lmdb.Error as error:
                raise environment.write_failed(error) from error
            finally:
                environment.end(txn, entered)
            environment.grow(map_size)

    def discard(self) -> None:
        """See `Index.discard`. Whoever else has the files open notices before the next transaction."""
        self._attached().discard()

    def release_ballast(self) -> None:
        """See `Index.release_ballast`."""
        lmdb_files.release_ballast(self._attached().directory)

    def restore_ballast(self) -> bool:
        """See `Index.restore_ballast`."""
        return lmdb_files.restore_ballast(self._attached().directory, self._ballast_bytes)

    def close(self) -> None:
        """See `Index.close`. In a forked child this leaves the parent's environment alone."""
        if self._environment is not None:
            self._environment.gate.refuse_live()
        environment, self._environment = self._environment, None
        if environment is not None and not environment.forked:
            detach(environment)

    def _attached(self) -> Environment:
        if self._environment is None:
            raise RuntimeError("the index is closed")
        return self._environment
