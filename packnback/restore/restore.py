"""Restoring a snapshot, or some of its subtrees, below a target directory.

Order of writes: a directory is made when its listing comes; symlinks, fifos and devices at once; files, further names
of hard-linked files, and the last touch of directories window after window (`window`).

Memory is bounded by the window and by the directories above the current one; only hard-linked files keep a
small row each until the end. Nothing that goes wrong with one path stops the others: it is noted in the result.
Only a full disk ends everything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from blake3 import blake3
from msgspec import Struct

from packnback import errors
from packnback.events import Watch
from packnback.format.entry import DIRECTORY, FILE, Entry
from packnback.format.listing import path_key
from packnback.ids import ObjectClass
from packnback.restore.attributes import Ownership
from packnback.restore.closing import Closer
from packnback.restore.directories import Directories, Frame
from packnback.restore.files import FileTask, FileWriter, report_failure
from packnback.restore.listing import PROBLEMS, Hole, Listing
from packnback.restore.locate import ContentCheck, file_extents
from packnback.restore.look import join, normalise
from packnback.restore.objects import ObjectReader
from packnback.restore.options import Overwrite, RestoreOptions
from packnback.restore.report import RestoreResult, Trouble
from packnback.restore.snapshot import Snapshot
from packnback.restore.special import make_special
from packnback.restore.target import Target
from packnback.restore.walk import Part, walk
from packnback.restore.window import WINDOW_LIMIT, Link, Window, WindowWriter


def restore(
    reader: ObjectReader,
    snapshot: Snapshot,
    to: str | bytes,
    options: RestoreOptions | None = None,
    watch: Watch | None = None,
) -> RestoreResult:
    """Bring a snapshot back below the directory `to`, which is made if need be.

    Raises KeyCannot for a key that does not open contents, PathUnknown (before anything is written) for a path
    that is not in the snapshot, DiskFull, or StorageFailed when `to` itself cannot be used.
    """
    reader.require(ObjectClass.DATA)
    options = options or RestoreOptions()
    listing = Listing(reader, snapshot.header.root)
    selection = list(_select(listing, options.paths))
    watch = watch or Watch()
    with ExitStack() as stack:
        target: Target | None = None
        if not options.dry_run or os.path.isdir(to):
            target = stack.enter_context(Target(to, create=not options.dry_run))
        if target is None or options.dry_run:
            return _Restorer(listing, target, options, watch, None).run(selection)
        check = ContentCheck(reader.key, snapshot.header.domain_id)
        restorer = _Restorer(listing, target, options, watch, check)
        stack.callback(restorer.abort)
        try:
            return restorer.run(selection)
        except errors.DiskFull as full:
            raise errors.DiskFull(os.path.join(os.fsdecode(to), full.path)) from full


class _Primary(Struct):
    """The first name of a file with several."""

    facts: bytes
    check: bytes
    """Of its content; empty where there is none."""
    extents: bytes
    path: bytes
    written: bool = False
    """Whether it is written anew, now or soon: other names that stand there are names of what it was before."""

    def is_of(self, other: _Primary) -> bool:
        """Whether another name is recorded with the same properties and the same content."""
        same_content = self.check == other.check if self.check and other.check else self.extents == other.extents
        return self.facts == other.facts and same_content


class _Selected(Struct, frozen=True):
    path: bytes
    lineage: list[tuple[bytes, Entry]]
    problem: errors.PacknbackError | None = None


def _select(listing: Listing, paths: Sequence[bytes]) -> Iterator[_Selected]:
    """The subtrees asked for, in listing order, without those that lie in another one."""
    wanted = sorted({normalise(path) for path in paths} or {b""}, key=path_key)
    last: bytes | None = None
    for path in wanted:
        if last is not None and (last == b"" or path.startswith(last + b"/")):
            continue
        last = path
        try:
            yield _Selected(path, listing.lineage(path))
        except PROBLEMS as problem:
            yield _Selected(path, [], problem)


class _Restorer:
    """Follows the listing, makes directories and what is no file, plans the files, and has windows written.

    Without a `check` nothing is written.
    """

    def __init__(
        self,
        listing: Listing,
        target: Target | None,
        options: RestoreOptions,
        watch: Watch,
        check: ContentCheck | None,
    ) -> None:
        self._listing = listing
        self._options = options
        self._progress = watch.progress
        self._result = RestoreResult()
        self._ownership = Ownership.of_process(options.owners)
        self._target = target
        self._closer = Closer(target, options, self._result)
        self._writer: WindowWriter | None = None
        if target is not None and check is not None:
            files = FileWriter(target, self._ownership, check, self._result)
            self._writer = WindowWriter(target, files, self._closer, listing.reader, check, watch.progress)
        self._directories = Directories(target, options, self._result)
        self._window = Window()
        self._primaries: dict[bytes, _Primary] = {}

    def run(self, selection: Sequence[_Selected]) -> RestoreResult:
        total = self._listing.totals() if selection[0].path == b"" else None
        self._progress.begin("restore", total.bytes if total else None, "bytes")
        for selected in selection:
            self._subtree(selected)
        self._directories.leave(None)
        self._flush()
        return self._result

    def abort(self) -> None:
        """Remove every file that has no name yet."""
        if self._writer is not None:
            self._writer.abort()

    def _subtree(self, selected: _Selected) -> None:
        if selected.problem is not None:
            self._result.add_damage(selected.path, selected.problem)
        for path, entry in selected.lineage:
            if entry.type == DIRECTORY:
                self._directories.expect(path, entry)
            else:
                self._entry(self._directories.enter(path.rpartition(b"/")[0]), entry)
                return
        for part in walk(self._listing.groups(selected.path), selected.path):
            if isinstance(part, Hole):
                self._result.add_damage(part.path, part.problem)
                self._directories.doubt(part.path)
            else:
                self._part(part)
            if max(self._window.size, self._directories.waiting) >= WINDOW_LIMIT:
                self._flush()

    def _part(self, part: Part) -> None:
        frame = self._directories.enter(part.path, whole=part.part == 0 and not part.detached)
        if self._options.delete:
            frame.known.update(entry.name for entry in part.entries)
        for entry in part.entries:
            if entry.type == DIRECTORY:
                frame.children[entry.name] = entry
            elif not frame.refused:
                self._entry(frame, entry)

    def _entry(self, frame: Frame, entry: Entry) -> None:
        try:
            replace = self._may_write(frame, entry)
            if replace is None:
                return
            if entry.type == FILE:
                self._file(frame.path, entry, replace)
            elif self._writer is None or self._target is None:
                self._result.others += 1
            else:
                self._special(self._target, frame.path, entry, replace)
        except (OSError, errors.Refused) as error:
            report_failure(self._result, join(frame.path, entry.name), error)

    def _may_write(self, frame: Frame, entry: Entry) -> bool | None:
        """Whether what stands there may be replaced, or None if nothing is to be written."""
        if frame.fresh or self._target is None:
            return False
        path = join(frame.path, entry.name)
        found = self._target.lstat(path)
        if found is None:
            return False
        if self._options.overwrite == Overwrite.NEVER:
            self._result.add(path, "exists already", Trouble.EXISTS)
            return None
        if stat.S_ISDIR(found.st_mode):
            self._result.add(path, "a directory stands there", Trouble.REFUSED)
            return None
        if self._options.overwrite == Overwrite.CHANGED and _agrees(found, entry):
            primary = self._primary_of(path, entry)
            if primary is not None and (primary.written or not self._is_name_of(primary.path, found)):
                return True
            if primary is None and self._writer is not None and not self._writer.put_right(frame.path, entry):
                return True
            self._result.unchanged += 1
            return None
        return True

    def _is_name_of(self, primary: bytes, found: os.stat_result) -> bool:
        """Whether a file has another name, `primary`, already."""
        stands = self._target.lstat(primary) if self._target is not None else None
        return stands is not None and os.path.samestat(stands, found)

    def _file(self, folder: bytes, entry: Entry, replace: bool) -> None:
        if self._writer is None:
            self._result.files += 1
            if self._primary_of(join(folder, entry.name), entry) is None:
                self._result.bytes_restored += entry.size
            return
        task = FileTask(folder, entry, replace, entry.size)
        if entry.link_key:
            if (primary := self._primary_of(task.path, entry)) is not None:
                self._window.links.append(Link(folder, entry, replace, primary.path))
                return
            self._note_written(task.path, entry)
        self._window.tasks.append(task)
        extents = entry.extents
        if len(extents) == 1 and extents[0].id is not None:
            self._window.plan.add(task, 0, extents[0], entry.check)
            if self._window.plan.full:
                self._flush()
        else:
            self._ask_for(task)
        task.planned = True

    def _special(self, target: Target, folder: bytes, entry: Entry, replace: bool) -> None:
        path = join(folder, entry.name)
        if (primary := self._primary_of(path, entry)) is not None:
            self._window.links.append(Link(folder, entry, replace, primary.path))
            return
        made = False
        try:
            made = make_special(target, folder, entry, self._ownership, self._result, replace=replace)
        finally:
            if not made and entry.link_key and self._primaries[entry.link_key].path == path:
                # There is nothing to link to: the next name will be made by itself.
                del self._primaries[entry.link_key]

    def _ask_for(self, task: FileTask) -> None:
        """Plan all pieces of a file; a file of very many is begun before all of them are planned."""
        at = 0
        try:
            for extent in file_extents(self._listing.reader, task.entry):
                if extent.id is None:
                    task.absent += extent.length
                else:
                    self._window.plan.add(task, at, extent)
                at += extent.length
                if self._window.plan.full:
                    self._flush()
        except PROBLEMS as problem:
            task.flaw = problem
            task.absent += task.entry.size - at

    def _note_written(self, path: bytes, entry: Entry) -> None:
        primary = self._primaries[entry.link_key]
        if primary.path == path:
            primary.written = True

    def _primary_of(self, path: bytes, entry: Entry) -> _Primary | None:
        """The first name of the same hard-linked file (symlink, fifo, device), or None if `path` is it.

        Names are linked only if all that is recorded of what they name agrees, whatever their keys say.
        """
        if not entry.link_key:
            return None
        kind = (entry.type, entry.size, entry.target, entry.rdev)
        rights = (entry.mode, entry.uid, entry.gid, entry.mtime_ns, sorted(entry.xattrs.items()))
        extents = [(e.id, e.offset, e.length) for e in entry.extents]
        this = _Primary(_digest((kind, rights)), entry.check, _digest((extents, list(entry.far))), path)
        primary = self._primaries.setdefault(entry.link_key, this)
        return primary if primary.path != path and primary.is_of(this) else None

    def _flush(self) -> None:
        """Carry the window out, and close the directories that were left."""
        window = self._window
        window.closing = self._directories.take_left()
        # A file that is still being planned goes on in the next window.
        self._window = Window(tasks=[task for task in window.tasks if not task.planned])
        if self._writer is not None:
            self._writer.carry_out(window)
        else:
            self._closer.close(window.closing)


def _digest(value: object) -> bytes:
    return blake3(repr(value).encode()).digest(16)


def _agrees(found: os.stat_result, entry: Entry) -> bool:
    """Whether a file stands there already, as far as its size and time can tell."""
    if entry.type != FILE or not stat.S_ISREG(found.st_mode):
        return False
    return (found.st_size, found.st_mtime_ns) == (entry.size, entry.mtime_ns)
