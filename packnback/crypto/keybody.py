"""What the five kinds of key files contain, as bytes, and the checks that a key passes each time it is loaded.

::

    owner    seed 32
    public   bundle 2472
    put      bundle │ data psk 32 │ data id key 32 │ meta psk 32 │ meta id key 32 │ cut key 32 │ signing seed 32
             │ certificate length u16 │ certificate
    list     bundle │ meta secrets 160
    restore  bundle │ data secrets 160 │ meta secrets 160
    secrets  x25519 secret 32 │ ML-KEM seed 64 │ psk root 32 │ id root 32

A key that is subtly wrong would make backups that nobody can read, and nobody would know until they are needed.
So decoding checks all that can be checked: that the receivers hash to the owner id in the certificate, that the
certificate verifies, that the signing seed is the certified one, that secrets belong to the bundle's public keys.
What has no public counterpart (psks, id keys, their roots, cut keys) only the file's checksum can vouch for.
"""

from __future__ import annotations

from collections.abc import Sequence

from packnback import errors
from packnback.crypto import exchange
from packnback.crypto.bundle import BUNDLE_LEN, OwnerBundle
from packnback.crypto.certificate import CERTIFICATE_LIMIT, parse_certificate
from packnback.crypto.derive import KEY_LEN, lp
from packnback.crypto.keys import SEED_LEN, ClassSecrets, OwnerKey, PutKey, ReadKey
from packnback.crypto.sign import verify_key
from packnback.ids import ObjectClass

Key = OwnerKey | PutKey | ReadKey | OwnerBundle

KINDS = ("owner", "put", "list", "restore", "public")

_READ_CLASSES: dict[str, Sequence[ObjectClass]] = {
    "list": (ObjectClass.META,),
    "restore": (ObjectClass.DATA, ObjectClass.META),
}
_SECRETS_LEN = 3 * KEY_LEN + exchange.MLKEM_SEED_LEN
_PUT_SECRETS_LEN = 6 * KEY_LEN


def encode_body(key: Key) -> bytes:
    """The bytes of a key, in the layout of its kind."""
    match key:
        case OwnerKey():
            return key.seed
        case OwnerBundle():
            return key.raw
        case ReadKey():
            secrets = b"".join(_encode_secrets(key.secrets[c]) for c in _READ_CLASSES[key.kind])
            return key.bundle.raw + secrets
        case PutKey():
            per_class = b"".join(key.psk[c] + key.id_key[c] for c in ObjectClass)
            return key.bundle.raw + per_class + key.cut + key.sign_seed + lp(key.certificate.raw)


def decode_body(kind: str, body: bytes) -> Key:
    """The key in `body`, checked. Raises FormatDamage (or WrongOwner, for a foreign certificate)."""
    match kind:
        case "owner":
            _check_length(kind, body, SEED_LEN)
            return OwnerKey(body)
        case "public":
            return OwnerBundle.parse(body)
        case "list" | "restore":
            return _decode_read_key(kind, body)
        case "put":
            return _decode_put_key(body)
        case _:
            raise errors.FormatDamage("key", f"there is no kind {kind!r}")


def _decode_read_key(kind: str, body: bytes) -> ReadKey:
    classes = _READ_CLASSES[kind]
    _check_length(kind, body, BUNDLE_LEN + _SECRETS_LEN * len(classes))
    bundle = OwnerBundle.parse(body[:BUNDLE_LEN])
    secrets = {}
    for number, object_class in enumerate(classes):
        at = BUNDLE_LEN + number * _SECRETS_LEN
        secrets[object_class] = _decode_secrets(body[at : at + _SECRETS_LEN])
        if secrets[object_class].receiver() != bundle.receivers[object_class]:
            raise errors.FormatDamage(f"{kind} key", "its secrets do not belong to its public keys")
    return ReadKey(bundle, secrets)


def _decode_put_key(body: bytes) -> PutKey:
    certificate_at = BUNDLE_LEN + _PUT_SECRETS_LEN + 2
    if not certificate_at < len(body) <= certificate_at + CERTIFICATE_LIMIT:
        raise errors.FormatDamage("put key", f"has {len(body)} bytes")
    if int.from_bytes(body[certificate_at - 2 : certificate_at], "little") != len(body) - certificate_at:
        raise errors.FormatDamage("put key", "its length does not fit its certificate")
    bundle = OwnerBundle.parse(body[:BUNDLE_LEN])
    certificate = parse_certificate(body[certificate_at:])
    certificate.verify(bundle)
    secrets = [body[at : at + KEY_LEN] for at in range(BUNDLE_LEN, BUNDLE_LEN + _PUT_SECRETS_LEN, KEY_LEN)]
    data_psk, data_id_key, meta_psk, meta_id_key, cut, sign_seed = secrets
    if verify_key(sign_seed) != certificate.verify_key:
        raise errors.FormatDamage("put key", "its signing seed is not the certified one")
    return PutKey(
        bundle=bundle,
        psk={ObjectClass.DATA: data_psk, ObjectClass.META: meta_psk},
        id_key={ObjectClass.DATA: data_id_key, ObjectClass.META: meta_id_key},
        cut=cut,
        sign_seed=sign_seed,
        certificate=certificate,
    )


def _encode_secrets(secrets: ClassSecrets) -> bytes:
    return secrets.x25519 + secrets.mlkem_seed + secrets.psk_root + secrets.id_root


def _decode_secrets(raw: bytes) -> ClassSecrets:
    seed_end = KEY_LEN + exchange.MLKEM_SEED_LEN
    return ClassSecrets(
        x25519=raw[:KEY_LEN],
        mlkem_seed=raw[KEY_LEN:seed_end],
        psk_root=raw[seed_end : seed_end + KEY_LEN],
        id_root=raw[seed_end + KEY_LEN :],
    )


def _check_length(kind: str, body: bytes, length: int) -> None:
    if len(body) != length:
        raise errors.FormatDamage(f"{kind} key", f"has {len(body)} bytes instead of {length}")
