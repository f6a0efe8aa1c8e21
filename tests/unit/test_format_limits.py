"""The rules of the formats, one by one: what is just within them is accepted, what is just outside is refused."""

from __future__ import annotations

from typing import Any

import pytest
from blake3 import blake3
from msgspec.structs import replace

from packnback.errors import FormatDamage, UnsupportedVersion
from packnback.format import cbor, condemned, config, entry, listing, metadata, pack, record, snapshot
from packnback.format.entry import Entry, Extent
from packnback.ids import BODY_LIMIT, MIB, Kind, ObjectClass, class_of

# --- CBOR ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        pytest.param("c001", id="a tag that the library knows (a date)"),
        pytest.param("c24101", id="a bignum"),
        pytest.param("d81c80", id="a shareable"),
        pytest.param("d81d00", id="a shared reference"),
        pytest.param("d9010280", id="a set"),
        pytest.param("d9d9f700", id="self-described CBOR"),
        pytest.param("da7fffffff00", id="a tag that nobody knows"),
        pytest.param("9fff", id="an indefinite list"),
        pytest.param("bfff", id="an indefinite map"),
        pytest.param("5f4101ff", id="indefinite bytes"),
        pytest.param("7f6161ff", id="an indefinite text"),
        pytest.param("a201000100", id="a key twice"),
        pytest.param("a20100f500", id="keys that Python takes for equal"),
        pytest.param("0000", id="trailing bytes"),
        pytest.param("1800", id="0 in two bytes"),
        pytest.param("190017", id="23 in three bytes"),
        pytest.param("1b00000000ffffffff", id="a u32 in nine bytes"),
        pytest.param("3800", id="-1 in two bytes"),
        pytest.param("580100", id="a length in two bytes"),
        pytest.param("990000", id="a count in three bytes"),
        pytest.param("f93c00", id="a half float"),
        pytest.param("fa3f800000", id="a single float"),
        pytest.param("62c328", id="a text that is not UTF-8"),
        pytest.param("63eda080", id="a surrogate"),
        pytest.param("ff", id="a break alone"),
        pytest.param("", id="nothing"),
        pytest.param("81" * 16 + "80", id="depth 17"),
        pytest.param("a100" * 16 + "a0", id="depth 17 in maps"),
        pytest.param("81" * 100_000 + "80", id="depth 100,001"),
    ],
)
def test_cbor_that_is_refused(document: str) -> None:
    with pytest.raises(FormatDamage):
        cbor.decode(bytes.fromhex(document), "test")


@pytest.mark.parametrize("document", ["81" * 15 + "80", "a100" * 15 + "a0", "a2020001a0", "1bffffffffffffffff"])
def test_cbor_that_is_accepted(document: str) -> None:
    """Depth 16 is allowed, and keys stand in any order."""
    assert cbor.encode(cbor.decode(bytes.fromhex(document), "test")).hex() == document


@pytest.mark.parametrize("value", [True, 1.0, -1, None, "1", 1 << 63])
def test_numbers_that_only_look_like_integers(value: object) -> None:
    assert not cbor.is_uint(value)
    with pytest.raises(FormatDamage):
        cbor.uint_list([value], "test")
    with pytest.raises(FormatDamage):
        cbor.expect_version(value, "test")


# --- records ----------------------------------------------------------------------------------------------------


def _refs(count: int) -> bytes:
    return b"".join(n.to_bytes(32, "big") for n in range(count))


def _record(kind: int, level: int, refs: bytes = b"", body: bytes = b"b", flags: int = 0) -> bytes:
    header = bytearray(record.encode_header(kind, level, len(refs) // 32, len(body), b"i" * 32, b"e" * 16))
    header[7] = flags
    return record.finish(bytes(header), refs, body)


@pytest.mark.parametrize(
    ("kind", "level", "refs"),
    [
        (Kind.DATA, 0, 0),
        (Kind.EXTENTS, 1, 1),
        (Kind.PAGE, 1, 0),
        (Kind.PAGE, 2, 4096),
        (Kind.TABLE, 16, 1),
        (Kind.METADATA, 16, 1),
    ],
)
def test_records_within_the_limits(kind: Kind, level: int, refs: int) -> None:
    parsed = record.parse(_record(kind, level, _refs(refs)))
    assert (parsed.kind, parsed.level, len(parsed.ref_list)) == (kind, level, refs)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        pytest.param(_record(Kind.PAGE, 2, _refs(4097)), "4097 refs", id="4097 refs"),
        pytest.param(_record(Kind.TABLE, 17, _refs(1)), "level 17", id="level 17"),
        pytest.param(_record(Kind.TABLE, 255, _refs(1)), "level 255", id="level 255"),
        pytest.param(_record(6, 1), "kind 6", id="kind 6"),
        pytest.param(_record(Kind.PAGE, 2, _refs(2)[32:] + _refs(1)), "ascending", id="descending refs"),
        pytest.param(_record(Kind.PAGE, 2, _refs(1) * 2), "ascending", id="duplicate refs"),
        pytest.param(_record(Kind.DATA, 1), "level", id="data with a level"),
        pytest.param(_record(Kind.DATA, 0, _refs(1)), "refs", id="data with refs"),
        pytest.param(_record(Kind.PAGE, 0), "level 0", id="a page of level 0"),
        pytest.param(_record(Kind.PAGE, 0, _refs(1)), "level 0", id="a page of level 0 with refs"),
        pytest.param(_record(Kind.PAGE, 2), "level 2", id="level 2 without refs"),
        pytest.param(_record(Kind.PAGE, 1, flags=1), "flags 1", id="flags"),
        pytest.param(_record(Kind.ENVELOPE, 0), "envelope", id="an envelope under another id"),
        pytest.param(b"PNBR\2" + _record(Kind.PAGE, 1)[5:], "version 2", id="version 2"),
        pytest.param(b"PNBX\1" + _record(Kind.PAGE, 1)[5:], "magic", id="another magic"),
    ],
)
def test_records_outside_the_limits(raw: bytes, why: str) -> None:
    with pytest.raises(FormatDamage) as damage:
        record.parse(raw, checksum=raw[:5] == record.MAGIC)
    assert why in damage.value.why


