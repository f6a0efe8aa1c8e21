"""Bundling small files: many of them, in the order of the walk, become one object.

Where a bundle ends is decided by a PRF of the content of the file that was just added, so that a run that knows
nothing of earlier ones makes mostly the same bundles again, and an observer cannot predict them. Only the end of
the run is no property of the contents: a bundle that is closed for that reason starts with 16 random bytes,
or else a stolen put key could confirm a guess at a small secret file by asking for the object's id.

Where a file lies is therefore settled when its bundle closes, and not before: see `ticket.Place`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from packnback.backup.cut import FILE_MIN
from packnback.backup.ticket import Place, Ticket, known_place
from packnback.crypto.content import ContentHasher
from packnback.crypto.derive import MAC
from packnback.crypto.keys import PutKey
from packnback.format.entry import CHECK_LEN, Extent
from packnback.ids import KIB, MIB, ObjectClass

BUNDLE_MIN = 256 * KIB
BUNDLE_MAX = 1 * MIB
_CERTAIN_SIZE = 256 * KIB
"""A file's chance to end its bundle is its size over this."""
_PREFIX_LEN = 16
RECENT_CONTENTS = 1 << 15
"""Contents that are remembered, at least half of them at any time, to find identical files; about 10 MiB."""


class Sink(Protocol):
    """Where finished bundles go."""

    def new_ticket(self) -> Ticket:
        """A ticket for an object that is still being put together."""

    def add_data(self, plaintext: bytes, *, ticket: Ticket | None = None) -> Ticket:
        """Store one data object."""


class Memory(Protocol):
    """Contents that earlier runs stored (`reuse.Reuse`)."""

    def content(self, content_hash: bytes) -> Extent | None:
        """Where a content lies, if the repository has it."""

    def bundled(self, ticket: Ticket, size: int, contents: Sequence[tuple[bytes, int, int]]) -> None:
        """A bundle with `size` bytes of contents was closed; (hash, where it starts, length) of all its contents."""


class Bundler:
    """Puts small files into bundles and hands full ones to `sink` (the pipeline)."""

    def __init__(self, sink: Sink, put_key: PutKey, memory: Memory | None = None) -> None:
        self._sink = sink
        self._memory = memory
        self._hasher = ContentHasher(put_key.id_key[ObjectClass.DATA])
        self._bundle_key = put_key.bundle_key
        self._recent: dict[bytes, Place] = {}
        self._older: dict[bytes, Place] = {}
        self._parts: list[bytes] = []
        self._contents: list[tuple[bytes, int, int]] = []
        self._length = 0
        self._ticket = sink.new_ticket()
        self.files_shared = 0
        """Files that were found to be identical to an earlier one, of this run or, with `memory`, any."""

    def add(self, content: bytes) -> tuple[Place, bytes]:
        """Where the content of one small file will be, and its 8-byte check for the entry.

        `content` has 1 byte to FILE_MIN - 1; an empty file needs no place.
        """
        if not 0 < len(content) < FILE_MIN:
            raise ValueError("not a small file")
        content_hash = self._hasher.hash(content)
        place = self._recent.get(content_hash) or self._older.get(content_hash) or self._find(content_hash, content)
        if place is not None:
            self.files_shared += 1
            return place, content_hash[:CHECK_LEN]
        if self._length + len(content) > BUNDLE_MAX:
            self._close(b"")
        place = Place(self._ticket, self._length, len(content))
        self._parts.append(content)
        self._contents.append((content_hash, self._length, len(content)))
        self._length += len(content)
        self._remember(content_hash, place)
        if self._length >= BUNDLE_MIN and self._ends(content_hash, len(content)):
            self._close(b"")
        return place, content_hash[:CHECK_LEN]

    def flush(self) -> None:
        """Close the open bundle although nothing in it says so: at the end of the run, or to settle places."""
        if self._parts:
            self._close(os.urandom(_PREFIX_LEN))

    def _ends(self, content_hash: bytes, size: int) -> bool:
        value = int.from_bytes(MAC(self._bundle_key, content_hash, 8), "little")
        return value * _CERTAIN_SIZE < size << 64

    def _find(self, content_hash: bytes, content: bytes) -> Place | None:
        """A place in a bundle of an earlier run."""
        extent = self._memory.content(content_hash) if self._memory is not None else None
        if extent is None or extent.length != len(content):
            return None
        place = known_place(extent)
        self._remember(content_hash, place)
        return place

    def _close(self, prefix: bytes) -> None:
        ticket = self._ticket
        ticket.shift = len(prefix)
        self._sink.add_data(b"".join((prefix, *self._parts)), ticket=ticket)
        if self._memory is not None:
            self._memory.bundled(ticket, self._length, self._contents)
        self._parts, self._contents, self._length = [], [], 0
        self._ticket = self._sink.new_ticket()

    def _remember(self, content_hash: bytes, place: Place) -> None:
        if len(self._recent) >= RECENT_CONTENTS // 2:
            self._older, self._recent = self._recent, {}
        self._recent[content_hash] = place
