"""The four ways in which packnback uses BLAKE3, and the one framing that goes with them.

Everything that is derived, identified or checked is one of these calls, so that the constructions in
`docs/format.md` can be read off the code symbol by symbol. All integers are little-endian.
"""

from __future__ import annotations

from blake3 import blake3

Buffer = bytes | bytearray | memoryview
"""What the hot path accepts: contiguous bytes, never copied merely to please a type."""

KEY_LEN = 32
_CONTEXT = "packnback v1 "


def H(data: Buffer) -> bytes:
    """BLAKE3, 32 bytes."""
    return blake3(data).digest()


def MAC(key: Buffer, message: Buffer, length: int = 32) -> bytes:
    """Keyed BLAKE3 of `message` under a 32-byte key, `length` bytes."""
    return blake3(message, key=key).digest(length)


def DK(context: str, material: Buffer, length: int = KEY_LEN) -> bytes:
    """BLAKE3 ``derive_key``: `length` bytes for one purpose, named by `context`, from secret `material`."""
    return blake3(material, derive_key_context=_CONTEXT + context).digest(length)


def lp(data: bytes) -> bytes:
    """`data` behind its length as u16. Raises OverflowError above 65535 bytes."""
    return len(data).to_bytes(2, "little") + data


def u32(number: int) -> bytes:
    """`number` as 4 bytes. Raises OverflowError outside 0 … 2³²−1."""
    return number.to_bytes(4, "little")
