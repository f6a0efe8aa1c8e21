"""The keyed hash of a file's content: what finds identical small files, and what `restore` checks them by.

Bundles and deltas put a file together from parts of objects. Each object is authenticated by itself, so only
a hash over the whole content can tell that the parts were the right ones: its first 8 bytes stand in the entry.
"""

from __future__ import annotations

from blake3 import blake3

from packnback.crypto.derive import Buffer

_CONTEXT = b"file check\0"


class ContentHasher:
    """Hashes contents under one id key of the data class (32 bytes)."""

    def __init__(self, id_key: bytes) -> None:
        self._empty = blake3(_CONTEXT, key=id_key)

    def hash(self, content: Buffer) -> bytes:
        """``MAC(id key, "file check\\0" ‖ content)``, 32 bytes."""
        return self.hash_parts((content,))

    def start(self) -> blake3:
        """A hasher to which the content is given bit by bit; its digest is that of `hash`."""
        return self._empty.copy()

    def hash_parts(self, parts: tuple[Buffer, ...] | list[Buffer]) -> bytes:
        """The same for a content that is given in parts, in order."""
        hasher = self._empty.copy()
        for part in parts:
            hasher.update(part)
        return hasher.digest()
