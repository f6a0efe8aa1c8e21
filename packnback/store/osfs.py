"""The file-system port on POSIX: thin, and exact about what the kernel promises.

- Everything is opened relative to a descriptor of the root, close-on-exec and without following a symbolic
  link in the last component. Files are 0600 and directories 0700: nobody else has business here.
- A write may be partial, and takes at most IOV_MAX buffers; `append` goes on until all is written.
- A failed fsync is final. Linux may drop the dirty pages and report success to the next fsync of the same
  file ("fsyncgate"), so the handle is poisoned; whoever wants to retry writes a new file from memory.
- `move` is `link` + `unlink`, because `link` fails when the target exists, everywhere and atomically.
  Where there are no hard links it is ``renameat2(RENAME_NOREPLACE)``. There the source directory is synced
  before `move` returns: without hard links, an old name that came back after a power cut would share its
  blocks with the new one, and sweeping it away would free them.
- Some file systems (SMB) cannot sync a directory and say EINVAL or ENOTSUP. Nothing can be done about it
  here; it is told once to whoever watches, and tolerated.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from packnback.errors import Poisoned
from packnback.events import Watch
from packnback.oserrors import NO_HARD_LINKS, sync_directory
from packnback.store.fs import Buffer, check_path, parent_of

_FILE_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o700
_IOV_MAX: Final = min(os.sysconf("SC_IOV_MAX"), 1024)
_RENAME_NOREPLACE: Final = 1


class OsAppendFile:
    """See `packnback.store.fs.AppendFile`."""

    def __init__(self, fd: int, path: str, watch: Watch) -> None:
        self._fd = fd
        self._path = path
        self._watch = watch
        self._poisoned = False

    def append(self, buffers: Sequence[Buffer]) -> None:
        """Writes all of `buffers`, however many calls that takes."""
        self._refuse_if_poisoned()
        try:
            _write_all(self._fd, buffers)
        except BaseException:  # an interrupted append is as torn as a failed one
            self._poisoned = True
            raise

    def sync(self) -> None:
        """fsync; see the module's docstring for why a failure is final."""
        self._refuse_if_poisoned()
        try:
            os.fsync(self._fd)
        except BaseException:
            self._poisoned = True
            raise
        self._watch.counters.fsyncs += 1
        # What is durable need not stay in memory: nobody reads it soon, a backup must not push out what others
        # use, and the pages that this frees are those that the next file is written with.
        with suppress(OSError):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Closes the descriptor. What close(2) reports is of no use here: only `sync` promises anything."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _refuse_if_poisoned(self) -> None:
        if self._poisoned:
            raise Poisoned(self._path)


