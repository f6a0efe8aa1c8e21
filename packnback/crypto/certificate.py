"""Certificates: the owner says that a verify key signs for a client, in a domain, during an epoch.

Layout (``"PNBC"``, little-endian)::

    "PNBC" 1 0 0 0 │ owner id 32 │ client id 16 │ domain id 16 │ epoch u32 │ verify key 32 │ name length u16
    │ name (UTF-8) │ Ed25519 of "packnback v1 certificate\\0" ‖ all preceding, 64

A certificate is deterministic: the same owner key, name, epoch and group give the same bytes.
"""

from __future__ import annotations

import struct

from msgspec import Struct

from packnback import errors
from packnback.crypto.bundle import OwnerBundle
from packnback.crypto.derive import H
from packnback.crypto.names import NAME_LIMIT, decode_name, encode_name
from packnback.crypto.sign import CERTIFICATE_CONTEXT, SIGNATURE_LEN, sign, signature_holds

_PREFIX = b"PNBC\x01\x00\x00\x00"
_FIXED = struct.Struct("<8s32s16s16sI32sH")
CERTIFICATE_LIMIT = _FIXED.size + NAME_LIMIT + SIGNATURE_LEN
"""Longest certificate in bytes."""


class Certificate(Struct, frozen=True):
    """A decoded certificate, and the raw bytes that are signed. Decoded is not yet verified."""

    raw: bytes
    owner_id: bytes
    client_id: bytes
    domain_id: bytes
    epoch: int
    verify_key: bytes
    name: str

    @property
    def hash(self) -> bytes:
        """H of the whole certificate, as snapshot headers name it."""
        return H(self.raw)

    def verify(self, bundle: OwnerBundle) -> None:
        """Check that the owner of `bundle` issued this.

        Raises WrongOwner if it names another owner, FormatDamage if the signature does not hold.
        """
        if self.owner_id != bundle.owner_id:
            raise errors.WrongOwner(key_owner=self.owner_id.hex(), repository_owner=bundle.owner_id.hex())
        signed, signature = self.raw[:-SIGNATURE_LEN], self.raw[-SIGNATURE_LEN:]
        if not signature_holds(bundle.certify_key, CERTIFICATE_CONTEXT, signed, signature):
            raise errors.FormatDamage("certificate", "the signature does not hold")


def issue(
    certify_seed: bytes,
    *,
    owner_id: bytes,
    client_id: bytes,
    domain_id: bytes,
    epoch: int,
    verify_key: bytes,
    name: str,
) -> Certificate:
    """Make and sign a certificate. `epoch` is 1 … 2³²−1; raises UsageError for an invalid name."""
    encoded = encode_name(name)
    signed = _FIXED.pack(_PREFIX, owner_id, client_id, domain_id, epoch, verify_key, len(encoded)) + encoded
    return parse_certificate(signed + sign(certify_seed, CERTIFICATE_CONTEXT, signed))


def parse_certificate(raw: bytes) -> Certificate:
    """Decode a certificate of exactly these bytes; structure only, see `Certificate.verify`.

    Raises FormatDamage.
    """
    if len(raw) < _FIXED.size + SIGNATURE_LEN:
        raise errors.FormatDamage("certificate", "is too short")
    prefix, owner_id, client_id, domain_id, epoch, verify_key, name_len = _FIXED.unpack_from(raw)
    if prefix != _PREFIX:
        raise errors.FormatDamage("certificate", "has an unknown prefix")
    if len(raw) != _FIXED.size + name_len + SIGNATURE_LEN:
        raise errors.FormatDamage("certificate", "its length does not fit its name")
    if epoch == 0:
        raise errors.FormatDamage("certificate", "epoch 0")
    name = decode_name(raw[_FIXED.size : _FIXED.size + name_len])
    return Certificate(bytes(raw), owner_id, client_id, domain_id, epoch, verify_key, name)
