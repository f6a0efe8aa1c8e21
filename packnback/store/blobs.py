"""The blob port: immutable, named blobs, and how they come to be on a file system.

The engine sees packs, snapshots, markers and header batches as blobs and nothing else of the disk. The port
has no way to change a blob or to replace one. An object store with put-if-absent, range get, list and delete
fits it as it is; there `barrier`, `settle` and `sweep_tmp` have nothing to do.

The order of writes in `FileBlobStore.publish`, and why:

1. write ``tmp/RANDOM``: a writer that dies leaves a file that nobody looks at;
2. sync the file: a name must never appear in a final directory while a power cut could still take its bytes;
3. move it to its final name, which fails if that is taken: two publishers of one name cannot both win;
4. sync the final directory: only now may the caller rely on the blob, and name it in an index or a reply.

A move between two directories is two edits for the disk, and syncing *both* directories is what makes both
durable. The arrival matters: without step 4, an acknowledged blob would be gone after a power cut. The
departure does not, and the sync of ``tmp/`` is saved: should the old name come back, it is a second name of a
file that nobody looks for there, and `sweep_tmp` takes away the name, not the blob. (This needs hard links.
Where there are none, `FileSystem.move` sees to the departure itself; see `packnback.store.osfs`.)

A deletion is durable only after `barrier`: until then a deleted blob may come back. Whoever must not see
that (a released snapshot whose packs are about to go) waits for the barrier; whoever can live with it (an
old pack, deleted once more by the next compaction) does not.

A failed sync is final, for directories as for files: the kernel may have dropped what it could not write and
report success next time. The directory is poisoned for this store, and every later operation that would have
to sync it raises `Poisoned`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from packnback.errors import AlreadyExists, BlobMissing, PacknbackError, Poisoned, Unreadable
from packnback.oserrors import failure, reason_of
from packnback.store.fs import Buffer, FileSystem, parent_of
from packnback.store.layout import TMP, is_foreign

_UNREADABLE = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.EREMOTEIO})
"""What reading says of a bad sector, or of a block whose checksum the file system found wrong."""
_NO_FILE = frozenset({errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO})
"""What it says of a directory, a link, a fifo or a socket that has taken a blob's name."""


class BlobStore(Protocol):
    """Immutable blobs by name. Names are relative paths, as in `packnback.store.fs`. Thread-safe.

    Everything may raise `DiskFull` or `StorageFailed`, and what has to sync may raise `Poisoned`.
    """

    def publish(self, name: str, buffers: Sequence[Buffer]) -> None:
        """Makes a blob of the concatenation of `buffers`, whole or not at all, durable on return.

        `AlreadyExists` if the name is taken; the blob that has it is durable by then, whoever wrote it, so
        that a repeated publication can be acknowledged. After any other error the blob may exist or not.
        """

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Up to `length` bytes (None: all) from `offset` on; short at the end of the blob. `BlobMissing`,
        and `Unreadable` for a range of which the disk does not give back every byte."""

    def size(self, name: str) -> int:
        """Bytes in the blob. `BlobMissing`."""

    def modified_ns(self, name: str) -> int:
        """When the blob was written, in ns, by the storage's own clock. `BlobMissing`."""

    def exists(self, name: str) -> bool:
        """False only if the storage positively says that there is no such blob."""

    def list(self, directory: str) -> list[str]:
        """All names in `directory`, ascending, strangers included. A directory that is missing is a
        `StorageFailed`, never an empty list: an unmounted disk must not look like deleted packs."""

    def delete(self, name: str) -> None:
        """Takes the blob away; durably so after the next `barrier`. `BlobMissing`."""

    def barrier(self) -> None:
        """Returns when every deletion made so far through this object is durable."""

    def settle(self, directory: str) -> None:
        """Returns when all names now in `directory` are durable, whoever wrote them.

        Needed before adopting names: their writer may have been killed between steps 3 and 4.
        """

    def sweep_tmp(self) -> int:
        """Deletes unpublished files and returns their number. The caller holds the exclusive lock: a
        concurrent publisher would lose what it is writing."""


