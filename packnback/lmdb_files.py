"""The files of an index directory, looked at without handing them to LMDB.

LMDB maps its data file and believes it: a file that is shorter than its own meta page says kills the process
with SIGBUS at the first touch of a missing page, and so does a full disk when a hole in the mapped lock file
gets its first write. Both are prevented here, before the environment is opened.

``data.mdb``, ``lock.mdb``  LMDB's own
``ballast``                 space held back, so that `forget` and `compact` can be recorded on a full disk

Layout of a meta page (native byte order, 64 bit): a page header of 16 bytes (LMDB 0.9) or 24 (LMDB 1.0) whose
flags stand 6 bytes before its end, then ``struct MDB_meta`` of mdb.c.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import NamedTuple

from msgspec import Struct

from packnback import errors
from packnback.ids import KIB, MIB
from packnback.oserrors import NO_ROOM, failure

BALLAST_BYTES = 1 * MIB
"""Held back at least; more as the index grows, since one transaction then changes more of it."""
_BALLAST_SHARE = 8
_BALLAST_MOST = 64 * MIB
LOCK_FILE_BYTES = 32 * KIB
"""LMDB makes of it what fits: 64 bytes for each of about 500 read transactions at a time."""

_MAGIC = 0xBEEFC0DE
_HEADER_SIZES = (16, 24)
_META_FLAG = 0x08
_META = struct.Struct("=IIQQ I44x 48x QQ")  # magic, version, address, map size, page size, last page, txn id
_SPACE_PROBE_BYTES = 1 * MIB


class Identity(NamedTuple):
    """Which files stand at the path: ``(st_dev, st_ino)`` of each, None where there is no file."""

    data: tuple[int, int] | None
    lock: tuple[int, int] | None


class DataFile(Struct, frozen=True):
    """What the newer meta page of a data file says of it. Sizes in bytes."""

    size: int
    page_size: int
    last_page: int
    map_size: int

    @property
    def expected_size(self) -> int:
        """Size that reaches to the end of the last page in use."""
        return (self.last_page + 1) * self.page_size


def data_path(directory: str) -> str:
    """Path of the data file."""
    return os.path.join(directory, "data.mdb")


def lock_path(directory: str) -> str:
    """Path of the lock file."""
    return os.path.join(directory, "lock.mdb")


def identity(directory: str) -> Identity:
    """Which files stand in `directory` now."""
    return Identity(_inode(data_path(directory)), _inode(lock_path(directory)))


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failure("stat", path, error) from error
    return found.st_dev, found.st_ino


def make_directory(directory: str) -> None:
    """Make `directory` (mode 0700) unless it is there. Its parent has to exist."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise failure("mkdir", directory, error) from error


def read_data_file(directory: str) -> DataFile | None:
    """What the data file says of itself; None when it is absent or empty (LMDB makes both anew).

    Raises `errors.IndexDamage` when its meta pages are not LMDB's. The meta pages are read before the size:
    a writer elsewhere extends the file before it writes the meta page that needs the extension.
    """
    path = data_path(directory)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failure("open", path, error) from error
    try:
        head = os.pread(fd, 64 * KIB + 256, 0)
        size = os.fstat(fd).st_size
    except OSError as error:
        raise failure("read", path, error) from error
    finally:
        os.close(fd)
    return _newer_meta(head, size, path) if size else None


def _newer_meta(head: bytes, size: int, path: str) -> DataFile:
    """`head` reaches from the start of the file over both meta pages, whatever the page size."""
    first = _meta(head, 0, path)
    page_size = first[1].page_size
    if page_size & (page_size - 1) or not 512 <= page_size <= 64 * KIB:
        raise errors.IndexDamage(path, f"page size {page_size}")
    second = _meta(head, page_size, path)
    said = max(first, second, key=lambda meta: meta[0])[1]
    return DataFile(size, page_size, said.last_page, said.map_size)


def _meta(head: bytes, at: int, path: str) -> tuple[int, DataFile]:
    """(transaction id, facts without the size) of the meta page at offset `at`."""
    for header_size in _HEADER_SIZES:
        start = at + header_size
        if len(head) < start + _META.size:
            break
        magic, _version, _address, map_size, page_size, last_page, txn_id = _META.unpack_from(head, start)
        (flags,) = struct.unpack_from("=H", head, start - 6)
        if magic == _MAGIC and flags & _META_FLAG:
            return txn_id, DataFile(0, page_size, last_page, map_size)
    raise errors.IndexDamage(path, f"no meta page at offset {at}")


def reserve_lock_file(directory: str) -> None:
    """Give every byte of the lock file a place on the disk: LMDB writes to it through a map.

    An existing file is never made longer, its present users have mapped the size that it had. Not while this
    process has the environment open: closing the file here would drop LMDB's lock on it.
    """
    path = lock_path(directory)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(fd)
            if found.st_size == 0 or found.st_blocks * 512 < found.st_size:
                os.posix_fallocate(fd, 0, found.st_size or LOCK_FILE_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        raise failure("allocate", path, error) from error


def has_room(directory: str) -> bool:
    """Whether the data file could grow by a MiB: LMDB tells a full disk and a dying one by the same EIO.

    Tried on another file at the same offset, so that quotas and limits on the size of a file count too.
    """
    path = os.path.join(directory, f"space-probe.{os.getpid()}")
    try:
        end = os.stat(data_path(directory)).st_size
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            written = os.pwrite(fd, os.urandom(_SPACE_PROBE_BYTES), end)
            os.fsync(fd)
        finally:
            os.close(fd)
            os.unlink(path)
    except OSError as error:
        return error.errno not in NO_ROOM
    return written == _SPACE_PROBE_BYTES


def release_ballast(directory: str) -> None:
    """Give the held space back to the file system."""
    path = os.path.join(directory, "ballast")
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise failure("unlink", path, error) from error


def restore_ballast(directory: str, size: int) -> bool:
    """Hold `size` bytes back, or an eighth of the index; False, and nothing held, when there is no room for them."""
    path = os.path.join(directory, "ballast")
    try:
        if size:
            size = max(size, min(os.path.getsize(data_path(directory)) // _BALLAST_SHARE, _BALLAST_MOST))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if size and os.fstat(fd).st_size < size:
                os.posix_fallocate(fd, 0, size)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise failure("allocate", path, error) from error
        release_ballast(directory)
        return False
    return True


def destroy(directory: str) -> None:
    """Remove the index's files, so that the next `open` makes an empty index. Missing files are fine.

    Processes that have the index open notice before their next transaction. The lock file goes first: whoever opens
    the index between the two removals then has a new lock file and the old data, and what he writes is lost with
    that. The other way round, he would write to new data under a lock that nobody else asks for.
    """
    for path in (lock_path(directory), data_path(directory)):
        try:
            with suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            raise failure("unlink", path, error) from error
