"""Sealing object bodies, and the ids that name what is inside.

::

    id    domain id[:8] ‖ MAC(id key, kind ‖ refs count u32 ‖ refs ‖ plaintext, 24)
    AAD   record header ‖ H(refs)
    nonce MAC(nonce key, 32 random bytes ‖ AAD, 24)
    body  nonce ‖ XChaCha20-Poly1305(object key, nonce, AAD, padded payload)

The header stands in the associated data and contains the length of the body, which is why `body_length` can
be asked before anything is sealed. The nonce is hedged: should the random source repeat itself, two records
still get different nonces unless their headers, ids included, are equal.
"""

from __future__ import annotations

import os

from blake3 import blake3

from packnback import errors
from packnback.crypto import aead
from packnback.crypto.derive import MAC, Buffer, H, u32
from packnback.crypto.envelope import SealingKeys
from packnback.crypto.payload import Payload, choose_payload, decode_payload, encode_payload
from packnback.ids import ID_LEN, TAG_LEN

__all__ = [
    "BODY_OVERHEAD",
    "PADDED_AT",
    "Payload",
    "body_length",
    "choose_payload",
    "decode_payload",
    "encode_payload",
    "object_id",
    "open_body",
    "seal_body",
    "seal_in_place",
]

BODY_OVERHEAD = aead.NONCE_LEN + aead.TAG_LEN
"""Bytes by which a body is longer than the padded payload in it."""

PADDED_AT = aead.NONCE_LEN
"""Where in a body the padded payload is encrypted."""

_RANDOMNESS_LEN = 32


def object_id(id_key: bytes, domain_id: bytes, kind: int, refs: Buffer, plaintext: Buffer) -> bytes:
    """The 32-byte id of an object. `refs` is the concatenation of the ids it refers to, ascending.

    It depends on the plaintext before compression. Without the id key it can neither be made nor confirmed,
    so it doubles as the MAC by which a reader knows that a client of the domain made the object.
    """
    hasher = blake3(bytes((kind,)) + u32(len(refs) // ID_LEN), key=id_key)
    hasher.update(refs)
    hasher.update(plaintext)
    return domain_id[:TAG_LEN] + hasher.digest(ID_LEN - TAG_LEN)


def body_length(padded: Buffer) -> int:
    """Length in bytes of the body that `seal_body` will make of this padded payload."""
    return len(padded) + BODY_OVERHEAD


def seal_body(
    keys: SealingKeys, header: bytes, refs: Buffer, padded: Buffer, *, randomness: bytes | None = None
) -> bytearray:
    """Seal a padded payload: nonce (24) ‖ ciphertext ‖ tag (16), ready to be joined into a record.

    `header` is the record header, finished, with the length from `body_length`. `randomness` exists for
    test vectors alone. The GIL is released while OpenSSL runs.
    """
    body = bytearray(body_length(padded))
    body[PADDED_AT : PADDED_AT + len(padded)] = padded
    seal_in_place(keys, header, refs, body, 0, len(padded), randomness=randomness)
    return body


def seal_in_place(
    keys: SealingKeys,
    header: bytes,
    refs: Buffer,
    buffer: bytearray,
    at: int,
    padded_len: int,
    *,
    randomness: bytes | None = None,
) -> None:
    """Make a body of ``buffer[at : at + padded_len + BODY_OVERHEAD]``, where a padded payload stands at PADDED_AT.

    So a record is built in the one piece of memory in which it will be written: at the speed of the ciphers,
    every copy in between is felt.
    """
    aad = header + H(refs)
    fresh = os.urandom(_RANDOMNESS_LEN) if randomness is None else randomness
    nonce = MAC(keys.nonce_key, fresh + aad, aead.NONCE_LEN)
    buffer[at : at + aead.NONCE_LEN] = nonce
    aead.encrypt_in_place(keys.object_key, nonce, aad, buffer, at + PADDED_AT, padded_len)


def open_body(object_key: bytes, header: bytes, refs: Buffer, body: Buffer) -> bytearray:
    """The padded payload in a body. Raises FormatDamage if it does not authenticate, or is too short."""
    if len(body) < BODY_OVERHEAD:
        raise errors.FormatDamage("body", "is too short")
    nonce = bytes(body[: aead.NONCE_LEN])
    padded = aead.decrypt(object_key, nonce, header + H(refs), body, aead.NONCE_LEN)
    if padded is None:
        raise errors.FormatDamage("body", "does not authenticate")
    return padded
