"""Locks between processes on one machine: who may add, and who may delete.

``lock`` is held shared by sessions (writers and readers), exclusively by compaction. ``gate`` keeps an
unbroken stream of sessions from starving compaction: a session passes through it on its way to ``lock``,
compaction closes it while it waits for ``lock``. Both go gate first, then lock, then let go of the gate, so
there is no cycle to deadlock in.

A lock is never converted. flock(2) converts by dropping the old lock first, so an upgrade that fails leaves
its holder with nothing and believing otherwise. Whoever wants another lock opens the file afresh and
*afterwards* looks at the repository.

flock belongs to an open file: it vanishes with its process, however that dies, so there are no stale locks and
no reason to ever delete these files. They are made again when they are lost. Having got a lock, we check that
the path still names the file that we locked, and start over if not: a lock on a deleted file excludes nobody.
Deleting the file *under* a holder cannot be prevented; `Held.confirm` notices, and compaction asks it before
it deletes.

flock means nothing between machines, and a repository on a local disk may be exported to others, whose sessions
must not lose what they rely on either. Linux carries a flock taken on NFS, and on SMB, to the server as a lock of
fcntl(2) on all bytes of the file. So whoever takes a lock exclusively takes one byte of the file by fcntl, too,
which meets those. (As an open-file-description lock: those of a process vanish with any descriptor of the file.)
On a remote file system itself flock is such a lock already, where it means anything; nothing is deleted there because
of it (`packnback.gc.condemn`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol, Self

from packnback.byte_lock import try_lock_byte, unlock_byte
from packnback.errors import Locked, StorageFailed
from packnback.oserrors import failure
from packnback.store.layout import GATE, LOCK

_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.5
_TOLD_AFTER_S: Final = 2.0
_COMMAND_SHOWN_MAX: Final = 200
_FENCE_AT: Final = 1 << 62
"""The byte that an exclusive lock takes, far behind everything that a lock on a stretch of the file would be for."""
_UNWRITABLE: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Held(Protocol):
    """A lock that is held until `release`, or until the end of a ``with`` block."""

    @property
    def locked(self) -> bool:
        """False for a reader of an unwritable repository, which goes without a lock."""

    def confirm(self) -> None:
        """Raises `StorageFailed` if the lock file was replaced meanwhile, and others may hold its successor."""

    def release(self) -> None:
        """Lets go. Releasing twice is harmless."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Locks(Protocol):
    """The locks of one repository. Every acquisition is independent, also within one process or thread."""

    def shared(self, wait_s: float, *, reading: bool = False) -> Held:
        """For a session. Waits up to `wait_s` seconds (0: a single try), then raises `Locked`.

        With `reading`, a repository that this user cannot write to is read without a lock if need be: nothing
        protects such a reader from a compaction, so it must be ready to find that a pack has gone.
        """

    def exclusive(self, wait_s: float) -> Held:
        """For compaction. Waits like `shared`; new sessions wait behind it."""


class FileLocks:
    """flock(2) on two files in the directory `root`. See `Locks`."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        remote: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`remote` tells whether `root` is on a file system that other machines have, see `mounts.is_remote`.

        `note` is told when somebody has to wait. Not for whom: he may be on another machine, and that is none of his
        business there.
        """
        self._note = note
        self._root = os.fspath(root)
        self._remote = remote
        self._sleep = sleep
        self._monotonic = monotonic

    def shared(self, wait_s: float, *, reading: bool = False) -> Held:
        """LOCK_SH on ``lock``, by way of the gate."""
        return self._through_gate(fcntl.LOCK_SH, wait_s, reading)

    def exclusive(self, wait_s: float) -> Held:
        """LOCK_EX on ``lock``, with the gate closed until it is obtained."""
        return self._through_gate(fcntl.LOCK_EX, wait_s, reading=False)

    def _through_gate(self, mode: int, wait_s: float, reading: bool) -> Held:
        start = self._monotonic()
        with self._acquire(GATE, mode, start, wait_s, reading):
            return self._acquire(LOCK, mode, start, wait_s, reading)

    def _acquire(self, name: str, mode: int, start: float, wait_s: float, reading: bool) -> Held:
        path = os.path.join(self._root, name)
        pause, told = _FIRST_PAUSE_S, False
        while True:
            fd = _open_lock(path, reading)
            if fd is None:
                return _Unlocked()
            try:
                fence = mode == fcntl.LOCK_EX and not self._remote
                alone = not fence or _try_fence(fd, path)
                if alone and _try_flock(fd, path, mode):
                    if _is_at(fd, path):
                        held, fd = _FileHeld(fd, path, fenced=fence), -1
                        return held
                    continue  # it was replaced between opening and locking: that is no reason to wait
                waited = self._monotonic() - start
                if waited >= wait_s:
                    raise Locked(path, _holder(fd, alone), waited_s=waited)
                if waited >= _TOLD_AFTER_S and not told:
                    told = True
                    self._note("waiting: the repository is in use by another process")
            finally:
                if fd >= 0:
                    os.close(fd)
            self._sleep(min(pause, wait_s - waited))
            pause = min(2 * pause, _LONGEST_PAUSE_S)


