"""A set of object ids in a flat table: 16 bytes and a little slack for each, instead of a hundred.

An id is represented by 16 bytes of its BLAKE3 under a key drawn for the set, so that nobody can make an id that is
taken for another one. Open addressing with linear probing, at most two thirds full.
"""

from __future__ import annotations

import os

from blake3 import blake3

_KEPT = 16
_EMPTY = bytes(_KEPT)


class IdSet:
    """Object ids, to be added and asked for; nothing is ever taken out."""

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._slots = 1 << 10
        self._table = bytearray(self._slots * _KEPT)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, object_id: bytes) -> bool:
        key = blake3(object_id, key=self._key).digest(_KEPT)
        return self._table[(at := self._find(key)) : at + _KEPT] == key

    def add(self, object_id: bytes) -> bool:
        """Add an id; whether it was new."""
        key = blake3(object_id, key=self._key).digest(_KEPT)
        at = self._find(key)
        if self._table[at : at + _KEPT] == key:
            return False
        self._table[at : at + _KEPT] = key
        self._count += 1
        if self._count * 3 > self._slots * 2:
            self._grow()
        return True

    def _find(self, key: bytes) -> int:
        """Where in the table `key` stands, or would."""
        mask = self._slots - 1
        slot = int.from_bytes(key[:8], "little") & mask
        while True:
            at = slot * _KEPT
            found = self._table[at : at + _KEPT]
            if found in (key, _EMPTY):
                return at
            slot = (slot + 1) & mask

    def _grow(self) -> None:
        old = self._table
        self._slots *= 2
        self._table = bytearray(self._slots * _KEPT)
        for at in range(0, len(old), _KEPT):
            key = bytes(old[at : at + _KEPT])
            if key != _EMPTY:
                place = self._find(key)
                self._table[place : place + _KEPT] = key
