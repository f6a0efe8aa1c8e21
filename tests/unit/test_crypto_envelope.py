"""Envelopes: pinned bytes, and everything that must not open."""

from __future__ import annotations

import random

import pytest
from crypto_vectors import (
    DATA,
    FARM,
    GOLDENS,
    META,
    OWNER,
    PUT,
    REPOSITORY,
    STRANGER,
    VECTORS,
    data_envelope,
    meta_envelope,
)
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from hypothesis import given
from hypothesis import strategies as st
from test_crypto_keys import LOW_ORDER_POINTS

from packnback import errors
from packnback.crypto import aead, exchange
from packnback.crypto.bundle import OwnerBundle, Receiver
from packnback.crypto.derive import DK, H
from packnback.crypto.envelope import make_envelope, open_envelope
from packnback.crypto.envelope_layout import ENVELOPE_LEN, parse_envelope
from packnback.crypto.keys import PutKey
from packnback.ids import ObjectClass

HEAD = 92
EPK, CIPHERTEXT, WRAP, COMMITMENT = HEAD, HEAD + 32, HEAD + 32 + 1088, ENVELOPE_LEN - 32


def with_bytes(envelope: bytes, at: int, replacement: bytes) -> bytes:
    return envelope[:at] + replacement + envelope[at + len(replacement) :]


def test_data_envelope_is_the_pinned_one() -> None:
    envelope, identifier, keys = data_envelope()
    assert envelope.hex() == VECTORS["envelope"]
    assert identifier.hex() == VECTORS["envelope_id"]
    assert keys.object_key.hex() == VECTORS["object_key"]
    assert keys.nonce_key.hex() == VECTORS["nonce_key"]


def test_meta_envelope_is_the_pinned_one() -> None:
    envelope, _, keys = meta_envelope()
    assert envelope.hex() == GOLDENS["meta_envelope"]
    assert keys.object_key.hex() == GOLDENS["meta_object_key"]
    assert keys.nonce_key.hex() == GOLDENS["meta_nonce_key"]


@pytest.mark.parametrize("object_class", list(ObjectClass))
@pytest.mark.parametrize("put_key", [PUT, FARM], ids=["private", "group"])
def test_owner_and_restore_key_open_what_any_put_key_makes(put_key: PutKey, object_class: ObjectClass) -> None:
    envelope, identifier, keys = make_envelope(put_key, REPOSITORY, object_class)
    assert len(envelope) == ENVELOPE_LEN
    for reader in (OWNER, OWNER.restore_key()):
        opened = open_envelope(envelope, reader, repository_id=REPOSITORY)
        assert opened.object_key == keys.object_key
        assert opened.id_key == put_key.id_key[object_class]
        facts = opened.facts
        assert facts == parse_envelope(envelope)
        assert (facts.id, facts.object_class, facts.repository_id) == (identifier, object_class, REPOSITORY)
        assert (facts.domain_id, facts.client_id) == (put_key.domain_id, put_key.client_id)
        assert (facts.epoch, facts.owner_id) == (put_key.epoch, OWNER.owner_id)


def test_envelopes_are_never_the_same_twice() -> None:
    first, second = (make_envelope(PUT, REPOSITORY, DATA) for _ in range(2))
    assert first[0] != second[0]
    assert first[2].object_key != second[2].object_key
    assert first[0][EPK : EPK + 32] != second[0][EPK : EPK + 32]


def test_list_key_opens_meta_and_fails_on_data() -> None:
    key = OWNER.list_key()
    assert open_envelope(meta_envelope()[0], key).object_key == meta_envelope()[2].object_key
    with pytest.raises(errors.KeyCannot) as caught:
        open_envelope(data_envelope()[0], key)
    assert caught.value.have == "list"


def test_every_flipped_byte_is_refused() -> None:
    envelope = data_envelope()[0]
    for at in range(len(envelope)):
        for bit in (0x01, 0x80):
            changed = with_bytes(envelope, at, bytes((envelope[at] ^ bit,)))
            with pytest.raises((errors.EnvelopeRejected, errors.WrongOwner)):
                open_envelope(changed, OWNER)


@given(st.binary(max_size=ENVELOPE_LEN + 8))
def test_arbitrary_bytes_are_no_envelope(raw: bytes) -> None:
    with pytest.raises(errors.EnvelopeRejected):
        parse_envelope(raw)


@pytest.mark.parametrize("length", [0, 91, 92, ENVELOPE_LEN - 1, ENVELOPE_LEN + 1])
def test_other_lengths_are_refused(length: int) -> None:
    envelope = (data_envelope()[0] + b"\0")[:length]
    for refuse in (parse_envelope, lambda raw: open_envelope(raw, OWNER)):
        with pytest.raises(errors.EnvelopeRejected, match="bytes"):
            refuse(envelope)


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0), (4, 0), (4, 2), (5, 0), (5, 3), (6, 0), (6, 2), (7, 1)],
    ids=["magic", "suite 0", "suite 2", "class 0", "class 3", "no receiver", "two receivers", "reserved"],
)
def test_a_keyless_server_refuses_what_it_does_not_know(at: int, value: int) -> None:
    with pytest.raises(errors.EnvelopeRejected):
        parse_envelope(with_bytes(data_envelope()[0], at, bytes((value,))))


