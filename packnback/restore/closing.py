"""Closing the directories of a restore: the last that is done to each, from the deepest upwards.

What is set on a directory waits until the files below are written. With ``delete``, closing also removes what the
snapshot does not have; never from a directory of which the listing is not wholly known (a damaged page, a directory
above a backed-up root, one above a selected path).
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Iterable

from packnback import errors
from packnback.restore.attributes import Ownership, apply_to_fd
from packnback.restore.directories import Frame
from packnback.restore.files import DAMAGED, TEMPORARY, report_failure
from packnback.restore.look import join
from packnback.restore.options import Overwrite, RestoreOptions
from packnback.restore.report import RestoreResult, Trouble
from packnback.restore.target import Target

_LEFT_BEHIND = re.compile(re.escape(TEMPORARY) + rb"[0-9a-f]{16}")
_SALVAGED = re.compile(rb"(.*)" + re.escape(DAMAGED) + rb"(\.\d+)?", re.DOTALL)


class Closer:
    """Closes directories. `target` is None in a dry run into a directory that is not there."""

    def __init__(self, target: Target | None, options: RestoreOptions, result: RestoreResult) -> None:
        self._target = target
        self._options = options
        self._ownership = Ownership.of_process(options.owners)
        self._result = result
        self._began_ns = time.time_ns()

    def close(self, frames: Iterable[Frame]) -> None:
        """Close directories, in this order. Trouble is noted in the result."""
        for frame in frames:
            try:
                self._close(frame)
            except (OSError, errors.Refused) as error:
                report_failure(self._result, frame.path, error)

    def _close(self, frame: Frame) -> None:
        if frame.refused or self._target is None:
            return
        if self._options.delete and frame.whole and not frame.fresh:
            self._delete_unknown(self._target, frame)
        elif not frame.fresh:
            self._tell_left_behind(self._target, frame)
        if self._options.dry_run or frame.entry is None:
            return
        kept = self._options.overwrite == Overwrite.NEVER or frame.entry.implicit
        if kept and not frame.fresh:
            return
        fd = self._target.folder(frame.path).fd
        found = os.fstat(fd)
        owner = (found.st_uid, found.st_gid)
        for reason in apply_to_fd(fd, frame.entry, self._ownership, owner, acl=True):
            self._result.add(frame.path, reason, Trouble.ATTRIBUTE)

    def _tell_left_behind(self, target: Target, frame: Frame) -> None:
        """Tell of files that a restore was writing when it was killed: nobody else knows what they are."""
        fd = target.folder(frame.path).fd
        for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
            if _LEFT_BEHIND.fullmatch(name) and os.lstat(name, dir_fd=fd).st_mtime_ns < self._began_ns:
                told = "left behind by a restore that was killed; nobody needs it"
                self._result.add(join(frame.path, name), told, Trouble.NOTE)

    def _delete_unknown(self, target: Target, frame: Frame) -> None:
        fd = target.folder(frame.path).fd
        for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
            salvaged = _SALVAGED.fullmatch(name)
            if name in frame.known or (salvaged is not None and salvaged[1] in frame.known):
                continue
            path = join(frame.path, name)
            if self._options.dry_run:
                self._result.deleted += 1
                self._result.add(path, "would be deleted", Trouble.NOTE)
                continue
            try:
                _remove(target, path, name, fd)
                self._result.deleted += 1
            except OSError as error:
                report_failure(self._result, path, error)
            except RecursionError:  # rmtree goes down by calling itself
                self._result.add(path, "its directories are too deep to be deleted here", Trouble.FAILED)


def _remove(target: Target, path: bytes, name: bytes, fd: int) -> None:
    if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
        target.forget(path)
        shutil.rmtree(name, dir_fd=fd)  # by descriptors, so it follows no symlink
    else:
        os.unlink(name, dir_fd=fd)
