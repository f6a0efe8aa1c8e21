"""Pinned bytes: what the encoders write for fixed values, and what the golden files say.

A pin that has to be changed means that the format has changed: that takes a new version, not a new pin.
"""

from __future__ import annotations

from collections.abc import Iterator

import golden_repository as golden
import pytest
from blake3 import blake3

from packnback.crypto.certificate import parse_certificate
from packnback.crypto.envelope import OpenedEnvelope, open_envelope
from packnback.crypto.reader import open_object
from packnback.crypto.sign import verify_snapshot
from packnback.format import condemned, config, entry, listing, metadata, pack, record, snapshot
from packnback.format.entry import Entry, Extent
from packnback.ids import Kind

FILES = golden.read_golden()
PACKS = {path: data for path, data in FILES.items() if path.startswith("packs/")}
(SNAPSHOT_PATH,) = (path for path in FILES if path.startswith("snapshots/"))


def _fill(first: int, length: int) -> bytes:
    return bytes((first + i) % 256 for i in range(length))


A, B, C = (_fill(n, 32) for n in (0, 64, 128))
REPOSITORY, CLIENT, DOMAIN = (_fill(n, 16) for n in (1, 2, 3))
RECORD_HEADER = record.encode_header(Kind.PAGE, 2, 2, 9, C, CLIENT)
HEADER = snapshot.Header(1, REPOSITORY, CLIENT, DOMAIN, 4, 5, A, B, C, -6, A)
RECEIPT = snapshot.Receipt(1 << 60, 7, 1 << 40, self_stamped=True)
CERTIFICATE = b"PNBC\1\0\0\0" + bytes(100) + b"\4\0name" + bytes(64)
ENVELOPE = record.envelope_record(b"envelope" * 100)
METADATA_RECORD = record.finish(
    record.encode_header(Kind.METADATA, 4, 1, 4, A, blake3(b"envelope" * 100).digest(16)), B, b"body"
)
ENVELOPE_ROW = pack.EnvelopeRow(5, 880, A, CLIENT, CLIENT, DOMAIN, 4, 2)
RECORD_ROW = pack.RecordRow(885, 153, 3, 2, DOMAIN[:8] + bytes(24), CLIENT, 0, A + B)
FOOTER = pack.encode_footer(REPOSITORY, [RECORD_ROW], [ENVELOPE_ROW])
ENTRIES = [
    Entry(b"dir", ord("d"), 0o755, 0, 0, -1, implicit=True),
    Entry(b"disk", ord("b"), 0o660, 0, 6, 2, rdev=0x800),
    Entry(b"far", ord("f"), 0o600, 0, 0, 3, 1 << 40, far=[(C, 1 << 39), (B, 1 << 39)], far_depth=2),
    Entry(b"file", ord("f"), 0o644, 1000, 100, 4, 300, extents=[Extent(B, 70_000, 300)], check=b"12345678"),
    Entry(b"holes", ord("f"), 0o644, 0, 0, 5, 9, extents=[Extent(None, 0, 4), Extent(B, 1, 5)], link_key=b"key"),
    Entry(b"link", ord("l"), 0o777, 0, 0, 6, target=b"../x", xattrs={b"user.b": b"2", b"user.a": b"1"}),
]
GROUPS = [listing.Group(b"", 0, [B], b"block"), listing.Group(b"a", 1, [A, C], b"other block")]
CHILDREN = [
    listing.Child(B, b"", 0, listing.Totals(1, 2, 3)),
    listing.Child(A, b"a", 1, listing.Totals(400, 500, 1 << 50)),
]
ABOUT = metadata.Metadata(
    "host", (b"/a", b"/\xff"), 1, 2, 3, 4, 5, {"k": "v"}, {0: "root"}, {0: "wheel"}, "packnback"
)
BINDING = (CLIENT, 5, A, B)
KEPT = snapshot.KeptHeader(snapshot.encode_header(HEADER), bytes(64), CERTIFICATE, snapshot.encode_receipt(RECEIPT))


def _snapshot_file() -> bytes:
    header = snapshot.Header(
        1, REPOSITORY, CLIENT, DOMAIN, 4, 5, A, B, blake3(METADATA_RECORD).digest(), -6, blake3(CERTIFICATE).digest()
    )
    raw = snapshot.encode_header(header)
    parts = snapshot.SnapshotFile(header, raw, bytes(64), CERTIFICATE, ENVELOPE, METADATA_RECORD, RECEIPT)
    assert snapshot.decode_file(snapshot.encode_file(parts)) == parts
    return snapshot.encode_file(parts)