@pytest.mark.parametrize(
    ("kind", "length", "why"),
    [
        (Kind.DATA, BODY_LIMIT + 1, f"body of {BODY_LIMIT + 1} bytes"),
        (Kind.DATA, (1 << 32) - 1, "body of"),
        (Kind.ENVELOPE, 16 << 20, "body of"),
        (Kind.ENVELOPE, 2049, "body of 2049 bytes"),
        (Kind.DATA, BODY_LIMIT, "cut short"),
        (Kind.ENVELOPE, 2048, "cut short"),
    ],
)
def test_body_lengths_are_judged_by_the_header_alone(kind: Kind, length: int, why: str) -> None:
    header = record.encode_header(kind, 0, 0, length, bytes(32), bytes(16))
    with pytest.raises(FormatDamage) as damage:
        record.parse(header + bytes(16))
    assert why in damage.value.why


@pytest.mark.parametrize("offset", [-1, 1, 10**9])
def test_a_record_outside_the_buffer(offset: int) -> None:
    with pytest.raises(FormatDamage):
        record.parse(_record(Kind.DATA, 0), offset)


def test_a_wrong_checksum_can_be_looked_past_and_nothing_else() -> None:
    raw = _record(Kind.DATA, 0)[:-1] + b"\0"
    assert record.parse(raw, checksum=False).body == b"b"
    with pytest.raises(FormatDamage, match="checksum"):
        record.parse(raw)


def test_salvage_skips_a_damaged_record_and_finds_the_next() -> None:
    good, bad = _record(Kind.DATA, 0, body=b"good"), bytearray(_record(Kind.DATA, 0, body=b"bad"))
    bad[-20] ^= 1
    found = list(record.scan(good + bytes(bad) + b"PNBR\1" + good))
    assert [(at, bytes(r.body)) for at, r in found] == [(0, b"good"), (len(good) + len(bad) + 5, b"good")]


