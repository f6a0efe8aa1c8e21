"""Directory entries, and the group: one directory's entries as one block of bytes.

A group is encoded by columns, which is smaller and faster than row by row, and its block does not name any
object id: entries point by index into the group's own list of ids. So the block of an unchanged directory can
be copied, byte for byte, from run to run.

::

    block = CBOR [names, types, modes, uids, gids, mtimes, sizes, objects, offsets, checks, rest]

`names` are strictly ascending; `types` is a byte string with one letter each. `objects` holds, for a file that
lies in one piece in one object, 1 + that object's index, else 0; `offsets` where in the object it starts.
`modes`, `uids`, `gids` are one integer where all entries agree, else a list. `rest` is a map from the index of
an entry to a map of what is rare, see the constants below.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import lt
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec import Struct, field

from packnback.errors import FormatDamage
from packnback.format import cbor
from packnback.ids import ID_LEN

FILE, DIRECTORY, SYMLINK, FIFO, CHAR, BLOCK, SOCKET = b"fdlpcbs"
"""Types of entries, as the letters' codes."""
FORMAT_OF = {
    FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK, FIFO: stat.S_IFIFO, CHAR: stat.S_IFCHR,
    BLOCK: stat.S_IFBLK, SOCKET: stat.S_IFSOCK,
}  # fmt: skip
"""What stands for a type in ``st_mode``."""
TYPE_OF = {bits: kind for kind, bits in FORMAT_OF.items()}

HOLE = 0
"""Index of no object: the extent reads as zeros."""
INLINE_EXTENTS = 256
"""A file with more extents than this keeps them in extent objects."""
CHECK_LEN = 8

# Keys of the map of rare attributes.
_EXTENTS, _FAR, _TARGET, _RDEV, _LINK, _XATTRS, _IMPLICIT = range(1, 8)
_TYPES = frozenset(FORMAT_OF)
_SPECIAL = frozenset((b".", b".."))
_WHAT = "directory entries"
_MODE_LIMIT = 1 << 12
_U32 = 1 << 32
_SIZE_LIMIT = 1 << 63
NAME_LIMIT = 255
TARGET_LIMIT = 4096
"""Most bytes in the target of a symbolic link; at least one."""


NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})
"""What nearly all files have of extended attributes; one for all of them."""


class Extent(NamedTuple):
    """`length` bytes of a file: from `offset` in the plaintext of object `id`, or zeros where `id` is None."""

    id: bytes | None
    offset: int
    length: int


class Entry(Struct):
    """One name in a directory.

    `mode` holds the permission bits only (12 bits), `mtime_ns` is signed. `extents` cover the file without
    gap: their lengths sum to `size`. A file of very many extents has `far` instead: (id of an extent object,
    bytes it covers) in order, `far_depth` levels of them (so these objects are of depth `far_depth` - 1).
    """

    name: bytes
    type: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    extents: Sequence[Extent] = ()
    far: Sequence[tuple[bytes, int]] = ()
    far_depth: int = 0
    check: bytes = b""
    """First 8 bytes of the keyed hash of the whole content, for bundled and delta files; else empty."""
    target: bytes = b""
    rdev: int = 0
    link_key: bytes = b""
    """The same for all names of one hard-linked file."""
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: NO_XATTRS)
    implicit: bool = False
    """A directory above a backed-up root, of which nothing else was asked for."""

    def ids(self) -> set[bytes]:
        """The ids of all objects that the entry itself points to."""
        return {e.id for e in self.extents if e.id is not None} | {i for i, _ in self.far}


