"""Where listings are cut: keyed decisions that depend on names and ids alone, never on position.

A listing is cut where a PRF under the domain's "cut page" key says so. The same directory then ends its page in
every run, whatever happened to its neighbours, so that an unchanged page is found again as the same object; and
nobody without the key can tell from sizes where a cut will fall. The PRF is keyed BLAKE3, one prefix per
purpose. Minimum and maximum lengths are the business of whoever asks.
"""

from __future__ import annotations

import struct

from blake3 import blake3

from packnback.format.listing import PAGE_TARGET

PART_CHANCE = 2048
"""One entry name in this many starts a new part of a huge directory."""
CHILD_CHANCE = 896
"""One page or table in this many ends its table."""
EXTENT_CHANCE = 384
"""One object in this many ends its extent object."""
LINK_KEY_LEN = 8

_DRAW = 1 << 64
_U32 = struct.Struct("<I")
_INODE = struct.Struct("<QQ")


class ListingCuts:
    """The keyed decisions of one domain. `page_key` is the put key's 32-byte "cut page" key."""

    def __init__(self, page_key: bytes) -> None:
        self._key = page_key

    def part_starts(self, name: bytes) -> bool:
        """Whether a huge directory is split before the entry `name`."""
        return self._draw(b"part\0" + name) < _DRAW // PART_CHANCE

    def page_ends(self, path: bytes, part: int, size: int) -> bool:
        """Whether a page ends after this group of `size` encoded bytes: 2^⌈log₂ size⌉ in 100 KiB.

        The size enters by its power of two, so that a group which grows a little decides as before.
        """
        size_class = 1 << max(size - 1, 0).bit_length()
        return self._draw(b"page\0" + _U32.pack(part) + path) < _DRAW * size_class // PAGE_TARGET

    def table_ends(self, child: bytes) -> bool:
        """Whether a table ends after the page or table `child`."""
        return self._draw(b"table\0" + child) < _DRAW // CHILD_CHANCE

    def extents_end(self, object_id: bytes) -> bool:
        """Whether an extent object ends after an extent into `object_id`."""
        return self._draw(b"extents\0" + object_id) < _DRAW // EXTENT_CHANCE

    def link_key(self, device: int, inode: int) -> bytes:
        """What the names of one hard-linked file have in common: 8 bytes that do not tell the inode."""
        return blake3(b"link" + _INODE.pack(device, inode), key=self._key).digest(LINK_KEY_LEN)

    def _draw(self, subject: bytes) -> int:
        return int.from_bytes(blake3(subject, key=self._key).digest(8), "little")
