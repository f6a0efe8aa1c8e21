"""Envelopes: how a session of a client hands its object key to the owner, and to nobody else.

A client makes a new one about every 64 MiB, forgets its secrets when the session ends, and from then on cannot
open what it stored. The object key is wrapped under a hybrid of X25519 and ML-KEM-768, so both must fall, and
under a psk that only this client (and the owner) has, so knowing the public keys is not enough to send.
Layout: `envelope_layout`. ::

    KEK        DK("envelope wrap", psk ‖ ML-KEM secret ‖ X25519 secret ‖ H(head ‖ both receiver keys ‖ epk ‖ ct))
    wrap       XChaCha20-Poly1305(KEK, nonce 0²⁴, AAD = head, S), S random: KEK is used once, so the nonce is fixed
    commitment DK("envelope commit", S ‖ H(E)); object key and nonce key likewise

The commitment makes the envelope open under one key only (Poly1305 alone does not commit), and is checked
before anything is decrypted with what was unwrapped.
"""

from __future__ import annotations

import hmac
import os

from packnback import errors
from packnback.crypto import aead, exchange
from packnback.crypto.bundle import Receiver
from packnback.crypto.derive import DK, H
from packnback.crypto.envelope_layout import (
    COMMITMENT_LEN,
    EnvelopeFacts,
    encode_head,
    envelope_id,
    parse_envelope,
    split_envelope,
)
from packnback.crypto.keys import PutKey, Reader
from packnback.crypto.secret import Secret
from packnback.ids import REPOSITORY_ID_LEN, ObjectClass

_WRAP_NONCE = bytes(aead.NONCE_LEN)


class SealingKeys(Secret, frozen=True):
    """What a session needs to seal bodies: the object key and the key that hedges nonces, 32 bytes each."""

    object_key: bytes
    nonce_key: bytes


class OpenedEnvelope(Secret, frozen=True):
    """An envelope that opened: its facts, the key of its objects, and the key of its domain's object ids."""

    facts: EnvelopeFacts
    object_key: bytes
    id_key: bytes


def make_envelope(
    put_key: PutKey,
    repository_id: bytes,
    object_class: ObjectClass,
    *,
    secret: bytes | None = None,
    ephemeral: bytes | None = None,
    kem: tuple[bytes, bytes] | None = None,
) -> tuple[bytes, bytes, SealingKeys]:
    """A fresh (envelope of 1292 bytes, its id of 16 bytes, the keys to seal with).

    `secret`, `ephemeral` (an X25519 secret) and `kem` (shared secret, ciphertext) exist for test vectors
    alone: whoever gives one of them twice gives away what was sealed.
    Raises EnvelopeRejected if the receiver's public keys cannot be sent to.
    """
    if len(repository_id) != REPOSITORY_ID_LEN:
        raise ValueError("a repository id has 16 bytes")
    receiver = put_key.bundle.receivers[object_class]
    session_secret = os.urandom(32) if secret is None else secret
    ephemeral_secret = os.urandom(exchange.X25519_LEN) if ephemeral is None else ephemeral
    head = encode_head(
        object_class, repository_id, put_key.domain_id, put_key.client_id, put_key.epoch, put_key.owner_id
    )
    ephemeral_public = exchange.x25519_public(ephemeral_secret)
    try:
        shared_x25519 = exchange.x25519_shared(ephemeral_secret, receiver.x25519)
        shared_mlkem, ciphertext = exchange.mlkem_encapsulate(receiver.mlkem) if kem is None else kem
    except exchange.ExchangeError as error:
        raise errors.EnvelopeRejected(envelope=b"", why=str(error)) from error
    wrapping_key = _wrapping_key(
        put_key.psk[object_class], shared_mlkem, shared_x25519, head, receiver, ephemeral_public, ciphertext
    )
    wrap = bytearray(len(session_secret) + aead.TAG_LEN)
    aead.encrypt(wrapping_key, _WRAP_NONCE, head, session_secret, wrap)
    committed = head + ephemeral_public + ciphertext + bytes(wrap)
    commitment, keys = _session_keys(session_secret, committed)
    envelope = committed + commitment
    return envelope, envelope_id(envelope), keys


def open_envelope(envelope: bytes, reader: Reader, *, repository_id: bytes | None = None) -> OpenedEnvelope:
    """Unwrap the object key with an owner, restore or list key.

    psk and id key are those of the client, epoch and domain that the envelope names. With `repository_id`,
    envelopes made for another repository are refused as well; without it, comparing is up to the caller.
    Raises WrongOwner, KeyCannot (the key lacks the class), or EnvelopeRejected for everything else.
    """
    facts = parse_envelope(envelope)
    if facts.owner_id != reader.owner_id:
        raise errors.WrongOwner(key_owner=reader.owner_id.hex(), repository_owner=facts.owner_id.hex())
    if repository_id is not None and facts.repository_id != repository_id:
        raise errors.EnvelopeRejected(facts.id, "was made for another repository")
    head, ephemeral_public, ciphertext, wrap, commitment = split_envelope(envelope)
    secrets = reader.secrets_of(facts.object_class)
    receiver = reader.bundle.receivers[facts.object_class]
    try:
        shared_x25519 = exchange.x25519_shared(secrets.x25519, ephemeral_public)
        shared_mlkem = exchange.mlkem_decapsulate(secrets.mlkem_seed, ciphertext)
    except exchange.ExchangeError as error:
        raise errors.EnvelopeRejected(facts.id, str(error)) from error
    psk = reader.psk(facts.object_class, facts.client_id, facts.epoch)
    wrapping_key = _wrapping_key(psk, shared_mlkem, shared_x25519, head, receiver, ephemeral_public, ciphertext)
    session_secret = aead.decrypt(wrapping_key, _WRAP_NONCE, head, wrap)
    if session_secret is None:
        raise errors.EnvelopeRejected(facts.id, "does not open with this key")
    expected, keys = _session_keys(session_secret, envelope[:-COMMITMENT_LEN])
    if not hmac.compare_digest(expected, commitment):
        raise errors.EnvelopeRejected(facts.id, "the commitment does not hold")
    return OpenedEnvelope(facts, keys.object_key, reader.id_key(facts.object_class, facts.domain_id))


def _wrapping_key(
    psk: bytes,
    shared_mlkem: bytes,
    shared_x25519: bytes,
    head: bytes,
    receiver: Receiver,
    ephemeral_public: bytes,
    ciphertext: bytes,
) -> bytes:
    transcript = H(head + receiver.x25519 + receiver.mlkem + ephemeral_public + ciphertext)
    return DK("envelope wrap", psk + shared_mlkem + shared_x25519 + transcript)


def _session_keys(session_secret: bytes | bytearray, committed: bytes) -> tuple[bytes, SealingKeys]:
    material = bytes(session_secret) + H(committed)
    keys = SealingKeys(object_key=DK("object key", material), nonce_key=DK("nonce key", material))
    return DK("envelope commit", material), keys
