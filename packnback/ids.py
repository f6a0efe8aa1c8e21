"""Values that every layer shares: object kinds, sizes and limits of the format, short names for ids.

Ids are plain ``bytes`` of a fixed length; these constants say which. Nothing here does I/O.
"""

from __future__ import annotations

from enum import IntEnum

ID_LEN = 32
TAG_LEN = 8
"""An object id starts with the first 8 bytes of the domain id that made it."""
ENVELOPE_ID_LEN = 16
REPOSITORY_ID_LEN = 16
CLIENT_ID_LEN = 16
DOMAIN_ID_LEN = 16
HASH_LEN = 32
CHECKSUM_LEN = 16

KIB = 1 << 10
MIB = 1 << 20

BODY_LIMIT = 16 * MIB
REFS_LIMIT = 4096
LEVEL_LIMIT = 16
RAW_LIMIT = 16 * MIB
"""Largest plaintext of one object, in bytes, before compression."""


class Kind(IntEnum):
    """Kinds of records (docs/format.md)."""

    ENVELOPE = 0
    DATA = 1
    EXTENTS = 2
    PAGE = 3
    TABLE = 4
    METADATA = 5


class ObjectClass(IntEnum):
    """The two classes of keys: file contents, and everything that names or lists them."""

    DATA = 1
    META = 2


def class_of(kind: int) -> ObjectClass:
    """The class whose keys seal an object of `kind` (1 → data, 2–5 → meta)."""
    return ObjectClass.DATA if kind == Kind.DATA else ObjectClass.META


def short(identifier: bytes) -> str:
    """The first 12 hexadecimal digits, as people read ids."""
    return identifier.hex()[:12]
