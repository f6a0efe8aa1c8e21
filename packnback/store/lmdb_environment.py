"""The LMDB environment of an index: what the handles of one process share, and how it is opened, grown and given up.

The rules that LMDB leaves to its callers, and where they are kept:

- A file is opened once per process: `attach` keeps the environments, handles count on them.
- Never across ``fork``: a child that uses a handle of its parent gets `RuntimeError`, before LMDB hears of it.
- The map is replaced (grown, followed when another process grew it, opened on other files) behind a gate that
  no transaction is in (`packnback.store.txn_gate`). All of it is one operation, `Environment._reopen`.
- Opening compares the inodes at the path before and after; each transaction compares those of the open files with
  those at the path. Somebody may have thrown the index away: then the new files are opened, and `generation` tells.
- A file that is shorter than it says is read by a child process before it is mapped here; the lock file gets all
  its disk space before it is mapped (`packnback.lmdb_files`).
- A full disk is `errors.DiskFull`, and leaves the index usable. Any other failed write poisons the environment:
  what the kernel has kept of it is unknown.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import lmdb

from packnback import errors, lmdb_files
from packnback.ids import KIB
from packnback.oserrors import NO_ROOM
from packnback.store.index import TABLES
from packnback.store.index_probe import probe
from packnback.store.txn_gate import TransactionGate

if TYPE_CHECKING:
    from lmdb import _Database

MAP_SIZE = 64 << 30
"""Address space taken at open, in bytes; no memory. Halved until it fits where address space is limited."""

_MAP_SIZE_LEAST = 64 * KIB
_TABLES_LIMIT = 32
_SPARE_READ_TRANSACTIONS = 8

_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.PageNotFoundError,
    lmdb.PageFullError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.PanicError,
    lmdb.BadTxnError,  # what LMDB says after it has met one of the others
    lmdb.BadValsizeError,  # of keys that were within their limits: `_checked` has said so
)


def _read_facts(directory: str, *, check_size: bool) -> lmdb_files.DataFile | None:
    """What the data file says; a child process has the last word on one that is too short.

    (LMDB does not promise to write a last page that was freed before it was committed.)
    """
    facts = lmdb_files.read_data_file(directory)
    if check_size and facts is not None and facts.size < facts.expected_size:
        why = probe(directory)
        if why is not None:
            raise errors.IndexDamage(
                lmdb_files.data_path(directory), f"{facts.size} of {facts.expected_size} bytes; {why}"
            )
    return facts


def _map(directory: str, wanted: int, least: int, *, durable: bool) -> lmdb.Environment:
    """Map `wanted` bytes of address space, or what can be had of it down to `least`."""
    size = wanted
    while True:
        try:
            return lmdb.open(
                directory,
                map_size=size,
                mode=0o700,
                create=False,
                sync=durable,
                metasync=durable,
                writemap=False,
                max_dbs=_TABLES_LIMIT,
                max_spare_txns=_SPARE_READ_TRANSACTIONS,
            )
        except lmdb.MemoryError as error:
            if size // 2 < max(least, _MAP_SIZE_LEAST):
                raise errors.StorageFailed("map", directory, f"no address space for {size} bytes") from error
            size //= 2


def _open_tables(env: lmdb.Environment) -> dict[str, _Database]:
    """Handles of all tables. Waits for another process's writer, writes only if a table is missing.

    (py-lmdb does not keep handles that were opened in a read transaction.)
    """
    with env.begin(write=True) as txn:
        return {name: env.open_db(name.encode(), txn=txn) for name in TABLES}


class Environment:
    """One LMDB environment, opened anew when it has to be, under however many handles."""

    def __init__(self, directory: str, map_size: int, *, check_size: bool, durable: bool) -> None:
        self.directory = directory
        self.handles = 1
        self.generation = 0
        self.tables: dict[str, _Database] = {}
        self.map_size = map_size
        self.identity: lmdb_files.Identity | None = None
        self._check_size = check_size
        self._durable = durable
        self._pid = os.getpid()
        self.gate = TransactionGate()
        self._env: lmdb.Environment | None = None
        self._stale = False
        self._poisoned = False
        self._open(map_size, least=0)

    def _open(self, wanted: int, least: int) -> None:
        while not self._opened_what_stands(wanted, least):
            self.unmap()  # somebody threw the files away meanwhile
        self._stale = False

    def _opened_what_stands(self, wanted: int, least: int) -> bool:
        """Open the files at the path; False when other ones stand there by now."""
        try:
            facts = _read_facts(self.directory, check_size=self._check_size)
            if facts is not None:
                least = max(least, facts.expected_size)
                wanted = max(wanted, least, facts.map_size)
            lmdb_files.reserve_lock_file(self.directory)
            before = lmdb_files.identity(self.directory)
            self._env = _map(self.directory, wanted, least, durable=self._durable)
            self._env.reader_check()
            self.tables = _open_tables(self._env)
            self.map_size = self._env.info()["map_size"]
        except lmdb.Error as error:
            self.unmap()
            raise self.explained("open", error) from error
        self.identity = lmdb_files.identity(self.directory)
        return self.identity.lock == before.lock and before.data in (None, self.identity.data)

    def unmap(self) -> None:
        """Close the files. Nobody has a transaction."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _reopen(self, *, least: int = 0) -> None:
        """Open the files that now stand at the path, with a map of at least `least` bytes."""
        with self.gate.exclusive():
            if self._stale or self.map_size < least:
                # An inode number cannot be taken by another file before the one that we have open is closed.
                standing, opened = lmdb_files.identity(self.directory), self.identity
                self._stale, self.identity = True, None
                self.unmap()
                lmdb_files.make_directory(self.directory)
                self._open(max(self.map_size, least), least)
                if not opened == standing == self.identity:
                    self.generation += 1

    def begin(self, *, write: bool) -> tuple[lmdb.Transaction[bytes], int]:
        """A transaction, and the pass through the gate that `end` takes back."""
        if self._pid != os.getpid():
            raise RuntimeError("an index does not survive a fork: open it in a process started afresh")
        while True:
            entered = self.gate.enter()
            try:
                txn = self._try_begin(write)
            except BaseException:
                self.gate.leave(entered)
                raise
            if txn is not None:
                return txn, entered
            self.gate.leave(entered)
            self._reopen()

    def _try_begin(self, write: bool) -> lmdb.Transaction[bytes] | None:
        """None when the files have to be opened anew first."""
        if self._poisoned:
            raise errors.Poisoned(self.directory)
        if not self.handles:
            raise RuntimeError("the index is closed")
        if self._env is None or self._stale:
            return None
        try:
            txn = self._env.begin(write=write)
        except lmdb.MapResizedError:
            self._stale = True
            return None
        except lmdb.Error as error:
            raise self.explained("begin", error) from error
        try:
            replaced = lmdb_files.identity(self.directory) != self.identity
        except BaseException:
            txn.abort()
            raise
        if replaced:
            txn.abort()
            self._stale = True
            return None
        return txn

    def end(self, txn: lmdb.Transaction[bytes], entered: int) -> None:
        """Abort `txn` unless it was committed, and let others pass."""
        try:
            txn.abort()
        finally:
            self.gate.leave(entered)

    def grow(self, was: int) -> None:
        """Map more than `was` bytes; nothing to do if somebody else has done it meanwhile."""
        self._reopen(least=2 * was)

    def discard(self) -> None:
        """Remove the files; the next transaction makes new ones."""
        with self.gate.exclusive():
            self.unmap()
            lmdb_files.destroy(self.directory)
            self._stale, self._poisoned = True, False

    @property
    def forked(self) -> bool:
        """Whether this was opened by an ancestor of this process."""
        return self._pid != os.getpid()

    def write_failed(self, error: lmdb.Error) -> Exception:
        """What a failed write means, and what becomes of this environment."""
        told = self.explained("write", error)
        if isinstance(told, errors.DiskFull):
            self._stale = True  # LMDB refuses an environment whose meta page it could not write: take a new one
        elif type(error) is lmdb.Error:
            self._poisoned = True  # an errno of the file system; LMDB's own codes leave nothing half done
        return told

    def explained(self, operation: str, error: lmdb.Error) -> Exception:
        """The tree's error for LMDB's. A full disk reaches LMDB as a short write, which it calls EIO."""
        path = lmdb_files.data_path(self.directory)
        if isinstance(error, _DAMAGE):
            return errors.IndexDamage(path, str(error))
        said = str(error)
        if isinstance(error, lmdb.DiskError) or any(said.endswith(os.strerror(c)) for c in NO_ROOM):
            return errors.DiskFull(path)
        if said.endswith(os.strerror(errno.EIO)) and not lmdb_files.has_room(self.directory):
            return errors.DiskFull(path)
        return errors.StorageFailed(operation, path, said)


