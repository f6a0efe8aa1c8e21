"""The layouts of everything in the client's cache: the one place that knows them.

::

    rows      scope 8 ‖ path (its components apart by NUL) [‖ 0 0 ‖ first name]      → part of a directory
    contents  hash of a small file's content 16                                     → bundle, number, offset, length
    bundles   u64 number, in the order of their making                              → id, size
    usage     scope 8 ‖ id of a bundle 32                                           → bytes used by rows, size
    pieces    file 16 ‖ u32 segment                                                 → pieces of a large file
    pieces    file 16                                                               → what there is of that file
    ages      u64 time ‖ file 16                                                    → nothing

    value = MAC(key, table ‖ 0 ‖ lp(row key) ‖ body)[:8] ‖ body
    value = MAC(another key, row key ‖ body)[:8] ‖ body                             (contents)

The check is keyed, under a key of this client, this repository and this layout: a row that rotted, was moved, or
comes from elsewhere reads as no row at all. A *scope* is what else shapes a listing (`scope_of`): the same directory
under other options has another row. Bodies are CBOR where they vary in length, structs where they do not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cbor2
from blake3 import blake3
from msgspec import Struct

from packnback.backup.cache import AGES, BUNDLES, PIECES, ROWS, USAGE, bounded
from packnback.backup.cut import CUT_RULE
from packnback.backup.tree import Block
from packnback.backup.walk import WalkOptions
from packnback.crypto.derive import DK, MAC, H, lp
from packnback.crypto.keys import PutKey
from packnback.format.listing import Totals, path_key
from packnback.ids import ID_LEN

LAYOUT = 3
"""To be changed with anything that is written here: rows of another layout are then not there."""
SIGNATURE_LEN = 16
STAMP_LEN = 16
NO_STAMP = bytes(STAMP_LEN)
"""Of a file that is to be read again, whatever it looks like."""
SCOPE_LEN = 8
CONTENT_LEN = 16
FILE_LEN = 16
_CHECK_LEN = 8
_CONTENT_BUNDLE = struct.Struct("<32sQI")
_CONTENT_PLACE = struct.Struct("<II")
CONTENT_ROW_LEN = CONTENT_LEN + _CHECK_LEN + _CONTENT_BUNDLE.size + _CONTENT_PLACE.size
"""Length of a row of contents, key and value."""
_BUNDLE = struct.Struct("<32sI")
_USAGE = struct.Struct("<QI")
_NUMBER = struct.Struct(">Q")
_SEGMENT = struct.Struct(">I")


class PartRow(Struct):
    """One part of a directory as it was stored last."""

    signature: bytes
    """Of the children; empty if the part must not be taken over as a whole."""
    directories: int
    users: Sequence[int]
    groups: Sequence[int]
    blocks: Sequence[Block]
    stamps: bytes
    """STAMP_LEN bytes for each regular file, in order."""
    uses: dict[bytes, int]
    """Bytes of small files, by the bundle that they lie in."""


class ContentRow(NamedTuple):
    """Where the content of a small file lies."""

    bundle: bytes
    number: int
    size: int
    """Bytes of contents in the bundle."""
    offset: int
    length: int


class PieceFile(NamedTuple):
    """What the cache has of one large file."""

    segments: int
    length: int
    """Bytes of all segments."""
    size: int
    """Bytes of the file, holes not counted."""
    changed_ns: int
    step: int
    """How coarse its pieces are."""
    poor: Sequence[bytes]
    """Objects that the file uses less than half of."""


class Rows:
    """Writes and reads values, each with its check."""

    def __init__(self, put_key: PutKey, repository_id: bytes) -> None:
        material = put_key.page_key + repository_id
        self._key = DK(f"cache check, layout {LAYOUT}", material)
        self._content_key = DK(f"cache content, layout {LAYOUT}", material)
        self.piece_key = DK("cache piece", material)
        self.digest_key = DK(f"cache piece, {CUT_RULE}", material)
        """Of the pieces of large files. Those that were cut by another rule are not to be found: they would stay."""
        self._path_key = DK("cache path", material)

    def seal(self, table: bytes, key: bytes, body: bytes) -> bytes:
        """The value for `body`."""
        return self._check(table, key, body) + body

    def open(self, table: bytes, key: bytes, value: bytes | None) -> bytes | None:
        """The body of a value, or None if there is none, or none to be believed."""
        if value is None:
            return None
        body = value[_CHECK_LEN:]
        return body if self._check(table, key, body) == value[:_CHECK_LEN] else None

    def _check(self, table: bytes, key: bytes, body: bytes) -> bytes:
        return MAC(self._key, b"".join((table, b"\0", lp(key), body)), _CHECK_LEN)

    # --- parts of directories --------------------------------------------------------------------------------

    def part(self, key: bytes, row: PartRow) -> bytes:
        """The value of a part."""
        ids = sorted(row.uses)
        body = cbor2.dumps(
            [
                row.signature,
                row.directories,
                row.users,
                row.groups,
                [[b"".join(b.ids), b.data, *_counts(b.totals), b.level] for b in row.blocks],
                row.stamps,
                b"".join(ids),
                [row.uses[i] for i in ids],
            ]
        )
        return self.seal(ROWS, key, body)

    def read_part(self, key: bytes, value: bytes) -> PartRow | None:
        """The part in a value."""
        body = self.open(ROWS, key, value)
        if body is None:
            return None
        signature, directories, users, groups, blocks, stamps, ids, used = cbor2.loads(body)
        return PartRow(
            signature,
            directories,
            users,
            groups,
            [Block(split_ids(ids), data, Totals(*totals), level) for ids, data, *totals, level in blocks],
            stamps,
            dict(zip(split_ids(ids), used, strict=True)),
        )

    # --- small contents and bundles --------------------------------------------------------------------------

    def contents(
        self, bundle: bytes, number: int, size: int, contents: Iterable[tuple[bytes, int, int]]
    ) -> Iterator[bytes]:
        """The row (key, then value) of each of a bundle's contents, given as (key, offset, length).

        There is one for every small file of a first backup, so this way is the shortest that there is.
        """
        front, place, check_key = _CONTENT_BUNDLE.pack(bundle, number, size), _CONTENT_PLACE.pack, self._content_key
        for key, offset, length in contents:
            body = front + place(offset, length)
            yield key + blake3(key + body, key=check_key).digest(_CHECK_LEN) + body

    def read_content(self, key: bytes, value: bytes | None) -> ContentRow | None:
        """The content in a value."""
        if value is None:
            return None
        body = value[_CHECK_LEN:]
        if MAC(self._content_key, key + body, _CHECK_LEN) != value[:_CHECK_LEN]:
            return None
        return ContentRow(*_CONTENT_BUNDLE.unpack_from(body), *_CONTENT_PLACE.unpack_from(body, _CONTENT_BUNDLE.size))

    def bundle(self, key: bytes, bundle: bytes, size: int) -> bytes:
        """The value of a bundle."""
        return self.seal(BUNDLES, key, _BUNDLE.pack(bundle, size))

    def read_bundle(self, key: bytes, value: bytes) -> tuple[bytes, int] | None:
        """(id, size) in a value."""
        body = self.open(BUNDLES, key, value)
        return None if body is None else _BUNDLE.unpack(body)

    def usage(self, key: bytes, used: int, size: int) -> bytes:
        """The value of a bundle's usage."""
        return self.seal(USAGE, key, _USAGE.pack(used, size))

    def read_usage(self, key: bytes, value: bytes | None) -> tuple[int, int] | None:
        """(used, size) in a value; a size of 0 is not known."""
        body = self.open(USAGE, key, value)
        return None if body is None else _USAGE.unpack(body)

    # --- large files -----------------------------------------------------------------------------------------

    def file_key(self, name: bytes) -> bytes:
        """The key of a large file: 16 bytes that do not tell its path."""
        return MAC(self._path_key, name, FILE_LEN)

    def piece_file(self, key: bytes, row: PieceFile) -> bytes:
        """The value that says what there is of a large file."""
        body = cbor2.dumps([row.segments, row.length, row.size, row.changed_ns, row.step, b"".join(row.poor)])
        return self.seal(PIECES, key, body)

    def read_piece_file(self, key: bytes, value: bytes | None) -> PieceFile | None:
        """What there is of a large file."""
        body = self.open(PIECES, key, value)
        if body is None:
            return None
        segments, length, size, changed_ns, step, poor = cbor2.loads(body)
        return PieceFile(segments, length, size, changed_ns, step, split_ids(poor))

    def age(self, changed_ns: int, file: bytes) -> tuple[bytes, bytes]:
        """(key, value) of a row that tells when a large file changed."""
        key = _NUMBER.pack(changed_ns) + file
        return key, self.seal(AGES, key, b"")


