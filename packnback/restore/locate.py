"""From files to objects: which bytes of which object go where in which file.

A file is a list of extents. To read every object (nearly) once, extents are not fetched file by file: they are
collected in a *plan*, a window over many files, by the object that they need, and the plan is carried out
object by object. Its size is bounded by the number of pieces, so memory does not grow with the number or size
of files; an object is fetched again only when its pieces lie in different windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from blake3 import blake3

from packnback import errors
from packnback.crypto.keys import Reader
from packnback.format.entry import CHECK_LEN, Entry, Extent, decode_extent_object
from packnback.ids import Kind, ObjectClass
from packnback.restore.objects import ObjectReader

PIECES_LIMIT = 1 << 16
"""Pieces in one plan: some tens of MiB of memory, and a few GiB of files unless they are small."""

F = TypeVar("F")


@dataclass(slots=True)
class Plan(Generic[F]):
    """Pieces by the object that they come from: (file, offset in the file, offset in the object, length)."""

    pieces: dict[bytes, list[tuple[F, int, int, int]]] = field(default_factory=dict)
    count: int = 0

    def add(self, file: F, file_offset: int, extent: Extent) -> None:
        """Ask for an extent (no hole) of `file`."""
        if extent.id is None:
            raise ValueError("a hole needs no object")
        piece = (file, file_offset, extent.offset, extent.length)
        self.pieces.setdefault(extent.id, []).append(piece)
        self.count += 1

    @property
    def full(self) -> bool:
        """Whether it is time to carry it out."""
        return self.count >= PIECES_LIMIT


def file_extents(reader: ObjectReader, entry: Entry) -> Iterator[Extent]:
    """The extents of a file in order, read from extent objects where there are too many to stand in the entry.

    Raises the problem of an extent object that cannot be read or does not cover what it should.
    """
    if not entry.far:
        yield from entry.extents
        return
    for object_id, covered in entry.far:
        yield from _far_extents(reader, object_id, covered, entry.far_depth - 1)


def _far_extents(reader: ObjectReader, object_id: bytes, covered: int, depth: int) -> Iterator[Extent]:
    opened = reader.listing_object(object_id, Kind.EXTENTS)
    try:
        found = decode_extent_object(opened.refs, opened.plaintext)
    except errors.FormatDamage as damage:
        raise errors.ObjectDamage(object_id, f"{damage.what}: {damage.why}") from damage
    if found.depth != depth:
        raise errors.ObjectDamage(object_id, "its depth is not what its parent says")
    lengths = [e.length for e in found.extents] + [length for _, length in found.far]
    if sum(lengths) != covered:
        raise errors.ObjectDamage(object_id, "does not cover the bytes that its parent says")
    yield from found.extents
    for child, length in found.far:
        yield from _far_extents(reader, child, length, depth - 1)


def slice_of(object_id: bytes, plaintext: bytes, offset: int, length: int) -> memoryview:
    """`length` bytes of an object from `offset`. Raises ObjectDamage if the object is shorter than that."""
    if offset + length > len(plaintext):
        raise errors.ObjectDamage(object_id, "is shorter than an extent that points into it")
    return memoryview(plaintext)[offset : offset + length]


class ContentCheck:
    """The 8-byte check of whole file contents: keyed BLAKE3 under the domain's id key for data.

    It catches what no id can: a file that was put together from the wrong, though intact, pieces.
    """

    def __init__(self, key: Reader, domain_id: bytes) -> None:
        self._key = key.id_key(ObjectClass.DATA, domain_id)

    def start(self) -> blake3:
        """A hasher that is to be fed with the content, holes as zeros; `holds` compares it."""
        return blake3(b"file check\0", key=self._key)

    def holds(self, entry: Entry, hasher: blake3) -> bool:
        """Whether the content that `hasher` was fed is the one that `entry` describes."""
        return not entry.check or hasher.digest(CHECK_LEN) == entry.check

    def holds_for(self, entry: Entry, content: memoryview | bytes) -> bool:
        """The same for content that is at hand in one piece."""
        if not entry.check:
            return True
        hasher = self.start()
        hasher.update(content)
        return self.holds(entry, hasher)