# --- the registry: one environment per index and process ---------------------------------------------------

_environments: list[Environment] = []
_attaching = threading.Lock()


def attach(directory: str, map_size: int, *, check_size: bool, durable: bool) -> Environment:
    """The environment of `directory`, opened unless this process has it open under this or another name."""
    lmdb_files.make_directory(directory)
    path = os.path.realpath(directory)
    with _attaching:
        standing = lmdb_files.identity(path)
        for environment in _environments:
            same_files = standing.data is not None and environment.identity == standing
            if environment.directory == path or same_files:
                if environment.forked:
                    raise RuntimeError("the parent process had this index open: open it in a process started afresh")
                environment.handles += 1
                return environment
        environment = Environment(path, map_size, check_size=check_size, durable=durable)
        _environments.append(environment)
        return environment


def detach(environment: Environment) -> None:
    """One handle less; the last one waits for live transactions of other threads, then closes the files."""
    with _attaching:
        environment.handles -= 1
        if environment.handles:
            return
    with environment.gate.exclusive(), _attaching:
        if not environment.handles and environment in _environments:  # nobody attached or closed it meanwhile
            _environments.remove(environment)
            environment.unmap()


def _after_fork() -> None:
    """The lock may have been held by a thread that this child does not have."""
    global _attaching
    _attaching = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
