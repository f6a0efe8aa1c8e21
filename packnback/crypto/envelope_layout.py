"""Envelopes as bytes, and what anybody can read of one. A repository needs no more, and no cryptography.

Layout, 1292 bytes, little-endian::

    head (92)  "PNBE" │ suite 1 │ class │ receivers 1 │ 0 │ repository id 16 │ domain id 16 │ client id 16
               │ epoch u32 │ owner id 32
    E          head │ ephemeral x25519 key 32 │ ML-KEM ciphertext 1088 │ wrap 48
    envelope   E │ commitment 32                                     envelope id = H(envelope)[:16]
"""

from __future__ import annotations

import struct

from msgspec import Struct

from packnback import errors
from packnback.crypto.derive import H
from packnback.ids import ENVELOPE_ID_LEN, ObjectClass

ENVELOPE_LEN = 1292
COMMITMENT_LEN = 32
SUITE = 1
_MAGIC = b"PNBE"
_HEAD = struct.Struct("<4sBBBB16s16s16sI32s")
_PARTS = struct.Struct(f"<{_HEAD.size}s32s1088s48s{COMMITMENT_LEN}s")


class EnvelopeFacts(Struct, frozen=True):
    """What an envelope says in clear: to whom, by whom, for which repository, class and epoch."""

    id: bytes
    object_class: ObjectClass
    repository_id: bytes
    domain_id: bytes
    client_id: bytes
    epoch: int
    owner_id: bytes


def encode_head(
    object_class: ObjectClass, repository_id: bytes, domain_id: bytes, client_id: bytes, epoch: int, owner_id: bytes
) -> bytes:
    """The 92 bytes in clear."""
    return _HEAD.pack(_MAGIC, SUITE, object_class, 1, 0, repository_id, domain_id, client_id, epoch, owner_id)


def split_envelope(envelope: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """(head, ephemeral X25519 key, ML-KEM ciphertext, wrap, commitment) of an envelope of the right length."""
    return _PARTS.unpack(envelope)


def envelope_id(envelope: bytes) -> bytes:
    """``H(envelope)[:16]``."""
    return H(envelope)[:ENVELOPE_ID_LEN]


def parse_envelope(envelope: bytes) -> EnvelopeFacts:
    """The facts of an envelope, without any key: structure only, as a repository sees it.

    Raises EnvelopeRejected for a wrong length or magic, an unknown suite or class, receivers ≠ 1.
    """
    name = envelope_id(envelope)
    if len(envelope) != ENVELOPE_LEN:
        raise errors.EnvelopeRejected(name, f"has {len(envelope)} bytes instead of {ENVELOPE_LEN}")
    magic, suite, class_number, receivers, reserved, repository_id, domain_id, client_id, epoch, owner_id = (
        _HEAD.unpack_from(envelope)
    )
    if magic != _MAGIC:
        raise errors.EnvelopeRejected(name, "is not an envelope")
    if suite != SUITE:
        raise errors.EnvelopeRejected(name, f"suite {suite} is unknown")
    if class_number not in (ObjectClass.DATA, ObjectClass.META):
        raise errors.EnvelopeRejected(name, f"class {class_number} is unknown")
    if receivers != 1 or reserved != 0:
        raise errors.EnvelopeRejected(name, "is for a number of receivers other than one")
    if epoch == 0:
        raise errors.EnvelopeRejected(name, "epoch 0")
    return EnvelopeFacts(name, ObjectClass(class_number), repository_id, domain_id, client_id, epoch, owner_id)
