"""The directory below which everything lands, and nothing outside it.

Paths from a snapshot are hostile, and so may be what already stands in the target, or what somebody swaps in
while we write. So no path is ever handed to the system: every component is opened relative to the descriptor
of the one above it, with O_NOFOLLOW, and every file operation names one component relative to a descriptor.
A symlink on the way, whoever made it, is an error (`Refused`, reason ``symlink in the way``), never a detour.

Descriptors of directories are kept in a small LRU, since files come in the order of objects, not of directories.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from types import TracebackType

from msgspec import Struct

from packnback import errors

DESCRIPTORS_LIMIT = 256
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
SYMLINK_IN_THE_WAY = "symlink in the way"
NOT_A_DIRECTORY = "not a directory"


class Folder(Struct):
    """An open directory below the target."""

    fd: int
    new_owner: tuple[int, int] | None = None
    """(uid, gid) that a file made here gets: mount options and set-group-id directories have a say in it, so
    it is learnt from the first file."""
    default_acl: bool | None = None
    """Whether whatever is made here is given an access control list, if that was asked for already."""

    def has_default_acl(self) -> bool:
        """Whether whatever is made here is given an access control list that nobody recorded."""
        if self.default_acl is None:
            try:
                self.default_acl = bool(os.getxattr(self.fd, "system.posix_acl_default"))
            except OSError:  # it has none, or its file system knows none
                self.default_acl = False
        return self.default_acl


class Target:
    """An existing or new directory to restore into. The one that the user named may be a symlink itself."""

    def __init__(self, path: str | bytes, *, create: bool = True) -> None:
        try:
            if create:
                os.makedirs(path, mode=0o700, exist_ok=True)
            self._root = Folder(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            number = errno.ENOTDIR if isinstance(error, FileExistsError) else error.errno or 0
            raise errors.StorageFailed("restore to", os.fsdecode(path), os.strerror(number)) from error
        self._open: OrderedDict[bytes, Folder] = OrderedDict()

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        for folder in (*self._open.values(), self._root):
            os.close(folder.fd)
        self._open.clear()

    def folder(self, path: bytes) -> Folder:
        """The existing directory `path`. Raises Refused for a symlink or a file in its way, or OSError.

        The descriptor stays good while fewer than 256 others are asked for.
        """
        if (known := self._open.get(path)) is not None:
            self._open.move_to_end(path)
            return known
        at = path
        while at and at not in self._open:
            at = at.rpartition(b"/")[0]
        folder = self._root
        if at:
            self._open.move_to_end(at)
            folder = self._open[at]
        missing = path[len(at) :].strip(b"/")
        for name in missing.split(b"/") if missing else []:
            at = at + b"/" + name if at else name
            folder = self._enter(folder, at, name)
        return folder

    def make_folder(self, path: bytes, *, replace: bool = False) -> bool:
        """Make the directory `path` in its existing parent; False if it was there already.

        With `replace`, what stands in its way is removed, unless that is a symlink: it may have been put there
        on purpose. Raises Refused or OSError.
        """
        parent, _, name = path.rpartition(b"/")
        above = self.folder(parent)
        try:
            os.mkdir(name, 0o700, dir_fd=above.fd)
        except FileExistsError:
            found = os.stat(name, dir_fd=above.fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                return False
            if not replace or stat.S_ISLNK(found.st_mode):
                raise _in_the_way(path, name, above.fd) from None
            os.unlink(name, dir_fd=above.fd)
            os.mkdir(name, 0o700, dir_fd=above.fd)
        return True

    def lstat(self, path: bytes) -> os.stat_result | None:
        """What stands at `path`, or None. Raises Refused or OSError, as `folder` does."""
        parent, _, name = path.rpartition(b"/")
        try:
            return os.lstat(name, dir_fd=self.folder(parent).fd)
        except FileNotFoundError:
            return None

    def _enter(self, above: Folder, path: bytes, name: bytes) -> Folder:
        try:
            folder = Folder(os.open(name, OPEN_DIRECTORY, dir_fd=above.fd))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise _in_the_way(path, name, above.fd) from None
            raise
        self._open[path] = folder
        if len(self._open) > DESCRIPTORS_LIMIT:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest.fd)
        return folder

    def forget(self, path: bytes) -> None:
        """Close what is open at or below `path`, which is about to be removed."""
        for known in [p for p in self._open if p == path or p.startswith(path + b"/")]:
            os.close(self._open.pop(known).fd)


def _in_the_way(path: bytes, name: bytes, above: int) -> errors.Refused:
    shown = path.decode(errors="replace")
    is_link = stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode)
    return errors.Refused(SYMLINK_IN_THE_WAY if is_link else NOT_A_DIRECTORY, shown)
