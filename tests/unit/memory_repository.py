"""A repository in memory around `memory_session`, and a reader of whole snapshots that takes no short cuts.

The reader decodes every table, page, block and extent object under a root with the hostile-input decoders, and
returns the tree as a dict, so that tests compare it with the tree that was saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from memory_session import MemoryReader, MemorySession

from packnback.crypto.content import ContentHasher
from packnback.crypto.keys import OwnerKey, PutKey
from packnback.format.config import Config
from packnback.format.entry import (
    CHECK_LEN,
    FILE,
    Entry,
    Extent,
    decode_block,
    decode_extent_object,
)
from packnback.format.listing import Group, Totals, decode_page, decode_table, path_key
from packnback.ids import Kind, ObjectClass


class MemoryRepository:
    """As much of `store.interface.Repository` as a client that saves needs."""

    location = "/memory"

    def __init__(self, owner: OwnerKey, repository_id: bytes = bytes(range(16))) -> None:
        self.config = Config(repository_id, owner.bundle.raw)
        self.opened = MemorySession()

    @contextmanager
    def session(self, certificate: bytes) -> Iterator[MemorySession]:
        yield self.opened


@dataclass
class SavedTree:
    """A decoded listing."""

    entries: dict[bytes, Entry] = field(default_factory=dict)
    """By path in the snapshot."""
    contents: dict[bytes, bytes] = field(default_factory=dict)
    """Of regular files."""
    groups: list[Group] = field(default_factory=list)
    """In listing order."""
    pages: list[bytes] = field(default_factory=list)
    tables: list[bytes] = field(default_factory=list)
    """Ids, in listing order."""


class TreeReader:
    """Reads the trees that one client saved."""

    def __init__(self, session: MemorySession, owner: OwnerKey, put_key: PutKey) -> None:
        self._session = session
        self._objects = MemoryReader(session, owner)
        self._hasher = ContentHasher(put_key.id_key[ObjectClass.DATA])

    def tree(self, root: bytes) -> SavedTree:
        """Everything under a root."""
        saved = SavedTree()
        record = self._session.records[root]
        assert record.kind == Kind.TABLE
        self._read(root, saved, None)
        keys = [group.key for group in saved.groups]
        assert keys == sorted(set(keys))
        paths = [group.path for group in saved.groups]
        assert sorted(paths, key=path_key) == paths
        return saved

    def _read(self, object_id: bytes, saved: SavedTree, depth: int | None) -> Totals:
        record = self._session.records[object_id]
        plaintext = self._objects.read(object_id)
        if record.kind == Kind.PAGE:
            assert depth == 0
            saved.pages.append(object_id)
            return sum((self._group(group, saved) for group in decode_page(record.refs, plaintext)), Totals())
        table = decode_table(record.refs, plaintext)
        assert depth is None or table.depth == depth - 1
        saved.tables.append(object_id)
        totals = Totals()
        for child in table.children:
            first = len(saved.groups)
            below = self._read(child.id, saved, table.depth)
            assert below == child.totals
            assert (saved.groups[first].path, saved.groups[first].part) == (child.path, child.part)
            totals += below
        return totals

    def _group(self, group: Group, saved: SavedTree) -> Totals:
        saved.groups.append(group)
        entries = decode_block(group.ids, group.block)
        files = [entry for entry in entries if entry.type == FILE]
        for entry in entries:
            path = group.path + b"/" + entry.name if group.path else entry.name
            assert path not in saved.entries
            saved.entries[path] = entry
        for entry in files:
            path = group.path + b"/" + entry.name if group.path else entry.name
            saved.contents[path] = self._content(entry)
        return Totals(len(entries), len(files), sum(entry.size for entry in files))

    def extents(self, entry: Entry) -> list[Extent]:
        """All extents of a file, near or far."""
        if not entry.far:
            return list(entry.extents)
        return [e for object_id, length in entry.far for e in self._far(object_id, length, entry.far_depth - 1)]

    def _far(self, object_id: bytes, length: int, depth: int) -> list[Extent]:
        found = decode_extent_object(self._session.records[object_id].refs, self._objects.read(object_id))
        assert found.depth == depth
        if depth == 0:
            extents = list(found.extents)
        else:
            extents = [e for child, covered in found.far for e in self._far(child, covered, depth - 1)]
        assert sum(e.length for e in extents) == length
        return extents

    def _content(self, entry: Entry) -> bytes:
        parts = []
        for extent in self.extents(entry):
            if extent.id is None:
                parts.append(bytes(extent.length))
                continue
            part = self._objects.read(extent.id)[extent.offset : extent.offset + extent.length]
            assert len(part) == extent.length
            parts.append(part)
        content = b"".join(parts)
        if entry.check:
            assert self._hasher.hash(content)[:CHECK_LEN] == entry.check
        return content
