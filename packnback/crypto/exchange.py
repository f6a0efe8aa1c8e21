"""The two key exchanges of an envelope: X25519 (RFC 7748) and ML-KEM-768 (FIPS 203).

Both libraries report bad input in their own ways: libsodium's binding does not look at lengths at all and
raises RuntimeError for an all-zero result, `cryptography` raises ValueError. Here all of it is one
`ExchangeError`, which never leaves the crypto layer.

Whether there is ML-KEM at all depends on what `cryptography` was built with: its own packages have it from version 48
on, one that a distribution linked with OpenSSL before 3.5 has not. That is Refused (``ml-kem``) in whatever needs it.
"""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from nacl.bindings import crypto_scalarmult, crypto_scalarmult_base

from packnback import errors

X25519_LEN = 32
MLKEM_PUBLIC_LEN = 1184
MLKEM_SEED_LEN = 64
MLKEM_CIPHERTEXT_LEN = 1088


class ExchangeError(Exception):
    """A public key or a ciphertext that must not be used; the message says which rule it breaks."""


def x25519_public(secret: bytes) -> bytes:
    """The public point of a 32-byte secret."""
    _check_x25519(secret)
    return crypto_scalarmult_base(secret)


def x25519_shared(secret: bytes, public: bytes) -> bytes:
    """The shared 32 bytes. Raises ExchangeError for points of low order, whose result is zero."""
    _check_x25519(secret)
    _check_x25519(public)
    try:
        return crypto_scalarmult(secret, public)
    except RuntimeError as error:
        raise ExchangeError("x25519 point of low order") from error


def mlkem_public(seed: bytes) -> bytes:
    """The 1184-byte encapsulation key of a 64-byte seed (d ‖ z)."""
    return _mlkem_secret(seed).public_key().public_bytes_raw()


def mlkem_encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """A fresh (shared secret 32, ciphertext 1088) for the holder of `public`."""
    return _mlkem_public(public).encapsulate()


def mlkem_decapsulate(seed: bytes, ciphertext: bytes) -> bytes:
    """The shared secret. A wrong ciphertext of the right length gives a pseudorandom one (implicit rejection)."""
    secret = _mlkem_secret(seed)
    try:
        return secret.decapsulate(ciphertext)
    except ValueError as error:
        raise ExchangeError("ML-KEM ciphertext length") from error


def check_receiver(x25519: bytes, mlkem: bytes) -> None:
    """Raise ExchangeError unless secrets can be sent to this pair of public keys.

    Refused are points of low order (any clamped scalar shows them, being a multiple of 8), and
    encapsulation keys with coefficients ≥ q (the modulus check of FIPS 203 §7.2).
    """
    x25519_shared(b"\x01" * X25519_LEN, x25519)
    _mlkem_public(mlkem)


def _check_x25519(value: bytes) -> None:
    if len(value) != X25519_LEN:
        raise ExchangeError("x25519 length")


def _mlkem_public(public: bytes) -> MLKEM768PublicKey:
    try:
        return MLKEM768PublicKey.from_public_bytes(public)
    except ValueError as error:
        raise ExchangeError("not an ML-KEM-768 public key") from error
    except UnsupportedAlgorithm as error:
        raise errors.Refused("ml-kem") from error


def _mlkem_secret(seed: bytes) -> MLKEM768PrivateKey:
    try:
        return MLKEM768PrivateKey.from_seed_bytes(seed)
    except ValueError as error:
        raise ExchangeError("ML-KEM seed length") from error
    except UnsupportedAlgorithm as error:
        raise errors.Refused("ml-kem") from error
