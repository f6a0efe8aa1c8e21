"""The client's cache on disk: tables of rows in LMDB, of which nothing is believed and any may be lost.

It stands in the user's cache directory, apart for each repository, place of the repository, and put key. What the
rows mean is said in `cache_rows`; here is only how they get to the disk and back.

Rows are written after what they point to is durable in the repository, in transactions of moderate size, each of
which is synced before its meta page is written; only the meta page itself is not waited for (``metasync`` off). So
a power cut costs at most the newest transaction.

A cache that cannot be used (no space, no permission, damage) is `CacheFailed`: whoever uses it goes on without.
One that an earlier process left behind without closing it, or whose file is too short, is read in a child process
first, because LMDB maps its file and a damaged page may kill whoever touches it; if that ends badly, or the file
is not LMDB's, it is thrown away. So is one in which LMDB finds damage later.
"""

from __future__ import annotations

import os
import posixpath
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from subprocess import DEVNULL, TimeoutExpired, run
from typing import TYPE_CHECKING, Self, TypeVar

import lmdb

from packnback import lmdb_files
from packnback.crypto.derive import H
from packnback.crypto.keys import PutKey
from packnback.errors import Failed, IndexDamage
from packnback.ids import MIB
from packnback.oserrors import reason_of

if TYPE_CHECKING:
    from lmdb import _Database

T = TypeVar("T")

ROWS, CONTENTS, BUNDLES, USAGE, PIECES, AGES, META = TABLES = (
    b"rows",
    b"contents",
    b"bundles",
    b"usage",
    b"pieces",
    b"ages",
    b"meta",
)
KEY_LIMIT = 500
"""Bytes in a key; LMDB takes 511."""
MAP_SIZE = 64 << 30
_MAP_SIZE_LEAST = 1 << 30
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.PageNotFoundError,
    lmdb.PageFullError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.PanicError,
)
_FORMAT = b"1"
_READING_S = 600.0
"""For reading a whole cache, which is some GiB at the most. One that takes longer is made anew."""
_OPENED = b"opened."


class CacheFailed(Exception):
    """The cache cannot be used, for the reason that is the argument. No reason for a backup to stop."""


def cache_directory() -> bytes:
    """``$XDG_CACHE_HOME/packnback``, by default in ``~/.cache`` (XDG base directory specification)."""
    base = os.environb.get(b"XDG_CACHE_HOME", b"")
    if not base.startswith(b"/"):
        base = posixpath.join(posixpath.expanduser(b"~"), b".cache")
    return posixpath.join(base, b"packnback")


def place_of(base: bytes, repository_id: bytes, put_key: PutKey) -> bytes:
    """Where under `base` the cache for one key and one repository stands, wherever that one is just now.

    A disk is mounted elsewhere, a host gets another name. What a cache claims to be there is asked of the repository
    in any case, so a copy that has less costs time at the most.
    """
    name = H(put_key.certificate.hash)[:16]
    return posixpath.join(base, repository_id.hex().encode(), b"client-" + name.hex().encode())


class ReadRows:
    """A read transaction."""

    def __init__(self, txn: lmdb.Transaction[bytes], tables: dict[bytes, _Database]) -> None:
        self._txn = txn
        self._tables = tables

    def get(self, table: bytes, key: bytes) -> bytes | None:
        """The value under `key`."""
        return self._txn.get(key, None, self._tables[table])

    def scan(self, table: bytes, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) from `start` on."""
        with self._txn.cursor(self._tables[table]) as cursor:
            if cursor.set_range(start):
                yield from cursor.iternext()

    def last(self, table: bytes) -> bytes | None:
        """The highest key."""
        with self._txn.cursor(self._tables[table]) as cursor:
            return cursor.key() if cursor.last() else None

    def count(self, table: bytes) -> int:
        """How many rows there are."""
        return self._txn.stat(self._tables[table])["entries"]


class WriteRows(ReadRows):
    """A write transaction."""

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        """Write or replace a row."""
        self._txn.put(key, value, db=self._tables[table])

    def put_many(self, table: bytes, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Write or replace rows; fastest in ascending order."""
        with self._txn.cursor(self._tables[table]) as cursor:
            cursor.putmulti(rows)

    def delete(self, table: bytes, key: bytes) -> None:
        """Remove a row, if it is there."""
        self._txn.delete(key, db=self._tables[table])

    def delete_some(self, table: bytes, start: bytes, count: int) -> None:
        """Remove up to `count` rows from `start` on, going on at the beginning of the table after its end."""
        with self._txn.cursor(self._tables[table]) as cursor:
            found = cursor.set_range(start) or cursor.first()
            while found and count:
                count -= 1
                found = cursor.delete() and (bool(cursor.key()) or cursor.first())


