"""The walk: a tree of directories as a stream of parts, each one directory's names with what lstat says of them.

A *part* is the unit of everything that follows: it becomes one group of the listing, and it is what a cache
recognises as unchanged. Ordinary directories are one part; a huge one is split by its names, so that neither its
entries nor its listing is ever held whole (only its names are, because they have to be sorted).

Parts come depth-first and pre-order, in the component-wise byte order of `format.listing.path_key`. Each is
listed and lstat'ed through a descriptor of its directory, which stays open until the walk goes on, so that files
can be opened relative to it. The descriptor must be the directory that its parent's listing told of: someone who
replaces a directory by a link while the walk goes by gets an error reported, and no other tree backed up.

Nothing that cannot be read stops the walk: it is reported. A name that vanishes between listing and lstat is not
an error; a walk that came a moment later would not have seen it.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct, field

from packnback.backup.exclude import Excludes
from packnback.backup.itself import Identity
from packnback.backup.roots import Report, Roots, RootTree
from packnback.format.entry import NAME_LIMIT
from packnback.format.listing import PATH_LIMIT
from packnback.oserrors import reason_of

PART_MIN = 1024
"""A directory of at most this many names is never split."""
PART_LIMIT = 8192
"""A part is cut before it would have more names than this."""

CALL_LIMIT = 4000
"""Longest path that is handed to the system in one piece; it takes 4095 bytes."""

CACHE_TAG = b"CACHEDIR.TAG"
CACHE_TAG_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
"""What a cache directory's tag begins with (https://bford.info/cachedir/)."""

_TYPE = 0o170000
_DIRECTORY = 0o040000
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Above a root nothing is listed: being allowed to pass through is enough, and links lead to it.
_OPEN_ABOVE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NONE: frozenset[bytes] = frozenset()


class WalkOptions(Struct, frozen=True):
    """What is left out. Directories that are left out for what they hold keep their entry and the tag."""

    excludes: Excludes = field(default_factory=Excludes)
    exclude_caches: bool = False
    exclude_if_present: Sequence[bytes] = ()
    """Names of files that tag a directory as not to be backed up."""
    one_file_system: bool = False
    """Do not enter other file systems than those that the roots stand on; mount points keep their entry."""
    repository: Identity | None = None
    """The repository's own directory, which is not entered either."""


class Part(Struct):
    """One directory's children, or those of one stretch of a huge directory."""

    path: bytes
    """In the snapshot: no slash at either end."""
    fd: int
    """The directory, open until the walk goes on; for directories above a root only to pass through."""
    children: list[tuple[bytes, os.stat_result]]
    """Ascending by name. What lstat says, or, above a root, stat."""
    implicit: frozenset[bytes] = _NONE
    """Names of directories above a root."""
    device: int = 0
    """The file system that the directory stands on, as in st_dev."""
    later: bool = False
    """Whether this is not the first stretch of a huge directory."""
    whole: bool = True
    """False when something could not be looked at: such a part must not be taken for unchanged later."""

    @property
    def source(self) -> bytes:
        """The directory's absolute path."""
        return b"/" + self.path


class _Pending(Struct, frozen=True):
    """A directory still to be visited: one above a root (`tree`), or one that lstat saw (device, inode)."""

    path: bytes
    tree: RootTree | None
    device: int = 0
    inode: int = 0


