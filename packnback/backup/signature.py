"""Telling an unchanged file or directory by what lstat says: signatures, and when not to trust them.

Every change of a file's content or properties sets its ctime, which nobody can set back; but clocks tick. A file
that is changed again within the tick in which it was read looks the same afterwards. So a file is remembered only
if its ctime was older, when it was about to be read, than anything that the clock behind it could still write:
the kernel's own coarse clock where time stamps are made by it and kept in full, two seconds where a file system
keeps whole or even seconds, and minutes where another machine makes them.

One change sets no ctime: that of a page of a mapped file that was changed through the mapping before, until the page
has been written to the disk. So a file system is synced before anything of it is read, and a file is remembered only
if its ctime is older than that: whoever changes it later meets a clean page, which tells. (tmpfs has no disk to write
to, and never tells.)

The inode tells two files of the same size and times apart, one moved over the other; it is left out on file
systems that give numbers as they please. Where a file system has an id of its own that also its snapshots have, which
is ext2 to ext4, that tells images apart that were made alike and are mounted in one place, one after the other.
(Elsewhere the id is the device's number, or another one for each snapshot: all would be read again each time.)
"""

from __future__ import annotations

import ctypes
import marshal
import os
import struct
import time
from collections.abc import Iterable
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from packnback import mounts
from packnback.backup.cache_rows import SIGNATURE_LEN
from packnback.backup.walk import Part
from packnback.crypto.derive import MAC

# fmt: off
_FULL_STAMPS = frozenset({"bcachefs", "btrfs", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"})
"""File systems of this machine that keep nanoseconds (ext4 with small inodes does not, see `_margin`)."""
_STABLE_INODES = _FULL_STAMPS | {
    "ext2", "ext3", "hfsplus", "jfs", "nilfs2", "ntfs", "ntfs3", "ramfs", "reiserfs", "squashfs", "ubifs", "udf",
}
_OWN_ID = frozenset({"ext2", "ext3", "ext4"})
# fmt: on
_MASK = (1 << 64) - 1
_SECOND = 10**9
_CLOCK_REALTIME_COARSE = 5
"""The clock of time stamps (linux/time.h), which Python does not name."""
_COARSE_MARGIN_NS = 2 * int(time.clock_getres(_CLOCK_REALTIME_COARSE) * _SECOND)
_SECONDS_MARGIN_NS = 3 * _SECOND
_REMOTE_MARGIN_NS = 300 * _SECOND
"""How far another machine's clock may be behind this one's."""

_NO_SYNC_NS = 1 << 62
"""Later than everything."""

_FACTS = attrgetter("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_uid", "st_gid")
_FACTS_WITHOUT_INODE = attrgetter("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_uid", "st_gid")
_NAME, _STATUS = itemgetter(0), itemgetter(1)
_STAMP = struct.Struct("<qQ")
_MARSHAL_VERSION = 2
"""The last one whose output depends on nothing but the value."""


class FileSystem(NamedTuple):
    """What is to be thought of time stamps and inodes there."""

    stable_inodes: bool
    fine: bool
    """Whether time stamps are made by this machine's kernel and kept in full."""
    local: bool
    synced_ns: int
    """When the sync began that has ended before anything there was read."""
    id: int = 0
    """64 bits; 0 where it would tell nothing."""

    def settled(
        self, found: Iterable[tuple[bytes, os.stat_result]], device: int, now_ns: int
    ) -> dict[bytes, bytes]:
        """Stamps of those files that would show it if they were changed from `now_ns` on; by name.

        None of what lies on another device than this file system's: a file that is mounted by itself is judged by
        nothing that is known here.
        """
        now_ns = min(now_ns, self.synced_ns)
        slow_ns = now_ns - (_SECONDS_MARGIN_NS if self.local else _REMOTE_MARGIN_NS)
        fast_ns = now_ns - _COARSE_MARGIN_NS if self.fine else slow_ns
        pack, stable, own_id = _STAMP.pack, self.stable_inodes, self.id
        return {
            name: pack(ctime_ns, status.st_ino ^ own_id if stable else 1)
            for name, status in found
            # A ctime of whole seconds may be all that an ext4 with small inodes keeps.
            if ((ctime_ns := status.st_ctime_ns) < slow_ns or (ctime_ns < fast_ns and ctime_ns % _SECOND))
            and status.st_dev == device
        }


class Signatures:
    """Signs parts under `key` (32 bytes)."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._file_systems: dict[int, FileSystem] = {}

    def file_system(self, part: Part) -> FileSystem:
        """The file system of a part's directory."""
        found = self._file_systems.get(part.device)
        if found is None:
            try:
                found = _judge(f"/proc/self/fd/{part.fd}")
            except OSError:  # a directory above the roots that may only be passed through
                found = _UNKNOWN
            self._file_systems[part.device] = found
        return found

    def of_part(self, part: Part, file_system: FileSystem) -> bytes:
        """A keyed hash of the children that are included: names, and all that lstat says but for atime and links."""
        facts = _FACTS if file_system.stable_inodes else _FACTS_WITHOUT_INODE
        children = part.children
        seen: list[Any] = [list(map(_NAME, children)), list(map(facts, map(_STATUS, children)))]
        seen += (sorted(part.implicit), file_system.id)
        return MAC(self._key, marshal.dumps(seen, _MARSHAL_VERSION), SIGNATURE_LEN)


def stamp(status: os.stat_result, file_system: FileSystem) -> bytes:
    """What, besides size and mtime, has to be the same for a file to be unchanged.

    NO_STAMP for one without ctime and inode: of such a file nothing is known.
    """
    return _STAMP.pack(status.st_ctime_ns, status.st_ino ^ file_system.id if file_system.stable_inodes else 1)


def _judge(directory: str) -> FileSystem:
    kind = mounts.filesystem_type(directory)
    if kind is None or mounts.is_remote_type(kind):
        # What other machines have mapped into their memory no sync of ours writes; the margin has to do for that.
        return FileSystem(kind in _STABLE_INODES, kind in _FULL_STAMPS, False, _NO_SYNC_NS)
    own_id = os.statvfs(directory).f_fsid & _MASK if kind in _OWN_ID else 0
    return FileSystem(kind in _STABLE_INODES, kind in _FULL_STAMPS, True, _sync(directory), own_id)


_UNKNOWN = FileSystem(False, False, False, _NO_SYNC_NS)


def _sync(directory: str) -> int:
    """Sync the file system that a directory is on; when that began, in ns. 0, before everything, if it failed."""
    began_ns = time.time_ns()
    syncfs = getattr(ctypes.CDLL(None), "syncfs", None)
    if syncfs is None:  # not Linux
        os.sync()
        return began_ns
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return began_ns if syncfs(fd) == 0 else 0
    finally:
        os.close(fd)