class FileBlobStore:
    """Blobs as files. See `BlobStore`."""

    def __init__(self, fs: FileSystem, *, tmp_name: Callable[[], str] = lambda: os.urandom(16).hex()) -> None:
        self._fs = fs
        self._tmp_name = tmp_name
        self._mutex = threading.Lock()
        self._deleted_from: set[str] = set()
        self._poisoned: set[str] = set()

    def publish(self, name: str, buffers: Sequence[Buffer]) -> None:
        """Steps 1 to 4 of the module's docstring."""
        directory = parent_of(name)
        self._refuse_if_poisoned(directory)
        tmp = f"{TMP}/{self._tmp_name()}"
        with _told("publish", name):
            try:
                self._write(tmp, buffers)
                taken = not self._moved(tmp, name)
            except BaseException as error:  # an interrupt leaves nothing behind either
                self._discard(tmp, error)
                raise
            if taken:
                self._fs.unlink(tmp)
        self._sync_dir(directory)
        if taken:
            raise AlreadyExists(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """A ranged read of the file."""
        with _told("read", name):
            return self._fs.read(name, offset, length)

    def size(self, name: str) -> int:
        """Length of the file."""
        with _told("size", name):
            return self._fs.size(name)

    def modified_ns(self, name: str) -> int:
        """The file's time of modification: nothing is appended after it is published."""
        with _told("stat", name):
            return self._fs.modified_ns(name)

    def exists(self, name: str) -> bool:
        """False on ENOENT; any other error is raised."""
        try:
            self.size(name)
        except BlobMissing:
            return False
        return True

    def list(self, directory: str) -> list[str]:
        """Sorted names of the directory."""
        try:
            return sorted(self._fs.list(directory))
        except OSError as error:
            raise storage_error("list", directory, error) from error

    def delete(self, name: str) -> None:
        """Unlinks the file, and remembers the directory for `barrier`."""
        try:
            with _told("delete", name):
                self._fs.unlink(name)
        finally:  # after a failure, too: the entry may be gone all the same
            with self._mutex:
                self._deleted_from.add(parent_of(name))

    def barrier(self) -> None:
        """Syncs the directories that lost names."""
        with self._mutex:
            waiting, self._deleted_from = self._deleted_from, set()
        try:
            for directory in sorted(waiting):
                self._sync_dir(directory)
        except BaseException:
            with self._mutex:  # nothing may pass for durable at the next barrier that did not get through this one
                self._deleted_from |= waiting
            raise

    def settle(self, directory: str) -> None:
        """Syncs the directory."""
        self._sync_dir(directory)

    def sweep_tmp(self) -> int:
        """Not followed by a sync: a file that comes back is swept by the next compaction.

        What file servers leave (``@eaDir``, ``.nfs0001``) is theirs, and a directory is nobody's who publishes.
        """
        swept = 0
        for name in [name for name in self.list(TMP) if not is_foreign(name)]:
            with _told("sweep", f"{TMP}/{name}"), suppress(IsADirectoryError):
                self._fs.unlink(f"{TMP}/{name}")
                swept += 1
        return swept

    def _write(self, path: str, buffers: Sequence[Buffer]) -> None:
        file = self._fs.create(path)
        try:
            file.append(buffers)
            file.sync()
        finally:
            file.close()

    def _moved(self, tmp: str, name: str) -> bool:
        """False if the name is taken."""
        try:
            self._fs.move(tmp, name)
        except FileExistsError:
            return False
        return True

    def _discard(self, tmp: str, error: BaseException) -> None:
        """Frees the space of a failed publication, a full disk being the likely reason for it."""
        try:
            self._fs.unlink(tmp)
        except FileNotFoundError:  # it failed before there was a file
            return
        except OSError as second:
            error.add_note(f"{tmp} could not be removed either ({second}); the next compaction sweeps it")

    def _sync_dir(self, directory: str) -> None:
        self._refuse_if_poisoned(directory)
        try:
            self._fs.sync_dir(directory)
        except OSError as error:
            with self._mutex:
                self._poisoned.add(directory)
            raise storage_error("sync", directory, error) from error

    def _refuse_if_poisoned(self, directory: str) -> None:
        with self._mutex:
            poisoned = directory in self._poisoned
        if poisoned:
            raise Poisoned(directory)


def storage_error(operation: str, path: str, error: OSError) -> PacknbackError:
    """The error of ours that says what the operating system said."""
    if error.errno in {"read": _UNREADABLE | _NO_FILE, "size": _NO_FILE}.get(operation, frozenset()):
        return Unreadable(operation, path, reason_of(error))
    return failure(operation, path, error)


@contextmanager
def _told(operation: str, name: str) -> Iterator[None]:
    """Tells the OSErrors of an operation on the blob `name` as errors of ours.

    A missing directory makes `publish` fail with ENOENT; that is the storage's failure, not a missing blob.
    """
    try:
        yield
    except FileNotFoundError as error:
        if operation == "publish":
            raise storage_error(operation, name, error) from error
        raise BlobMissing(name) from error
    except OSError as error:
        raise storage_error(operation, name, error) from error
