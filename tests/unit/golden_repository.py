"""A whole repository in a few files, built with real keys: what the tests of the formats start from.

`build` makes it anew (sealing draws fresh randomness, so the bytes differ from run to run); ``golden/`` holds
one that was built once and is never edited: whatever packnback becomes, it has to read those files.

The owner key is the seed 00 … 1f, the client ``web1`` in epoch 1, the repository id 00 … 0f.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packnback.crypto.derive import MAC, H
from packnback.crypto.envelope import SealingKeys, make_envelope
from packnback.crypto.keys import OwnerKey
from packnback.crypto.payload import encode_payload
from packnback.crypto.seal import body_length, object_id, seal_body
from packnback.crypto.sign import sign_snapshot
from packnback.format import config, entry, listing, metadata, pack, record, snapshot
from packnback.format.entry import Entry, Extent
from packnback.ids import Kind, ObjectClass, class_of

OWNER = OwnerKey(bytes(range(32)))
PUT_KEY = OWNER.put_key("web1")
REPOSITORY_ID = bytes(range(16))
TIME_NS = 1_700_000_000_123_456_789
GOLDEN = Path(__file__).parent / "golden"

SMALL = {b"a.txt": b"hello\n", b"b.txt": b"a second file in the same bundle\n"}
BUNDLE = b"".join(SMALL.values())
LARGE = b"".join(b"%06d: the quick brown fox jumps over the lazy dog\n" % n for n in range(2000))
SPARSE = LARGE[:50_000] + bytes(8192) + LARGE[60_000:]
FAR = LARGE[1000:9000] + bytes(4096) + BUNDLE


@dataclass(frozen=True)
class Built:
    """The files of the repository, and the plaintexts that they hold, for comparison."""

    files: dict[str, bytes]
    contents: dict[bytes, bytes]
    plaintexts: dict[bytes, bytes]
    entries: dict[bytes, list[Entry]]
    metadata: metadata.Metadata


class _Maker:
    """Seals objects of one class and collects their records, as a session does."""

    def __init__(self, object_class: ObjectClass) -> None:
        self.object_class = object_class
        self.envelope, self.envelope_id, self.keys = make_envelope(PUT_KEY, REPOSITORY_ID, object_class)
        self.records: list[bytes] = []
        self.plaintexts: dict[bytes, bytes] = {}
        self.levels: dict[bytes, int] = {}

    def add(self, kind: Kind, level: int, refs: list[bytes], plaintext: bytes) -> bytes:
        joined = b"".join(refs)
        object_id_ = object_id(PUT_KEY.id_key[self.object_class], PUT_KEY.domain_id, kind, joined, plaintext)
        self.records.append(sealed_record(self.keys, self.envelope_id, kind, level, joined, object_id_, plaintext))
        self.plaintexts[object_id_] = plaintext
        return object_id_

    def pack(self, nonce: bytes) -> tuple[str, bytes]:
        """(name in hexadecimal, bytes) of a pack with the envelope first."""
        return make_pack(nonce, [(self.envelope, self.object_class)], [(r, 0) for r in self.records])


def sealed_record(
    keys: SealingKeys,
    envelope_id: bytes,
    kind: Kind,
    level: int,
    refs: bytes,
    object_id_: bytes,
    plaintext: bytes,
) -> bytes:
    """One record with its body sealed."""
    padded = encode_payload(plaintext, class_of(kind), codec_level=3)
    length = body_length(padded)
    header = record.encode_header(kind, level, len(refs) // 32, length, object_id_, envelope_id)
    return record.finish(header, refs, seal_body(keys, header, refs, padded))


def make_pack(
    nonce: bytes, envelopes: list[tuple[bytes, int]], records: list[tuple[bytes, int]]
) -> tuple[str, bytes]:
    """(name, bytes) of a pack: envelopes with their class, then records with the index of their envelope."""
    parts = [pack.MAGIC]
    position = len(pack.MAGIC)
    envelope_rows, record_rows = [], []
    for envelope, object_class in envelopes:
        raw = record.envelope_record(envelope)
        envelope_rows.append(
            pack.EnvelopeRow(
                position, len(raw), H(envelope), raw[-16:], PUT_KEY.client_id, PUT_KEY.domain_id, 1, object_class
            )
        )
        parts.append(raw)
        position += len(raw)
    for raw, number in records:
        r = record.parse(raw)
        record_rows.append(
            pack.RecordRow(position, r.length, r.kind, r.level, r.id, r.checksum, number, r.refs)
        )
        parts.append(raw)
        position += r.length
    footer = pack.encode_footer(nonce, record_rows, envelope_rows)
    return H(footer).hex(), b"".join((*parts, footer, pack.encode_trailer(position, footer)))


def _check(content: bytes) -> bytes:
    return MAC(PUT_KEY.id_key[ObjectClass.DATA], b"file check\0" + content)[:8]


def _file(name: bytes, content: bytes, extents: list[Extent], check: bytes = b"", **rest: object) -> Entry:
    return Entry(
        name, ord("f"), 0o644, 1000, 1000, TIME_NS, len(content), extents=extents, check=check, **rest  # type: ignore[arg-type]
    )


def _plain(name: bytes, kind: str, mode: int = 0o755, **rest: object) -> Entry:
    return Entry(name, ord(kind), mode, 1000, 1000, -1, **rest)  # type: ignore[arg-type]


def build() -> Built:
    """A repository with one data pack, one meta pack and one snapshot of two pages under a table."""
    data, meta = _Maker(ObjectClass.DATA), _Maker(ObjectClass.META)
    bundle = data.add(Kind.DATA, 0, [], BUNDLE)
    large = data.add(Kind.DATA, 0, [], LARGE)
    far_refs, far_plain = entry.encode_extent_object(
        [Extent(large, 1000, 8000), Extent(None, 0, 4096), Extent(bundle, 0, len(BUNDLE))]
    )
    far = meta.add(Kind.EXTENTS, 1, far_refs, far_plain)
    entries = {
        b"": [_plain(b"home", "d", implicit=True)],
        b"home": [_plain(b"u", "d", 0o1777, xattrs={b"user.b": b"\0\xff", b"user.a": b""})],
        b"home/u": [
            _file(b"a.txt", SMALL[b"a.txt"], [Extent(bundle, 0, 6)], _check(SMALL[b"a.txt"]), link_key=b"12345678"),
            _file(b"b.txt", SMALL[b"b.txt"], [Extent(bundle, 6, len(BUNDLE) - 6)], _check(SMALL[b"b.txt"])),
            _plain(b"device", "c", 0o600, rdev=0x501),
            _file(b"empty", b"", []),
            _file(b"far", FAR, [], far=[(far, len(FAR))], far_depth=1),
            _plain(b"link", "l", 0o777, target=b"../elsewhere"),
            _plain(b"na\xffme", "p"),
            _file(
                b"sparse",
                SPARSE,
                [Extent(large, 0, 50_000), Extent(None, 0, 8192), Extent(large, 60_000, len(LARGE) - 60_000)],
            ),
        ],
    }
    children = []
    for paths, level in (((b"", b"home"), 1), ((b"home/u",), 2)):
        groups = [listing.Group(path, 0, *entry.encode_block(entries[path])) for path in paths]
        refs, plain = listing.encode_page(groups)
        listed = [e for path in paths for e in entries[path]]
        totals = listing.Totals(
            len(listed), sum(e.type == entry.FILE for e in listed), sum(e.size for e in listed)
        )
        children.append(listing.Child(meta.add(Kind.PAGE, level, refs, plain), paths[0], 0, totals))
    root = meta.add(Kind.TABLE, 3, *listing.encode_table(children, 0))
    about = metadata.Metadata(
        host="web1.example", paths=(b"/home/u",), started_ns=TIME_NS, files=5, directories=2,
        bytes=sum(t.totals.bytes for t in children), tags={"why": "golden"}, users={1000: "u"},
        groups={1000: "u"}, program="packnback 0.1",
    )  # fmt: skip
    data_name, data_pack = data.pack(b"\x0d" * 16)
    meta_name, meta_pack = meta.pack(b"\x0e" * 16)
    files = {
        "config": config.encode(config.Config(REPOSITORY_ID, OWNER.bundle.raw)),
        f"packs/{data_name[:2]}/{data_name}.pack": data_pack,
        f"packs/{meta_name[:2]}/{meta_name}.pack": meta_pack,
        "snapshots/" + snapshot.snapshot_name(PUT_KEY.client_id, 1): make_snapshot(root, about),
    }
    contents = {b"home/u/" + name: content for name, content in SMALL.items()}
    contents |= {b"home/u/empty": b"", b"home/u/far": FAR, b"home/u/sparse": SPARSE}
    return Built(files, contents, data.plaintexts | meta.plaintexts, entries, about)


def make_snapshot(root: bytes, about: metadata.Metadata, sequence: int = 1, prev: bytes = bytes(32)) -> bytes:
    """A snapshot file with everything real: certificate, signature, sealed metadata, receipt."""
    maker = _Maker(ObjectClass.META)
    maker.add(Kind.METADATA, 4, [root], metadata.encode((PUT_KEY.client_id, sequence, prev, root), about))
    header = snapshot.Header(
        flags=0,
        repository_id=REPOSITORY_ID,
        client_id=PUT_KEY.client_id,
        domain_id=PUT_KEY.domain_id,
        epoch=1,
        sequence=sequence,
        prev=prev,
        root=root,
        metadata_hash=H(maker.records[0]),
        time_ns=TIME_NS,
        certificate_hash=PUT_KEY.certificate.hash,
    )
    raw = snapshot.encode_header(header)
    return snapshot.encode_file(
        snapshot.SnapshotFile(
            header,
            raw,
            sign_snapshot(PUT_KEY.sign_seed, raw),
            PUT_KEY.certificate.raw,
            record.envelope_record(maker.envelope),
            maker.records[0],
            snapshot.Receipt(TIME_NS + 5, 1, 12_345),
        )
    )


def read_golden() -> dict[str, bytes]:
    """The files of the golden repository by their paths."""
    return {str(p.relative_to(GOLDEN)): p.read_bytes() for p in sorted(GOLDEN.rglob("*")) if p.is_file()}
