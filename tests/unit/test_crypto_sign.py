"""Certificates and snapshot signatures."""

from __future__ import annotations

import pytest
from crypto_vectors import FARM, GOLDENS, OWNER, PUT, STRANGER, unhex

from packnback import errors
from packnback.crypto import sign
from packnback.crypto.certificate import issue, parse_certificate
from packnback.crypto.derive import DK, H

HEADER = b"PNBH" + bytes(range(160))


def test_parsed_certificate_says_what_was_certified() -> None:
    certificate = parse_certificate(unhex(GOLDENS["certificate_farm"]))
    certificate.verify(OWNER.bundle)
    assert certificate == FARM.certificate
    assert (certificate.name, certificate.epoch) == ("web1", 7)
    assert certificate.verify_key == sign.verify_key(FARM.sign_seed)
    assert certificate.hash == H(certificate.raw)


def test_every_altered_byte_of_a_certificate_is_refused() -> None:
    raw = PUT.certificate.raw
    for at in range(len(raw)):
        for bit in (0x01, 0x80):
            changed = bytearray(raw)
            changed[at] ^= bit
            with pytest.raises((errors.FormatDamage, errors.WrongOwner)):
                parse_certificate(bytes(changed)).verify(OWNER.bundle)


def test_certificate_of_another_length_is_refused() -> None:
    raw = PUT.certificate.raw
    for changed in (b"", raw[:-1], raw + b"\0", raw[:-65] + raw[-64:]):
        with pytest.raises(errors.FormatDamage):
            parse_certificate(changed)


def test_certificate_of_another_owner_is_refused() -> None:
    with pytest.raises(errors.WrongOwner):
        STRANGER.put_key("web1").certificate.verify(OWNER.bundle)


def test_certificate_that_a_client_signed_itself_is_refused() -> None:
    forged = issue(
        PUT.sign_seed,
        owner_id=OWNER.owner_id,
        client_id=PUT.client_id,
        domain_id=PUT.domain_id,
        epoch=2,
        verify_key=PUT.certificate.verify_key,
        name="web1",
    )
    with pytest.raises(errors.FormatDamage, match="signature"):
        forged.verify(OWNER.bundle)


@pytest.mark.parametrize("name", [b"", b"a\n", b"\xff\xfe", b"x\0"])
def test_certificates_with_names_that_are_never_certified_do_not_parse(name: bytes) -> None:
    signed = PUT.certificate.raw[:112] + len(name).to_bytes(2, "little") + name
    signature = sign.sign(DK("owner certify ed25519", OWNER.seed), sign.CERTIFICATE_CONTEXT, signed)
    with pytest.raises(errors.FormatDamage, match="name"):
        parse_certificate(signed + signature)


def test_epoch_zero_is_never_certified() -> None:
    raw = PUT.certificate.raw
    with pytest.raises(errors.FormatDamage, match="epoch"):
        parse_certificate(raw[:72] + bytes(4) + raw[76:])


def test_snapshot_signature_holds_for_its_header_and_key_only() -> None:
    signature = sign.sign_snapshot(PUT.sign_seed, HEADER)
    sign.verify_snapshot(PUT.certificate.verify_key, HEADER, signature)
    for public, header, changed in (
        (FARM.certificate.verify_key, HEADER, signature),
        (PUT.certificate.verify_key, HEADER + b"\0", signature),
        (PUT.certificate.verify_key, HEADER, signature[:-1]),
        (PUT.certificate.verify_key, HEADER, signature + b"\0"),
        (PUT.certificate.verify_key, HEADER, bytes(64)),
        (PUT.certificate.verify_key[:-1], HEADER, signature),
    ):
        with pytest.raises(errors.SnapshotDamage) as caught:
            sign.verify_snapshot(public, header, changed)
        assert caught.value.snapshot == H(header).hex()


def test_every_altered_byte_of_a_signature_is_refused() -> None:
    signature = sign.sign_snapshot(PUT.sign_seed, HEADER)
    for at in range(len(signature)):
        changed = bytearray(signature)
        changed[at] ^= 1
        with pytest.raises(errors.SnapshotDamage):
            sign.verify_snapshot(PUT.certificate.verify_key, HEADER, bytes(changed))


def test_a_signature_for_one_purpose_fits_no_other() -> None:
    signature = sign.sign(PUT.sign_seed, sign.CERTIFICATE_CONTEXT, HEADER)
    with pytest.raises(errors.SnapshotDamage):
        sign.verify_snapshot(PUT.certificate.verify_key, HEADER, signature)


def test_a_verify_key_of_small_order_verifies_nothing() -> None:
    identity = b"\x01" + bytes(31)
    forged = identity + bytes(32)  # holds for every message under libraries that do not look
    with pytest.raises(errors.SnapshotDamage):
        sign.verify_snapshot(identity, HEADER, forged)