class Cache:
    """An open cache. One per process and directory; other processes may have it open as well."""

    def __init__(self, directory: str, env: lmdb.Environment, tables: dict[bytes, _Database], mark: str) -> None:
        self.directory = directory
        self._env = env
        self._tables = tables
        self._mark = mark
        self._damaged = False

    @classmethod
    def open(cls, directory: bytes) -> Self:
        """Open the cache in `directory`, making it if need be. Raises CacheFailed."""
        path = os.fsdecode(directory)
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            _judge(path)
            mark = os.path.join(path, f"{os.fsdecode(_OPENED)}{os.getpid()}")
            with open(mark, "wb"):
                pass
            return cls(path, *_open(path), mark)
        except OSError as error:
            raise CacheFailed(f"{path}: {reason_of(error)}") from error
        except (Failed, lmdb.Error) as error:
            raise CacheFailed(f"{path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; what was written stays, unless there is damage in it. Raises nothing: it is a cache."""
        self._env.close()
        with suppress(Failed, OSError):
            if self._damaged:
                lmdb_files.destroy(self.directory)
            os.unlink(self._mark)

    @contextmanager
    def reading(self) -> Iterator[ReadRows]:
        """One transaction, to be short. Raises CacheFailed."""
        try:
            with self._env.begin() as txn:
                yield ReadRows(txn, self._tables)
        except lmdb.Error as error:
            raise self._failed(error) from error

    def write(self, body: Callable[[WriteRows], T]) -> T:
        """Run `body` in one transaction, synced on return. Raises CacheFailed."""
        try:
            with self._env.begin(write=True) as txn:
                return body(WriteRows(txn, self._tables))
        except lmdb.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: lmdb.Error) -> CacheFailed:
        self._damaged = self._damaged or isinstance(error, _DAMAGE)
        return CacheFailed(f"{self.directory}: {error}")


def _open(path: str) -> tuple[lmdb.Environment, dict[bytes, _Database]]:
    lmdb_files.reserve_lock_file(path)
    size = MAP_SIZE
    while True:
        try:
            env = lmdb.open(path, map_size=size, mode=0o600, metasync=False, max_dbs=len(TABLES))
            break
        except lmdb.MemoryError:
            if size <= _MAP_SIZE_LEAST:
                raise
            size //= 2
    try:
        env.reader_check()
        with env.begin(write=True) as txn:
            tables = {name: env.open_db(name, txn=txn) for name in TABLES}
            if txn.get(b"format", db=tables[META]) != _FORMAT:
                for table in tables.values():
                    txn.drop(table, delete=False)
                txn.put(b"format", _FORMAT, db=tables[META])
    except BaseException:
        env.close()
        raise
    return env, tables


def _judge(path: str) -> None:
    """Throw the file away if it is too short; or if a process that had it open has died, and it cannot be read.

    The marks of the dead go last: reading may take long, and who is interrupted meanwhile must not leave a file that
    nobody suspects any more.
    """
    marks = [name for name in os.listdir(os.fsencode(path)) if name.startswith(_OPENED)]
    dead = [name for name in marks if not _runs(name[len(_OPENED) :])]
    if _is_suspicious(path, bool(dead)) and not _survives_reading(path):
        lmdb_files.destroy(path)
    for name in dead:
        with suppress(FileNotFoundError):  # somebody else has judged as well
            os.unlink(os.path.join(os.fsencode(path), name))


def _is_suspicious(path: str, died: bool) -> bool:
    try:
        facts = lmdb_files.read_data_file(path)
    except IndexDamage:
        return True
    return facts is not None and (died or facts.size < facts.expected_size)


def _runs(process: bytes) -> bool:
    return process.isdigit() and int(process) != os.getpid() and os.path.exists(b"/proc/" + process)


def _survives_reading(path: str) -> bool:
    """Read everything in a child process, which a damaged file may kill, or keep for ever."""
    command = [sys.executable, "-m", __name__, path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        ran = run(command, env=environment, stdin=DEVNULL, capture_output=True, timeout=_READING_S)
    except TimeoutExpired:
        return False
    return ran.returncode == 0


def _main(path: str) -> int:
    """The child: exit 0 when every row can be read, in ascending order, and there is room for more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        env, tables = _open(path)
        with env.begin() as txn:
            if not all(_is_readable(txn, table) for table in tables.values()):
                return 1
        with env.begin(write=True) as txn:
            # LMDB reads its list of free pages when something large wants a place.
            txn.put(b"probe", bytes(1 * MIB), db=tables[META])
            txn.abort()
        return 0
    except (Failed, lmdb.Error):
        return 1


def _is_readable(txn: lmdb.Transaction[bytes], table: _Database) -> bool:
    """Pages that form a ring end here."""
    last, rows = b"", 0
    with txn.cursor(table) as cursor:
        for key, _ in cursor:
            if key <= last:
                return False
            last = key
            rows += 1
    return rows == txn.stat(table)["entries"]


def bounded(key: Sequence[bytes]) -> bytes:
    """The parts of a key joined; what is too long for one ends in a hash, and may then stand out of order."""
    whole = b"".join(key)
    return whole if len(whole) < KEY_LIMIT else whole[: KEY_LIMIT - 16] + H(whole)[:16]


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
