"""Every construction written a second time, from the document alone, and compared with what packnback makes.

`test_format_document.py` reads; this writes. What is on the left of a comparison uses nothing of packnback: a golden
value that packnback made itself would only say that a mistake has not changed. Sections are those of docs/format.md.
"""

from __future__ import annotations

import base64
import json
import struct
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import nacl.bindings as sodium
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from fastcdc.fastcdc_cy import fastcdc_cy

from packnback.backup.cut import Cutter
from packnback.crypto import envelope as envelopes
from packnback.crypto import keytext
from packnback.crypto.keys import OwnerKey
from packnback.crypto.payload import Payload, choose_payload, padme
from packnback.crypto.seal import seal_body
from packnback.format import config, pack, record, snapshot
from packnback.ids import KIB, MIB, ObjectClass

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors.json").read_text())
SEED, REPOSITORY = bytes(range(32)), bytes(range(16))
OWNER = OwnerKey(SEED)


# --- §0 ------------------------------------------------------------------------------------------------------


def H(m: bytes) -> bytes:
    return blake3(m).digest()


def MAC(k: bytes, m: bytes, n: int = 32) -> bytes:
    return blake3(m, key=k).digest(n)


def DK(c: str, m: bytes, n: int = 32) -> bytes:
    return blake3(m, derive_key_context="packnback v1 " + c).digest(n)


def lp(x: bytes) -> bytes:
    return struct.pack("<H", len(x)) + x


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


def seal(key: bytes, nonce: bytes, aad: bytes, message: bytes) -> bytes:
    return sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(message, aad, nonce, key)


def sign(seed: bytes, message: bytes) -> bytes:
    return sodium.crypto_sign(message, sodium.crypto_sign_seed_keypair(seed)[1])[:64]


def cbor(value: int | bytes | list[Any]) -> bytes:
    """RFC 8949 §3, as much of it as footers and batches need."""
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(map(cbor, value))
    return _head(0, value)


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes((major << 5 | argument,))
    code, size = next((i, 1 << i) for i in range(4) if argument < 1 << (8 << i))
    return bytes((major << 5 | (24 + code),)) + argument.to_bytes(size, "big")


# --- §7.1, §7.2, §7.3 ----------------------------------------------------------------------------------------

CLASSES = {1: "data", 2: "meta"}
X25519 = {c: DK(f"owner {name} x25519", SEED) for c, name in CLASSES.items()}
MLKEM_SEED = {c: DK(f"owner {name} mlkem768", SEED, 64) for c, name in CLASSES.items()}
PSK_ROOT = {c: DK(f"owner {name} psk root", SEED) for c, name in CLASSES.items()}
ID_ROOT = {c: DK(f"owner {name} id root", SEED) for c, name in CLASSES.items()}
CERTIFY = DK("owner certify ed25519", SEED)
PUBLIC = {
    c: sodium.crypto_scalarmult_base(X25519[c])
    + MLKEM768PrivateKey.from_seed_bytes(MLKEM_SEED[c]).public_key().public_bytes_raw()
    for c in CLASSES
}
BUNDLE = b"PNBO\1\0\0\0" + sodium.crypto_sign_seed_keypair(CERTIFY)[0] + PUBLIC[1] + PUBLIC[2]


class Client:
    """A put key."""

    def __init__(self, name: bytes, epoch: int, group: bytes | None = None) -> None:
        name_root = DK("owner name root", SEED)
        self.id = MAC(name_root, b"client\0" + lp(name), 16)
        scope = b"private\0" + lp(name) if group is None else b"group\0" + lp(group)
        self.domain = MAC(name_root, scope + u32(epoch), 16)
        self.epoch = u32(epoch)
        self.psk = {c: MAC(PSK_ROOT[c], self.id + self.epoch) for c in CLASSES}
        self.id_key = {c: MAC(ID_ROOT[c], self.domain) for c in CLASSES}
        self.cut = MAC(DK("owner cut root", SEED), self.domain)
        self.sign_seed = MAC(DK("owner client sign root", SEED), self.id + self.epoch)
        verify_key = sodium.crypto_sign_seed_keypair(self.sign_seed)[0]
        signed = b"PNBC\1\0\0\0" + H(BUNDLE) + self.id + self.domain + self.epoch + verify_key + lp(name)
        self.certificate = signed + sign(CERTIFY, b"packnback v1 certificate\0" + signed)

    def body(self) -> bytes:
        """§8.2"""
        per_class = b"".join(self.psk[c] + self.id_key[c] for c in CLASSES)
        return BUNDLE + per_class + self.cut + self.sign_seed + lp(self.certificate)


WEB1 = Client(b"web1", 1)


