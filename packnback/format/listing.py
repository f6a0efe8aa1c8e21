"""The listing of a snapshot: groups joined into pages, pages under tables, a table as the root.

Groups (one directory each, huge ones in parts) stand depth-first in component-wise byte order, so looking up
one path reads one page per level. An object's refs are its children's ids, ascending; the order in which they
come stands inside, encrypted.

::

    page  = CBOR [1, [[path, part, indices, block], …]]           refs: the data and extent objects used
    table = CBOR [1, depth, [index, …], [[path, part], …], [[entries, files, bytes], …]]   refs: its children

`indices` map a group's ids to the page's refs, `depth` is 0 for a table of pages; a child's row tells the
(path, part) of its first group and the totals below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from msgspec import Struct

from packnback.format import cbor
from packnback.ids import ID_LEN, KIB, LEVEL_LIMIT, MIB, REFS_LIMIT

PAGE_TARGET = 100 * KIB
"""Average bytes of a page's plaintext."""
PAGE_LIMIT = 1 * MIB
"""A page is cut before it would grow beyond this."""
FANOUT_LIMIT = 2048
PATH_LIMIT = 1 << 16
_U64 = 1 << 63


class Totals(Struct, frozen=True):
    """What lies below a child: entries of all types, regular files, and their bytes."""

    entries: int = 0
    files: int = 0
    bytes: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.entries + other.entries, self.files + other.files, self.bytes + other.bytes)


class Group(Struct, frozen=True):
    """One directory, or one part of a huge one. `path` has no slash at either end; the root's is empty."""

    path: bytes
    part: int
    ids: Sequence[bytes]
    """The objects that the block's entries use, ascending."""
    block: bytes

    @property
    def key(self) -> tuple[bytes, int]:
        """Where the group stands in the listing's order."""
        return path_key(self.path), self.part


class Child(Struct, frozen=True):
    """One page or table under a table."""

    id: bytes
    path: bytes
    part: int
    totals: Totals

    @property
    def key(self) -> tuple[bytes, int]:
        """Where the child's first group stands."""
        return path_key(self.path), self.part


class Table(Struct, frozen=True):
    """A decoded table: `depth` 0 has pages below it."""

    depth: int
    children: Sequence[Child]


def path_key(path: bytes) -> bytes:
    """A key whose byte order is the component-wise order of paths (a name holds no NUL)."""
    return path.replace(b"/", b"\0")


def encode_page(groups: Sequence[Group]) -> tuple[list[bytes], bytes]:
    """(refs ascending, plaintext) of a page. Groups in listing order, at most 4096 different ids."""
    refs = sorted(set().union(*(g.ids for g in groups)))
    index = {object_id: i for i, object_id in enumerate(refs)}
    return refs, cbor.encode([1, [[g.path, g.part, [index[i] for i in g.ids], g.block] for g in groups]])


def decode_page(refs: bytes, plaintext: bytes) -> list[Group]:
    """The groups of a page with its concatenated refs. Raises FormatDamage or UnsupportedVersion.

    Blocks are not decoded here: a reader that looks for one directory decodes that one.
    """
    what = "page"
    value = cbor.decode(plaintext, what)
    cbor.expect(type(value) is list and len(value) > 0, what, "shape")
    cbor.expect_version(value[0], what)
    cbor.expect(len(value) == 2 and type(value[1]) is list and bool(value[1]), what, "shape")
    ids = [refs[i : i + ID_LEN] for i in range(0, len(refs), ID_LEN)]
    used: set[int] = set()
    groups = []
    for row in value[1]:
        cbor.expect(type(row) is list and len(row) == 4, what, "group")
        path, part, indices, block = row
        check_path(path, what)
        cbor.expect(cbor.is_uint(part, 1 << 32) and type(block) is bytes, what, "group")
        indices = cbor.uint_list(indices, what, len(ids))
        cbor.expect(all(a < b for a, b in pairwise(indices)), what, "ids not ascending")
        used.update(indices)
        groups.append(Group(path, part, [ids[i] for i in indices], block))
    cbor.expect(len(used) == len(ids), what, "a ref that no group uses")
    cbor.expect(all(a.key < b.key for a, b in pairwise(groups)), what, "groups out of order")
    return groups


def encode_table(children: Sequence[Child], depth: int) -> tuple[list[bytes], bytes]:
    """(refs ascending, plaintext) of a table; children in listing order."""
    refs = sorted(c.id for c in children)
    index = {object_id: i for i, object_id in enumerate(refs)}
    plaintext = cbor.encode(
        [
            1,
            depth,
            [index[c.id] for c in children],
            [[c.path, c.part] for c in children],
            [[c.totals.entries, c.totals.files, c.totals.bytes] for c in children],
        ]
    )
    return refs, plaintext


def decode_table(refs: bytes, plaintext: bytes) -> Table:
    """A table with its concatenated refs. Raises FormatDamage or UnsupportedVersion."""
    what = "table"
    value = cbor.decode(plaintext, what)
    cbor.expect(type(value) is list and len(value) > 0, what, "shape")
    cbor.expect_version(value[0], what)
    cbor.expect(len(value) == 5, what, "shape")
    _, depth, order, firsts, totals = value
    count = len(refs) // ID_LEN
    cbor.expect(cbor.is_uint(depth, LEVEL_LIMIT) and 0 < count <= REFS_LIMIT, what, "shape")
    order = cbor.uint_list(order, what, count)
    cbor.expect(sorted(order) == list(range(count)), what, "order")
    cbor.expect(type(firsts) is list and type(totals) is list, what, "shape")
    cbor.expect(len(firsts) == count and len(totals) == count, what, "shape")
    children = []
    for i, first, total in zip(order, firsts, totals, strict=True):
        cbor.expect(type(first) is list and len(first) == 2 and cbor.is_uint(first[1], 1 << 32), what, "child")
        check_path(first[0], what)
        cbor.expect(type(total) is list and len(total) == 3, what, "totals")
        cbor.uint_list(total, what, _U64)
        children.append(Child(refs[i * ID_LEN : (i + 1) * ID_LEN], first[0], first[1], Totals(*total)))
    cbor.expect(all(a.key < b.key for a, b in pairwise(children)), what, "children out of order")
    return Table(depth, children)


def check_path(path: Any, what: str) -> None:
    """Refuse a directory path that is not relative, normalised and free of ``..`` and NUL (FormatDamage)."""
    cbor.expect(type(path) is bytes and len(path) < PATH_LIMIT and b"\0" not in path, what, "path")
    if path:
        parts = path.split(b"/")
        cbor.expect(not any(p in (b"", b".", b"..") for p in parts), what, "a path that leaves the tree")
