"""A client with a cache and a repository in memory, for tests of what is remembered between runs."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

from memory_repository import MemoryRepository, SavedTree, TreeReader
from msgspec.structs import replace

from packnback.backup import cache as cache_module
from packnback.backup.cache import TABLES, Cache, WriteRows
from packnback.backup.save import SaveOptions, SaveResult, save
from packnback.crypto.keys import OwnerKey
from packnback.events import Counters, Watch
from packnback.format.entry import DIRECTORY, FILE, Entry, Extent

OWNER = OwnerKey(bytes(range(32)))
KEY = OWNER.put_key("laptop")


class Notes:
    """A progress port that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def begin(self, phase: str, total: int | None, unit: str) -> None:
        """Nothing to keep."""

    def advance(self, amount: int) -> None:
        """Nothing to keep."""

    def note(self, message: str) -> None:
        self.notes.append(message)


class CachedClient:
    """Saves `source` again and again."""

    def __init__(self, base: Path) -> None:
        self.source = base / "source"
        self.source.mkdir()
        self.base = base
        self.repository = MemoryRepository(OWNER)
        self.notes = Notes()
        self.counters = Counters()
        self.options = SaveOptions(
            paths=[os.fsencode(self.source)],
            state_directory=os.fsencode(base / "state"),
            cache_directory=os.fsencode(base / "cache"),
        )

    def save(self, **changed: Any) -> SaveResult:
        """One run; `counters` are of this run alone."""
        self.counters = Counters()
        options = replace(self.options, **changed)
        return save(self.repository, KEY, options, Watch(self.counters, self.notes))

    @property
    def place(self) -> bytes:
        """Where the cache stands."""
        repository = self.repository
        base = os.fsencode(self.base / "cache")
        return cache_module.place_of(base, repository.config.repository_id, KEY)

    def rows(self) -> list[tuple[bytes, bytes, bytes]]:
        """(table, key, value) of every row."""
        with Cache.open(self.place) as cache, cache.reading() as txn:
            return [(table, key, value) for table in TABLES for key, value in txn.scan(table, b"\0")]

    def replace_rows(self, rows: list[tuple[bytes, bytes, bytes]]) -> None:
        """Put rows with other values into the cache."""

        def write(txn: WriteRows) -> None:
            for table, key, value in rows:
                txn.put(table, key, value)

        with Cache.open(self.place) as cache:
            cache.write(write)

    def tree(self) -> SavedTree:
        """The newest snapshot's tree, read without any short cut."""
        newest = max(self.repository.opened.snapshots.values(), key=lambda s: s.header.sequence)
        return TreeReader(self.repository.opened, OWNER, KEY).tree(newest.header.root)

    def below(self, tree: SavedTree) -> dict[bytes, Entry]:
        """Entries in the source, by path relative to it."""
        prefix = os.fsencode(self.source)[1:] + b"/"
        return {path[len(prefix) :]: e for path, e in tree.entries.items() if path.startswith(prefix)}

    def entry(self, name: str) -> Entry:
        """The newest snapshot's entry of a file."""
        return self.below(self.tree())[os.fsencode(name)]

    def extents(self, name: str) -> list[Extent]:
        """All extents of a file in the newest snapshot."""
        return TreeReader(self.repository.opened, OWNER, KEY).extents(self.entry(name))

    def check_against_disk(self) -> None:
        """The newest snapshot is what stands on the disk: names, properties, contents."""
        tree = self.tree()
        found = self.below(tree)
        prefix = os.fsencode(self.source)
        seen = {}
        for base, directories, files in os.walk(prefix):
            for name in (*directories, *files):
                path = os.path.join(base, name)
                seen[path[len(prefix) + 1 :]] = os.lstat(path)
        assert found.keys() == seen.keys()
        for path, entry in found.items():
            status = seen[path]
            assert (entry.mode, entry.uid, entry.gid) == (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
            assert entry.mtime_ns == status.st_mtime_ns, path
            assert (entry.type == DIRECTORY) == stat.S_ISDIR(status.st_mode)
            if entry.type == FILE:
                with open(os.path.join(prefix, path), "rb") as file:
                    assert tree.contents[prefix[1:] + b"/" + path] == file.read(), path


def settle() -> None:
    """Wait until what was just written is older than the clock's granularity."""
    time.sleep(0.03)