class Walk:
    """One pass over the roots. `part_starts` says before which names a huge directory is split."""

    def __init__(
        self, roots: Roots, options: WalkOptions, part_starts: Callable[[bytes], bool], report: Report
    ) -> None:
        self._roots = roots
        self._options = options
        self._part_starts = part_starts
        self._report = report
        self._encoding = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())

    def __iter__(self) -> Iterator[Part]:
        stack = [self._top()]
        while stack:
            pending = stack.pop()
            below: list[_Pending] = []
            yield from self._above(pending, below) if pending.tree else self._directory(pending, below)
            below.reverse()
            stack += below

    def _top(self) -> _Pending:
        if self._roots.tree is not None:
            return _Pending(b"", self._roots.tree)
        status = os.stat(b"/")
        return _Pending(b"", None, status.st_dev, status.st_ino)

    def _above(self, pending: _Pending, below: list[_Pending]) -> Iterator[Part]:
        """The one part of a directory above the roots."""
        assert pending.tree is not None
        source = b"/" + pending.path
        try:
            fd = open_directory(source, _OPEN_ABOVE)
        except OSError as error:
            self._failed(source, error)
            return
        part = Part(pending.path, fd, [], frozenset(name for name, tree in pending.tree.items() if tree))
        prefix = pending.path + b"/" if pending.path else b""
        try:
            part.device = os.fstat(fd).st_dev
            for name in sorted(pending.tree):
                tree = pending.tree[name]
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=tree is not None)
                except OSError as error:
                    self._failed(b"/" + prefix + name, error)
                    part.whole = False
                    continue
                part.children.append((name, status))
                if status.st_mode & _TYPE == _DIRECTORY:
                    below.append(_Pending(prefix + name, tree, status.st_dev, status.st_ino))
            yield part
        finally:
            os.close(fd)

    def _directory(self, pending: _Pending, below: list[_Pending]) -> Iterator[Part]:
        """The parts of a directory at or below a root; appends its subdirectories to `below`."""
        fd = self._open(pending)
        if fd is None:
            return
        try:
            try:
                names = self._names(fd, pending.path)
            except OSError as error:
                self._failed(b"/" + pending.path, error)
                return
            for stretch in split(names, self._part_starts):
                part = Part(pending.path, fd, [], device=pending.device, later=stretch[:1] != names[:1])
                self._look_at(part, stretch, below)
                yield part
        finally:
            os.close(fd)

    def _open(self, pending: _Pending) -> int | None:
        source = b"/" + pending.path
        if (pending.device, pending.inode) == self._options.repository:
            return None
        if len(pending.path) >= PATH_LIMIT:
            self._report(source[:CALL_LIMIT] + b"...", "the path is too long; nothing below it is backed up")
            return None
        try:
            fd = open_directory(source, _OPEN_DIRECTORY)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._failed(source, error)
            return None
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (pending.device, pending.inode):
            os.close(fd)
            self._report(source, "was replaced by another directory during the backup")
            return None
        return fd

    def _names(self, fd: int, path: bytes) -> list[bytes]:
        encoding, errors = self._encoding
        names = [name.encode(encoding, errors) for name in os.listdir(fd)]
        names.sort()
        tag = self._tag(fd, names)
        if tag is not None:
            return [tag]
        if any(map(NAME_LIMIT.__lt__, map(len, names))):
            for name in names:
                if len(name) > NAME_LIMIT:
                    self._report(b"/".join((b"/" + path if path else b"", name)), "the name is too long")
            names = [name for name in names if len(name) <= NAME_LIMIT]
        return names

    def _tag(self, fd: int, names: Sequence[bytes]) -> bytes | None:
        """The name that excludes what else the directory holds."""
        for name in self._options.exclude_if_present:
            if _contains(names, name):
                return name
        if self._options.exclude_caches and _contains(names, CACHE_TAG) and _is_cache_tag(fd):
            return CACHE_TAG
        return None

    def _look_at(self, part: Part, names: Sequence[bytes], below: list[_Pending]) -> None:
        """Fill in the children of a part; appends those that are directories to `below`."""
        path, fd, children = part.path, part.fd, part.children
        prefix = path + b"/" if path else b""
        excludes, one_file_system = self._options.excludes, self._options.one_file_system
        stat = os.stat
        for name in names:
            try:
                status = stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                part.whole = False
                continue
            except OSError as error:
                self._failed(b"/" + prefix + name, error)
                part.whole = False
                continue
            is_directory = status.st_mode & _TYPE == _DIRECTORY
            if excludes and excludes.excluded(b"/" + prefix + name, name, is_directory):
                continue
            children.append((name, status))
            if is_directory and (not one_file_system or status.st_dev in self._roots.devices):
                below.append(_Pending(prefix + name, None, status.st_dev, status.st_ino))

    def _failed(self, path: bytes, error: OSError) -> None:
        self._report(path, reason_of(error))


def open_directory(path: bytes, flags: int) -> int:
    """Open a directory by its absolute path, of whatever length: a longer one than the system takes, step by step."""
    if len(path) <= CALL_LIMIT:
        return os.open(path, flags)
    first, path = _cut(path)
    above = os.open(first, _OPEN_ABOVE)
    try:
        while len(path) > CALL_LIMIT:
            first, path = _cut(path)
            step = os.open(first, _OPEN_ABOVE, dir_fd=above)
            os.close(above)
            above = step
        return os.open(path, flags, dir_fd=above)
    finally:
        os.close(above)


def _cut(path: bytes) -> tuple[bytes, bytes]:
    """The beginning of a long path, not longer than the system takes, and what is left of it."""
    at = path.rfind(b"/", 1, CALL_LIMIT)
    return path[:at], path[at:].lstrip(b"/")


def split(names: Sequence[bytes], starts: Callable[[bytes], bool]) -> Iterator[Sequence[bytes]]:
    """Sorted names in stretches, at least one: cut before names where `starts` says so, within the limits.

    Names alone decide, so a name that comes or goes moves the cuts next to it and no others.
    """
    begin = 0
    if len(names) > PART_MIN:
        for i, name in enumerate(names):
            length = i - begin
            if length >= PART_LIMIT or (length >= PART_MIN and starts(name)):
                yield names[begin:i]
                begin = i
    yield names[begin:]


def _contains(names: Sequence[bytes], name: bytes) -> bool:
    at = bisect_left(names, name)
    return at < len(names) and names[at] == name


def _is_cache_tag(directory: int) -> bool:
    """Whether the directory's tag file is one. One that cannot be read is none: better too much than too little."""
    try:
        fd = os.open(CACHE_TAG, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        return os.read(fd, len(CACHE_TAG_SIGNATURE)) == CACHE_TAG_SIGNATURE
    except OSError:
        return False
    finally:
        os.close(fd)
