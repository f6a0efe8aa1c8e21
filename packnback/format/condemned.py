"""Condemned lists: which packs are about to go where no lock keeps other machines from using them.

A list is written once, named by its own hash, and says when (by the clock of whoever wrote it) and which. It also
names the unpublished files in ``tmp/`` that stood there at the time: whoever was writing them has ended when the
list falls due. What a list means is `packnback.gc.condemn`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from msgspec import Struct

from packnback.format import cbor
from packnback.ids import HASH_LEN

VERSION = 1
_NAME_LIMIT = 255
_TIME_LIMIT = 1 << 63


class CondemnedList(Struct, frozen=True):
    """What a list says. Both tuples are strictly ascending."""

    time_ns: int
    packs: tuple[bytes, ...]
    unpublished: tuple[str, ...] = ()
    """Names in ``tmp/``."""


def make(time_ns: int, packs: Iterable[bytes], unpublished: Iterable[str] = ()) -> CondemnedList:
    """A list of these, in order. Names that no program of ours gives are left out."""
    names = sorted(name for name in set(unpublished) if _is_name(name))
    return CondemnedList(time_ns, tuple(sorted(set(packs))), tuple(names))


def encode(condemned: CondemnedList) -> bytes:
    """The file's bytes; its name is their BLAKE3."""
    return cbor.encode([VERSION, condemned.time_ns, list(condemned.packs), list(condemned.unpublished)])


def decode(data: bytes) -> CondemnedList:
    """Raises FormatDamage or UnsupportedVersion."""
    what = "condemned list"
    value = cbor.decode(data, what)
    cbor.expect(type(value) is list and len(value) > 0, what, "shape")
    cbor.expect_version(value[0], what)
    cbor.expect(len(value) == 4 and type(value[2]) is list and type(value[3]) is list, what, "shape")
    time_ns, packs, unpublished = value[1:]
    cbor.expect(type(time_ns) is int and 0 <= time_ns < _TIME_LIMIT, what, "time")
    cbor.expect(all(type(p) is bytes and len(p) == HASH_LEN for p in packs), what, "pack")
    cbor.expect(all(type(n) is str and _is_name(n) for n in unpublished), what, "name")
    cbor.expect(all(a < b for a, b in pairwise(packs)), what, "not sorted")
    cbor.expect(all(a < b for a, b in pairwise(unpublished)), what, "not sorted")
    return CondemnedList(time_ns, tuple(packs), tuple(unpublished))


def _is_name(name: str) -> bool:
    return 0 < len(name) <= _NAME_LIMIT and name.isascii() and name.isalnum()
