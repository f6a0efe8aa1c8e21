"""Writing regular files: a name in the target never stands for content that is not whole and right.

Order: content → content check → owner, attributes, mode, times → name.

- A file whose whole content is at hand, and whose name must be new, is made under that name at once
  (O_EXCL, mode 0600): this is what makes many small files fast. If the process is killed within those
  microseconds, what is left has neither the mode nor the time of the original, and ``--overwrite changed``
  replaces it.
- Everything else (files in several pieces, and replacements) is written under a temporary name
  ``.packnback-…`` in the same directory and gets its name when it is complete.
- A file of which something is lost or wrong never gets its name. What could be saved of it, zeros in between,
  stands beside as ``NAME.damaged``, or ``NAME.damaged.1`` and so on: it never takes the place of anything.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict

from msgspec import Struct

from packnback import errors
from packnback.format.entry import NAME_LIMIT, Entry
from packnback.ids import MIB
from packnback.oserrors import NO_HARD_LINKS, NO_SPACE
from packnback.restore.attributes import Ownership, apply_to_fd, put_right
from packnback.restore.locate import ContentCheck
from packnback.restore.look import join
from packnback.restore.report import RestoreResult, Trouble
from packnback.restore.target import Folder, Target

OPEN_FILES_LIMIT = 128
TEMPORARY = b".packnback-"
DAMAGED = b".damaged"
SALVAGES_MAX = 100
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FileTask(Struct, eq=False):
    """One file on its way to the disk."""

    folder: bytes
    entry: Entry
    replace: bool
    """Whether what stands under its name may be replaced."""
    remaining: int
    """Bytes that were neither written nor lost yet."""
    absent: int = 0
    """Bytes that no piece will bring: holes, and what could not be planned."""
    planned: bool = False
    """Whether all its pieces have been asked for."""
    flaw: errors.PacknbackError | None = None
    """Why it could not be planned to the end."""
    settled: bool = False
    """It has its name, or was given up."""
    temporary: bytes = b""
    fd: int = -1
    problem: str | None = None
    cause: errors.PacknbackError | None = None
    """What `problem` says, if it is that something of the content cannot be had."""
    rest: str = ""
    kind: Trouble = Trouble.DAMAGE

    @property
    def path(self) -> bytes:
        return join(self.folder, self.entry.name)


class FileWriter:
    """Writes files into a target, in whichever order their pieces come. One thread."""

    def __init__(self, target: Target, ownership: Ownership, check: ContentCheck, result: RestoreResult) -> None:
        self._target = target
        self._ownership = ownership
        self._check = check
        self.result = result
        self._unfinished: dict[FileTask, None] = {}
        self._open: OrderedDict[FileTask, None] = OrderedDict()
        self.failed: set[bytes] = set()
        """Paths of files with several names that were not restored: what stands there is not to be linked."""

    def whole(self, task: FileTask, content: memoryview | bytes, *, right: bool) -> None:
        """Write a file whose whole content is at hand; `right` says whether its content check holds."""
        if task.replace or not right:
            task.remaining = len(content)
            self.write(task, 0, content)
            task.planned = True
            self.settle(task)
            return
        task.settled = True
        name = task.entry.name
        try:
            folder = self._target.folder(task.folder)
            fd = os.open(name, _CREATE, 0o600, dir_fd=folder.fd)
        except (OSError, errors.Refused) as error:
            self._not_restored(task)
            report_failure(self.result, task.path, error)
            return
        try:
            if content:
                _write_all(fd, content, 0)
            self._attributes(fd, folder, task)
            self._done(task)
        except OSError as error:
            os.unlink(name, dir_fd=folder.fd)
            self._not_restored(task)
            report_failure(self.result, task.path, error)
        except BaseException:
            os.unlink(name, dir_fd=folder.fd)
            raise
        finally:
            os.close(fd)

    def write(self, task: FileTask, offset: int, content: memoryview | bytes) -> None:
        """Write one piece of a file. Only `settle` looks whether it was the last one."""
        task.remaining -= len(content)
        if task.problem is not None and task.kind != Trouble.DAMAGE:
            return
        try:
            _write_all(self._descriptor(task), content, offset)
        except (OSError, errors.Refused) as error:
            self._fail(task, error)

    def lose(self, task: FileTask, length: int, problem: errors.PacknbackError) -> None:
        """`length` bytes of a file cannot be had."""
        task.remaining -= length
        if task.problem is None:
            task.problem, task.cause = str(problem), problem

    def settle(self, task: FileTask) -> None:
        """Give the file its attributes and its name if all of it is written, or what is due if it cannot be."""
        if task.settled or not task.planned or task.remaining != task.absent:
            return
        task.settled = True
        if task.problem is None and task.flaw is not None:
            task.problem, task.cause = str(task.flaw), task.flaw
        try:
            if task.problem is None or (task.kind == Trouble.DAMAGE and task.temporary):
                fd = self._descriptor(task)
                # Not before its data: a power cut would leave a file of the right size, with nothing in it.
                os.ftruncate(fd, task.entry.size)
            if task.problem is None and not self._content_holds(task, fd):
                task.problem = "its content is not what was backed up"
            if task.problem is None:
                self._attributes(fd, self._target.folder(task.folder), task)
                self._close(task)
                self._place(task)
            elif task.kind == Trouble.DAMAGE and task.temporary:
                self._close(task)
                self._salvage(task)
        except (OSError, errors.Refused) as error:
            self._fail(task, error)
        self._discard(task)
        if task.problem is not None:
            if task.cause is not None:
                self.result.add_damage(task.path, task.cause, task.rest)
            else:
                self.result.add(task.path, task.problem + task.rest, task.kind)
            self._not_restored(task)

    def put_right(self, folder: bytes, entry: Entry) -> bool:
        """Set owner, attributes and mode of a file whose content stands there; False if it has to be written anew."""
        reasons = put_right(self._target.folder(folder).fd, entry.name, entry, self._ownership)
        for reason in reasons or ():
            self.result.add(join(folder, entry.name), reason, Trouble.ATTRIBUTE)
        return reasons is not None

    def abort(self) -> None:
        """Remove everything that has no name yet."""
        for task in list(self._unfinished):
            self._discard(task)

    def _place(self, task: FileTask) -> None:
        try:
            folder = self._target.folder(task.folder)
            give_name(folder.fd, task.temporary, task.entry.name, replace=task.replace)
        except FileExistsError as error:
            self._fail(task, error)
            return
        task.temporary = b""
        self._done(task)

    def _salvage(self, task: FileTask) -> None:
        """Give what could be saved a name that nothing has."""
        folder = self._target.folder(task.folder)
        for number in range(SALVAGES_MAX):
            ending = DAMAGED + (b".%d" % number if number else b"")
            name = task.entry.name[: NAME_LIMIT - len(ending)] + ending
            try:
                give_name(folder.fd, task.temporary, name, replace=False)
            except FileExistsError:
                continue
            task.temporary = b""
            task.rest = f"; what is left of it is in {name.decode(errors='replace')}"
            return
        task.rest = f"; there are {SALVAGES_MAX} files like {name.decode(errors='replace')} already"

    def _not_restored(self, task: FileTask) -> None:
        if task.entry.link_key:
            self.failed.add(task.path)

    def _done(self, task: FileTask) -> None:
        self.result.files += 1
        self.result.bytes_restored += task.entry.size

    def _attributes(self, fd: int, folder: Folder, task: FileTask) -> None:
        if folder.new_owner is None:
            found = os.fstat(fd)
            folder.new_owner = (found.st_uid, found.st_gid)
        for reason in apply_to_fd(
            fd, task.entry, self._ownership, folder.new_owner, acl=folder.has_default_acl()
        ):
            self.result.add(task.path, reason, Trouble.ATTRIBUTE)

    def _content_holds(self, task: FileTask, fd: int) -> bool:
        if not task.entry.check:
            return True
        hasher = self._check.start()
        at = 0
        while piece := os.pread(fd, 1 * MIB, at):
            hasher.update(piece)
            at += len(piece)
        return self._check.holds(task.entry, hasher)

    def _descriptor(self, task: FileTask) -> int:
        if task.fd >= 0:
            self._open.move_to_end(task)
            return task.fd
        folder = self._target.folder(task.folder)
        if task.temporary:
            task.fd = os.open(task.temporary, _REOPEN, dir_fd=folder.fd)
            found = os.fstat(task.fd)
            if found.st_nlink > 1 or not stat.S_ISREG(found.st_mode):
                # Somebody who may write to the directory put a link to a file elsewhere in its place.
                os.close(task.fd)
                task.fd, task.temporary = -1, b""
                raise errors.Refused("the file was exchanged while it was written")
        else:
            # Known before it is there: whoever is interrupted in between removes it.
            task.temporary = TEMPORARY + os.urandom(8).hex().encode()
            self._unfinished[task] = None
            task.fd = os.open(task.temporary, _CREATE, 0o600, dir_fd=folder.fd)
        self._open[task] = None
        if len(self._open) > OPEN_FILES_LIMIT:
            self._close(next(iter(self._open)))
        return task.fd

    def _close(self, task: FileTask) -> None:
        if task.fd >= 0:
            os.close(task.fd)
            task.fd = -1
        self._open.pop(task, None)

    def _discard(self, task: FileTask) -> None:
        self._close(task)
        self._unfinished.pop(task, None)
        if task.temporary:
            try:
                os.unlink(task.temporary, dir_fd=self._target.folder(task.folder).fd)
            except FileNotFoundError:
                pass  # it could not be made
            except (OSError, errors.Refused) as error:
                self.result.add(join(task.folder, task.temporary), f"left behind: {error}", Trouble.FAILED)
            task.temporary = b""

    def _fail(self, task: FileTask, error: OSError | errors.Refused) -> None:
        _stop_if_full(task.path, error)
        task.problem, task.kind, task.cause = _reason(error), _kind(error), None


def give_name(folder: int, temporary: bytes, name: bytes, *, replace: bool) -> None:
    """Move a finished temporary thing to its name within the directory with the descriptor `folder`.

    Raises FileExistsError if something has that name and `replace` is False, or OSError.
    """
    if replace:
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        # A rename onto another name of the very same file does nothing (POSIX).
        if _stands(folder, temporary):
            os.unlink(temporary, dir_fd=folder)
        return
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if _stands(folder, name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.unlink(temporary, dir_fd=folder)


def report_failure(result: RestoreResult, path: bytes, error: OSError | errors.Refused) -> None:
    """Note why a path could not be written. Raises DiskFull when nothing else could be either."""
    _stop_if_full(path, error)
    result.add(path, _reason(error), _kind(error))


def _kind(error: Exception) -> Trouble:
    if isinstance(error, errors.Refused):
        return Trouble.REFUSED
    return Trouble.EXISTS if isinstance(error, FileExistsError) else Trouble.FAILED


def _stop_if_full(path: bytes, error: Exception) -> None:
    """Raise DiskFull if that is what `error` says: going on would fail for every other file as well."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        raise errors.DiskFull(path.decode(errors="replace")) from error


def _reason(error: Exception) -> str:
    if isinstance(error, errors.Refused):
        return f"{error.reason}: {error.detail}" if error.detail else error.reason
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _stands(folder: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_all(fd: int, content: memoryview | bytes, offset: int) -> None:
    written = os.pwrite(fd, content, offset)
    while written < len(content):
        written += os.pwrite(fd, memoryview(content)[written:], offset + written)