def test_epoch_zero_names_no_envelope() -> None:
    """No certificate has it, so nobody may seal under it; the server judges that without a key."""
    with pytest.raises(errors.EnvelopeRejected, match="epoch 0"):
        parse_envelope(with_bytes(data_envelope()[0], 56, bytes(4)))


@pytest.mark.parametrize(
    ("at", "length"), [(8, 16), (24, 16), (40, 16), (56, 4)], ids=["repository", "domain", "client", "epoch"]
)
def test_an_envelope_of_another_context_does_not_open(at: int, length: int) -> None:
    """Each field of the head replaced by that of another envelope, equally well-formed."""
    other = make_envelope(OWNER.put_key("web2", 2), b"R" * 16, DATA)[0]
    changed = with_bytes(data_envelope()[0], at, other[at : at + length])
    assert changed != data_envelope()[0]
    parse_envelope(changed)
    with pytest.raises(errors.EnvelopeRejected, match="does not open"):
        open_envelope(changed, OWNER)


def test_an_envelope_of_one_class_is_not_one_of_the_other() -> None:
    with pytest.raises(errors.EnvelopeRejected, match="does not open"):
        open_envelope(with_bytes(data_envelope()[0], 5, b"\x02"), OWNER)


def test_an_envelope_for_another_repository_is_refused_if_asked() -> None:
    envelope = data_envelope()[0]
    open_envelope(envelope, OWNER, repository_id=REPOSITORY)
    with pytest.raises(errors.EnvelopeRejected, match="repository"):
        open_envelope(envelope, OWNER, repository_id=b"R" * 16)


def test_another_owner_is_told_apart_from_damage() -> None:
    with pytest.raises(errors.WrongOwner) as caught:
        open_envelope(data_envelope()[0], STRANGER)
    assert caught.value.key_owner == STRANGER.owner_id.hex()
    assert caught.value.repository_owner == OWNER.owner_id.hex()
    claimed = with_bytes(data_envelope()[0], 60, STRANGER.owner_id)
    with pytest.raises(errors.EnvelopeRejected, match="does not open"):
        open_envelope(claimed, STRANGER)


def test_knowing_the_public_keys_is_not_enough_to_send() -> None:
    """An attacker with bundle and ids, but with a psk of its own making."""
    forger = PutKey(
        PUT.bundle, dict.fromkeys(ObjectClass, b"?" * 32), PUT.id_key, PUT.cut, PUT.sign_seed, PUT.certificate
    )
    with pytest.raises(errors.EnvelopeRejected, match="does not open"):
        open_envelope(make_envelope(forger, REPOSITORY, DATA)[0], OWNER)


@pytest.mark.parametrize("point", LOW_ORDER_POINTS, ids=lambda point: point.hex()[:8])
def test_points_of_low_order_are_refused_on_both_sides(point: bytes) -> None:
    with pytest.raises(errors.EnvelopeRejected, match="low order"):
        open_envelope(with_bytes(data_envelope()[0], EPK, point), OWNER)
    receivers = dict(PUT.bundle.receivers)
    receivers[DATA] = Receiver(point, receivers[DATA].mlkem)
    unchecked = OwnerBundle(PUT.bundle.raw, PUT.bundle.owner_id, PUT.bundle.certify_key, receivers)
    sender = PutKey(unchecked, PUT.psk, PUT.id_key, PUT.cut, PUT.sign_seed, PUT.certificate)
    with pytest.raises(errors.EnvelopeRejected, match="low order"):
        make_envelope(sender, REPOSITORY, DATA)


@pytest.mark.parametrize("length", [0, 1087, 1089])
def test_ml_kem_ciphertext_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(exchange.ExchangeError, match="ciphertext"):
        exchange.mlkem_decapsulate(OWNER.secrets[DATA].mlkem_seed, bytes(length))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_x25519_values_of_another_length_never_reach_the_library(length: int) -> None:
    for attempt in (
        lambda: exchange.x25519_public(bytes(length)),
        lambda: exchange.x25519_shared(bytes(length), OWNER.bundle.receivers[DATA].x25519),
        lambda: exchange.x25519_shared(b"\1" * 32, bytes(length)),
    ):
        with pytest.raises(exchange.ExchangeError, match="length"):
            attempt()


def test_implicit_rejection_is_caught_by_the_wrap() -> None:
    foreign = exchange.mlkem_encapsulate(OWNER.bundle.receivers[DATA].mlkem)[1]
    with pytest.raises(errors.EnvelopeRejected, match="does not open"):
        open_envelope(with_bytes(data_envelope()[0], CIPHERTEXT, foreign), OWNER)


