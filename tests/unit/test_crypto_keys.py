"""Owner, put, list and restore keys: what they derive to, and what each of them cannot do."""

from __future__ import annotations

import pytest
from crypto_vectors import DATA, FARM, GOLDENS, META, OWNER, PUT, STRANGER, VECTORS, unhex

from packnback import errors
from packnback.crypto.bundle import BUNDLE_LEN, OwnerBundle
from packnback.crypto.derive import H
from packnback.crypto.keys import ClassSecrets, OwnerKey, ReadKey
from packnback.crypto.sign import verify_key
from packnback.ids import ObjectClass

LOW_ORDER_POINTS = [
    bytes(32),
    b"\x01" + bytes(31),
    unhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    unhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    unhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    unhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    unhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]
X_DATA, MLKEM_DATA, X_META, MLKEM_META = 40, 72, 1256, 1288


def altered(raw: bytes, at: int, replacement: bytes) -> bytes:
    return raw[:at] + replacement + raw[at + len(replacement) :]


def test_owner_key_derives_the_pinned_bundle() -> None:
    bundle = OWNER.bundle
    assert len(bundle.raw) == BUNDLE_LEN
    assert bundle.owner_id.hex() == VECTORS["owner_id"]
    assert H(bundle.raw).hex() == VECTORS["owner_bundle_blake3"]
    assert bundle.certify_key.hex() == VECTORS["cert_pk"]
    for object_class in ObjectClass:
        name = object_class.name.lower()
        assert bundle.receivers[object_class].x25519.hex() == VECTORS["x25519_pk"][name]
        assert H(bundle.receivers[object_class].mlkem).hex() == VECTORS["mlkem768_pk_blake3"][name]
    assert OwnerBundle.parse(bundle.raw) == bundle


def test_put_key_is_the_pinned_one() -> None:
    assert PUT.client_id.hex() == VECTORS["client_id"]
    assert PUT.domain_id.hex() == VECTORS["domain_id"]
    assert PUT.cut.hex() == VECTORS["cut"]
    assert PUT.sign_seed.hex() == VECTORS["sign_seed"]
    assert PUT.certificate.raw.hex() == VECTORS["certificate"]
    for object_class in ObjectClass:
        assert PUT.psk[object_class].hex() == VECTORS["psk"][object_class.name.lower()]
        assert PUT.id_key[object_class].hex() == VECTORS["id_key"][object_class.name.lower()]
    assert (PUT.name, PUT.epoch, PUT.owner_id) == ("web1", 1, OWNER.owner_id)


def test_cut_keys_and_fingerprints_are_the_pinned_ones() -> None:
    cut_keys = {"chunk": PUT.chunk_key, "bundle": PUT.bundle_key, "page": PUT.page_key}
    assert {name: key.hex() for name, key in cut_keys.items()} == GOLDENS["cut_keys"]
    keys = (OWNER, PUT, OWNER.list_key(), OWNER.restore_key(), OWNER.bundle)
    assert {key.kind: key.fingerprint for key in keys} == GOLDENS["fingerprints"]


def test_making_a_put_key_again_gives_the_same_key() -> None:
    assert OwnerKey(OWNER.seed).put_key("web1", 7, "farm") == FARM


def test_group_and_epoch_decide_the_domain_and_name_and_epoch_the_client() -> None:
    in_farm = OWNER.put_key("web1", group="farm")
    assert in_farm.domain_id.hex() == VECTORS["domain_id_group_farm"]
    other = OWNER.put_key("web2", group="farm")
    assert (other.domain_id, other.cut, other.id_key) == (in_farm.domain_id, in_farm.cut, in_farm.id_key)
    assert other.client_id != in_farm.client_id
    assert other.psk != in_farm.psk
    assert other.sign_seed != in_farm.sign_seed
    next_epoch = OWNER.put_key("web1", 2, "farm")
    assert next_epoch.client_id == in_farm.client_id
    for name in ("domain_id", "cut", "id_key", "psk", "sign_seed"):
        assert getattr(next_epoch, name) != getattr(in_farm, name), name


def test_a_group_named_like_a_client_is_another_domain() -> None:
    assert OWNER.put_key("web1", group="web1").domain_id != PUT.domain_id


@pytest.mark.parametrize("name", ["", "a\nb", "a\0", "tab\t", "\x7f", "\u2028", "é" * 128, "\ud800"])
def test_bad_names_are_refused_for_clients_and_groups(name: str) -> None:
    with pytest.raises(errors.UsageError):
        OWNER.put_key(name)
    with pytest.raises(errors.UsageError):
        OWNER.put_key("web1", group=name)


def test_names_of_the_greatest_length_and_of_any_script_are_fine() -> None:
    for name in ("x" * 255, "Сервер №1", "web 1"):
        assert OWNER.put_key(name).certificate.name == name


@pytest.mark.parametrize("epoch", [0, -1, 1 << 32])
def test_epochs_outside_u32_are_refused(epoch: int) -> None:
    with pytest.raises(errors.UsageError):
        OWNER.put_key("web1", epoch)


