"""From files to objects: which bytes of which object go where in which file.

A file is a list of extents. To read every object (nearly) once, extents are not fetched file by file: they are
collected in a *plan*, a window over many files, by the object that they need, and the plan is carried out
object by object. Its size is bounded by the number of pieces, so memory does not grow with the number or size
of files; an object is fetched again only when its pieces lie in different windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from blake3 import blake3
from msgspec import Struct, field

from packnback import errors
from packnback.crypto.keys import Reader
from packnback.format.entry import CHECK_LEN, Entry, Extent, ExtentObject, decode_extent_object
from packnback.ids import Kind, ObjectClass
from packnback.restore.objects import ObjectReader

PIECES_LIMIT = 1 << 16
"""Pieces in one plan: some tens of MiB of memory, and a few GiB of files unless they are small."""

F = TypeVar("F")

Piece = tuple[F, int, int, int, bytes]
"""(file, offset in the file, offset in the object, length, check), the check only where it is the whole file."""


class Plan(Struct, Generic[F]):
    """Pieces by the object that they come from."""

    pieces: dict[bytes, list[Piece[F]]] = field(default_factory=dict)
    count: int = 0

    def add(self, file: F, file_offset: int, extent: Extent, check: bytes = b"") -> None:
        """Ask for an extent (no hole) of `file`; `check` is the file's, if the extent is all of it."""
        if extent.id is None:
            raise ValueError("a hole needs no object")
        piece = (file, file_offset, extent.offset, extent.length, check)
        known = self.pieces.get(extent.id)
        if known is None:
            self.pieces[extent.id] = [piece]
        else:
            known.append(piece)
        self.count += 1

    @property
    def full(self) -> bool:
        """Whether it is time to carry it out."""
        return self.count >= PIECES_LIMIT


Content = tuple[F, int, int, memoryview | errors.PacknbackError, bool]
"""(file, offset in the file, length, the bytes or why there are none, whether a check that was given holds)."""


class Delivery(Struct, Generic[F], frozen=True):
    """What a plan wanted of one object."""

    id: bytes
    problem: errors.PacknbackError | None
    """What is wrong with the object as a whole."""
    length: int
    """Bytes of its plaintext."""
    contents: list[Content[F]]


def deliver(reader: ObjectReader, plan: Plan[F], check: ContentCheck) -> Iterator[Delivery[F]]:
    """Carry out a plan: every object once. The plan is empty afterwards.

    Content checks are computed here, not in the reader's threads. For small files they would be so short there that
    handing the interpreter to and fro cost more than the hashing (measured: 15 % of a restore).
    """
    for opened in reader.open_many(list(plan.pieces)):
        problem = opened.problem
        if problem is None and opened.kind != Kind.DATA:
            problem = errors.ObjectDamage(opened.id, f"is of kind {opened.kind} where data belongs")
        contents: list[Content[F]] = []
        for file, at, offset, length, expected in plan.pieces.pop(opened.id):
            if problem is not None:
                contents.append((file, at, length, problem, False))
                continue
            try:
                content = slice_of(opened.id, opened.plaintext, offset, length)
            except errors.ObjectDamage as short:
                contents.append((file, at, length, short, False))
            else:
                contents.append((file, at, length, content, not expected or check.of(content) == expected))
        yield Delivery(opened.id, problem, len(opened.plaintext), contents)
    plan.count = 0


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
    found = extent_object(reader, object_id, covered, depth)
    yield from found.extents
    for child, length in found.far:
        yield from _far_extents(reader, child, length, depth - 1)


def extent_object(reader: ObjectReader, object_id: bytes, covered: int, depth: int) -> ExtentObject:
    """An extent object whose parent says that it covers so many bytes, and how deep it is.

    Raises its problem if it cannot be read, or is not what its parent says.
    """
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
    return found


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
        self._empty = blake3(b"file check\0", key=key.id_key(ObjectClass.DATA, domain_id))

    def start(self) -> blake3:
        """A hasher that is to be fed with the content, holes as zeros; `holds` compares it."""
        return self._empty.copy()

    def holds(self, entry: Entry, hasher: blake3) -> bool:
        """Whether the content that `hasher` was fed is the one that `entry` describes."""
        return not entry.check or hasher.digest(CHECK_LEN) == entry.check

    def of(self, content: memoryview | bytes) -> bytes:
        """The check of a content that is at hand in one piece."""
        hasher = self._empty.copy()
        hasher.update(content)
        return hasher.digest(CHECK_LEN)
