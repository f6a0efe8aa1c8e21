"""A reader written from docs/format.md alone, which imports nothing of packnback, reads the golden repository.

It is what somebody would write in ten years, with the document and a few libraries. Section numbers are the
document's. If this test has to be changed for a change of packnback, old repositories have become unreadable.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import cbor2
import nacl.bindings as sodium
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

GOLDEN = Path(__file__).parent / "golden"
# Length and the start of the SHA-256 of each file, taken when the repository was built.
CONTENTS = {
    b"a.txt": (6, "5891b5b522d5df08"),
    b"b.txt": (33, "ead5eced34db5934"),
    b"empty": (0, "e3b0c44298fc1c14"),
    b"far": (12_135, "bd2be67cfabe13fc"),
    b"sparse": (102_192, "23510585edd25996"),
}
# §8.1, as `packnback key new` wrote it for the seed 00 … 1f.
OWNER_KEY = """packnback owner key v1
AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh824g5pjMFKwqdLEHoFux7W
"""


def H(m: bytes) -> bytes:
    return blake3(m).digest()


def MAC(k: bytes, m: bytes, n: int = 32) -> bytes:
    return blake3(m, key=k).digest(n)


def DK(c: str, m: bytes, n: int = 32) -> bytes:
    return blake3(m, derive_key_context="packnback v1 " + c).digest(n)


def aead_open(key: bytes, nonce: bytes, aad: bytes, sealed: bytes) -> bytes:
    return sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, aad, nonce, key)


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def read_owner_key(text: str) -> bytes:
    """§8.1, §8.2: the seed."""
    first, _, rest = text.partition("\n")
    raw = base64.b64decode("".join(rest.split()))
    assert H(first.encode() + b"\n" + raw[:-16])[:16] == raw[-16:]
    return raw[:-16]


class Keys:
    """§7.1 for one class."""

    def __init__(self, seed: bytes, name: str) -> None:
        self.x25519 = DK(f"owner {name} x25519", seed)
        self.mlkem = MLKEM768PrivateKey.from_seed_bytes(DK(f"owner {name} mlkem768", seed, 64))
        self.psk_root = DK(f"owner {name} psk root", seed)
        self.id_root = DK(f"owner {name} id root", seed)
        self.public = sodium.crypto_scalarmult_base(self.x25519) + self.mlkem.public_key().public_bytes_raw()


class Reader:
    """§1, step by step."""

    def __init__(self, root: Path, key_text: str) -> None:
        seed = read_owner_key(key_text)
        self.keys = {1: Keys(seed, "data"), 2: Keys(seed, "meta")}
        self.certify, _ = sodium.crypto_sign_seed_keypair(DK("owner certify ed25519", seed))
        self.bundle = b"PNBO\1\0\0\0" + self.certify + self.keys[1].public + self.keys[2].public
        self.repository_id = self.read_config((root / "config").read_bytes())
        self.records: dict[bytes, bytes] = {}
        self.envelopes: dict[bytes, bytes] = {}
        for path in sorted(root.glob("packs/*/*.pack")):
            self.read_pack(path)

    def read_config(self, data: bytes) -> bytes:
        """§3"""
        assert len(data) == 2512 and data[:8] == b"PNBF\1\0\0\0" and H(data[:-16])[:16] == data[-16:]
        assert data[24:2496] == self.bundle
        return data[8:24]

    def read_pack(self, path: Path) -> None:
        """§4.2"""
        data = path.read_bytes()
        offset, length, digest, magic = struct.unpack("<QI32s5s", data[-49:])
        footer = data[offset : offset + length]
        assert data[:5] == magic == b"PNBK\1" and offset + length + 49 == len(data)
        assert H(footer) == digest and path.stem == digest.hex() and path.parent.name == path.stem[:2]
        _version, _nonce, rows, envelope_rows = cbor2.loads(footer)
        tiled = sorted([(r[0], r[1]) for r in rows] + [(r[0], r[1]) for r in envelope_rows])
        assert tiled[0][0] == 5 and sum(tiled[-1]) == offset
        assert all(sum(a) == b[0] for a, b in pairwise(tiled))
        for at, n, identity, checksum, client, domain, epoch, class_ in envelope_rows:
            kind, level, _, object_id, envelope_id, refs, body = self.parse_record(data[at : at + n])
            assert (kind, level, refs) == (0, 0, b"") and identity == object_id == H(body)
            assert envelope_id == identity[:16] and checksum == data[at + n - 16 : at + n]
            assert (body[5], body[24:40], body[40:56], body[56:60]) == (class_, domain, client, u32(epoch))
            self.envelopes[envelope_id] = body
        for at, n, kind, level, object_id, checksum, envelope, refs in rows:
            raw = data[at : at + n]
            parsed = self.parse_record(raw)
            assert parsed[:2] == (kind, level) and parsed[3] == object_id and parsed[5] == refs
            assert parsed[4] == envelope_rows[envelope][2][:16] and checksum == raw[-16:]
            self.records[object_id] = raw

    @staticmethod
    def parse_record(raw: bytes) -> tuple[int, int, bytes, bytes, bytes, bytes, bytes]:
        """§4.1: kind, level, header, id, envelope id, refs, body."""
        magic, kind, level, flags, n, b, object_id, envelope_id = struct.unpack("<5sBBBII32s16s", raw[:64])
        assert magic == b"PNBR\1" and flags == 0 and len(raw) == 64 + 32 * n + b + 16
        assert H(raw[:-16])[:16] == raw[-16:]
        refs = raw[64 : 64 + 32 * n]
        return kind, level, raw[:64], object_id, envelope_id, refs, raw[64 + 32 * n : -16]

    def open_envelope(self, envelope: bytes) -> bytes:
        """§7.4: the object key."""
        assert len(envelope) == 1292 and envelope[:5] == b"PNBE\1" and envelope[6:8] == b"\1\0"
        keys = self.keys[envelope[5]]
        assert envelope[8:24] == self.repository_id and envelope[60:92] == H(self.bundle)
        head, epk, ct, wrap = envelope[:92], envelope[92:124], envelope[124:1212], envelope[1212:1260]
        psk = MAC(keys.psk_root, envelope[40:60])  # client id and epoch stand side by side
        transcript = H(head + keys.public + epk + ct)
        shared = keys.mlkem.decapsulate(ct) + sodium.crypto_scalarmult(keys.x25519, epk)
        secret = aead_open(DK("envelope wrap", psk + shared + transcript), bytes(24), head, wrap)
        assert DK("envelope commit", secret + H(envelope[:1260])) == envelope[1260:]
        return DK("object key", secret + H(envelope[:1260]))

    def open(self, raw: bytes, envelope: bytes) -> tuple[int, list[bytes], bytes]:
        """§6: kind, refs, plaintext."""
        kind, level, header, object_id, envelope_id, refs, body = self.parse_record(raw)
        assert H(envelope)[:16] == envelope_id and envelope[5] == (1 if kind == 1 else 2)
        split = [refs[i : i + 32] for i in range(0, len(refs), 32)]
        assert level == (0 if kind == 1 else 1 + max((self.level(r) for r in split), default=0))
        padded = aead_open(self.open_envelope(envelope), body[:24], header + H(refs), body[24:])
        codec, stored, length = struct.unpack_from("<BII", padded)
        e = (9 + stored).bit_length() - 1
        unit = 1 << (e - e.bit_length())
        assert len(padded) == max(-(-(9 + stored) // unit) * unit, 16384 if kind == 1 else 4096)
        assert not any(padded[9 + stored :])
        plaintext = padded[9 : 9 + stored]
        if codec == 1:
            plaintext = zstandard.ZstdDecompressor().decompress(plaintext)
        assert codec in (0, 1) and len(plaintext) == length
        id_key = MAC(self.keys[envelope[5]].id_root, envelope[24:40])
        named = bytes((kind,)) + u32(len(split)) + refs + plaintext
        assert object_id == envelope[24:32] + MAC(id_key, named, 24)
        return kind, split, plaintext

    def level(self, object_id: bytes) -> int:
        return self.records[object_id][6]

    def fetch(self, object_id: bytes, *kinds: int) -> tuple[int, list[bytes], bytes]:
        raw = self.records[object_id]
        found = self.open(raw, self.envelopes[raw[48:64]])
        assert found[0] in kinds
        return found

    def read_snapshot(self, path: Path) -> dict[str, Any]:
        """§5.1, §5.2: the metadata, and in it the root and the domain."""
        data = path.read_bytes()
        header, signature = data[:204], data[204:268]
        assert header[:8] == b"PNBH\1\0\0\0" and header[8:24] == self.repository_id
        end = 268 + 110 + int.from_bytes(data[376:378], "little") + 64
        certificate = data[268:end]
        assert H(certificate) == header[172:204] and certificate[:8] == b"PNBC\1\0\0\0"
        assert certificate[8:40] == H(self.bundle) and certificate[40:76] == header[24:60]
        signed = b"packnback v1 certificate\0" + certificate[:-64]
        sodium.crypto_sign_open(certificate[-64:] + signed, self.certify)
        sodium.crypto_sign_open(signature + b"packnback v1 snapshot\0" + header, certificate[76:108])
        sequence = int.from_bytes(header[60:68], "little")
        assert path.name == f"{header[24:40].hex()}-{sequence:016x}.snap"
        metadata_at = end + 64 + 1292 + 16
        envelope = self.parse_record(data[end:metadata_at])[6]
        assert H(data[metadata_at:-48]) == header[132:164]
        kind, refs, plaintext = self.open(data[metadata_at:-48], envelope)
        assert kind == 5 and refs == [header[100:132]] and (envelope[40:60], envelope[24:40]) == (
            header[24:40] + header[56:60],
            header[40:56],
        )
        assert plaintext[:88] == header[24:40] + header[60:132]
        receipt = data[-48:]
        assert receipt[:5] == b"PNBT\1" and H(receipt[:32])[:16] == receipt[32:]
        found: dict[str, Any] = cbor2.loads(plaintext[88:])
        return found | {"root": refs[0], "domain": header[40:56], "name": certificate[110:-64]}

    def pages(self, object_id: bytes, depth: int | None = None) -> Iterator[bytes]:
        """§9.3: the pages under a table, in order."""
        _, refs, plaintext = self.fetch(object_id, 4)
        version, found, order, firsts, totals = cbor2.loads(plaintext)
        assert version == 1 and depth in (None, found) and sorted(order) == list(range(len(refs)))
        assert len(firsts) == len(totals) == len(refs)
        for i in order:
            if found == 0:
                yield refs[i]
            else:
                yield from self.pages(refs[i], found - 1)

    def groups(self, page: bytes) -> Iterator[tuple[bytes, int, list[bytes], bytes]]:
        """§9.2: path, part, ids, block."""
        _, refs, plaintext = self.fetch(page, 3)
        version, rows = cbor2.loads(plaintext)
        assert version == 1
        for path, part, indices, block in rows:
            yield path, part, [refs[i] for i in indices], block

    def look_up(self, root: bytes, directory: bytes) -> dict[bytes, dict[str, Any]]:
        """§9.4: the entries of one directory, by name; reads one page."""
        wanted, object_id = (directory.split(b"/") if directory else [], 0), root
        while True:
            _, refs, plaintext = self.fetch(object_id, 4)
            _, depth, order, firsts, _ = cbor2.loads(plaintext)
            keys = [(path.split(b"/") if path else [], part) for path, part in firsts]
            object_id = refs[order[max(i for i, key in enumerate(keys) if key <= wanted)]]
            if depth == 0:
                break
        found = {path: self.entries(ids, block) for path, _, ids, block in self.groups(object_id)}
        return found[directory]

    @staticmethod
    def entries(ids: list[bytes], block: bytes) -> dict[bytes, dict[str, Any]]:
        """§9.1: by name; extents as (object or None, offset, length)."""
        names, types, modes, uids, gids, mtimes, sizes, objects, offsets, checks, rest = cbor2.loads(block)
        found = {}
        for i, name in enumerate(names):
            mode, uid, gid = (c if isinstance(c, int) else c[i] for c in (modes, uids, gids))
            rare = rest.get(i, {})
            extents = [(ids[objects[i] - 1], offsets[i], sizes[i])] if objects[i] else []
            flat = rare.pop(1, [])
            extents += [
                (ids[flat[j] - 1] if flat[j] else None, flat[j + 1], flat[j + 2]) for j in range(0, len(flat), 3)
            ]
            depth, *far = rare.pop(2, [0])
            found[name] = {
                "type": chr(types[i]), "mode": mode, "uid": uid, "gid": gid, "mtime": mtimes[i], "size": sizes[i],
                "extents": extents, "depth": depth, "check": checks[i], "rare": rare,
                "far": [(ids[far[j] - 1], far[j + 1]) for j in range(0, len(far), 2)],
            }  # fmt: skip
        return found

    def content(self, entry: dict[str, Any], domain: bytes) -> bytes:
        """§9.1: a file's bytes, checked."""
        extents = list(entry["extents"])
        for object_id, covered in entry["far"]:
            extents += (inner := list(self.far(object_id, entry["depth"] - 1)))
            assert sum(e[2] for e in inner) == covered
        parts = []
        for object_id, offset, length in extents:
            source = bytes(length) if object_id is None else self.fetch(object_id, 1)[2][offset:]
            parts.append(source[:length])
        whole = b"".join(parts)
        assert len(whole) == entry["size"]
        if entry["check"]:
            id_key = MAC(self.keys[1].id_root, domain)
            assert MAC(id_key, b"file check\0" + whole, 8) == entry["check"]
        return whole

    def far(self, object_id: bytes, depth: int) -> Iterator[tuple[bytes | None, int, int]]:
        _, refs, plaintext = self.fetch(object_id, 2)
        version, found, flat = cbor2.loads(plaintext)
        assert version == 1 and found == depth
        if depth:
            for j in range(0, len(flat), 2):
                yield from self.far(refs[flat[j] - 1], depth - 1)
        else:
            for j in range(0, len(flat), 3):
                yield (refs[flat[j] - 1] if flat[j] else None), flat[j + 1], flat[j + 2]


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(GOLDEN, OWNER_KEY)


