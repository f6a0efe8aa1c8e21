"""The directories of a restore, as the listing enters and leaves them.

They form a stack that follows the listing. A directory is made, with mode 0700, when the listing enters it, and is
due to be closed (`closing`) when the listing has left it. Closing waits until the files below are written, because
writing them needs permissions and changes times.
"""

from __future__ import annotations

from msgspec import Struct, field

from packnback import errors
from packnback.format.entry import Entry
from packnback.restore.files import report_failure
from packnback.restore.look import join
from packnback.restore.options import Overwrite, RestoreOptions
from packnback.restore.report import RestoreResult
from packnback.restore.target import Target


class Frame(Struct):
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
        self._result = result
        self._stack = [Frame(b"", fresh=target is None)]
        self._left: list[Frame] = []

    @property
    def waiting(self) -> int:
        """Directories that wait to be taken."""
        return len(self._left)

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

    def take_left(self) -> list[Frame]:
        """The directories that were left since this was asked for the last time, deepest first: to be closed."""
        left, self._left = self._left, []
        return left

    def _wait(self, frame: Frame) -> None:
        for name, entry in frame.children.items():
            # Listed by its parent, but without a listing of its own: all that is known is that it is there.
            self._left.append(self._make(join(frame.path, name), entry, frame, whole=False))
        frame.children.clear()
        self._left.append(frame)

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