def test_a_wrap_that_opens_still_needs_its_commitment() -> None:
    """Whoever has the psk can wrap any secret; the commitment must be the one of that secret and envelope."""
    envelope = data_envelope()[0]
    shared_x25519 = exchange.x25519_shared(b"\x22" * 32, OWNER.bundle.receivers[DATA].x25519)
    shared_mlkem = exchange.mlkem_decapsulate(OWNER.secrets[DATA].mlkem_seed, envelope[CIPHERTEXT:WRAP])
    receiver = OWNER.bundle.receivers[DATA]
    transcript = H(envelope[:HEAD] + receiver.x25519 + receiver.mlkem + envelope[HEAD:WRAP])
    wrapping_key = DK("envelope wrap", PUT.psk[DATA] + shared_mlkem + shared_x25519 + transcript)
    wrap = bytearray(48)
    aead.encrypt(wrapping_key, bytes(24), envelope[:HEAD], b"\x12" * 32, wrap)
    with pytest.raises(errors.EnvelopeRejected, match="commitment"):
        open_envelope(with_bytes(envelope, WRAP, bytes(wrap)), OWNER)


@pytest.mark.parametrize("length", [0, 15])
def test_sealed_input_shorter_than_a_tag_does_not_authenticate(length: int) -> None:
    assert aead.decrypt(bytes(32), bytes(24), b"", bytes(length)) is None


def test_the_binding_is_never_given_wrong_lengths() -> None:
    out = bytearray(16)
    for key, nonce in ((bytes(31), bytes(24)), (bytes(32), bytes(23))):
        with pytest.raises(ValueError, match="32 bytes"):
            aead.encrypt(key, nonce, b"", b"", out)
        with pytest.raises(ValueError, match="32 bytes"):
            aead.decrypt(key, nonce, b"", bytes(out))
    for length, at in ((15, 0), (17, 0), (16, 1), (0, 0)):
        with pytest.raises(ValueError, match="output"):
            aead.encrypt(bytes(32), bytes(24), b"", b"", bytearray(length), at)


@given(st.binary(max_size=300), st.binary(max_size=64), st.integers(0, 40))
def test_our_aead_is_pynacls(message: bytes, aad: bytes, at: int) -> None:
    from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as reference

    key, nonce = b"k" * 32, b"n" * 24
    out = bytearray(at + len(message) + 16)
    aead.encrypt(key, nonce, aad, message, out, at)
    assert bytes(out[at:]) == reference(message, aad, nonce, key)
    assert not any(out[:at])
    for sealed in (out, bytes(out), memoryview(out)):
        assert aead.decrypt(key, nonce, aad, sealed, at) == message


@pytest.mark.parametrize("length", [0, 1, 16, 63, 64, 65, 255, 256, 4095, 4096, 70_000, (1 << 20) + 7])
def test_both_libraries_come_to_the_same(length: int) -> None:
    chance = random.Random(length)
    key, nonce, aad, message = (chance.randbytes(n) for n in (32, 24, length % 300, length))
    sealed = [bytearray(b"before" + message + bytes(16) + b"behind") for _ in range(2)]
    ways = ((aead._openssl_encrypt, aead._openssl_decrypt), (aead._sodium_encrypt, aead._sodium_decrypt))
    for (encrypt, _), buffer in zip(ways, sealed, strict=True):
        encrypt(key, nonce, aad, memoryview(buffer)[6:-6])
    assert sealed[0] == sealed[1]
    assert sealed[0].startswith(b"before") and sealed[0].endswith(b"behind")
    for _, decrypt in ways:
        body = sealed[0][6:-6]
        assert decrypt(key, nonce, aad, memoryview(body)) == message
        body[chance.randrange(len(body))] ^= 1
        assert decrypt(key, nonce, aad, memoryview(body)) is None
        assert decrypt(key, nonce, aad + b"x", memoryview(sealed[0][6:-6])) is None


@pytest.mark.parametrize(
    "error",
    [
        UnsupportedAlgorithm("not in this mode"),
        InternalError("a provider that may not", []),
        ValueError("buffers overlap"),
        AttributeError("encrypt_into"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_openssl_does_the_work_where_it_fits(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert aead._encrypt is aead._openssl_encrypt

    def other(key: bytes, nonce: bytes, aad: bytes, buffer: memoryview) -> None:
        aead._sodium_encrypt(key, nonce, aad + b"x", buffer)

    def unsupported(*_: object) -> None:
        raise error

    assert aead._fits()
    for name in ("_openssl_encrypt", "_openssl_decrypt"):
        for replacement in (other, unsupported):
            with monkeypatch.context() as patch:
                patch.setattr(aead, name, replacement)
                assert not aead._fits()


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_repository_id_has_16_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="16"):
        make_envelope(PUT, bytes(length), META)
