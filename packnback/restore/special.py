"""Everything in a directory that is neither file nor directory: symlinks, fifos, devices, further hard links.

Made under the final name if that must be new, else under a temporary name that then replaces what stands there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from packnback.format.entry import BLOCK, CHAR, FIFO, SOCKET, SYMLINK, Entry
from packnback.restore.attributes import Ownership, apply_to_name
from packnback.restore.files import TEMPORARY, give_name
from packnback.restore.look import join
from packnback.restore.report import RestoreResult, Trouble
from packnback.restore.target import Target


def make_special(
    target: Target, folder: bytes, entry: Entry, ownership: Ownership, result: RestoreResult, *, replace: bool
) -> bool:
    """Make a symlink, fifo or device; whether there is one now. Raises OSError (FileExistsError, too) or Refused."""
    path = join(folder, entry.name)
    if entry.type == SOCKET:
        result.add(path, "a socket: the program that listens on it makes it", Trouble.NOTE)
        return False
    if entry.type in (CHAR, BLOCK) and not ownership.root:
        result.add(path, "only root can make devices", Trouble.FAILED)
        return False
    above = target.folder(folder)
    name = _temporary() if replace else entry.name
    _make(above.fd, name, entry)
    with _taken_back(above.fd, name):
        for reason in apply_to_name(above.fd, name, entry, ownership, acl=above.has_default_acl()):
            result.add(path, reason, Trouble.ATTRIBUTE)
        if replace:
            give_name(above.fd, name, entry.name, replace=True)
    result.others += 1
    return True


def make_link(target: Target, primary: bytes, folder: bytes, name: bytes, *, replace: bool) -> None:
    """Give the restored file `primary` a further name. Raises OSError or Refused."""
    source_folder, _, source = primary.rpartition(b"/")
    # A copy, because on the way to a deep directory the target may close the descriptor.
    above = os.dup(target.folder(source_folder).fd)
    try:
        below = target.folder(folder).fd
        new = _temporary() if replace else name
        os.link(source, new, src_dir_fd=above, dst_dir_fd=below, follow_symlinks=False)
    finally:
        os.close(above)
    if replace:
        with _taken_back(below, new):
            give_name(below, new, name, replace=True)


@contextmanager
def _taken_back(folder: int, name: bytes) -> Iterator[None]:
    """Remove what was made under `name` if it does not come to anything."""
    try:
        yield
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        raise


def _make(above: int, name: bytes, entry: Entry) -> None:
    if entry.type == SYMLINK:
        os.symlink(entry.target, name, dir_fd=above)
    elif entry.type == FIFO:
        os.mkfifo(name, 0o600, dir_fd=above)
    else:
        kind = stat.S_IFCHR if entry.type == CHAR else stat.S_IFBLK
        os.mknod(name, 0o600 | kind, entry.rdev, dir_fd=above)


def _temporary() -> bytes:
    return TEMPORARY + os.urandom(8).hex().encode()