ENCODED = {
    "config": config.encode(config.Config(REPOSITORY, _fill(9, 2472))),
    "record": record.finish(RECORD_HEADER, A + B, b"some body"),
    "envelope record": ENVELOPE,
    "footer": FOOTER,
    "trailer": pack.encode_trailer(1038, FOOTER),
    "header": snapshot.encode_header(HEADER),
    "receipt": snapshot.encode_receipt(RECEIPT),
    "snapshot": _snapshot_file(),
    "batch": snapshot.encode_batch([KEPT]),
    "condemned": condemned.encode(condemned.make(1_700_000_000_000_000_000, [B, A], ["00ff"])),
    "metadata": metadata.encode(BINDING, ABOUT),
    "block": entry.encode_block(ENTRIES)[1],
    "extents": entry.encode_extent_object([Extent(C, 1, 2), Extent(None, 0, 70_000), Extent(A, 3, 4)])[1],
    "far extents": entry.encode_far_object([(C, 1 << 33), (A, 5)], 1)[1],
    "page": listing.encode_page(GROUPS)[1],
    "table": listing.encode_table(CHILDREN, 3)[1],
}

PINS: dict[str, tuple[int, str, str]] = {
    "config": (2512, "504e42460100000001020304", "941a41377d84c3f5a5cd873077caa9ee"),
    "record": (153, "504e42520103020002000000", "c202a70046ffd52c73e93efd8a22712b"),
    "envelope record": (880, "504e42520100000000000000", "6e061fa3ad83171718c9c74ab7654830"),
    "footer": (239, "840150010203040506070809", "a4c1c54dd61456243141d1217ba58b07"),
    "trailer": (49, "0e04000000000000ef000000", "9115ca6b738cc51c66350944492f9b15"),
    "header": (204, "504e42480101000001020304", "156b64a0191eb98cfed7f0beeceff7a4"),
    "receipt": (48, "504e42540101000000000000", "34e1b882fa0ea90321417a3b440488f3"),
    "snapshot": (1490, "504e42480101000001020304", "d647800927d78c6af98d836d4bcef7a7"),
    "condemned": (86, "84011b17979cfe362a000082", "4143a08dd61ea711d49f4738f25f6323"),
    "batch": (506, "8201818458cc504e42480101", "f597d8488e4a60e8a7245a3ced000ef5"),
    "metadata": (216, "02030405060708090a0b0c0d", "745bde70b805a1dc60b188a1f7f02a04"),
    "block": (210, "8b8643646972446469736b43", "a7a92ae999356c081c9cd132eb9a8531"),
    "extents": (17, "8301008902010200001a0001", "a110cb633184ea4e7b18a16a96a3bd3f"),
    "far extents": (16, "83010184021b000000020000", "fd49555f0b85d414307d3b1866824e97"),
    "page": (33, "820182844000810145626c6f", "6857d34e267dc293406c5e725b55d84c"),
    "table": (35, "850103820100828240008241", "227ae565ca3e2ab1cac72f866df88bbc"),
}
"""Length, first bytes and start of the BLAKE3 of what stands in ENCODED."""


@pytest.mark.parametrize("name", ENCODED)
def test_pinned_bytes(name: str) -> None:
    raw = ENCODED[name]
    assert (len(raw), raw[:12].hex(), blake3(raw).hexdigest()[:32]) == PINS[name]


def test_small_structures_in_full() -> None:
    """Those that fit on a line, as docs/format.md spells them out."""
    assert ENCODED["extents"].hex() == "830100890201020000" + "1a00011170" + "010304"
    assert ENCODED["far extents"].hex() == "83010184" + "02" + "1b0000000200000000" + "0105"
    assert ENCODED["page"].hex() == (
        "820182" + "84" + "40" + "00" + "8101" + "45" + b"block".hex()
        + "84" + "4161" + "01" + "820002" + "4b" + b"other block".hex()
    )  # fmt: skip
    assert ENCODED["table"].hex() == (
        "850103" + "820100" + "82" + "824000" + "82416101"
        + "82" + "83010203" + "83" + "190190" + "1901f4" + "1b0004000000000000"
    )  # fmt: skip
    assert ENCODED["receipt"].hex().startswith(
        "504e425401010000" + "0000000000000010" + "0700000000000000" + "0000000000010000"
    )


def test_names() -> None:
    client = "02030405060708090a0b0c0d0e0f1011"
    assert snapshot.snapshot_name(CLIENT, 255) == f"{client}-00000000000000ff.snap"
    assert snapshot.marker_name(CLIENT, 255, 1 << 60) == f"{client}-00000000000000ff.1000000000000000"


# --- the golden repository --------------------------------------------------------------------------------------


def _records() -> Iterator[tuple[record.Record, bytes]]:
    """Every record of the golden packs with its envelope, after footer and record were compared."""
    for path, data in PACKS.items():
        trailer = pack.decode_trailer(data[-pack.TRAILER_LEN :], len(data))
        raw = data[trailer.footer_offset :][: trailer.footer_length]
        footer = pack.decode_footer(raw, trailer)
        assert path == f"packs/{path[6:8]}/{blake3(raw).hexdigest()}.pack"
        assert pack.encode_footer(footer.nonce, footer.records, footer.envelopes) == raw
        assert pack.encode_trailer(trailer.footer_offset, raw) == data[-pack.TRAILER_LEN :]
        envelopes = [bytes(record.parse(data, e.offset).body) for e in footer.envelopes]
        for row in footer.records:
            r = record.parse(data, row.offset)
            assert (row.length, row.kind, row.level, row.id, row.checksum, row.refs) == (
                r.length, r.kind, r.level, r.id, r.checksum, r.refs,
            )  # fmt: skip
            assert record.finish(r.header, r.refs, r.body) == data[row.offset : row.offset + row.length]
            yield r, envelopes[row.envelope]


