"""Owners, extended attributes, modes and times: what is set on a file once its content stands.

The order is fixed by what undoes what. A change of owner clears set-user-id bits and file capabilities, so it comes
first; attributes need write permission, so they come before the mode; any change moves the times, so they are
last. Set-id bits and capabilities are given only to a file whose owner and group are the recorded ones: a
set-user-id program that ended up with another owner would be somebody else's privilege. What is made in a
directory with a default access control list is given one, and loses it again unless it had it.
"""

from __future__ import annotations

import errno
import os
import stat

from msgspec import Struct

from packnback.format.entry import DIRECTORY, SYMLINK, TYPE_OF, Entry

SET_ID = stat.S_ISUID | stat.S_ISGID
_CAPABILITIES = b"security.capability"
_ACLS = frozenset(("system.posix_acl_access", "system.posix_acl_default"))
_NOBODY = (1 << 32) - 1
"""The id that no file can have: to chown(2) it means to leave things as they are."""


class Ownership(Struct, frozen=True):
    """Whether owners are restored, and what this process may do about them."""

    wanted: bool
    root: bool
    groups: frozenset[int]

    @classmethod
    def of_process(cls, wanted: bool) -> Ownership:
        """What the running process may do."""
        return cls(wanted, os.geteuid() == 0, frozenset((*os.getgroups(), os.getegid())))

    def change(self, entry: Entry, now: tuple[int, int]) -> tuple[int, int] | None:
        """(uid, gid) to change to, -1 for leaving it; None when there is nothing to do that we may do."""
        if not self.wanted or now == (entry.uid, entry.gid) or _NOBODY in (entry.uid, entry.gid):
            return None
        if self.root:
            return entry.uid, entry.gid
        if now[0] == entry.uid and entry.gid in self.groups:
            return -1, entry.gid
        return None


def apply_to_fd(
    fd: int, entry: Entry, ownership: Ownership, now: tuple[int, int], *, acl: bool = False
) -> list[str]:
    """Set everything on an open file or directory whose owner is `now`; the reasons of what could not be set.

    `acl`: whether it may have an access control list already.
    """
    return _apply(fd, entry, ownership, now, acl=acl)


def apply_to_name(
    folder: int, name: bytes, entry: Entry, ownership: Ownership, *, acl: bool = False
) -> list[str]:
    """The same for what must not be opened: symlinks (which have no mode), fifos, devices.

    Everything goes through an O_PATH descriptor of the very thing, by way of /proc (as proc(5) has it, such a link
    leads to the thing itself and, if that is a symlink, no further): a name that is swapped meanwhile, or put in
    the way, leads nowhere.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(fd)
        if TYPE_OF.get(stat.S_IFMT(found.st_mode)) != entry.type:
            return ["it was exchanged while it was restored"]
        return _apply(b"/proc/self/fd/%d" % fd, entry, ownership, (found.st_uid, found.st_gid), acl=acl)
    finally:
        os.close(fd)


def put_right(folder: int, name: bytes, entry: Entry, ownership: Ownership) -> list[str] | None:
    """Set what is not as recorded on a regular file that stands there; the reasons of what could not be set.

    None, and nothing is done, if something differs and the file has other names: they may be anywhere.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(fd)
        itself = b"/proc/self/fd/%d" % fd
        owner = (found.st_uid, found.st_gid)
        if (
            ownership.change(entry, owner) is None
            and stat.S_IMODE(found.st_mode) == mode_for(entry, owner)
            and not any(_lacks(itself, key, value) for key, value in entry.xattrs.items())
        ):
            return []
        if found.st_nlink > 1 or not stat.S_ISREG(found.st_mode):
            return None
        return _apply(itself, entry, ownership, owner, acl=True)
    finally:
        os.close(fd)


def _apply(at: int | bytes, entry: Entry, ownership: Ownership, owner: tuple[int, int], *, acl: bool) -> list[str]:
    problems: list[str] = []
    if (change := ownership.change(entry, owner)) is not None:
        try:
            os.chown(at, *change)
            owner = (entry.uid, entry.gid)
        except OSError as error:
            problems.append(f"owner: {error.strerror}")
    if acl and entry.type != SYMLINK:
        problems += _drop_acls(at, entry)
    for key, value in entry.xattrs.items():
        if key == _CAPABILITIES and owner != (entry.uid, entry.gid):
            continue
        try:
            os.setxattr(at, key, value)
        except OSError as error:
            problems.append(f"attribute {key.decode(errors='replace')}: {error.strerror}")
    # One by one: file systems that know no modes (FAT, SMB) know times, and by these a file is known again.
    try:
        if entry.type != SYMLINK:
            os.chmod(at, mode_for(entry, owner))
    except OSError as error:
        problems.append(f"mode: {error.strerror}")
    try:
        os.utime(at, ns=(entry.mtime_ns, entry.mtime_ns))
    except (OSError, OverflowError) as error:
        problems.append(f"time: {error}")
    return problems


def _lacks(itself: bytes, key: bytes, value: bytes) -> bool:
    try:
        return os.getxattr(itself, key) != value
    except OSError:
        return True


def _drop_acls(at: int | bytes, entry: Entry) -> list[str]:
    """Take away access control lists that were not recorded: they may let in whom the original kept out."""
    problems = []
    try:
        for name in _ACLS.intersection(os.listxattr(at)):
            if os.fsencode(name) not in entry.xattrs:
                os.removexattr(at, name)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            problems.append(f"access control list: {error.strerror}")
    return problems


def mode_for(entry: Entry, owner: tuple[int, int]) -> int:
    """The permission bits for an entry that now belongs to `owner`."""
    if owner == (entry.uid, entry.gid) or entry.type == DIRECTORY:
        return entry.mode
    return entry.mode & ~SET_ID
