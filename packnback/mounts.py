"""Is a directory on a file system that other machines can write to at the same time?

The answer decides how compaction deletes (`packnback.gc.condemn`) and where the index lives, and the
two mistakes are not alike. Taking a remote file system for a local one loses data: no lock fences an unlink
there. Taking a local one for remote costs a day of patience. So whatever is not known to be local is remote.
"""

from __future__ import annotations

import os
import re
from typing import Final

# fmt: off
_LOCAL: Final = frozenset({
    "apfs", "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hfs", "hfsplus",
    "iso9660", "jfs", "minix", "msdos", "nilfs2", "ntfs", "ntfs3", "overlay", "ramfs", "reiserfs", "squashfs",
    "tmpfs", "ubifs", "udf", "ufs", "vfat", "xfs", "zfs",
})
# fmt: on
"""File systems of a single machine. ``overlay`` is here although a layer of it may be remote: the layer that
is written to must be local, the kernel insists on it."""

_LOCAL_FUSE: Final = frozenset({"fuse.exfat", "fuse.ext2", "fuse.fuse-ext2", "fuse.ntfs", "fuse.ntfs-3g", "fuse.zfs"})


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether the directory `path` must be treated as shared with other machines; True when in doubt.

    Raises OSError if it cannot be opened.
    """
    found = filesystem_type(path)
    return found is None or is_remote_type(found)


def is_remote_type(found: str) -> bool:
    """Whether a file system of this type (as `filesystem_type` gives it) must be treated as shared."""
    return not (found in _LOCAL or found in _LOCAL_FUSE)


def tells_sizes(found: str) -> bool:
    """Whether stat(2) tells how long a file on a file system of this type is.

    A program that makes files up as they are read (FUSE, 9P) may call them empty: documents that rclone converts, for
    one. The kernel's own (``/proc``, ``/sys``) do so too, and are meant to: they are no data of anybody's, some are
    as large as the address space, and a backup of ``/`` should not hold them.
    """
    return found in _LOCAL_FUSE or not (found in ("9p", "fuse") or found.startswith("fuse."))


def filesystem_type(path: str | os.PathLike[str]) -> str | None:
    """The kernel's name for the file system under the directory `path`, ``ext4`` or ``fuse.sshfs`` for
    example; None if ``/proc`` does not tell.

    Goes by mount id rather than by device number: btrfs and overlay show other numbers in stat(2).
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # not O_PATH: it has to trigger automounts
    try:
        return filesystem_type_of(fd)
    finally:
        os.close(fd)


def filesystem_type_of(fd: int) -> str | None:
    """The same for whatever is open as `fd`."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
            mount_id = re.search(r"^mnt_id:\s*(\d+)$", info.read(), re.MULTILINE)
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            return None if mount_id is None else _type_of(mounts.read(), mount_id[1])
    except FileNotFoundError:  # no /proc here
        return None


def _type_of(mountinfo: str, mount_id: str) -> str | None:
    """The type field of the mount `mount_id` in the text of ``/proc/self/mountinfo`` (proc(5))."""
    for line in mountinfo.splitlines():
        mount, separator, rest = line.partition(" - ")
        if separator and mount.split(" ", 1)[0] == mount_id:
            return rest.split(" ", 1)[0]
    return None