def _opened(envelope: bytes) -> OpenedEnvelope:
    return open_envelope(envelope, golden.OWNER, repository_id=golden.REPOSITORY_ID)


def _plaintexts() -> dict[bytes, tuple[record.Record, bytes]]:
    return {
        r.id: (r, open_object(_opened(envelope), r.id, r.kind, r.header, r.refs, r.body))
        for r, envelope in _records()
    }


def test_the_golden_files_are_those_that_were_built() -> None:
    """Nobody edits them: a change of the format leaves them as they are and adds others."""
    found = {path: blake3(data).hexdigest()[:16] for path, data in FILES.items()}
    assert found == GOLDEN_HASHES


GOLDEN_HASHES: dict[str, str] = {
    "config": "dd76c20b7b7bc047",
    "packs/53/5308d0823bef63011b71031488087583fbed349c9db0588134a660072b35297c.pack": "bd4b31be06652fe3",
    "packs/f5/f53fc79c00e0fdaa3136d2ad2af3dc0c6e7c458f8cdc703befee69cb4ad7eb5c.pack": "2c180d745e0c1009",
    "snapshots/2ebf2431cc8fef0b37193871407efe3f-0000000000000001.snap": "137fa9c5da6a0536",
}


def test_the_golden_config() -> None:
    found = config.decode(FILES["config"])
    assert found == config.Config(golden.REPOSITORY_ID, golden.OWNER.bundle.raw)
    assert found.owner_id == golden.OWNER.owner_id
    assert config.encode(found) == FILES["config"]


def test_the_golden_packs_hold_what_would_be_built_today() -> None:
    """Plaintexts and ids are deterministic, so today's are the same; only the sealing is random."""
    assert {i: plain for i, (_, plain) in _plaintexts().items()} == golden.build().plaintexts


def test_the_golden_listing() -> None:
    objects = _plaintexts()
    root = snapshot.decode_file(FILES[SNAPSHOT_PATH]).header.root
    r, plain = objects[root]
    table = listing.decode_table(r.refs, plain)
    assert listing.encode_table(table.children, table.depth) == (r.ref_list, plain)
    seen = {}
    for child in table.children:
        page, plain = objects[child.id]
        groups = listing.decode_page(page.refs, plain)
        assert listing.encode_page(groups) == (page.ref_list, plain)
        assert groups[0].key == child.key
        for group in groups:
            seen[group.path] = entry.decode_block(group.ids, group.block)
            assert entry.encode_block(seen[group.path]) == (group.ids, group.block)
    built = golden.build().entries
    assert {path: [e.name for e in entries] for path, entries in seen.items()} == {
        path: [e.name for e in entries] for path, entries in built.items()
    }
    assert [_facts(e) for entries in seen.values() for e in entries] == [
        _facts(e) for entries in built.values() for e in entries
    ]


def _facts(e: Entry) -> tuple[object, ...]:
    return (
        e.name, e.type, e.mode, e.uid, e.gid, e.mtime_ns, e.size, list(e.extents), list(e.far), e.far_depth,
        e.check, e.target, e.rdev, e.link_key, e.xattrs, e.implicit,
    )  # fmt: skip


def test_the_golden_extent_object() -> None:
    (found,) = ((r, plain) for r, plain in _plaintexts().values() if r.kind == Kind.EXTENTS)
    decoded = entry.decode_extent_object(found[0].refs, found[1])
    assert [(e.offset, e.length) for e in decoded.extents] == [(1000, 8000), (0, 4096), (0, 39)]
    assert entry.encode_extent_object(decoded.extents) == (found[0].ref_list, found[1])


def test_the_golden_snapshot() -> None:
    raw = FILES[SNAPSHOT_PATH]
    parts = snapshot.decode_file(raw)
    assert snapshot.encode_file(parts) == raw
    assert snapshot.encode_header(parts.header) == parts.header_bytes
    assert "snapshots/" + snapshot.snapshot_name(parts.header.client_id, parts.header.sequence) == SNAPSHOT_PATH
    assert parts.receipt == snapshot.Receipt(golden.TIME_NS + 5, 1, 12_345)
    certificate = parse_certificate(parts.certificate)
    certificate.verify(golden.OWNER.bundle)
    verify_snapshot(certificate.verify_key, parts.header_bytes, parts.signature)
    sealed = record.parse(parts.metadata_record)
    envelope = _opened(bytes(record.parse(parts.envelope_record).body))
    plain = open_object(envelope, sealed.id, sealed.kind, sealed.header, sealed.refs, sealed.body)
    binding, about = metadata.decode(plain)
    h = parts.header
    assert binding == (h.client_id, h.sequence, h.prev, h.root)
    assert about == golden.build().metadata
    assert metadata.encode(binding, about) == plain
