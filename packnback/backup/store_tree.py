"""Storing a tree: the walk's parts become entries, their files become contents, both become a listing.

This is the loop of a backup, in the caller's thread; the pipeline's threads do the rest. It knows nothing of
snapshots: it ends with a root.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from packnback.backup.attributes import AttributeReader
from packnback.backup.backlog import Backlog
from packnback.backup.bundle import Bundler
from packnback.backup.cut import FILE_MIN
from packnback.backup.extents import Content
from packnback.backup.large import LargeFiles
from packnback.backup.listing_cuts import ListingCuts
from packnback.backup.pipeline import Pipeline
from packnback.backup.read import FileReader
from packnback.backup.reuse import Reuse, Visit
from packnback.backup.roots import Report
from packnback.backup.stream import ChunkStream
from packnback.backup.stream_source import StreamSource
from packnback.backup.tree import Block, ListingBuilder, Root, encode_entries
from packnback.backup.walk import Part
from packnback.crypto.keys import PutKey
from packnback.errors import StorageFailed
from packnback.events import Watch
from packnback.format.entry import BLOCK, CHAR, DIRECTORY, FILE, NO_XATTRS, SYMLINK, TARGET_LIMIT, TYPE_OF, Entry
from packnback.oserrors import reason_of

_TYPE_MASK = 0o170000
_STREAM_MODE = 0o600
_TIME_LIMIT = 1 << 63
"""Nanoseconds from 1970: the years 1677 to 2262. There are file systems that keep any year that is asked for."""


class _Stored(Protocol):
    def __call__(self, blocks: Sequence[Block], *, whole: bool) -> None:
        """Tell of the blocks of a part."""


class _Unfinished(NamedTuple):
    """A part in the middle of which a checkpoint may be made."""

    path: bytes
    entries: Sequence[Entry]
    """Those so far."""
    contents: Sequence[tuple[Entry, Content]]
    stored: _Stored


class TreeStore:
    """Stores one tree through a pipeline."""

    def __init__(
        self, pipeline: Pipeline, put_key: PutKey, cuts: ListingCuts, reuse: Reuse, report: Report, watch: Watch
    ) -> None:
        self.directories = 0
        self.files_unchanged = 0
        self.unsteady: list[bytes] = []
        """Files that changed while they were read."""
        self.users: set[int] = set()
        self.groups: set[int] = set()
        self.walk_ns = 0
        """Time spent listing and lstat'ing."""
        self._cuts = cuts
        self._reuse = reuse
        self._report = report
        self._watch = watch
        self._bundler = Bundler(pipeline, put_key, reuse)
        self._stream = ChunkStream(pipeline, put_key.chunk_key)
        self._attributes = AttributeReader(report)
        self._large = LargeFiles(pipeline, self._stream, put_key, cuts, reuse, watch)
        self._files = FileReader(self._bundler, self._large, self._attributes, report, watch)
        self._listing = ListingBuilder(pipeline, cuts)
        self._backlog = Backlog(self._listing, self._bundler.flush)
        self._unfinished: _Unfinished | None = None

    def add_parts(self, parts: Iterable[Part]) -> Iterator[None]:
        """Store what the walk finds, one part at a step, and one large file within a part."""
        walk = iter(parts)
        while True:
            began = time.perf_counter_ns()
            part = next(walk, None)
            self.walk_ns += time.perf_counter_ns() - began
            if part is None:
                return
            yield from self._add_part(part)
            self._unfinished = None
            yield

    def add_stream(self, source: StreamSource, started_ns: int) -> None:
        """Store a stream as a file at the root. Raises what `source.finish` raises."""
        entry = Entry(source.name, FILE, _STREAM_MODE, os.getuid(), os.getgid(), started_ns)
        self.users.add(entry.uid)
        self.groups.add(entry.gid)
        try:
            content = self._files.store_unsized(source.name, source.read)
        except OSError as error:
            raise StorageFailed("read", os.fsdecode(source.name), reason_of(error)) from error
        source.finish()
        self._backlog.add_entries(b"", [entry], [(entry, content)] if content else [])

    def checkpoint(self) -> Root:
        """A root over what was added so far; the tree can go on."""
        self._backlog.drain()
        if self._unfinished is None:
            return self._listing.checkpoint()
        path, entries, contents, stored = self._unfinished
        for entry, content in contents:
            content.describe(entry)
        blocks = encode_entries(entries)
        stored(blocks, whole=False)
        return self._listing.checkpoint(path, blocks)

    def finish(self) -> Root:
        """The root over everything. What it refers to is not durable before the pipeline is drained."""
        self._backlog.drain()
        self._stream.close()
        return self._listing.finish()

    def _add_part(self, part: Part) -> Iterator[None]:
        visit = self._reuse.visit(part)
        if visit.blocks is not None:
            self._add_unchanged(part, visit.blocks, visit)
            return
        children = part.children
        self.users.update([status.st_uid for _, status in children])
        self.groups.update([status.st_gid for _, status in children])
        entries: list[Entry] = []
        contents: list[tuple[Entry, Content]] = []
        prefix = part.source.rstrip(b"/") + b"/"
        doubtful: set[bytes] = set()
        whole = part.whole
        some_known, read_quickly = visit.some_known, self._files.quick

        def stored(blocks: Sequence[Block], *, whole: bool) -> None:
            visit.stored(blocks, entries, doubtful=doubtful, whole=whole)

        self._unfinished = _Unfinished(part.path, entries, contents, stored)
        for name, status in children:
            if status.st_mode & _TYPE_MASK == stat.S_IFREG:
                known = visit.file(name, status) if some_known else None
                if known is not None and status.st_nlink > 1:
                    known = self._files.take_over(status, known)
                if known is not None:
                    self._add_known(known, status, entries)
                elif (
                    0 < status.st_size < FILE_MIN
                    and status.st_nlink == 1
                    and (quick := read_quickly(part.fd, name, prefix, status)) is not None
                ):
                    content, xattrs, all_of_them = quick
                    entry = _entry(name, FILE, status, xattrs)
                    contents.append((entry, content))
                    entries.append(entry)
                    if not all_of_them:
                        doubtful.add(name)
                elif (trust := self._add_file(part.fd, name, prefix + name, status, entries, contents)) is None:
                    whole = False
                elif not trust:
                    doubtful.add(name)
                if known is None and status.st_size >= FILE_MIN:
                    yield
            else:
                whole &= self._add_other(part, name, prefix + name, status, entries)
        self._backlog.add_entries(part.path, entries, contents, partial(stored, whole=whole))

    def _add_unchanged(self, part: Part, blocks: Sequence[Block], visit: Visit) -> None:
        self.directories += visit.directories
        self.users.update(visit.users)
        self.groups.update(visit.groups)
        for block in blocks:
            self.files_unchanged += block.totals.files
            self._watch.progress.advance(block.totals.bytes)
        self._backlog.add_blocks(part.path, blocks)

    def _add_known(self, entry: Entry, status: os.stat_result, entries: list[Entry]) -> None:
        if status.st_nlink > 1:
            entry.link_key = self._cuts.link_key(status.st_dev, status.st_ino)
        self.files_unchanged += 1
        self._watch.progress.advance(entry.size)
        entries.append(entry)

    def _add_file(
        self,
        directory: int,
        name: bytes,
        path: bytes,
        status: os.stat_result,
        entries: list[Entry],
        contents: list[tuple[Entry, Content]],
    ) -> bool | None:
        """Store a regular file. None if it is not there, else whether it may be known again by its looks."""
        stored = self._files.store(directory, name, path, status)
        if stored is None:
            return None
        entry = _entry(name, FILE, stored.status, stored.xattrs)
        if stored.status.st_nlink > 1:
            entry.link_key = self._cuts.link_key(stored.status.st_dev, stored.status.st_ino)
        if stored.content is not None:
            contents.append((entry, stored.content))
        entries.append(entry)
        if not stored.steady:
            self.unsteady.append(path)
        return stored.steady and not stored.again

    def _add_other(self, part: Part, name: bytes, path: bytes, status: os.stat_result, entries: list[Entry]) -> bool:
        """Record what is not a regular file; whether nothing of it is missing."""
        kind = TYPE_OF.get(status.st_mode & _TYPE_MASK)
        if kind is None:
            self._report(path, "is of a type that nobody knows; its file system is damaged")
            return False
        entry = _entry(name, kind, status)
        if entry.type == SYMLINK:
            try:
                entry.target = os.readlink(name, dir_fd=part.fd)
            except FileNotFoundError:
                return False
            except OSError as error:
                self._report(path, reason_of(error))
                return False
            if not 0 < len(entry.target) <= TARGET_LIMIT:
                self._report(path, f"is a symbolic link to a name of {len(entry.target)} bytes")
                return False
        elif entry.type in (CHAR, BLOCK):
            entry.rdev = status.st_rdev
        elif entry.type == DIRECTORY:
            self.directories += 1
            entry.implicit = name in part.implicit
        if status.st_nlink > 1 and entry.type != DIRECTORY:
            entry.link_key = self._cuts.link_key(status.st_dev, status.st_ino)
        entry.xattrs, whole = self._attributes.read_name(part.fd, name, path, status.st_dev)
        entries.append(entry)
        return whole


def _entry(name: bytes, kind: int, status: os.stat_result, xattrs: Mapping[bytes, bytes] = NO_XATTRS) -> Entry:
    mtime_ns = status.st_mtime_ns
    if not -_TIME_LIMIT <= mtime_ns < _TIME_LIMIT:
        # A time that no reader takes would make the whole directory unreadable; it is anybody's to set with touch.
        mtime_ns = min(max(mtime_ns, -_TIME_LIMIT), _TIME_LIMIT - 1)
    mode = status.st_mode & 0o7777
    return Entry(
        name, kind, mode, status.st_uid, status.st_gid, mtime_ns, 0, (), (), 0, b"", b"", 0, b"", xattrs
    )
