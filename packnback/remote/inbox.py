"""Bytes as they come from the other end, in pieces of any size, taken out in the lengths that frames have.

Every byte is copied once, into the frame that it belongs to. What is kept takes little more memory than the bytes do,
however small the pieces are in which the other end sends them: small ones are joined as they come.
"""

from __future__ import annotations

from collections import deque

from packnback.ids import KIB

_SMALL = 64 * KIB


class Inbox:
    """A queue of bytes."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray] = deque()
        self._at = 0
        """Bytes of the first piece that were taken already."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, data: bytes | bytearray | memoryview) -> None:
        """Put `data` behind what is there."""
        self._length += len(data)
        if len(data) >= _SMALL:
            self._pieces.append(bytes(data))
            return
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, bytearray) and len(last) < _SMALL:
            last += data
        else:
            self._pieces.append(bytearray(data))

    def peek(self, count: int) -> bytes:
        """The first `count` bytes, or what there is, left where they are."""
        found = bytearray()
        at = self._at
        for piece in self._pieces:
            found += memoryview(piece)[at : at + count - len(found)]
            at = 0
            if len(found) == count:
                break
        return bytes(found)

    def take(self, count: int) -> bytes:
        """Take the first `count` bytes out; there must be so many."""
        if count > self._length:
            raise ValueError(f"{count} bytes of {self._length}")
        self._length -= count
        parts: list[memoryview] = []
        while count:
            piece, at = self._pieces[0], self._at
            part = memoryview(piece)[at : at + count]
            parts.append(part)
            count -= len(part)
            self._at += len(part)
            if self._at == len(piece):
                self._pieces.popleft()
                self._at = 0
        return b"".join(parts)

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()
        self._at = self._length = 0