def test_salvage_is_not_slowed_down_by_planted_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body full of headers that claim long bodies costs in proportion to its length, not to its square."""
    hashed = 0

    def counting(data: memoryview) -> object:
        nonlocal hashed
        hashed += len(data)
        return blake3(data)

    def planted(size: int) -> bytes:
        return record.encode_header(Kind.DATA, 0, 0, size // 2, bytes(32), bytes(16)) * (size // 64)

    good = _record(Kind.DATA, 0, body=b"good")
    monkeypatch.setattr(record, "blake3", counting)
    for size in (MIB, 8 * MIB):
        hashed, whole = 0, planted(size) + bytes(6 * MIB) + good
        assert [at for at, _ in record.scan(whole)] == [len(whole) - len(good)]
        assert hashed <= record.SCAN_EFFORT * len(whole) + 2 * BODY_LIMIT


def test_levels_leave_no_room_for_a_cycle() -> None:
    """a needs b, b needs a: whatever levels they claim, one of the two claims is not what its refs give."""
    for a in range(18):
        for b in range(18):
            assert record.level_of([b], Kind.EXTENTS) != a or record.level_of([a], Kind.EXTENTS) != b
    assert record.level_of([], Kind.DATA) == record.level_of([], Kind.ENVELOPE) == 0
    assert record.level_of([], Kind.PAGE) == 1
    assert record.level_of([0, 3, 1], Kind.TABLE) == 4


def test_kinds_refer_downwards_and_belong_to_one_class() -> None:
    assert {k: set(v) for k, v in record.REF_KINDS.items()} == {
        0: set(), 1: set(), 2: {1, 2}, 3: {1, 2}, 4: {3, 4}, 5: {4},
    }  # fmt: skip
    assert [class_of(k) for k in range(1, 6)] == [ObjectClass.DATA] + [ObjectClass.META] * 4


# --- packs ------------------------------------------------------------------------------------------------------

DOMAIN = b"domain__" + b"x" * 8
ENVELOPE = pack.EnvelopeRow(5, 180, b"E" * 32, b"c" * 16, b"C" * 16, DOMAIN, 1, 2)
PAGE = pack.RecordRow(185, 80 + 32 + 10, 3, 2, b"domain__" + b"1" * 24, b"c" * 16, 0, b"r" * 32)
TABLE = pack.RecordRow(307, 80 + 32 + 10, 4, 3, b"domain__" + b"2" * 24, b"c" * 16, 0, PAGE.id)
END = 429


def _footer(
    records: list[pack.RecordRow], envelopes: list[pack.EnvelopeRow], end: int = END, nonce: bytes = b"n" * 16
) -> pack.Footer:
    raw = pack.encode_footer(nonce, records, envelopes)
    return pack.decode_footer(raw, pack.Trailer(end, len(raw), blake3(raw).digest()))


def test_the_footer_that_the_bad_ones_are_made_of() -> None:
    footer = _footer([PAGE, TABLE], [ENVELOPE])
    assert footer.object_class is ObjectClass.META
    assert footer.records[1].ref_list == [PAGE.id]
    assert footer.envelopes[0].envelope_id == b"E" * 16


SECOND = replace(ENVELOPE, offset=END, id=b"F" * 32)


@pytest.mark.parametrize(
    ("records", "envelopes", "why"),
    [
        pytest.param([PAGE, TABLE._replace(offset=308)], [ENVELOPE], "gap or overlap", id="gap"),
        pytest.param([PAGE, TABLE._replace(offset=306)], [ENVELOPE], "gap or overlap", id="overlap"),
        pytest.param([PAGE, TABLE._replace(offset=185)], [ENVELOPE], "gap or overlap", id="on top of each other"),
        pytest.param([PAGE], [ENVELOPE], "before the footer", id="gap before the footer"),
        pytest.param([TABLE], [ENVELOPE], "gap or overlap", id="gap after the envelope"),
        pytest.param([PAGE, TABLE._replace(id=PAGE.id)], [ENVELOPE], "object twice", id="object twice"),
        pytest.param([PAGE, TABLE], [ENVELOPE, replace(SECOND, id=b"E" * 32)], "envelope twice", id="envelope twice"),
        pytest.param([PAGE, TABLE], [ENVELOPE, replace(SECOND, object_class=1)], "classes", id="two classes"),
        pytest.param([], [], "classes", id="no envelope"),
        pytest.param([PAGE, TABLE], [replace(ENVELOPE, object_class=1)], "class", id="kind outside the class"),
        pytest.param([PAGE, TABLE], [replace(ENVELOPE, object_class=3)], "class", id="class 3"),
        pytest.param([PAGE, TABLE], [replace(ENVELOPE, object_class=0)], "class", id="class 0"),
        pytest.param([PAGE, TABLE], [replace(ENVELOPE, object_class=True)], "row", id="class True"),
        pytest.param([PAGE, TABLE._replace(id=b"D" + TABLE.id[1:])], [ENVELOPE], "tag", id="foreign tag"),
        pytest.param([PAGE, TABLE._replace(envelope=1)], [ENVELOPE], "no such envelope", id="no such envelope"),
        pytest.param([PAGE, TABLE._replace(kind=0, level=0, refs=b"")], [ENVELOPE], "kind 0", id="kind 0"),
        pytest.param([PAGE, TABLE._replace(kind=5)], [ENVELOPE], "kind 5", id="kind 5"),
        pytest.param([PAGE, TABLE._replace(kind=6)], [ENVELOPE], "kind 6", id="kind 6"),
        pytest.param([PAGE, TABLE._replace(level=17)], [ENVELOPE], "level 17", id="level 17"),
        pytest.param([PAGE, TABLE._replace(level=0)], [ENVELOPE], "level 0", id="level 0"),
        pytest.param([PAGE, TABLE._replace(refs=PAGE.id * 2)], [ENVELOPE], "ascending", id="duplicate refs"),
        pytest.param([PAGE, TABLE._replace(refs=_refs(2)[::-1])], [ENVELOPE], "ascending", id="descending refs"),
        pytest.param([PAGE, TABLE._replace(refs=_refs(4097))], [ENVELOPE], "4097 refs", id="4097 refs"),
        pytest.param([PAGE, TABLE._replace(refs=b"r" * 33)], [ENVELOPE], "refs", id="a piece of a ref"),
        pytest.param([PAGE, TABLE._replace(length=111)], [ENVELOPE], "length", id="shorter than its refs"),
        pytest.param([PAGE, TABLE._replace(length=113 + BODY_LIMIT)], [ENVELOPE], "length", id="body over the limit"),
        pytest.param([PAGE, TABLE], [replace(ENVELOPE, length=80 + 2049)], "length", id="envelope of 2049 bytes"),
        pytest.param([PAGE, TABLE], [replace(ENVELOPE, length=80)], "length", id="envelope of no bytes"),
        pytest.param([PAGE, TABLE], [replace(ENVELOPE, length=80 + (16 << 20))], "length", id="kind 0 of 16 MiB"),
        pytest.param([PAGE, TABLE], [replace(ENVELOPE, epoch=1 << 32)], "row", id="epoch over 32 bits"),
        pytest.param([PAGE, TABLE], [replace(ENVELOPE, client_id=b"C" * 15)], "row", id="short client id"),
        pytest.param([PAGE, TABLE._replace(checksum=b"")], [ENVELOPE], "checksum", id="no checksum"),
        pytest.param([PAGE, TABLE._replace(offset=-1)], [ENVELOPE], "row", id="negative offset"),
    ],
)
def test_footers_that_are_refused(
    records: list[pack.RecordRow], envelopes: list[pack.EnvelopeRow], why: str
) -> None:
    with pytest.raises(FormatDamage) as damage:
        _footer(records, envelopes)
    assert why in damage.value.why


DATA_ENVELOPE = replace(ENVELOPE, object_class=1)
CHUNK = pack.RecordRow(185, 80 + 100, 1, 0, b"domain__" + b"1" * 24, b"c" * 16, 0, b"")
LAST_CHUNK = CHUNK._replace(offset=365, length=80, id=b"domain__" + b"2" * 24)
DATA_END = 365 + LAST_CHUNK.length


def test_the_data_footer_that_the_bad_ones_are_made_of() -> None:
    footer = _footer([CHUNK, LAST_CHUNK], [DATA_ENVELOPE], DATA_END)
    assert footer.object_class is ObjectClass.DATA
    assert footer.records == (CHUNK, LAST_CHUNK)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        pytest.param({"id": b"DOMAIN__" + b"2" * 24}, "tag", id="foreign tag"),
        pytest.param({"id": b"domain__"}, "id", id="short id"),
        pytest.param({"checksum": b"c" * 15}, "checksum", id="short checksum"),
        pytest.param({"envelope": 1}, "no such envelope", id="no such envelope"),
        pytest.param({"envelope": -1}, "row", id="envelope counted from behind"),
        pytest.param({"level": 1}, "level", id="level 1"),
        pytest.param({"refs": b"r" * 32}, "refs", id="refs"),
        pytest.param({"kind": True}, "row", id="kind True"),
        pytest.param({"level": False}, "row", id="level False"),
        pytest.param({"kind": 2, "level": 1}, "class", id="kind of the other class"),
        pytest.param({"offset": -365}, "row", id="negative offset"),
        pytest.param({"length": 79}, "length", id="shorter than a record"),
        pytest.param({"length": 81 + BODY_LIMIT}, "length", id="body over the limit"),
        pytest.param({"id": CHUNK.id}, "object twice", id="object twice"),
    ],
)
def test_data_footers_that_are_refused(changed: dict[str, Any], why: str) -> None:
    """Rows of data take a short way through the decoder, on which every rule has to stand again."""
    with pytest.raises(FormatDamage) as damage:
        _footer([CHUNK, LAST_CHUNK._replace(**changed)], [DATA_ENVELOPE], DATA_END)
    assert why in damage.value.why


def test_a_footer_nonce_has_16_bytes() -> None:
    with pytest.raises(FormatDamage, match="nonce"):
        _footer([PAGE, TABLE], [ENVELOPE], nonce=b"n" * 15)


def test_versions_of_packs() -> None:
    """A newer version is told as one only by bytes whose hash is right."""
    raw = cbor.encode([2, "whatever", "comes"])
    with pytest.raises(UnsupportedVersion):
        pack.decode_footer(raw, pack.Trailer(5, len(raw), blake3(raw).digest()))
    with pytest.raises(FormatDamage, match="hash"):
        pack.decode_footer(raw, pack.Trailer(5, len(raw), bytes(32)))
    tail = pack.encode_trailer(5, raw)
    with pytest.raises(UnsupportedVersion):
        pack.decode_trailer(tail[:-1] + b"\2", 5 + len(raw) + len(tail))


@pytest.mark.parametrize(("offset", "size"), [(4, 0), (5, 1), (5, -1), ((1 << 64) - 1, -(1 << 64))])
def test_a_trailer_that_points_outside_its_pack(offset: int, size: int) -> None:
    tail = pack.encode_trailer(offset, b"footer")
    with pytest.raises(FormatDamage, match="bounds"):
        pack.decode_trailer(tail, offset + 6 + len(tail) + size)


# --- directory entries ------------------------------------------------------------------------------------------

OBJECT = b"o" * 32
NAMES, TYPES, MODES, UIDS, GIDS, MTIMES, SIZES, OBJECTS, OFFSETS, CHECKS, REST = range(11)


def _columns(**changed: Any) -> bytes:
    """The block of three entries, with columns exchanged: a file in one object, one with a hole, a symlink."""
    entries = [
        Entry(b"a", ord("f"), 0o644, 1, 2, 3, 10, extents=[Extent(OBJECT, 4, 10)], check=b"12345678"),
        Entry(b"b", ord("f"), 0o644, 1, 2, 3, 9, extents=[Extent(OBJECT, 0, 4), Extent(None, 0, 5)]),
        Entry(b"c", ord("l"), 0o777, 1, 2, 3, target=b"t"),
    ]
    value = cbor.decode(entry.encode_block(entries)[1], "test")
    for name, column in changed.items():
        value[globals()[name]] = column
    return cbor.encode(value)


HOLED = [1, 0, 4, 0, 0, 5]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        pytest.param({"NAMES": [b"a", b"b", b".."]}, "path", id="dot dot"),
        pytest.param({"NAMES": [b".", b"b", b"c"]}, "path", id="dot"),
        pytest.param({"NAMES": [b"a", b"a/b", b"c"]}, "path", id="a slash"),
        pytest.param({"NAMES": [b"/", b"b", b"c"]}, "path", id="the root"),
        pytest.param({"NAMES": [b"a", b"b\0", b"c"]}, "path", id="NUL"),
        pytest.param({"NAMES": [b"a", b"b", b"c" * 256]}, "name", id="256 bytes"),
        pytest.param({"NAMES": [b"", b"b", b"c"]}, "name", id="no name"),
        pytest.param({"NAMES": ["a", b"b", b"c"]}, "name", id="a name of text"),
        pytest.param({"NAMES": [b"a", b"a", b"c"]}, "ascending", id="duplicate names"),
        pytest.param({"NAMES": [b"b", b"a", b"c"]}, "ascending", id="descending names"),
        pytest.param({"NAMES": [b"a", b"b"]}, "shape", id="a name missing"),
        pytest.param({"TYPES": b"ffx"}, "type", id="unknown type"),
        pytest.param({"TYPES": "ffl"}, "shape", id="types of text"),
        pytest.param({"TYPES": b"fff"}, "target", id="a file with a target"),
        pytest.param({"TYPES": b"flf"}, "content", id="a symlink with contents"),
        pytest.param({"TYPES": b"fdl"}, "content", id="a directory with contents"),
        pytest.param({"MODES": 0o10000}, "shape|range|integers", id="mode over 12 bits"),
        pytest.param({"MODES": [0o644, 0o644]}, "shape", id="a mode missing"),
        pytest.param({"UIDS": 1 << 32}, "integers", id="uid over 32 bits"),
        pytest.param({"GIDS": True}, "integers", id="gid True"),
        pytest.param({"MTIMES": [1 << 63, 0, 0]}, "mtime", id="mtime over 64 bits"),
        pytest.param({"MTIMES": [0.0, 0, 0]}, "mtime", id="mtime a float"),
        pytest.param({"SIZES": [10, 8, 0]}, "cover", id="extents beyond the size"),
        pytest.param({"SIZES": [10, 10, 0]}, "cover", id="extents short of the size"),
        pytest.param({"SIZES": [10, 9, 1]}, "content", id="a symlink with a size"),
        pytest.param({"SIZES": [0, 9, 0]}, "nothing", id="an extent of no bytes"),
        pytest.param({"OBJECTS": [2, 0, 0]}, "range", id="an object that is not there"),
        pytest.param({"OBJECTS": [1, 0, 1]}, "nothing", id="a symlink in an object"),
        pytest.param({"OBJECTS": [0, 0, 0]}, "nothing", id="an offset without an object"),
        pytest.param({"OBJECTS": [1, 1, 0]}, "twice", id="extents in both places"),
        pytest.param({"OFFSETS": [1 << 32, 0, 0]}, "range", id="offset over 32 bits"),
        pytest.param({"CHECKS": [b"1234567", b"", b""]}, "check", id="a check of 7 bytes"),
        pytest.param({"CHECKS": [b"", b"", b"12345678"]}, "content", id="a check of a symlink"),
        pytest.param({"REST": {}}, "cover", id="no extents"),
        pytest.param({"REST": {1: {1: HOLED}, 2: {}}}, "rare", id="no rare attributes"),
        pytest.param({"REST": {1: {1: HOLED}, 2: {8: 1, 3: b"t"}}}, "unknown", id="unknown attribute"),
        pytest.param({"REST": {1: {True: HOLED}, 2: {3: b"t"}}}, "rare", id="attribute True"),
        pytest.param({"REST": {1: {1.0: HOLED}, 2: {3: b"t"}}}, "rare", id="attribute 1.0"),
        pytest.param({"REST": {1: {1: HOLED}, 2: {3: b"t"}, 3: {4: 1}}}, "rare", id="of an entry that is not there"),
        pytest.param({"REST": {1: {1: [1, 0, 4, 0, 1, 5]}, 2: {3: b"t"}}}, "hole", id="a hole with an offset"),
        pytest.param({"REST": {1: {1: [1, 0, 9, 0, 0, 0]}, 2: {3: b"t"}}}, "range", id="a hole of no bytes"),
        pytest.param({"REST": {1: {1: [2, 0, 9]}, 2: {3: b"t"}}}, "range", id="an extent in no object"),
        pytest.param({"REST": {1: {1: [1, 0]}, 2: {3: b"t"}}}, "shape", id="two thirds of an extent"),
        pytest.param({"REST": {1: {1: []}, 2: {3: b"t"}}}, "shape", id="an empty list of extents"),
        pytest.param({"REST": {1: {2: [1, 1, 9], 1: HOLED}, 2: {3: b"t"}}}, "cover", id="near and far"),
        pytest.param({"REST": {1: {2: [0, 1, 9]}, 2: {3: b"t"}}}, "far", id="far at no level"),
        pytest.param({"REST": {1: {2: [8, 1, 9]}, 2: {3: b"t"}}}, "far", id="far at level 8"),
        pytest.param({"REST": {1: {2: [1, 0, 9]}, 2: {3: b"t"}}}, "range", id="a far hole"),
        pytest.param({"REST": {1: {1: HOLED}, 2: {3: b"t\0"}}}, "path", id="NUL in a target"),
        pytest.param({"REST": {1: {1: HOLED}, 2: {3: b"t" * 4097}}}, "target", id="a target of 4097 bytes"),
        pytest.param({"REST": {1: {1: HOLED}, 2: {3: "t"}}}, "target", id="a target of text"),
        pytest.param({"REST": {1: {1: HOLED}, 2: {3: b"t", 4: -1}}}, "device", id="a negative device"),
        pytest.param({"REST": {1: {1: HOLED}, 2: {3: b"t", 6: {b"": b""}}}}, "name", id="attribute without a name"),
        pytest.param({"REST": {1: {1: HOLED}, 2: {3: b"t", 6: {b"a\0": b""}}}}, "name", id="NUL in an attribute"),
        pytest.param({"REST": {1: {1: HOLED}, 2: {3: b"t", 6: {b"a": 1}}}}, "attributes", id="attribute of a number"),
        pytest.param({"REST": {1: {1: HOLED}, 2: {3: b"t", 7: 1}}}, "implicit", id="an implicit symlink"),
        pytest.param({"REST": {1: {1: HOLED}, 2: {3: b"t", 7: True}}}, "implicit", id="implicit True"),
    ],
)
def test_blocks_that_are_refused(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(FormatDamage) as damage:
        entry.decode_block([OBJECT], _columns(**changed))
    assert any(word in damage.value.why for word in why.split("|")), damage.value


def test_the_block_that_the_bad_ones_are_made_of() -> None:
    assert [e.name for e in entry.decode_block([OBJECT], _columns())] == [b"a", b"b", b"c"]


def test_near_and_far_extents_of_one_size_are_refused_together() -> None:
    both = _columns(SIZES=[10, 18, 0], REST={1: {1: HOLED, 2: [1, 1, 9]}, 2: {3: b"t"}})
    with pytest.raises(FormatDamage, match="both"):
        entry.decode_block([OBJECT], both)


@pytest.mark.parametrize("name", [b"..", b"a/b", b"a\0", b"", b"n" * 256])
def test_what_no_file_system_takes_is_not_a_name(name: bytes) -> None:
    with pytest.raises(FormatDamage):
        entry.check_names([name])
    entry.check_names([b"n" * 255])


def test_every_id_of_a_block_is_used() -> None:
    with pytest.raises(FormatDamage, match="no entry uses"):
        entry.decode_block([OBJECT, b"p" * 32], _columns())


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([1, 0, [1, 0, 4]], None),
        ([1, 7, [1, 4]], None),
        ([2, 0, [1, 0, 4]], UnsupportedVersion),
        ([2], UnsupportedVersion),
        ([True, 0, [1, 0, 4]], FormatDamage),
        ([1, 8, [1, 4]], FormatDamage),
        ([1, 0, [0, 0, 4]], FormatDamage),
        ([1, 0, [1, 0, 0]], FormatDamage),
        ([1, 0, [1, 0, 1 << 63]], FormatDamage),
        ([1, 1, [1, 0, 4]], FormatDamage),
        ([1, 1, [0, 4]], FormatDamage),
        ([1, 1, []], FormatDamage),
        ([], FormatDamage),
    ],
)
def test_extent_objects(value: Any, error: type[Exception] | None) -> None:
    if error is None:
        entry.decode_extent_object(OBJECT, cbor.encode(value))
        return
    with pytest.raises(error):
        entry.decode_extent_object(OBJECT, cbor.encode(value))


# --- pages and tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([1, [[b"", 0, [0], b""]]], None),
        ([1, [[b"a", 0, [], b""], [b"a", 1, [0], b""], [b"a/b", 0, [], b""], [b"a-", 0, [], b""]]], None),
        ([2, []], UnsupportedVersion),
        ([1.0, [[b"", 0, [0], b""]]], FormatDamage),
        ([1, []], FormatDamage),
        ([1, [[b"", 0, [], b""]]], FormatDamage),
        ([1, [[b"", 0, [1], b""]]], FormatDamage),
        ([1, [[b"", 0, [0, 0], b""]]], FormatDamage),
        ([1, [[b"", 0, [0], b""], [b"", 0, [], b""]]], FormatDamage),
        ([1, [[b"a-", 0, [0], b""], [b"a/b", 0, [], b""]]], FormatDamage),
        ([1, [[b"", 1 << 32, [0], b""]]], FormatDamage),
        ([1, [["", 0, [0], b""]]], FormatDamage),
        *(
            ([1, [[path, 0, [0], b""]]], FormatDamage)
            for path in (b"/", b"/a", b"a/", b"a//b", b"a/../b", b"..", b".", b"a\0", b"a" * (1 << 16))
        ),
    ],
)
def test_pages(value: Any, error: type[Exception] | None) -> None:
    if error is None:
        listing.decode_page(OBJECT, cbor.encode(value))
        return
    with pytest.raises(error):
        listing.decode_page(OBJECT, cbor.encode(value))


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([1, 0, [1, 0], [[b"", 0], [b"a", 0]], [[1, 1, 1]] * 2], None),
        ([1, 0, [0, 1], [[b"", 0], [b"", 1]], [[1, 1, 1]] * 2], None),
        ([3, 0], UnsupportedVersion),
        ([1, 16, [1, 0], [[b"", 0], [b"a", 0]], [[1, 1, 1]] * 2], FormatDamage),
        ([1, 0, [1, 1], [[b"", 0], [b"a", 0]], [[1, 1, 1]] * 2], FormatDamage),
        ([1, 0, [0], [[b"", 0]], [[1, 1, 1]]], FormatDamage),
        ([1, 0, [0, 1, 2], [[b"", 0], [b"a", 0], [b"b", 0]], [[1, 1, 1]] * 3], FormatDamage),
        ([1, 0, [1, 0], [[b"a", 0], [b"", 0]], [[1, 1, 1]] * 2], FormatDamage),
        ([1, 0, [1, 0], [[b"", 0], [b"", 0]], [[1, 1, 1]] * 2], FormatDamage),
        ([1, 0, [1, 0], [[b"", 0], [b"../a", 0]], [[1, 1, 1]] * 2], FormatDamage),
        ([1, 0, [1, 0], [[b"", 0], [b"a", 0]], [[1, 1, -1]] * 2], FormatDamage),
        ([1, 0, [1, 0], [[b"", 0], [b"a", 0]], [[1, 1]] * 2], FormatDamage),
        ([1, 0, [1, 0], [[b"", 0], [b"a", 0]], [[1, 1, 1]]], FormatDamage),
    ],
)
def test_tables(value: Any, error: type[Exception] | None) -> None:
    refs = OBJECT + b"p" * 32
    if error is None:
        assert len(listing.decode_table(refs, cbor.encode(value)).children) == 2
        return
    with pytest.raises(error):
        listing.decode_table(refs, cbor.encode(value))


def test_a_table_has_children() -> None:
    with pytest.raises(FormatDamage):
        listing.decode_table(b"", cbor.encode([1, 0, [], [], []]))


# --- snapshots, metadata, names ---------------------------------------------------------------------------------

HEADER = snapshot.Header(
    0, bytes(16), bytes(16), bytes(16), 1, 2, b"p" * 32, b"r" * 32, b"m" * 32, 3, b"c" * 32
)  # fmt: skip


@pytest.mark.parametrize(
    ("header", "good"),
    [
        (HEADER, True),
        (replace(HEADER, flags=3), True),
        (replace(HEADER, flags=4), False),
        (replace(HEADER, sequence=1, prev=bytes(32)), True),
        (replace(HEADER, sequence=1), False),
        (replace(HEADER, prev=bytes(32)), False),
        (replace(HEADER, sequence=0), False),
        (replace(HEADER, sequence=0, prev=bytes(32)), False),
    ],
)
def test_headers(header: snapshot.Header, good: bool) -> None:
    raw = snapshot.encode_header(header)
    if good:
        assert snapshot.decode_header(raw).partial == bool(header.flags & 1)
        return
    with pytest.raises(FormatDamage):
        snapshot.decode_header(raw)


def test_newer_versions_of_snapshot_parts() -> None:
    raw = snapshot.encode_header(HEADER)
    with pytest.raises(UnsupportedVersion):
        snapshot.decode_header(raw[:4] + b"\2" + raw[5:])
    receipt = b"PNBT\2\x80" + snapshot.encode_receipt(snapshot.Receipt(1, 2, 3))[6:-16]
    with pytest.raises(UnsupportedVersion):
        snapshot.decode_receipt(receipt + blake3(receipt).digest(16))
    front = config.encode(config.Config(bytes(16), bytes(2472)))[:-16]
    front = front[:4] + b"\2" + front[5:]
    with pytest.raises(UnsupportedVersion):
        config.decode(front + blake3(front).digest(16))
    for version in (2, 1 << 62):
        with pytest.raises(UnsupportedVersion):
            snapshot.decode_batch(cbor.encode([version]))


def test_a_batch_is_sorted_and_without_duplicates() -> None:
    row = kept_row()
    assert len(snapshot.decode_batch(cbor.encode([1, [row]]))) == 1
    descending = [[row[0], b"b" * 64, *row[2:]], [row[0], b"a" * 64, *row[2:]]]
    for rows in ([row, row], descending, [row[:3]], [[*row[:3], b""]]):
        with pytest.raises(FormatDamage):
            snapshot.decode_batch(cbor.encode([1, rows]))
    assert len(snapshot.decode_batch(cbor.encode([1, descending[::-1]]))) == 2


def kept_row() -> list[bytes]:
    header = replace(HEADER, certificate_hash=blake3(b"certificate").digest())
    receipt = snapshot.encode_receipt(snapshot.Receipt(1, 2, 3))
    return [snapshot.encode_header(header), bytes(64), b"certificate", receipt]


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (1, bytes(63), "signature"),
        (1, b"", "signature"),
        (2, b"", "certificate"),
        (2, b"another one", "certificate"),
    ],
)
def test_a_kept_header_comes_with_what_its_signature_is_checked_by(at: int, value: bytes, why: str) -> None:
    row = kept_row()
    row[at] = value
    with pytest.raises(FormatDamage, match=why):
        snapshot.decode_batch(cbor.encode([1, [row]]))


def test_a_condemned_list_is_in_order_and_names_nothing_but_files_of_tmp() -> None:
    a, b = bytes(32), bytes([1]) * 32
    assert condemned.decode(cbor.encode([1, 0, [a, b], ["0f"]])) == condemned.CondemnedList(0, (a, b), ("0f",))
    assert condemned.make(0, [b, a, b], ["ok", "../x", "", "a" * 256, "é"]).unpublished == ("ok",)
    for packs, names in (([b, a], []), ([a, a], []), ([a[1:]], []), ([], ["../x"]), ([], [""]), ([], ["b", "a"])):
        with pytest.raises(FormatDamage):
            condemned.decode(cbor.encode([1, 0, packs, names]))
    for time_ns in (-1, 1 << 63, True, "0"):
        with pytest.raises(FormatDamage):
            condemned.decode(cbor.encode([1, time_ns, [], []]))
    with pytest.raises(UnsupportedVersion):
        condemned.decode(cbor.encode([2]))


def test_a_snapshot_file_over_the_limit_is_not_looked_at() -> None:
    with pytest.raises(FormatDamage, match="too large"):
        snapshot.decode_file(bytes(snapshot.FILE_LIMIT + 1))


CLIENT = "00112233445566778899aabbccddeeff"


@pytest.mark.parametrize(
    "name",
    [
        f"{CLIENT}-0000000000000000.snap",
        f"{CLIENT}-000000000000001.snap",
        f"{CLIENT}-00000000000000001.snap",
        f"{CLIENT}-10000000000000001.snap",
        f"{CLIENT}--000000000000001.snap",
        f"{CLIENT}-+000000000000001.snap",
        f"{CLIENT}-0x00000000000001.snap",
        f"{CLIENT}-0000_0000000001.snap",
        f"{CLIENT}-00000000000000AB.snap",
        f"{CLIENT.upper()}-0000000000000001.snap",
        f"{CLIENT[:30]}-0000000000000001.snap",
        f"{CLIENT[:2]} {CLIENT[2:]}-0000000000000001.snap",
        f"{CLIENT}-0000000000000001",
        f"{CLIENT}0000000000000001.snap",
        "",
        ".",
        "-.",
    ],
)
def test_names_of_no_snapshot(name: str) -> None:
    with pytest.raises(FormatDamage):
        snapshot.parse_name(name)


@pytest.mark.parametrize(
    "time", ["", "0", "-000000000000001", "8000000000000000", "00000000000000010", "0_00000000000001", "snap"]
)
def test_names_of_no_marker(time: str) -> None:
    with pytest.raises(FormatDamage):
        snapshot.parse_marker_name(f"{CLIENT}-0000000000000001.{time}")


def _metadata(**changed: Any) -> bytes:
    fixed = bytes(88)
    value = cbor.decode(metadata.encode((bytes(16), 1, bytes(32), bytes(32)), metadata.Metadata("h", (), 0))[88:], "")
    return fixed + cbor.encode({k: v for k, v in (value | changed).items() if v is not Ellipsis})


@pytest.mark.parametrize(
    "changed",
    [
        {"host": ...}, {"host": b"h"}, {"paths": [1]}, {"paths": "p"}, {"started": 1 << 63}, {"started": 0.0},
        {"files": -1}, {"files": True}, {"tags": []}, {"tags": {"a": 1}}, {"tags": {1: "a"}}, {"users": {"a": "b"}},
        {"users": {True: "b"}}, {"groups": {0: b"root"}}, {"program": None},
    ],
)  # fmt: skip
def test_metadata_that_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(FormatDamage):
        metadata.decode(_metadata(**changed))


def test_unknown_keys_of_metadata_are_ignored() -> None:
    assert metadata.decode(_metadata(later=[1, 2])) == metadata.decode(_metadata())
