"""Windows of a restore: files, links and directories that are due together, and carrying them out.

Order within a window: the files, object by object; hard links; last, deepest first, the directories that the
listing has left.

One thread writes, and it is the one that plans. Creating a small file is five system calls, each of which lets go
of the interpreter: a second thread that wants it as often costs more in hand-overs than it gains (measured).
"""

from __future__ import annotations

import errno
import os

from msgspec import Struct, field

from packnback import errors
from packnback.events import Progress
from packnback.format.entry import FILE, Entry
from packnback.ids import MIB
from packnback.oserrors import NO_HARD_LINKS
from packnback.restore.closing import Closer
from packnback.restore.directories import Frame
from packnback.restore.files import FileTask, FileWriter, report_failure
from packnback.restore.locate import ContentCheck, Delivery, Plan, deliver
from packnback.restore.look import join
from packnback.restore.objects import ObjectReader
from packnback.restore.report import Trouble
from packnback.restore.special import make_link
from packnback.restore.target import Target

WINDOW_LIMIT = 1 << 15
"""Files, links or finished directories in one window."""


_NO_LINKS_HERE = NO_HARD_LINKS | {errno.EXDEV}
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Link(Struct, frozen=True):
    """A further name of a file that is restored in this window, or was in an earlier one."""

    folder: bytes
    entry: Entry
    replace: bool
    primary: bytes


class Window(Struct):
    """What is due together."""

    plan: Plan[FileTask] = field(default_factory=Plan)
    tasks: list[FileTask] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    closing: list[Frame] = field(default_factory=list)
    """Directories, deepest first."""

    @property
    def size(self) -> int:
        """Files or links, whichever are more."""
        return max(len(self.tasks), len(self.links))


class WindowWriter:
    """Carries out windows."""

    def __init__(
        self,
        target: Target,
        files: FileWriter,
        closer: Closer,
        reader: ObjectReader,
        check: ContentCheck,
        progress: Progress,
    ) -> None:
        self._target = target
        self._files = files
        self._closer = closer
        self._reader = reader
        self._check = check
        self._progress = progress
        self._result = files.result

    def put_right(self, folder: bytes, entry: Entry) -> bool:
        """See `FileWriter.put_right`."""
        return self._files.put_right(folder, entry)

    def abort(self) -> None:
        """Remove everything that has no name yet."""
        self._files.abort()

    def carry_out(self, window: Window) -> None:
        """Write what is due. Raises DiskFull; every other trouble with a path is in the result."""
        for delivery in deliver(self._reader, window.plan, self._check):
            self._write(delivery)
        for task in window.tasks:
            if not task.settled:
                self._without_pieces(task)
        for link in window.links:
            self._link(link)
        self._closer.close(window.closing)

    def _write(self, delivery: Delivery[FileTask]) -> None:
        """Write every piece that comes from one object."""
        files, written = self._files, 0
        for task, at, length, content, right in delivery.contents:
            if isinstance(content, errors.PacknbackError):
                files.lose(task, length, content)
                continue
            if length == task.entry.size:
                files.whole(task, content, right=right)
            else:
                files.write(task, at, content)
            written += length
        self._progress.advance(written)

    def _without_pieces(self, task: FileTask) -> None:
        """What no object completes by itself: empty files, files in pieces, and those that lack something."""
        if task.entry.size == 0:
            right = not task.entry.check or self._check.of(b"") == task.entry.check
            self._files.whole(task, b"", right=right)
        else:
            self._files.settle(task)

    def _link(self, link: Link) -> None:
        try:
            if link.primary in self._files.failed:
                raise FileNotFoundError
            make_link(self._target, link.primary, link.folder, link.entry.name, replace=link.replace)
            if link.entry.type == FILE:
                self._result.files += 1
            else:
                self._result.others += 1
        except FileNotFoundError:
            reason = f"/{link.primary.decode(errors='replace')}, of which it is another name, was not restored"
            self._result.add(join(link.folder, link.entry.name), reason, Trouble.FAILED)
        except (OSError, errors.Refused) as error:
            if isinstance(error, OSError) and error.errno in _NO_LINKS_HERE and link.entry.type == FILE:
                self._copy(link, error)
            else:
                report_failure(self._result, join(link.folder, link.entry.name), error)

    def _copy(self, link: Link, why: OSError) -> None:
        """Where one file cannot have both names, each has a file of its own."""
        files, size = self._files, link.entry.size
        task = FileTask(link.folder, link.entry, link.replace, size, planned=True)
        folder, _, name = link.primary.rpartition(b"/")
        try:
            fd = os.open(name, _READ, dir_fd=self._target.folder(folder).fd)
        except (OSError, errors.Refused) as error:
            report_failure(self._result, task.path, error)
            return
        with open(fd, "rb", buffering=0) as source:
            at = 0
            while at < size and (piece := source.read(min(MIB, size - at))):
                if piece.count(0) == len(piece):
                    task.absent += len(piece)
                else:
                    files.write(task, at, piece)
                at += len(piece)
        if at < size:
            files.lose(task, size - at, errors.Refused("the file was exchanged while it was copied"))
        if size:
            files.settle(task)
        else:
            files.whole(task, b"", right=True)
        if task.problem is None:
            other = link.primary.decode(errors="replace")
            reason = f"a file of its own, and no other name of /{other}: {why.strerror}"
            self._result.add(task.path, reason, Trouble.NOTE)