def test_a_put_key_holds_nothing_that_the_readers_hold() -> None:
    secrets = {OWNER.seed}
    for held in OWNER.secrets.values():
        secrets |= {held.x25519, held.mlkem_seed, held.psk_root, held.id_root}
    stored = {PUT.cut, PUT.sign_seed, *PUT.psk.values(), *PUT.id_key.values()}
    assert not secrets & stored
    assert not any(secret in PUT.bundle.raw or secret in PUT.certificate.raw for secret in secrets)


def test_list_key_has_no_data_secrets() -> None:
    key = OWNER.list_key()
    assert (key.kind, key.classes) == ("list", {META})
    assert key.psk(META, PUT.client_id, 1) == PUT.psk[META]
    assert key.id_key(META, PUT.domain_id) == PUT.id_key[META]
    for attempt in (
        lambda: key.psk(DATA, PUT.client_id, 1),
        lambda: key.id_key(DATA, PUT.domain_id),
        lambda: key.secrets_of(DATA),
    ):
        with pytest.raises(errors.KeyCannot) as caught:
            attempt()
        assert caught.value.have == "list"
        assert caught.value.need == ["restore", "owner"]


def test_restore_key_reads_both_classes_and_can_neither_sign_nor_certify_nor_cut() -> None:
    key = OWNER.restore_key()
    assert (key.kind, key.classes) == ("restore", {DATA, META})
    for object_class in ObjectClass:
        assert key.psk(object_class, PUT.client_id, 1) == PUT.psk[object_class]
        assert key.id_key(object_class, PUT.domain_id) == PUT.id_key[object_class]
    for ability in ("put_key", "sign_seed", "seed", "cut", "list_key", "restore_key"):
        assert not hasattr(key, ability), ability
    held = [
        secret
        for secrets in key.secrets.values()
        for secret in (secrets.x25519, secrets.psk_root, secrets.id_root, *halves(secrets.mlkem_seed))
    ]
    signers = {OWNER.bundle.certify_key, PUT.certificate.verify_key}
    assert not signers & {verify_key(secret) for secret in held}


def halves(seed: bytes) -> tuple[bytes, bytes]:
    return seed[:32], seed[32:]


def test_there_is_no_key_for_data_alone() -> None:
    with pytest.raises(ValueError, match="names"):
        ReadKey(OWNER.bundle, {DATA: OWNER.secrets[DATA]})


def test_secrets_do_not_show_when_printed() -> None:
    secrets = [OWNER.seed, PUT.cut, PUT.sign_seed, *PUT.psk.values(), *PUT.id_key.values()]
    secrets += [OWNER.secrets[META].x25519, OWNER.secrets[META].mlkem_seed]
    shown = "".join(map(repr, (OWNER, PUT, OWNER.list_key(), OWNER.restore_key(), OWNER.secrets[META])))
    for secret in secrets:
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown


def test_an_owner_key_has_exactly_32_bytes() -> None:
    for length in (31, 33):
        with pytest.raises(ValueError, match="32"):
            OwnerKey(bytes(length))
    assert OwnerKey.generate() != OwnerKey.generate()


@pytest.mark.parametrize("length", [0, BUNDLE_LEN - 1, BUNDLE_LEN + 1])
def test_bundle_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(errors.FormatDamage, match="bytes"):
        OwnerBundle.parse((OWNER.bundle.raw + b"\0")[:length])


@pytest.mark.parametrize("at", range(8))
def test_bundle_prefix_is_exact(at: int) -> None:
    raw = OWNER.bundle.raw
    with pytest.raises(errors.FormatDamage, match="prefix"):
        OwnerBundle.parse(altered(raw, at, bytes((raw[at] ^ 1,))))


@pytest.mark.parametrize("point", LOW_ORDER_POINTS, ids=lambda point: point.hex()[:8])
@pytest.mark.parametrize("at", [X_DATA, X_META])
def test_bundle_with_a_point_of_low_order_is_refused(at: int, point: bytes) -> None:
    with pytest.raises(errors.FormatDamage, match="low order"):
        OwnerBundle.parse(altered(OWNER.bundle.raw, at, point))


@pytest.mark.parametrize("at", [MLKEM_DATA, MLKEM_META])
@pytest.mark.parametrize("coefficient", [3329, 3330, 4095])
@pytest.mark.parametrize("place", [0, 767])
def test_bundle_with_ml_kem_coefficients_from_q_up_is_refused(at: int, coefficient: int, place: int) -> None:
    raw = OWNER.bundle.raw
    where = at + place // 2 * 3
    first = int.from_bytes(raw[where : where + 3], "little")
    shift = 12 * (place % 2)
    packed = (first & ~(0xFFF << shift)) | coefficient << shift
    with pytest.raises(errors.FormatDamage, match="ML-KEM"):
        OwnerBundle.parse(altered(raw, where, packed.to_bytes(3, "little")))
    fine = (first & ~(0xFFF << shift)) | 3328 << shift
    OwnerBundle.parse(altered(raw, where, fine.to_bytes(3, "little")))


def test_a_changed_receiver_is_another_owner() -> None:
    swapped = altered(OWNER.bundle.raw, X_DATA, STRANGER.bundle.receivers[DATA].x25519)
    assert OwnerBundle.parse(swapped).owner_id != OWNER.owner_id


def test_receiver_of_class_secrets_is_what_the_bundle_says() -> None:
    held = OWNER.secrets[DATA]
    assert isinstance(held, ClassSecrets)
    assert held.receiver() == OWNER.bundle.receivers[DATA]