class _Scoped(ABC):
    """The ``with`` half of a `Held`."""

    @abstractmethod
    def release(self) -> None:
        """See `Held.release`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class _FileHeld(_Scoped):
    def __init__(self, fd: int, path: str, *, fenced: bool) -> None:
        self._fd = fd
        self._path = path
        self._fenced = fenced

    @property
    def locked(self) -> bool:
        return self._fd >= 0

    def confirm(self) -> None:
        if self._fd < 0 or not _is_at(self._fd, self._path):
            raise StorageFailed("lock", self._path, "the lock file was replaced while the lock was held")

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                # Closing would not do if a forked child had a copy of the descriptor.
                fcntl.flock(fd, fcntl.LOCK_UN)
                if self._fenced:
                    unlock_byte(fd, _FENCE_AT)
            finally:
                os.close(fd)


class _Unlocked(_Scoped):
    """What a reader of an unwritable repository holds: nothing."""

    @property
    def locked(self) -> bool:
        return False

    def confirm(self) -> None:
        """Nothing is held, so nothing was lost."""

    def release(self) -> None:
        """Nothing to let go of."""


def _open_lock(path: str, reading: bool) -> int | None:
    """A new descriptor of the lock file, which is made if it is missing; None for a reader that cannot.

    A reader without write permission still takes the lock if it can open the file at all: flock asks for no
    particular access on a local file system.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    except OSError as error:
        if not (reading and error.errno in _UNWRITABLE):
            raise failure("lock", path, error) from error
    try:
        return os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        if error.errno in _UNWRITABLE or error.errno == errno.ENOENT:
            return None
        raise failure("lock", path, error) from error


def _try_flock(fd: int, path: str, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise failure("lock", path, error) from error
    return True


def _try_fence(fd: int, path: str) -> bool:
    """Keep other machines out; False when one of them holds the lock."""
    try:
        return try_lock_byte(fd, _FENCE_AT)
    except OSError as error:
        raise failure("lock", path, error) from error


def _is_at(fd: int, path: str) -> bool:
    """Whether `path` still names the open file."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise failure("lock", path, error) from error
    return os.path.samestat(os.fstat(fd), there)


def _holder(fd: int, alone: bool) -> str:
    return holder_of(fd) or ("another process" if alone else "another process, or another machine")


def holder_of(fd: int) -> str | None:
    """Who holds a flock on the open file: ``pid 123: command line``; None if the kernel does not tell (the
    lock was just released, or ``/proc`` is not mounted, or the holder is on another machine).
    """
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as locks:
            pid = _pid_of_holder(locks.read(), os.fstat(fd))
    except OSError:
        return None
    if pid is None:
        return None
    if pid <= 0:
        return "a process outside this container"
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = file.read(4 * _COMMAND_SHOWN_MAX).rstrip(b"\0").split(b"\0")
    except OSError:  # it has ended, or belongs to somebody else
        return f"pid {pid}"
    command = " ".join(argument.decode(errors="replace") for argument in arguments)[:_COMMAND_SHOWN_MAX]
    return f"pid {pid}: {command}" if command else f"pid {pid}"


def _pid_of_holder(locks: str, file: os.stat_result) -> int | None:
    """The first holder in the text of ``/proc/locks`` (proc_locks(5)); those who wait are marked ``->``.

    The inode decides. Device numbers only break ties: btrfs and overlay show others in stat(2).
    """
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    elsewhere: int | None = None
    for match in re.finditer(r"^\d+: FLOCK +\S+ +\S+ +(-?\d+) (\w+:\w+):(\d+) ", locks, re.MULTILINE):
        if int(match[3]) != file.st_ino:
            continue
        if match[2] == device:
            return int(match[1])
        if elsewhere is None:
            elsewhere = int(match[1])
    return elsewhere
