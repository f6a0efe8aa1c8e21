"""The pinned values, the keys they belong to, and records laid out by hand (crypto does not know the format)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from packnback.crypto.derive import H
from packnback.crypto.envelope import SealingKeys, make_envelope
from packnback.crypto.keys import OwnerKey, PutKey
from packnback.crypto.seal import body_length, encode_payload, object_id, seal_body
from packnback.ids import ObjectClass, class_of

HERE = Path(__file__).parent
VECTORS: dict[str, Any] = json.loads((HERE / "vectors.json").read_text())
GOLDENS: dict[str, Any] = json.loads((HERE / "crypto_goldens.json").read_text())

DATA, META = ObjectClass.DATA, ObjectClass.META
OWNER = OwnerKey(bytes(range(32)))
PUT = OWNER.put_key("web1")
FARM = OWNER.put_key("web1", epoch=7, group="farm")
STRANGER = OwnerKey(b"\x99" * 32)
REPOSITORY = bytes(range(16))


def unhex(value: str) -> bytes:
    return bytes.fromhex(value)


def data_envelope() -> tuple[bytes, bytes, SealingKeys]:
    """The envelope of vectors.json."""
    kem = unhex(VECTORS["kem"]["shared_secret"]), unhex(VECTORS["kem"]["ciphertext"])
    return make_envelope(PUT, REPOSITORY, DATA, secret=b"\x11" * 32, ephemeral=b"\x22" * 32, kem=kem)


def meta_envelope() -> tuple[bytes, bytes, SealingKeys]:
    """The envelope of crypto_goldens.json."""
    kem = unhex(GOLDENS["meta_kem"]["shared_secret"]), unhex(GOLDENS["meta_kem"]["ciphertext"])
    return make_envelope(FARM, REPOSITORY, META, secret=b"\x33" * 32, ephemeral=b"\x44" * 32, kem=kem)


class Sealed(NamedTuple):
    """A record in its parts."""

    id: bytes
    kind: int
    header: bytes
    refs: bytes
    body: bytes

    def record(self) -> bytes:
        joined = self.header + self.refs + self.body
        return joined + H(joined)[:16]


def header_of(kind: int, level: int, refs: bytes, body_len: int, identifier: bytes, envelope_id: bytes) -> bytes:
    counts = (len(refs) // 32).to_bytes(4, "little") + body_len.to_bytes(4, "little")
    return b"PNBR" + bytes((1, kind, level, 0)) + counts + identifier + envelope_id


def seal(
    put_key: PutKey,
    session: tuple[bytes, bytes, SealingKeys],
    kind: int,
    plaintext: bytes,
    *,
    level: int = 0,
    refs: bytes = b"",
    codec_level: int | None = None,
    floor: int | None = None,
    randomness: bytes | None = None,
    padded: bytes | None = None,
    identifier: bytes | None = None,
) -> Sealed:
    """Seal an object the way the layers above do; `padded` and `identifier` let a test lie."""
    _, envelope_id, keys = session
    object_class = class_of(kind)
    payload = padded
    if payload is None:
        payload = bytes(encode_payload(plaintext, object_class, codec_level=codec_level, floor=floor))
    name = identifier
    if name is None:
        name = object_id(put_key.id_key[object_class], put_key.domain_id, kind, refs, plaintext)
    header = header_of(kind, level, refs, body_length(payload), name, envelope_id)
    body = seal_body(keys, header, refs, payload, randomness=randomness)
    return Sealed(name, kind, header, refs, bytes(body))
