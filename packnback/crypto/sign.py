"""Ed25519 (RFC 8032) under context strings, so that a signature made for one purpose fits no other.

Two things are signed: certificates (by the owner) and snapshot headers (by a client). Raw bytes go in;
a decoded and re-encoded structure is never verified.
"""

from __future__ import annotations

from nacl.bindings import crypto_sign, crypto_sign_BYTES, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from packnback import errors
from packnback.crypto.derive import H

SIGNATURE_LEN: int = crypto_sign_BYTES
VERIFY_KEY_LEN = 32
SEED_LEN = 32

CERTIFICATE_CONTEXT = b"packnback v1 certificate\0"
SNAPSHOT_CONTEXT = b"packnback v1 snapshot\0"


def verify_key(seed: bytes) -> bytes:
    """The 32-byte public key of a 32-byte signing seed."""
    public, _ = crypto_sign_seed_keypair(seed)
    return public


def sign(seed: bytes, context: bytes, message: bytes) -> bytes:
    """The 64-byte signature over ``context ‖ message``."""
    _, secret = crypto_sign_seed_keypair(seed)
    return crypto_sign(context + message, secret)[:SIGNATURE_LEN]


def signature_holds(public: bytes, context: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over ``context ‖ message`` was made by the holder of `public`.

    libsodium refuses non-canonical scalars and keys of small order; its binding does not check lengths,
    so this does.
    """
    if len(public) != VERIFY_KEY_LEN or len(signature) != SIGNATURE_LEN:
        return False
    try:
        crypto_sign_open(signature + context + message, public)
    except BadSignatureError:
        return False
    return True


def sign_snapshot(seed: bytes, header: bytes) -> bytes:
    """A client's signature over the raw bytes of a snapshot header."""
    return sign(seed, SNAPSHOT_CONTEXT, header)


def verify_snapshot(public: bytes, header: bytes, signature: bytes) -> None:
    """Check a snapshot header against the verify key in the client's certificate.

    Raises SnapshotDamage, with the snapshot's id (``H(header)``), if the signature does not hold.
    """
    if not signature_holds(public, SNAPSHOT_CONTEXT, header, signature):
        raise errors.SnapshotDamage(snapshot=H(header).hex(), why="the signature does not hold")
