"""Looking into a snapshot: ls, find and cat, as values. Nothing here prints or writes."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Iterator

from msgspec import Struct

from packnback import errors
from packnback.format.entry import DIRECTORY, FILE, Entry, Extent
from packnback.ids import MIB, Kind, ObjectClass
from packnback.restore.listing import Hole, Listing, decode_group
from packnback.restore.locate import ContentCheck, Plan, file_extents, slice_of
from packnback.restore.walk import walk

CAT_WINDOW = 16 * MIB
"""Bytes of a file that `cat` holds at one time."""
_ZEROS = bytes(1 * MIB)


class Found(Struct, frozen=True):
    """An entry and its path, without a slash in front."""

    path: bytes
    entry: Entry


def normalise(path: bytes) -> bytes:
    """A path as people give it, the way listings spell it: no slash at either end, no ``.`` or ``..``.

    The root of a snapshot is empty.
    """
    return posixpath.normpath(b"/" + path).lstrip(b"/")


def join(directory: bytes, name: bytes) -> bytes:
    """The path of `name` in `directory`."""
    return directory + b"/" + name if directory else name


def ls(listing: Listing, path: bytes = b"", *, recursive: bool = False) -> Iterator[Found | Hole]:
    """What stands in a directory, or with `recursive` below it; of anything else, the entry itself.

    Raises PathUnknown, and Damage if the way to `path` cannot be read.
    """
    lineage = listing.lineage(path)
    if lineage and lineage[-1][1].type != DIRECTORY:
        yield Found(*lineage[-1])
    elif recursive:
        yield from _tree(listing, path)
    else:
        yield from _one_directory(listing, path)


def find(listing: Listing, pattern: bytes) -> Iterator[Found | Hole]:
    """Entries whose name matches a shell pattern, or whose whole path does if the pattern has a slash.

    As in find(1): ``*`` matches slashes too when paths are matched, ``?`` any character, ``[^…]`` one of the others.
    """
    whole = b"/" in pattern
    wanted = pattern.lstrip(b"/") if whole else pattern
    matches = re.compile(fnmatch.translate(_text(wanted).replace("[^", "[!"))).match
    for found in _tree(listing, b""):
        if isinstance(found, Hole) or matches(_text(found.path if whole else found.entry.name)):
            yield found


def _text(name: bytes) -> str:
    """A name in characters; bytes that are none stand for themselves."""
    return name.decode("utf-8", "surrogateescape")


def cat(listing: Listing, path: bytes, domain_id: bytes) -> Iterator[bytes | memoryview]:
    """The content of a file, in order and in pieces. `domain_id` is that of the snapshot's header.

    Raises PathUnknown, UsageError if it is no file, KeyCannot for a list key, and the problem of the first
    object that cannot be read; ObjectDamage after the last piece when the content check fails.
    """
    reader = listing.reader
    reader.require(ObjectClass.DATA)
    lineage = listing.lineage(path)
    if not lineage or lineage[-1][1].type != FILE:
        raise errors.UsageError(f"/{path.decode(errors='replace')} is not a file")
    entry = lineage[-1][1]
    check = ContentCheck(reader.key, domain_id)
    hasher = check.start()
    for piece in _content(listing, entry):
        if entry.check:
            hasher.update(piece)
        yield piece
    if not check.holds(entry, hasher):
        raise errors.FormatDamage("file", "its content is not what was backed up", path.decode(errors="replace"))


def _one_directory(listing: Listing, path: bytes) -> Iterator[Found | Hole]:
    for group in listing.directory(path):
        if isinstance(group, Hole):
            yield group
            continue
        try:
            entries = decode_group(group)
        except errors.FormatDamage as damage:
            yield Hole(group.key, (group.key[0], group.part + 1), damage)
            continue
        for entry in entries:
            yield Found(join(path, entry.name), entry)


def _tree(listing: Listing, path: bytes) -> Iterator[Found | Hole]:
    for part in walk(listing.groups(path), path):
        if isinstance(part, Hole):
            yield part
            continue
        for entry in part.entries:
            yield Found(join(part.path, entry.name), entry)


def _content(listing: Listing, entry: Entry) -> Iterator[bytes | memoryview]:
    """Content by windows: the objects of a window are fetched in any order, then told in that of the file."""
    window: list[Extent] = []
    held = 0
    for extent in file_extents(listing.reader, entry):
        if extent.id is None:
            yield from _window(listing, window)
            yield from _zeros(extent.length)
            window, held = [], 0
            continue
        window.append(extent)
        held += extent.length
        if held >= CAT_WINDOW:
            yield from _window(listing, window)
            window, held = [], 0
    yield from _window(listing, window)


def _window(listing: Listing, extents: list[Extent]) -> Iterator[memoryview]:
    plan: Plan[int] = Plan()
    for number, extent in enumerate(extents):
        plan.add(number, 0, extent)
    found: dict[int, memoryview] = {}
    for opened in listing.reader.open_many(list(plan.pieces)):
        if opened.problem is not None:
            raise opened.problem
        if opened.kind != Kind.DATA:
            raise errors.ObjectDamage(opened.id, f"is of kind {opened.kind} where data belongs")
        for number, _, offset, length, _ in plan.pieces[opened.id]:
            found[number] = slice_of(opened.id, opened.plaintext, offset, length)
    for number in range(len(extents)):
        yield found.pop(number)


def _zeros(length: int) -> Iterator[bytes]:
    while length > 0:
        yield _ZEROS[: min(length, len(_ZEROS))]
        length -= len(_ZEROS)