class OsFileSystem:
    """The tree below the directory `root`. See `packnback.store.fs.FileSystem`."""

    def __init__(self, root: str | os.PathLike[str], watch: Watch | None = None) -> None:
        self.root = os.fspath(root)
        self._watch = watch if watch is not None else Watch()
        self._root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._told_lock = threading.Lock()
        self._told_unsyncable = False

    def close(self) -> None:
        """Gives the descriptor of the root back. Nothing can be done through this object afterwards."""
        fd, self._root_fd = self._root_fd, -1
        if fd >= 0:
            os.close(fd)

    def create(self, path: str) -> OsAppendFile:
        """O_EXCL, so that it can only be new."""
        fd = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        return OsAppendFile(fd, path, self._watch)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """pread, repeated until the range or the file ends. Never allocates more than the file holds."""
        if offset < 0 or (length is not None and length < 0):
            raise ValueError(f"negative range: {offset}, {length}")
        # O_NONBLOCK: a fifo that somebody left here must not hang the reader.
        fd = self._open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            rest = max(0, _regular_size(fd, path) - offset)
            return _read_range(fd, offset, rest if length is None else min(length, rest))
        finally:
            os.close(fd)

    def size(self, path: str) -> int:
        """st_size of a regular file; anything else is an error."""
        found = os.stat(check_path(path), dir_fd=self._root_fd, follow_symlinks=False)
        _require_regular(found.st_mode, path)
        return found.st_size

    def modified_ns(self, path: str) -> int:
        """st_mtime."""
        return os.stat(check_path(path), dir_fd=self._root_fd, follow_symlinks=False).st_mtime_ns

    def list(self, path: str) -> list[str]:
        """All names; those that are not UTF-8 carry surrogates, as everywhere in Python."""
        fd = self._open_directory(path)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def move(self, source: str, target: str) -> None:
        """link + unlink, or RENAME_NOREPLACE."""
        source, target = check_path(source), check_path(target)
        root = self._root_fd
        try:
            os.link(source, target, src_dir_fd=root, dst_dir_fd=root, follow_symlinks=False)
        except FileExistsError:
            # An NFS server that executed the call but whose answer was lost is asked again, and says EEXIST.
            if source == target or not self._same_file(source, target):
                raise
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            self.size(source)  # link refuses directories with EPERM, too, and rename would move them
            _rename_noreplace(self._root_fd, source, target)
            self.sync_dir(parent_of(source))
            return
        self.unlink(source)

    def unlink(self, path: str) -> None:
        """unlink(2)."""
        os.unlink(check_path(path), dir_fd=self._root_fd)

    def make_dir(self, path: str) -> None:
        """mkdir(2)."""
        os.mkdir(check_path(path), _DIRECTORY_MODE, dir_fd=self._root_fd)

    def sync_dir(self, path: str) -> None:
        """fsync of the directory, where the file system has such a thing."""
        fd = self._open_directory(path)
        try:
            synced = sync_directory(fd)
        finally:
            os.close(fd)
        if synced:
            self._watch.counters.fsyncs += 1
        else:
            self._tell_unsyncable()

    def _open(self, path: str, flags: int) -> int:
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
        return os.open(check_path(path), flags, _FILE_MODE, dir_fd=self._root_fd)

    def _open_directory(self, path: str) -> int:
        if path == "":
            path = "."
        else:
            check_path(path)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(path, flags, dir_fd=self._root_fd)

    def _same_file(self, source: str, target: str) -> bool:
        ours = os.stat(source, dir_fd=self._root_fd, follow_symlinks=False)
        theirs = os.stat(target, dir_fd=self._root_fd, follow_symlinks=False)
        return os.path.samestat(ours, theirs)

    def _tell_unsyncable(self) -> None:
        with self._told_lock:
            told, self._told_unsyncable = self._told_unsyncable, True
        if not told:
            self._watch.progress.note(
                "the repository's file system cannot sync directories; "
                "after a power cut, names that were just written may be missing"
            )


def make_root(path: str | os.PathLike[str]) -> None:
    """Makes the directory `path` (not its parents) unless it is there, and makes its name durable."""
    path = os.path.abspath(os.fspath(path))
    try:
        os.mkdir(path, _DIRECTORY_MODE)
    except FileExistsError:
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
    parent = OsFileSystem(os.path.dirname(path))
    try:
        parent.sync_dir("")
    finally:
        parent.close()


def _write_all(fd: int, buffers: Sequence[Buffer]) -> None:
    views = [view for view in (memoryview(buffer).cast("B") for buffer in buffers) if view.nbytes]
    first = 0
    while first < len(views):
        written = os.writev(fd, views[first : first + _IOV_MAX])
        if written == 0:
            raise OSError(errno.EIO, "writev wrote nothing")
        while first < len(views) and written >= views[first].nbytes:
            written -= views[first].nbytes
            first += 1
        if written:
            views[first] = views[first][written:]


def _read_range(fd: int, offset: int, length: int) -> bytes:
    pieces: list[bytes] = []
    while length > 0:
        piece = os.pread(fd, length, offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _regular_size(fd: int, path: str) -> int:
    found = os.fstat(fd)
    _require_regular(found.st_mode, path)
    return found.st_size


def _require_regular(mode: int, path: str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.ELOOP if stat.S_ISLNK(mode) else errno.EINVAL, "not a regular file", path)


def _rename_noreplace(root_fd: int, source: str, target: str) -> None:
    """renameat2(2), which has no wrapper in the standard library. musl and old glibc lack it: ENOSYS."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), source, None, target)
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if renameat2(root_fd, os.fsencode(source), root_fd, os.fsencode(target), _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), source, None, target)