@pytest.fixture(scope="module")
def snapshot(reader: Reader) -> dict[str, Any]:
    (path,) = (GOLDEN / "snapshots").iterdir()
    return reader.read_snapshot(path)


def test_the_snapshot(snapshot: dict[str, Any]) -> None:
    assert (snapshot["host"], snapshot["name"], snapshot["paths"]) == ("web1.example", b"web1", [b"/home/u"])
    assert snapshot["tags"] == {"why": "golden"}


def test_the_tree(reader: Reader, snapshot: dict[str, Any]) -> None:
    groups = [group for page in reader.pages(snapshot["root"]) for group in reader.groups(page)]
    assert [(path, part) for path, part, _, _ in groups] == [(b"", 0), (b"home", 0), (b"home/u", 0)]
    names = {path: list(reader.entries(ids, block)) for path, _, ids, block in groups}
    assert names == {
        b"": [b"home"],
        b"home": [b"u"],
        b"home/u": [b"a.txt", b"b.txt", b"device", b"empty", b"far", b"link", b"na\xffme", b"sparse"],
    }


def test_the_files(reader: Reader, snapshot: dict[str, Any]) -> None:
    """Contents come from a bundle, from nowhere, by an extent object, and with a hole in the middle."""
    entries = reader.look_up(snapshot["root"], b"home/u")
    contents = {n: reader.content(e, snapshot["domain"]) for n, e in entries.items() if e["type"] == "f"}
    assert {n: (len(c), hashlib.sha256(c).hexdigest()[:16]) for n, c in contents.items()} == CONTENTS
    assert contents[b"a.txt"] == b"hello\n"


def test_what_is_no_file(reader: Reader, snapshot: dict[str, Any]) -> None:
    entries = reader.look_up(snapshot["root"], b"home/u")
    assert (entries[b"device"]["type"], entries[b"device"]["rare"]) == ("c", {4: 0x501})
    assert (entries[b"link"]["type"], entries[b"link"]["rare"]) == ("l", {3: b"../elsewhere"})
    assert entries[b"na\xffme"]["type"] == "p"
    assert entries[b"a.txt"]["rare"] == {5: b"12345678"}
    assert (entries[b"a.txt"]["mode"], entries[b"a.txt"]["mtime"]) == (0o644, 1_700_000_000_123_456_789)
    home = reader.look_up(snapshot["root"], b"home")
    assert (home[b"u"]["mode"], home[b"u"]["mtime"]) == (0o1777, -1)
    assert home[b"u"]["rare"] == {6: {b"user.a": b"", b"user.b": b"\0\xff"}}
    assert reader.look_up(snapshot["root"], b"")[b"home"]["rare"] == {7: 1}
