"""The owner's public bundle: all that a client must know to send, and its hash is who the owner is.

The bundle certifies itself, because the owner id is its hash: wherever an owner id is pinned (in a certificate,
in an envelope, in the configuration of a repository) no key in the bundle can be exchanged for another.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from packnback import errors
from packnback.crypto.derive import H
from packnback.crypto.exchange import MLKEM_PUBLIC_LEN, X25519_LEN, ExchangeError, check_receiver
from packnback.crypto.sign import VERIFY_KEY_LEN
from packnback.ids import ObjectClass

BUNDLE_LEN = 2472
_PREFIX = b"PNBO\x01\x00\x00\x00"


class Receiver(Struct, frozen=True):
    """The public keys to which one class is sealed: X25519 (32 bytes) and ML-KEM-768 (1184 bytes)."""

    x25519: bytes
    mlkem: bytes


class OwnerBundle(Struct, frozen=True):
    """``"PNBO" 1 0 0 0 ‖ certify key 32 ‖ data x25519 ‖ data ML-KEM ‖ meta x25519 ‖ meta ML-KEM`` (2472 bytes).

    Make one with `parse` or `build`, which validate: a bundle that exists can be sent to.
    """

    raw: bytes
    owner_id: bytes
    certify_key: bytes
    receivers: Mapping[ObjectClass, Receiver]

    kind = "public"

    @classmethod
    def build(cls, certify_key: bytes, receivers: Mapping[ObjectClass, Receiver]) -> OwnerBundle:
        """The bundle of these public keys; raises FormatDamage as `parse` does."""
        pairs = (receivers[ObjectClass.DATA], receivers[ObjectClass.META])
        return cls.parse(_PREFIX + certify_key + b"".join(pair.x25519 + pair.mlkem for pair in pairs))

    @classmethod
    def parse(cls, raw: bytes) -> OwnerBundle:
        """Decode and validate. Raises FormatDamage for a wrong length, prefix, or public key."""
        if len(raw) != BUNDLE_LEN:
            raise errors.FormatDamage("owner bundle", f"has {len(raw)} bytes instead of {BUNDLE_LEN}")
        if not raw.startswith(_PREFIX):
            raise errors.FormatDamage("owner bundle", "has an unknown prefix")
        at = len(_PREFIX)
        certify_key = raw[at : at + VERIFY_KEY_LEN]
        at += VERIFY_KEY_LEN
        receivers = {}
        for object_class in (ObjectClass.DATA, ObjectClass.META):
            split = at + X25519_LEN
            end = split + MLKEM_PUBLIC_LEN
            receivers[object_class] = _receiver(raw[at:split], raw[split:end])
            at = end
        return cls(raw, H(raw), certify_key, receivers)

    @property
    def fingerprint(self) -> str:
        """16 hex digits by which people compare keys."""
        return fingerprint(self.kind, self.owner_id)


def fingerprint(kind: str, owner_id: bytes, certificate: bytes = b"") -> str:
    """The first 16 hex digits of H(kind ‖ owner id ‖ certificate, or nothing)."""
    return H(kind.encode() + owner_id + certificate).hex()[:16]


def _receiver(x25519: bytes, mlkem: bytes) -> Receiver:
    try:
        check_receiver(x25519, mlkem)
    except ExchangeError as error:
        raise errors.FormatDamage("owner bundle", str(error)) from error
    return Receiver(x25519, mlkem)