def encode_block(entries: Sequence[Entry]) -> tuple[list[bytes], bytes]:
    """(ids that the entries use, ascending; the block). `entries` ascending by name."""
    # One pass over what nearly all entries are, files in one piece: a first backup comes by here with every file.
    singles: list[bytes | None] = []
    offsets: list[int] = []
    others: list[tuple[int, Entry]] = []
    used: set[bytes | None] = set()
    for i, e in enumerate(entries):
        extents = e.extents
        if len(extents) == 1 and extents[0][0] is not None:
            object_id, offset, _ = extents[0]
            singles.append(object_id)
            offsets.append(offset)
            if e.target or e.rdev or e.link_key or e.xattrs:
                others.append((i, e))
        else:
            singles.append(None)
            offsets.append(0)
            if extents or e.far:
                used |= e.ids()
            others.append((i, e))
    used.update(singles)
    used.discard(None)
    ids: list[bytes] = sorted(used)  # type: ignore[arg-type]
    index: dict[bytes | None, int] = {object_id: i for i, object_id in enumerate(ids, 1)}
    index[None] = HOLE
    rest: dict[int, dict[int, Any]] = {}
    for i, e in others:
        if rare := _rare(e, index, singles[i] is not None):
            rest[i] = rare
    block = cbor.encode(
        [
            [e.name for e in entries],
            bytes([e.type for e in entries]),
            _fold([e.mode for e in entries]),
            _fold([e.uid for e in entries]),
            _fold([e.gid for e in entries]),
            [e.mtime_ns for e in entries],
            [e.size for e in entries],
            [index[object_id] for object_id in singles],
            offsets,
            [e.check for e in entries],
            rest,
        ]
    )
    return ids, block


def _fold(column: list[int]) -> int | list[int]:
    return column[0] if column and column.count(column[0]) == len(column) else column


def _rare(entry: Entry, index: Mapping[bytes | None, int], single: bool) -> dict[int, Any]:
    rare: dict[int, Any] = {}
    if entry.extents and not single:
        rare[_EXTENTS] = [
            x for e in entry.extents for x in (index[e.id], e.offset, e.length)
        ]
    if entry.far:
        rare[_FAR] = [entry.far_depth, *(x for i, length in entry.far for x in (index[i], length))]
    if entry.target:
        rare[_TARGET] = entry.target
    if entry.rdev:
        rare[_RDEV] = entry.rdev
    if entry.link_key:
        rare[_LINK] = entry.link_key
    if entry.xattrs:
        rare[_XATTRS] = dict(sorted(entry.xattrs.items()))
    if entry.implicit:
        rare[_IMPLICIT] = 1
    return rare


def decode_block(ids: Sequence[bytes], block: bytes) -> list[Entry]:
    """The entries of a block whose id list is `ids`.

    Hostile input: names are plain (no slash, no NUL, not ``.`` or ``..``, at most 255 bytes) and strictly
    ascending, extents cover exactly the size, every id in `ids` is used and none other. Raises FormatDamage.
    """
    value = cbor.decode(block, _WHAT)
    cbor.expect(type(value) is list and len(value) == 11, _WHAT, "shape")
    names, types, modes, uids, gids, mtimes, sizes, objects, offsets, checks, rest = value
    cbor.expect(type(names) is list and type(types) is bytes and len(types) == len(names), _WHAT, "shape")
    count = len(names)
    check_names(names)
    cbor.expect(_TYPES.issuperset(types), _WHAT, "type")
    modes, uids, gids = _unfold(modes, count, _MODE_LIMIT), _unfold(uids, count, _U32), _unfold(gids, count, _U32)
    sizes, objects = _column(sizes, count, _SIZE_LIMIT), _column(objects, count, len(ids) + 1)
    offsets = _column(offsets, count, _U32)
    cbor.expect(type(mtimes) is list and len(mtimes) == count, _WHAT, "shape")
    cbor.expect(cbor.all_of_type(mtimes, int), _WHAT, "mtime")
    cbor.expect(not mtimes or -_SIZE_LIMIT <= min(mtimes) <= max(mtimes) < _SIZE_LIMIT, _WHAT, "mtime")
    cbor.expect(type(checks) is list and len(checks) == count, _WHAT, "shape")
    cbor.expect(cbor.all_of_type(checks, bytes) and {0, CHECK_LEN}.issuperset(map(len, checks)), _WHAT, "check")
    cbor.expect(type(rest) is dict and all(cbor.is_uint(i, count) for i in rest), _WHAT, "rare attributes")
    used = set(objects) - {0}
    entries = []
    columns = zip(names, types, modes, uids, gids, mtimes, sizes, checks, objects, offsets, strict=True)
    for i, (name, letter, mode, uid, gid, mtime, size, check, index, offset) in enumerate(columns):
        entry = Entry(name, letter, mode, uid, gid, mtime, size, check=check)
        if not (size if index else not offset):
            raise FormatDamage(_WHAT, "an extent of nothing")
        if index:
            entry.extents = (Extent(ids[index - 1], offset, size),)
        if i in rest:
            _decode_rare(entry, rest[i], ids, used)
            _check_entry(entry)
        elif letter != FILE or not index:  # a file in one piece has nothing that could contradict its size
            _check_entry(entry)
        entries.append(entry)
    cbor.expect(len(used) == len(ids), _WHAT, "an id that no entry uses")
    return entries


