"""The directories of a restore, from being made to being closed.

They form a stack that follows the listing. A directory is made, with mode 0700, when the listing enters it, and is
due to be closed when the listing has left it. Closing waits until the files below are written, because writing
them needs permissions and changes times; it goes from the deepest upwards.

With ``delete``, closing also removes what the snapshot does not have; never from a directory of which the
listing is not wholly known (a damaged page, a directory above a backed-up root, one above a selected path).
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass, field

from packnback import errors
from packnback.format.entry import Entry
from packnback.restore.attributes import Ownership, apply_to_fd
from packnback.restore.files import DAMAGED, report_failure
from packnback.restore.look import join
from packnback.restore.options import Overwrite, RestoreOptions
from packnback.restore.report import RestoreResult, Trouble
from packnback.restore.target import Target


@dataclass(slots=True)
class Frame:
    """A directory that the listing is in."""

    path: bytes
    entry: Entry | None = None
    """None for the target itself, and for a directory of which only its place is known."""
    fresh: bool = False
    """It was made by this run, so nothing unknown stands in it."""
    whole: bool = False
    """All of it is being restored: what is not in `known` does not belong in it."""
    refused: bool = False
    """It could not be made or entered: nothing below it is restored."""
    children: dict[bytes, Entry] = field(default_factory=dict)
    """Directories in it whose own listing has not come yet."""
    known: set[bytes] = field(default_factory=set)
    """Every name that belongs in it; kept for ``delete`` only."""


class Directories:
    """Makes, follows and closes directories. `target` is None in a dry run into a directory that is not there."""

    def __init__(self, target: Target | None, options: RestoreOptions, result: RestoreResult) -> None:
        self._target = target
        self._options = options
        self._ownership = Ownership.of_process(options.owners)
        self._result = result
        self._stack = [Frame(b"", fresh=target is None)]
        self._closing: list[Frame] = []

    @property
    def waiting(self) -> int:
        """Directories that wait to be closed."""
        return len(self._closing)

    def expect(self, path: bytes, entry: Entry) -> None:
        """Say what is known of the directory `path` before it is entered out of order."""
        if not any(frame.path == path for frame in self._stack):
            self.enter(path.rpartition(b"/")[0]).children[entry.name] = entry

    def enter(self, path: bytes, *, whole: bool = False) -> Frame:
        """Make `path` the current directory, leaving what does not lie above it."""
        self.leave(path)
        above = self._stack[-1].path
        missing = path[len(above) :].strip(b"/")
        for name in missing.split(b"/") if missing else []:
            frame = self._stack[-1]
            here = join(frame.path, name)
            entry = frame.children.pop(name, None)
            self._stack.append(self._make(here, entry, frame, whole=whole and here == path))
        return self._stack[-1]

    def leave(self, path: bytes | None) -> None:
        """Leave every directory that is neither `path` nor above it; None leaves all but the target."""
        while len(self._stack) > 1:
            frame = self._stack[-1]
            if path is not None and (frame.path == path or path.startswith(frame.path + b"/")):
                return
            self._stack.pop()
            self._wait(frame)
        if path is None:
            self._wait(self._stack[0])

    def doubt(self, path: bytes) -> None:
        """Some names in `path` could not be read: nothing will be deleted there."""
        for frame in self._stack:
            if frame.path == path:
                frame.whole = False

    def close_left(self) -> None:
        """Close all directories that were left."""
        for frame in self._closing:
            try:
                self._close(frame)
            except (OSError, errors.Refused) as error:
                report_failure(self._result, frame.path, error)
        self._closing.clear()

    def _wait(self, frame: Frame) -> None:
        for name, entry in frame.children.items():
            # Listed by its parent, but without a listing of its own: all that is known is that it is there.
            self._closing.append(self._make(join(frame.path, name), entry, frame, whole=False))
        frame.children.clear()
        self._closing.append(frame)

    def _make(self, path: bytes, entry: Entry | None, above: Frame, *, whole: bool) -> Frame:
        implicit = entry is not None and entry.implicit
        frame = Frame(path, entry, whole=whole and not implicit, refused=above.refused)
        if frame.refused:
            return frame
        try:
            if self._target is None or self._options.dry_run:
                frame.fresh = above.fresh or self._target is None or self._target.lstat(path) is None
            else:
                frame.fresh = self._target.make_folder(path, replace=self._options.overwrite != Overwrite.NEVER)
            self._result.directories += frame.fresh
        except (OSError, errors.Refused) as error:
            frame.refused = True
            report_failure(self._result, path, error)
        return frame

    def _close(self, frame: Frame) -> None:
        if frame.refused or self._target is None:
            return
        if self._options.delete and frame.whole and not frame.fresh:
            self._delete_unknown(self._target, frame)
        if self._options.dry_run or frame.entry is None:
            return
        kept = self._options.overwrite == Overwrite.NEVER or frame.entry.implicit
        if kept and not frame.fresh:
            return
        fd = self._target.folder(frame.path).fd
        found = os.fstat(fd)
        for reason in apply_to_fd(fd, frame.entry, self._ownership, (found.st_uid, found.st_gid)):
            self._result.add(frame.path, reason, Trouble.ATTRIBUTE)

    def _delete_unknown(self, target: Target, frame: Frame) -> None:
        fd = target.folder(frame.path).fd
        for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
            if name in frame.known or (name.endswith(DAMAGED) and name[: -len(DAMAGED)] in frame.known):
                continue
            path = join(frame.path, name)
            self._result.deleted += 1
            if self._options.dry_run:
                self._result.add(path, "would be deleted", Trouble.NOTE)
                continue
            try:
                _remove(target, path, name, fd)
            except OSError as error:
                report_failure(self._result, path, error)


def _remove(target: Target, path: bytes, name: bytes, fd: int) -> None:
    if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
        target.forget(path)
        shutil.rmtree(name, dir_fd=fd)  # by descriptors, so it follows no symlink
    else:
        os.unlink(name, dir_fd=fd)
