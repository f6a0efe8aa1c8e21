"""XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) over preallocated buffers.

It is ChaCha20-Poly1305 (RFC 8439) under a key that HChaCha20 makes of the key and 16 bytes of the nonce. PyNaCl has
the whole, `cryptography` has the inner part: OpenSSL's is three times as fast with 1 MiB messages and no slower from
4 KiB on (measured: 4.6 GB/s against 1.5 with AVX-512), and sealing is the most expensive step of a backup after
compression. So libsodium derives the key, and OpenSSL does the work. That the two fit together is tried when this is
imported; where they do not, or OpenSSL may not use this cipher, libsodium does all of it.

This goes one step below PyNaCl's public API, to the libsodium binding on which that API is built: it takes only
``bytes``, allocates the result twice and copies it. Nothing else may use the binding: what it does not check, lengths
above all, is checked here. All functions release the GIL while either library works on a message of some length.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from nacl._sodium import ffi, lib  # type: ignore[import-not-found, import-untyped, unused-ignore]
from nacl.bindings import sodium_init

from packnback.crypto.derive import KEY_LEN, Buffer

NONCE_LEN = 24
TAG_LEN = 16

_SUBKEY_NONCE_LEN = 16
_TRIED_LEN = 5000
"""Long enough for what either library does with long messages only."""

# Until this has been called, libsodium uses portable code, at 40 % of the speed (measured).
sodium_init()

_STATE_LEN = lib.crypto_secretstream_xchacha20poly1305_statebytes()


def encrypt(key: bytes, nonce: bytes, aad: bytes, message: Buffer, out: bytearray, at: int = 0) -> None:
    """Write ciphertext ‖ 16-byte tag of `message` to ``out[at:]``, whose length must fit exactly."""
    if len(out) - at != len(message) + TAG_LEN:
        raise ValueError("the output must be as long as message and tag")
    out[at : at + len(message)] = message
    encrypt_in_place(key, nonce, aad, out, at, len(message))


def encrypt_in_place(key: bytes, nonce: bytes, aad: bytes, buffer: bytearray, at: int, length: int) -> None:
    """Replace the message ``buffer[at : at + length]`` by its ciphertext, and what follows it by the 16-byte tag."""
    _check_lengths(key, nonce)
    if at < 0 or length < 0 or at + length + TAG_LEN > len(buffer):
        raise ValueError("the buffer has no room for message and tag")
    _encrypt(key, nonce, aad, memoryview(buffer)[at : at + length + TAG_LEN])


def decrypt(key: bytes, nonce: bytes, aad: bytes, sealed: Buffer, start: int = 0) -> bytearray | None:
    """The message in ``sealed[start:]`` (ciphertext ‖ tag), or None when it does not authenticate.

    Anything shorter than a tag does not authenticate.
    """
    _check_lengths(key, nonce)
    if len(sealed) - start < TAG_LEN:
        return None
    return _decrypt(key, nonce, aad, memoryview(sealed)[start:])


def _check_lengths(key: bytes, nonce: bytes) -> None:
    if len(key) != KEY_LEN or len(nonce) != NONCE_LEN:
        raise ValueError("a key has 32 bytes and a nonce 24")


# --- OpenSSL ---------------------------------------------------------------------------------------------------


def _cipher(key: bytes, nonce: bytes) -> tuple[ChaCha20Poly1305, bytes]:
    """The inner cipher, and its nonce of 12 bytes."""
    state = ffi.new("unsigned char[]", _STATE_LEN)
    lib.crypto_secretstream_xchacha20poly1305_init_pull(state, nonce, key)  # HChaCha20 comes first, and is kept first
    subkey = bytes(ffi.buffer(state, KEY_LEN))
    return ChaCha20Poly1305(subkey), bytes(4) + nonce[_SUBKEY_NONCE_LEN:]


def _openssl_encrypt(key: bytes, nonce: bytes, aad: bytes, buffer: memoryview) -> None:
    cipher, inner_nonce = _cipher(key, nonce)
    cipher.encrypt_into(inner_nonce, buffer[:-TAG_LEN], aad, buffer)


def _openssl_decrypt(key: bytes, nonce: bytes, aad: bytes, sealed: memoryview) -> bytearray | None:
    cipher, inner_nonce = _cipher(key, nonce)
    message = bytearray(len(sealed) - TAG_LEN)
    try:
        cipher.decrypt_into(inner_nonce, sealed, aad, message)
    except InvalidTag:
        return None
    return message


# --- libsodium -------------------------------------------------------------------------------------------------


def _sodium_encrypt(key: bytes, nonce: bytes, aad: bytes, buffer: memoryview) -> None:
    message = ffi.from_buffer("unsigned char[]", buffer, require_writable=True)
    status = lib.crypto_aead_xchacha20poly1305_ietf_encrypt(
        message, ffi.NULL, message, len(buffer) - TAG_LEN, aad, len(aad), ffi.NULL, nonce, key
    )
    if status != 0:
        raise RuntimeError("libsodium refused to encrypt")


def _sodium_decrypt(key: bytes, nonce: bytes, aad: bytes, sealed: memoryview) -> bytearray | None:
    message = bytearray(len(sealed) - TAG_LEN)
    source = ffi.from_buffer("unsigned char[]", sealed)
    target = ffi.from_buffer("unsigned char[]", message, require_writable=True)
    status = lib.crypto_aead_xchacha20poly1305_ietf_decrypt(
        target, ffi.NULL, ffi.NULL, source, len(sealed), aad, len(aad), nonce, key
    )
    return message if status == 0 else None


def _fits() -> bool:
    """Whether both ways come to the same, each opening what the other one sealed."""
    key, nonce, aad = bytes(range(KEY_LEN)), bytes(range(NONCE_LEN)), b"associated data"
    message = bytearray(range(250)) * (_TRIED_LEN // 250)
    sealed = [message + bytes(TAG_LEN) for _ in range(2)]
    _sodium_encrypt(key, nonce, aad, memoryview(sealed[0]))
    try:
        _openssl_encrypt(key, nonce, aad, memoryview(sealed[1]))
        opened = _openssl_decrypt(key, nonce, aad, memoryview(sealed[0]))
    except Exception:  # noqa: BLE001  whatever OpenSSL says of a cipher that it may not use, there is another way
        return False
    return sealed[0] == sealed[1] and opened == message


_encrypt, _decrypt = (_openssl_encrypt, _openssl_decrypt) if _fits() else (_sodium_encrypt, _sodium_decrypt)
