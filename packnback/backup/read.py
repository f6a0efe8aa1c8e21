"""Reading files: what was lstat'ed is opened, checked to be the same file, and read as it was when opened.

A file that changes while it is read is not an error, since on a living system there always is one. It is stored as
what was read: never more than the size it had when it was opened, so that a log to which somebody writes is
stored as it was at one moment, and less if it was cut. Such a file is told of, and never taken for unchanged by a
later run. A file that was *replaced* between lstat and open is an error, as its other properties are not its own.

Small files are read whole and bundled, large ones cut (`cut`), holes stay holes. A second name of a file that was
stored in this run is not read again. An empty file is not opened, except where a program may stand behind it that
makes its content up as it is read (`mounts.tells_sizes`): such a one is read to its end, in each run anew.

Nearly all files are small and hold still. For them there is a way with the fewest system calls (`quick`); whatever
is odd about a file sends it down the careful one (`store`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping

from msgspec import Struct

from packnback import mounts
from packnback.backup.attributes import AttributeReader
from packnback.backup.bundle import Bundler
from packnback.backup.cut import FILE_MIN
from packnback.backup.extents import Content, SmallContent, TakenOver
from packnback.backup.large import LargeFiles
from packnback.backup.roots import Report
from packnback.backup.runs import FileRuns
from packnback.events import Watch
from packnback.format.entry import NO_XATTRS, Entry
from packnback.oserrors import reason_of

LINKS_LIMIT = 1 << 16
"""Extents of files with several names that are remembered within a run."""

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_ATTEMPTS = 10
"""So often a file is opened that is replaced between our looking at it and opening it."""
_BLOCK = 512
"""Bytes in a unit of st_blocks."""


Quick = tuple[SmallContent, Mapping[bytes, bytes], bool]
"""Content, extended attributes, and whether that is all of them."""


class StoredFile(Struct):
    """What became of one file."""

    status: os.stat_result
    """fstat of what was read."""
    content: Content | None
    """None for an empty file."""
    xattrs: Mapping[bytes, bytes]
    steady: bool
    """Whether it held still from lstat until it was read, and nothing of it is missing."""
    again: bool = False
    """Whether it is to be read again by the next run although it held still."""


class FileReader:
    """Reads regular files into the bundler (small ones) or as large ones."""

    def __init__(
        self,
        bundler: Bundler,
        large: LargeFiles,
        attributes: AttributeReader,
        report: Report,
        watch: Watch,
    ) -> None:
        self._bundler = bundler
        self._large = large
        self._attributes = attributes
        self._report = report
        self._watch = watch
        self._user = os.geteuid()
        self._tells_sizes: dict[int, bool] = {}
        """By device."""
        self._links: dict[tuple[int, int], StoredFile] = {}
        self._links_weight = 0

    def quick(self, directory: int, name: bytes, prefix: bytes, status: os.stat_result) -> Quick | None:
        """The content of a small file with one name, and its attributes, if it held still from lstat until now.

        None if it did not, or is not there, or cannot be read: nothing was stored or reported, `store` sees to it.
        One fstat, after reading, tells as much as two: had somebody written in between, or put another file in its
        place, some of this would differ from what lstat said.
        """
        try:
            fd = self._open(directory, name, status)
        except OSError:
            return None
        xattrs, whole = NO_XATTRS, True
        try:
            content = self._bundler.room(status.st_size)
            count = os.readv(fd, (content,))
            now = os.fstat(fd)
            if (
                now.st_ino != status.st_ino
                or now.st_dev != status.st_dev
                or now.st_ctime_ns != status.st_ctime_ns
                or now.st_mtime_ns != status.st_mtime_ns
                or not count == now.st_size == status.st_size
            ):
                return None
            if not self._attributes.none_on(fd, now.st_dev):
                xattrs, whole = self._attributes.read(fd, prefix + name, now.st_dev)
        except OSError:
            return None
        finally:
            os.close(fd)
        self._watch.counters.files_opened += 1
        self._watch.progress.advance(count)
        return self._bundler.add_read(content), xattrs, whole

    def take_over(self, status: os.stat_result, known: Entry) -> Entry | None:
        """What to take over of a file with several names, of which this one is `known` from an earlier run.

        All names get the content that the first one gets: else they would come back as different files. None when
        that one was read anew.
        """
        first = self._links.get((status.st_dev, status.st_ino))
        if first is None or _stamp(first.status) != _stamp(status):
            self._remember(StoredFile(status, TakenOver(known) if known.size else None, known.xattrs, steady=True))
        elif isinstance(first.content, TakenOver):
            first.content.describe(known)
        elif first.content is not None:
            return None
        return known

    def store(self, directory: int, name: bytes, path: bytes, status: os.stat_result) -> StoredFile | None:
        """Store the content of the regular file `name` in the open `directory`, of which lstat said `status`.

        None if it cannot be read, which is reported under `path`, or if it has vanished, which is not.
        """
        if status.st_nlink > 1:
            known = self._links.get((status.st_dev, status.st_ino))
            if known is not None and _stamp(known.status) == _stamp(status):
                return known
        if status.st_size == 0 and self._is_empty(directory, status):
            # Whoever writes to it now may as well have written later: there is nothing to open it for.
            xattrs, whole = self._attributes.read_name(directory, name, path, status.st_dev)
            return StoredFile(status, None, xattrs, whole)
        try:
            stored = self._open_and_store(directory, name, path, status)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(path, reason_of(error))
            return None
        if stored is None:
            self._report(path, "was replaced by another file during the backup")
        elif status.st_nlink > 1 and stored.steady:
            self._remember(stored)
        return stored

    def _open_and_store(
        self, directory: int, name: bytes, path: bytes, status: os.stat_result
    ) -> StoredFile | None:
        """None if something else than the file that `status` is of was found there, again and again.

        Who writes a file the careful way, under another name first, puts a new one in its place at any moment. That
        is the file, then; but not one that held still.
        """
        for attempt in range(_ATTEMPTS):
            fd = self._open(directory, name, status)
            try:
                stored = self._store(fd, path, status)
            finally:
                os.close(fd)
            if stored is not None:
                stored.steady = stored.steady and not attempt
                return stored
            status = os.lstat(name, dir_fd=directory)
            if not stat.S_ISREG(status.st_mode):
                break
        return None

    def _store(self, fd: int, path: bytes, listed: os.stat_result) -> StoredFile | None:
        before = os.fstat(fd)
        same = (before.st_dev, before.st_ino) == (listed.st_dev, listed.st_ino)
        if not same or not stat.S_ISREG(before.st_mode):
            return None
        self._watch.counters.files_opened += 1
        xattrs, whole = self._attributes.read(fd, path, before.st_dev)
        content: Content | None
        again = False
        if before.st_size == 0 and not self._tells(fd, before.st_dev):
            content, again = self.store_unsized(path, lambda view: os.readv(fd, [view])), True
        elif before.st_size < FILE_MIN:
            content = self._small(fd, before.st_size)
        else:
            sparse = before.st_blocks * _BLOCK < before.st_size
            runs = FileRuns(fd, before.st_size, sparse=sparse)
            content, again = self._large.store(path, before.st_blocks * _BLOCK, runs.read, runs)
        steady = whole and _stamp(listed) == _stamp(before) == _stamp(os.fstat(fd))
        return StoredFile(before, content, xattrs, steady, again)

    def _small(self, fd: int, size: int) -> Content | None:
        data = os.read(fd, size)
        while 0 < len(data) < size and (more := os.read(fd, size - len(data))):
            data += more
        return self._bundle(data) if data else None

    def store_unsized(self, name: bytes, read: Callable[[memoryview], int]) -> Content | None:
        """Store what `read` gives until it gives nothing; None if that is at once. `name` as for `LargeFiles.store`.

        What is short is bundled like any small file: nobody may confirm a guess at it.
        """
        head = memoryview(bytearray(FILE_MIN))
        filled = 0
        while filled < FILE_MIN and (count := read(head[filled:])):
            filled += count
        if filled < FILE_MIN:
            return self._bundle(bytes(head[:filled])) if filled else None
        return self._large.store(name, 0, _Rejoined(head, read).read)[0]

    def _bundle(self, data: bytes) -> SmallContent:
        """Store a content of 1 byte to FILE_MIN - 1."""
        self._watch.progress.advance(len(data))
        return self._bundler.add(data)

    def _is_empty(self, directory: int, status: os.stat_result) -> bool:
        """Whether a file of size 0 surely has no content."""
        device = status.st_dev
        if device not in self._tells_sizes and os.fstat(directory).st_dev != device:
            return False  # mounted by itself: it is opened, to see where it lies
        return self._tells(directory, device)

    def _tells(self, fd: int, device: int) -> bool:
        """Whether sizes can be believed on the file system that something open lies on."""
        found = self._tells_sizes.get(device)
        if found is None:
            kind = mounts.filesystem_type_of(fd)
            found = self._tells_sizes[device] = kind is not None and mounts.tells_sizes(kind)
        return found

    def _open(self, directory: int, name: bytes, status: os.stat_result) -> int:
        if self._user in (0, status.st_uid):
            try:
                return os.open(name, _OPEN | os.O_NOATIME, dir_fd=directory)
            except PermissionError:
                # Not everybody who is called root may leave no trace (containers, network file systems).
                return os.open(name, _OPEN, dir_fd=directory)
        return os.open(name, _OPEN, dir_fd=directory)

    def _remember(self, stored: StoredFile) -> None:
        weight = 1 if stored.content is None else stored.content.weight
        if self._links_weight + weight > LINKS_LIMIT:
            self._links.clear()
            self._links_weight = 0
        self._links[stored.status.st_dev, stored.status.st_ino] = stored
        self._links_weight += weight


class _Rejoined:
    """A stream whose beginning was read already."""

    def __init__(self, head: memoryview, read: Callable[[memoryview], int]) -> None:
        self._head = head
        self._read = read

    def read(self, view: memoryview) -> int:
        if not self._head:
            return self._read(view)
        count = min(len(view), len(self._head))
        view[:count] = self._head[:count]
        self._head = self._head[count:]
        return count


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