def part_key(scope: bytes, path: bytes, first: bytes) -> bytes:
    """The key of a part; `first` is the name with which a later part of a split directory begins, else empty.

    Keys ascend in the order of the walk, but for very long paths.
    """
    return bounded((scope, path_key(path), b"\0\0", first) if first else (scope, path_key(path)))


def scope_of(options: WalkOptions) -> bytes:
    """What tells listings of the same directory apart: 8 bytes of a hash over the options of the walk."""
    parts = (
        cbor2.dumps(options.excludes.patterns),
        cbor2.dumps([options.exclude_caches, list(options.exclude_if_present), options.one_file_system]),
    )
    return H(b"".join(parts))[:SCOPE_LEN]


def number_key(number: int) -> bytes:
    """The key of a bundle."""
    return _NUMBER.pack(number)


def key_number(key: bytes | None) -> int:
    """The number in a bundle's key; 0 without one."""
    return 0 if key is None else int.from_bytes(key[:8], "big")


def segment_key(file: bytes, segment: int) -> bytes:
    """The key of a segment of a large file's pieces."""
    return file + _SEGMENT.pack(segment)


def aged_file(key: bytes) -> bytes:
    """The file in a key of `ages`."""
    return key[8:]


def split_ids(joined: bytes) -> list[bytes]:
    """Ids that stand one behind the other."""
    return [joined[i : i + ID_LEN] for i in range(0, len(joined), ID_LEN)]


def _counts(totals: Totals) -> Iterable[int]:
    return totals.entries, totals.files, totals.bytes