def test_the_owner_of_the_vectors() -> None:
    assert H(BUNDLE).hex() == VECTORS["owner_id"] and len(BUNDLE) == 2472
    assert OWNER.bundle.raw == BUNDLE
    for c, name in CLASSES.items():
        secrets = OWNER.secrets[ObjectClass(c)]
        assert (secrets.x25519, secrets.mlkem_seed) == (X25519[c], MLKEM_SEED[c])
        assert (secrets.psk_root, secrets.id_root) == (PSK_ROOT[c], ID_ROOT[c])
        assert PUBLIC[c][:32].hex() == VECTORS["x25519_pk"][name]
        assert H(PUBLIC[c][32:]).hex() == VECTORS["mlkem768_pk_blake3"][name]


def test_the_client_of_the_vectors() -> None:
    assert (WEB1.id.hex(), WEB1.domain.hex()) == (VECTORS["client_id"], VECTORS["domain_id"])
    assert Client(b"web1", 1, b"farm").domain.hex() == VECTORS["domain_id_group_farm"]
    for c, name in CLASSES.items():
        assert (WEB1.psk[c].hex(), WEB1.id_key[c].hex()) == (VECTORS["psk"][name], VECTORS["id_key"][name])
    assert (WEB1.cut.hex(), WEB1.sign_seed.hex()) == (VECTORS["cut"], VECTORS["sign_seed"])
    assert WEB1.certificate.hex() == VECTORS["certificate"]


@pytest.mark.parametrize("group", [None, "web1", "Gruppe ü"])
@pytest.mark.parametrize("epoch", [1, 7, (1 << 32) - 1])
@pytest.mark.parametrize("name", ["web1", "büro", "n" * 255])
def test_put_keys(name: str, epoch: int, group: str | None) -> None:
    expected = Client(name.encode(), epoch, None if group is None else group.encode())
    made = OWNER.put_key(name, epoch, group)
    assert made.certificate.raw == expected.certificate
    assert made.chunk_key == DK("cut chunk", expected.cut)
    assert made.bundle_key == DK("cut bundle", expected.cut)
    assert made.page_key == DK("cut page", expected.cut)
    assert content_of(keytext.encode_key(made)) == ("packnback put key v1", expected.body())


# --- §8 ------------------------------------------------------------------------------------------------------


def content_of(text: bytes) -> tuple[str, bytes]:
    """First line and content of a key file, its checksum verified."""
    first, _, rest = text.partition(b"\n")
    raw = base64.b64decode(b"".join(rest.split()), validate=True)
    assert H(first + b"\n" + raw[:-16])[:16] == raw[-16:]
    return first.decode(), raw[:-16]


def secrets_of(c: int) -> bytes:
    return X25519[c] + MLKEM_SEED[c] + PSK_ROOT[c] + ID_ROOT[c]


@pytest.mark.parametrize(
    ("kind", "key", "body"),
    [
        ("owner", OWNER, SEED),
        ("public", OWNER.bundle, BUNDLE),
        ("list", OWNER.list_key(), BUNDLE + secrets_of(2)),
        ("restore", OWNER.restore_key(), BUNDLE + secrets_of(1) + secrets_of(2)),
    ],
)
def test_key_files(kind: str, key: Any, body: bytes) -> None:
    assert content_of(keytext.encode_key(key)) == (f"packnback {kind} key v1", body)


def test_a_protected_key_file() -> None:
    line = "packnback owner key v1 argon2id opslimit=1 memlimit=67108864 salt=" + "5a" * 16
    key = sodium.crypto_pwhash_alg(32, b"a word", b"\x5a" * 16, 1, 64 * MIB, sodium.crypto_pwhash_ALG_ARGON2ID13)
    content = b"n" * 24 + seal(key, b"n" * 24, line.encode(), SEED)
    packed = base64.b64encode(content + H(line.encode() + b"\n" + content)[:16])
    assert keytext.decode_key(line.encode() + b"\n" + packed + b"\n", "x", lambda: b"a word") == OWNER


# --- §7.4, §6 ------------------------------------------------------------------------------------------------


class Envelope:
    """§7.4, by a client who knows what the vectors recorded."""

    def __init__(self, c: int, secret: bytes, ephemeral: bytes, kem: tuple[bytes, bytes]) -> None:
        head = b"PNBE\1" + bytes((c, 1, 0)) + REPOSITORY + WEB1.domain + WEB1.id + WEB1.epoch + H(BUNDLE)
        epk = sodium.crypto_scalarmult_base(ephemeral)
        transcript = H(head + PUBLIC[c] + epk + kem[1])
        shared = kem[0] + sodium.crypto_scalarmult(ephemeral, PUBLIC[c][:32])
        kek = DK("envelope wrap", WEB1.psk[c] + shared + transcript)
        sealed = head + epk + kem[1] + seal(kek, bytes(24), head, secret)
        material = secret + H(sealed)
        self.raw = sealed + DK("envelope commit", material)
        self.object_key, self.nonce_key = DK("object key", material), DK("nonce key", material)
        self.id = H(self.raw)[:16]