def check_names(names: Sequence[object]) -> None:
    """Refuse names that are not plain or not strictly ascending (FormatDamage)."""
    if not names:
        return
    if not cbor.all_of_type(names, bytes):
        raise FormatDamage(_WHAT, "name")
    plain: Sequence[bytes] = names  # type: ignore[assignment]
    lengths = set(map(len, plain))
    if min(lengths) == 0 or max(lengths) > NAME_LIMIT:
        raise FormatDamage(_WHAT, "name")
    joined = b"/".join(plain)  # all at once: a listing of a million names is checked at each restore
    if joined.count(b"/") >= len(plain) or b"\0" in joined or not _SPECIAL.isdisjoint(plain):
        raise FormatDamage(_WHAT, "a name that is a path")
    cbor.expect(all(map(lt, plain, islice(plain, 1, None))), _WHAT, "names not ascending")


def _column(column: object, count: int, limit: int) -> list[int]:
    if type(column) is not list or not cbor.all_of_type(column, int):
        raise FormatDamage(_WHAT, "not a list of integers")
    if len(column) != count:
        raise FormatDamage(_WHAT, "shape")
    if column and not (min(column) >= 0 and max(column) < limit):
        raise FormatDamage(_WHAT, "integers out of range")
    return column


def _unfold(column: object, count: int, limit: int) -> list[int]:
    if type(column) is not int:
        return _column(column, count, limit)
    cbor.expect(0 <= column < limit, _WHAT, "integers out of range")
    cbor.expect(count > 0, _WHAT, "shape")
    return [column] * count


def _decode_rare(entry: Entry, rare: Any, ids: Sequence[bytes], used: set[int]) -> None:
    cbor.expect(type(rare) is dict and bool(rare), _WHAT, "rare attributes")
    for key, value in rare.items():
        cbor.expect(type(key) is int, _WHAT, "rare attributes")
        if key == _EXTENTS:
            cbor.expect(not entry.extents, _WHAT, "extents twice")
            entry.extents = decode_extents(value, ids, used)
        elif key == _FAR:
            cbor.expect(type(value) is list and len(value) > 2, _WHAT, "far extents")
            cbor.expect(cbor.is_uint(value[0], 8) and value[0] > 0, _WHAT, "far extents")
            entry.far_depth = value[0]
            entry.far = decode_far(value[1:], ids, used)
        elif key in (_TARGET, _LINK):
            cbor.expect(type(value) is bytes and 0 < len(value) <= TARGET_LIMIT, _WHAT, "target or link key")
            cbor.expect(key == _LINK or b"\0" not in value, _WHAT, "a target that is no path")
            setattr(entry, "target" if key == _TARGET else "link_key", value)
        elif key == _RDEV:
            cbor.expect(cbor.is_uint(value), _WHAT, "device number")
            entry.rdev = value
        elif key == _XATTRS:
            cbor.expect(type(value) is dict, _WHAT, "extended attributes")
            cbor.expect(all(type(x) is bytes for item in value.items() for x in item), _WHAT, "attributes")
            cbor.expect(all(0 < len(x) <= NAME_LIMIT and b"\0" not in x for x in value), _WHAT, "attribute name")
            entry.xattrs = value
        elif key == _IMPLICIT:
            cbor.expect(cbor.is_uint(value) and value == 1, _WHAT, "implicit")
            entry.implicit = True
        else:
            cbor.expect(False, _WHAT, "unknown attribute")


def decode_extents(flat: object, ids: Sequence[bytes], used: set[int]) -> list[Extent]:
    """Extents from a flat list of (1 + index or 0, offset, length); indices seen are added to `used`."""
    numbers = cbor.uint_list(flat, "extents")
    cbor.expect(len(numbers) % 3 == 0 and len(numbers) > 0, "extents", "shape")
    extents = []
    for i in range(0, len(numbers), 3):
        index, offset, length = numbers[i : i + 3]
        cbor.expect(index <= len(ids) and offset < _U32 and length > 0, "extents", "out of range")
        cbor.expect(index != HOLE or offset == 0, "extents", "a hole with an offset")
        extents.append(Extent(ids[index - 1] if index else None, offset, length))
        used.add(index)
    used.discard(HOLE)
    return extents


def decode_far(flat: object, ids: Sequence[bytes], used: set[int]) -> list[tuple[bytes, int]]:
    """(extent object, bytes covered) from a flat list of (1 + index, bytes)."""
    numbers = cbor.uint_list(flat, "extents")
    cbor.expect(len(numbers) % 2 == 0 and len(numbers) > 0, "extents", "shape")
    far = []
    for i in range(0, len(numbers), 2):
        index, length = numbers[i : i + 2]
        cbor.expect(0 < index <= len(ids) and length > 0, "extents", "out of range")
        far.append((ids[index - 1], length))
        used.add(index)
    return far


def _check_entry(entry: Entry) -> None:
    covered = sum(e.length for e in entry.extents) + sum(length for _, length in entry.far)
    if entry.type == FILE:
        cbor.expect(covered == entry.size, _WHAT, "extents do not cover the size")
        cbor.expect(not (entry.far and entry.extents), _WHAT, "both near and far extents")
    else:
        cbor.expect(not covered and not entry.size and not entry.check, _WHAT, "content of what is no file")
    cbor.expect(bool(entry.target) == (entry.type == SYMLINK), _WHAT, "link target")
    cbor.expect(not entry.implicit or entry.type == DIRECTORY, _WHAT, "implicit")


def encode_extent_object(extents: Sequence[Extent]) -> tuple[list[bytes], bytes]:
    """(refs ascending, plaintext) of an extent object of depth 0."""
    ids = sorted({e.id for e in extents if e.id is not None})
    index = {object_id: i for i, object_id in enumerate(ids, 1)}
    flat = [x for e in extents for x in ((index[e.id] if e.id else HOLE), e.offset, e.length)]
    return ids, cbor.encode([1, 0, flat])


def encode_far_object(far: Sequence[tuple[bytes, int]], depth: int) -> tuple[list[bytes], bytes]:
    """(refs ascending, plaintext) of an extent object that points to extent objects of depth `depth` - 1."""
    ids = sorted({i for i, _ in far})
    index = {object_id: i for i, object_id in enumerate(ids, 1)}
    return ids, cbor.encode([1, depth, [x for i, length in far for x in (index[i], length)]])


class ExtentObject(Struct, frozen=True):
    """A decoded extent object: `extents` at depth 0, `far` above."""

    depth: int
    extents: Sequence[Extent]
    far: Sequence[tuple[bytes, int]]


def decode_extent_object(refs: bytes, plaintext: bytes) -> ExtentObject:
    """An extent object with its concatenated refs; every ref is used. Raises FormatDamage or UnsupportedVersion."""
    value = cbor.decode(plaintext, "extents")
    cbor.expect(type(value) is list and len(value) > 0, "extents", "shape")
    cbor.expect_version(value[0], "extents")
    cbor.expect(len(value) == 3 and cbor.is_uint(value[1], 8), "extents", "depth")
    ids = [refs[i : i + ID_LEN] for i in range(0, len(refs), ID_LEN)]
    used: set[int] = set()
    if value[1] == 0:
        found = ExtentObject(0, decode_extents(value[2], ids, used), ())
    else:
        found = ExtentObject(value[1], (), decode_far(value[2], ids, used))
    cbor.expect(len(used) == len(ids), "extents", "a ref that nothing uses")
    return found