KEM = bytes.fromhex(VECTORS["kem"]["shared_secret"]), bytes.fromhex(VECTORS["kem"]["ciphertext"])
DATA_ENVELOPE = Envelope(1, b"\x11" * 32, b"\x22" * 32, KEM)


def padded(c: int, codec: int, stored: bytes, raw: int, floor: int) -> bytes:
    """§6.2"""
    front = bytes((codec,)) + u32(len(stored)) + u32(raw) + stored
    return front.ljust(max(rounded(len(front)), floor), b"\0")


def rounded(length: int) -> int:
    """Padmé, by division instead of masks."""
    if length < 2:
        return length
    e = max(e for e in range(64) if 2**e <= length)
    s = max(s for s in range(64) if 2**s <= e) + 1 if e else 1
    unit = 2 ** max(e - s, 0)
    return -(-length // unit) * unit


def object_record(
    envelope: Envelope, c: int, kind: int, level: int, refs: bytes, plaintext: bytes, payload: bytes, fresh: bytes
) -> bytes:
    """§6.1, §6.3, §4.1"""
    count = u32(len(refs) // 32)
    name = WEB1.domain[:8] + MAC(WEB1.id_key[c], bytes((kind,)) + count + refs + plaintext, 24)
    header = b"PNBR\1" + bytes((kind, level, 0)) + count + u32(len(payload) + 40) + name + envelope.id
    aad = header + H(refs)
    nonce = MAC(envelope.nonce_key, fresh + aad, 24)
    front = header + refs + nonce + seal(envelope.object_key, nonce, aad, payload)
    return front + H(front)[:16]


def envelope_record(envelope: bytes) -> bytes:
    front = b"PNBR\1\0\0\0" + u32(0) + u32(len(envelope)) + H(envelope) + H(envelope)[:16] + envelope
    return front + H(front)[:16]


def test_the_envelope_of_the_vectors() -> None:
    assert DATA_ENVELOPE.raw.hex() == VECTORS["envelope"] and len(DATA_ENVELOPE.raw) == 1292
    assert DATA_ENVELOPE.id.hex() == VECTORS["envelope_id"]
    assert DATA_ENVELOPE.object_key.hex() == VECTORS["object_key"]
    assert DATA_ENVELOPE.nonce_key.hex() == VECTORS["nonce_key"]


def test_the_record_of_the_vectors() -> None:
    payload = padded(1, 0, b"hello", 5, 0)
    raw = object_record(DATA_ENVELOPE, 1, 1, 0, b"", b"hello", payload, bytes(32))
    assert raw.hex() == VECTORS["record"] and raw[16:48].hex() == VECTORS["object_id"]


def test_padme() -> None:
    assert {length: str(rounded(int(length))) for length in VECTORS["padme"]} == {
        length: str(size) for length, size in VECTORS["padme"].items()
    }
    for length in [*range(5000), *(n + d for n in (65_536, 1 << 20, 5_000_000, 1 << 24) for d in (-1, 0, 1))]:
        assert padme(length) == rounded(length)


META_SECRET, META_EPHEMERAL, META_FRESH = b"\x33" * 32, b"\x44" * 32, b"\x55" * 32
META_ENVELOPE = Envelope(2, META_SECRET, META_EPHEMERAL, KEM)
"""Nobody could open it, as its ciphertext is for the other class; its bytes are as good as any."""


def test_a_meta_envelope_and_a_record_with_refs() -> None:
    put_key = OWNER.put_key("web1")
    raw, identity, keys = envelopes.make_envelope(
        put_key, REPOSITORY, ObjectClass.META, secret=META_SECRET, ephemeral=META_EPHEMERAL, kem=KEM
    )
    assert (raw, identity) == (META_ENVELOPE.raw, META_ENVELOPE.id)
    assert record.envelope_record(raw) == envelope_record(META_ENVELOPE.raw)
    refs, plaintext = WEB1.domain[:8] + b"a" * 24 + WEB1.domain[:8] + b"b" * 24, b"of a page " * 1000
    payload: Payload = choose_payload(plaintext, ObjectClass.META, codec_level=3)
    assert payload.codec == 1  # what zstd makes of it is zstd's business
    laid_out = padded(2, 1, bytes(payload.stored), len(plaintext), 4096)
    expected = object_record(META_ENVELOPE, 2, 3, 1, refs, plaintext, laid_out, META_FRESH)
    header = record.encode_header(3, 1, 2, payload.padded_len + 40, expected[16:48], identity)
    body = seal_body(keys, header, refs, payload.laid_out((), 0), randomness=META_FRESH)
    assert record.finish(header, refs, body) == expected


# --- §3, §4.2, §5 --------------------------------------------------------------------------------------------


def test_config() -> None:
    front = b"PNBF\1\0\0\0" + REPOSITORY + BUNDLE
    assert config.encode(config.Config(REPOSITORY, BUNDLE)) == front + H(front)[:16]


def test_pack() -> None:
    sealed = envelope_record(DATA_ENVELOPE.raw)
    item = bytes.fromhex(VECTORS["record"])
    record_row = [5 + len(sealed), len(item), 1, 0, item[16:48], item[-16:], 0, b""]
    envelope_row = [5, len(sealed), H(DATA_ENVELOPE.raw), sealed[-16:], WEB1.id, WEB1.domain, 1, 1]
    footer = cbor([1, b"n" * 16, [record_row], [envelope_row]])
    offset = 5 + len(sealed) + len(item)
    trailer = u64(offset) + u32(len(footer)) + H(footer) + b"PNBK\1"
    assert pack.encode_footer(b"n" * 16, [pack.RecordRow(*record_row)], [pack.EnvelopeRow(*envelope_row)]) == footer
    assert pack.encode_trailer(offset, footer) == trailer
    found = pack.decode_trailer(trailer, offset + len(footer) + 49)
    assert pack.decode_footer(footer, found).records == (pack.RecordRow(*record_row),)


def header_of(sequence: int, prev: bytes, metadata: bytes, flags: int = 0) -> bytes:
    return (
        b"PNBH\1" + bytes((flags, 0, 0)) + REPOSITORY + WEB1.id + WEB1.domain + WEB1.epoch + u64(sequence) + prev
        + metadata[64:96] + H(metadata) + struct.pack("<q", -1) + H(WEB1.certificate)
    )  # fmt: skip


def receipt(flags: int = 0) -> bytes:
    front = b"PNBT\1" + bytes((flags, 0, 0)) + struct.pack("<q", 1 << 60) + u64(7) + u64(1 << 40)
    return front + H(front)[:16]


def metadata_record() -> bytes:
    plaintext = b"what packnback.format.metadata says"
    root = WEB1.domain[:8] + b"r" * 24
    return object_record(META_ENVELOPE, 2, 5, 3, root, plaintext, padded(2, 0, plaintext, 35, 4096), META_FRESH)


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_snapshot_file(flags: int) -> None:
    metadata = metadata_record()
    header = header_of(2, b"p" * 32, metadata, flags)
    signature = sign(WEB1.sign_seed, b"packnback v1 snapshot\0" + header)
    sent = header + signature + WEB1.certificate + envelope_record(META_ENVELOPE.raw) + metadata
    raw = sent + receipt(flags & 1)
    found = snapshot.decode_file(raw)
    assert (found.id, found.receipt) == (H(header), snapshot.Receipt(1 << 60, 7, 1 << 40, bool(flags & 1)))
    assert snapshot.encode_file(found) == raw and snapshot.encode_header(found.header) == header
    assert found.signature == signature and found.certificate == WEB1.certificate
    assert (found.header.sequence, found.header.prev, found.header.time_ns) == (2, b"p" * 32, -1)


def test_header_batch() -> None:
    metadata = metadata_record()
    rows = []
    for sequence, prev in ((1, bytes(32)), (2, b"p" * 32), (300, b"q" * 32)):
        header = header_of(sequence, prev, metadata)
        rows.append([header, sign(WEB1.sign_seed, b"packnback v1 snapshot\0" + header), WEB1.certificate, receipt()])
    batch = cbor([1, sorted(rows)])
    kept = [snapshot.KeptHeader(*row) for row in rows]
    assert snapshot.encode_batch(kept[::-1]) == batch
    assert snapshot.decode_batch(batch) == sorted(kept)


# --- where large files are cut: no reader depends on it, deduplication does ----------------------------------


def test_cuts() -> None:
    """The document of the constructions: one call of BLAKE2b for the end of each piece, 1 in 96."""
    key = DK("cut chunk", WEB1.cut)
    data = Random(7).randbytes(24 * MIB)
    lengths, start, at = [], 0, 0
    for piece in fastcdc_cy(data, 4 * KIB, 8 * KIB, 32 * KIB):
        at += piece.length
        last = blake2b(data[at - 64 : at], key=key, digest_size=8).digest()
        chosen = int.from_bytes(last, "little") < 2**64 // 96
        length = at - start
        if length >= 256 * KIB and (chosen or length > 4 * MIB - 32 * KIB) and len(data) - at >= 256 * KIB:
            lengths.append(length)
            start = at
    lengths.append(len(data) - start)
    assert [c.length for c in Cutter(OWNER.put_key("web1").chunk_key).feed(memoryview(data), final=True)] == lengths
    assert len(lengths) > 8
