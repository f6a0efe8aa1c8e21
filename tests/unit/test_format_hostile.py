"""Hostile bytes: every decoder says FormatDamage or UnsupportedVersion, or it accepts something valid.

The bytes that are mangled are those of the golden repository, made with real keys. Where a hash guards a
structure, it is made right again after the mangling: an attacker can do that, too.
"""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import format_values as values
import golden_repository as golden
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packnback.crypto.certificate import parse_certificate
from packnback.crypto.sign import verify_snapshot
from packnback.errors import Damage, FormatDamage, UnsupportedVersion
from packnback.format import cbor, condemned, config, entry, listing, metadata, pack, record, snapshot
from packnback.ids import MIB, Kind

BUILT = golden.build()
FILES = golden.read_golden()  # not those just built, whose random bytes would make a failure hard to repeat
CONFIG = FILES["config"]
DATA_PACK, META_PACK = (data for path, data in FILES.items() if path.startswith("packs/"))
(SNAPSHOT,) = (data for path, data in FILES.items() if path.startswith("snapshots/"))
RECORDS = {r.kind: r for _, r in record.scan(META_PACK)} | {r.kind: r for _, r in record.scan(DATA_PACK)}
PLAIN = {kind: BUILT.plaintexts[r.id] for kind, r in RECORDS.items() if kind != Kind.ENVELOPE}
REFS = {kind: r.refs for kind, r in RECORDS.items()}
BLOCK_IDS, BLOCK = entry.encode_block(BUILT.entries[b"home/u"])
TRAILER = pack.decode_trailer(META_PACK[-pack.TRAILER_LEN :], len(META_PACK))
FOOTER = META_PACK[TRAILER.footer_offset : -pack.TRAILER_LEN]
PARTS = snapshot.decode_file(SNAPSHOT)
CONDEMNED = condemned.encode(condemned.make(1_700_000_000_000_000_000, [bytes(32), bytes(31) + b"a"], ["00ff"]))
BATCH = snapshot.encode_batch(
    [
        snapshot.KeptHeader(PARTS.header_bytes, PARTS.signature, PARTS.certificate, SNAPSHOT[-48:]),
        snapshot.KeptHeader(PARTS.header_bytes, bytes(64), PARTS.certificate, SNAPSHOT[-48:]),
    ]
)
METADATA = metadata.encode((golden.PUT_KEY.client_id, 1, bytes(32), PARTS.header.root), BUILT.metadata)


def _decode_footer(data: bytes) -> pack.Footer:
    trailer = pack.Trailer(TRAILER.footer_offset, len(data), blake3(data).digest())
    return pack.decode_footer(data, trailer)


def _stamped(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A decoder behind a checksum that is always right."""
    return lambda data: decode(data[:-16] + blake3(data[:-16]).digest(16))


_SMALL_RECORD = record.finish(
    record.encode_header(Kind.PAGE, 2, len(REFS[3]) // 32, 4, RECORDS[3].id, RECORDS[3].envelope_id), REFS[3], b"body"
)
DECODERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "cbor": (lambda data: cbor.decode(data, "test"), FOOTER),
    "config": (config.decode, CONFIG),
    "config with its checksum": (_stamped(config.decode), CONFIG),
    "record": (record.parse, bytes(META_PACK[5:1500])),
    "record with its checksum": (_stamped(record.parse), _SMALL_RECORD),
    "scan": (lambda data: list(record.scan(data)), META_PACK[-6000:]),
    "trailer": (lambda data: pack.decode_trailer(data, len(META_PACK)), META_PACK[-pack.TRAILER_LEN :]),
    "footer": (_decode_footer, FOOTER),
    "header": (snapshot.decode_header, PARTS.header_bytes),
    "receipt": (snapshot.decode_receipt, SNAPSHOT[-48:]),
    "receipt with its checksum": (_stamped(snapshot.decode_receipt), SNAPSHOT[-48:]),
    "snapshot": (snapshot.decode_file, SNAPSHOT),
    "snapshot on its way": (lambda data: snapshot.decode_file(data, receipt=False), SNAPSHOT[:-48]),
    "batch": (snapshot.decode_batch, BATCH),
    "condemned": (condemned.decode, CONDEMNED),
    "metadata": (metadata.decode, METADATA),
    "block": (lambda data: entry.decode_block(BLOCK_IDS, data), BLOCK),
    "extents": (lambda data: entry.decode_extent_object(REFS[2], data), PLAIN[2]),
    "page": (lambda data: listing.decode_page(REFS[3], data), PLAIN[3]),
    "table": (lambda data: listing.decode_table(REFS[4], data), PLAIN[4]),
}
"""Name → (decoder, bytes that it accepts)."""

_CBOR = ("footer", "batch", "condemned", "block", "extents", "page", "table")
CBOR_DECODERS = {name: DECODERS[name] for name in _CBOR}
CBOR_DECODERS["metadata"] = (lambda data: metadata.decode(METADATA[:88] + data), METADATA[88:])

REWRITERS: dict[str, Callable[[Any], bytes]] = {
    "config": config.encode,
    "footer": lambda f: pack.encode_footer(f.nonce, f.records, f.envelopes),
    "header": snapshot.encode_header,
    "receipt": snapshot.encode_receipt,
    "snapshot": snapshot.encode_file,
    "batch": snapshot.encode_batch,
    "condemned": condemned.encode,
    "page": lambda groups: listing.encode_page(groups)[1],
    "table": lambda t: listing.encode_table(t.children, t.depth)[1],
    "extents": lambda x: _rewrite_extents(x)[1],
}
"""The inverse of a decoder, where a value has one accepted encoding."""


def _rewrite_extents(x: entry.ExtentObject) -> tuple[list[bytes], bytes]:
    return entry.encode_far_object(x.far, x.depth) if x.depth else entry.encode_extent_object(x.extents)


def refused_or_canonical(name: str, decode: Callable[[bytes], Any], data: bytes) -> None:
    """The one property of all decoders; anything else that is raised fails the test."""
    try:
        value = decode(data)
    except (FormatDamage, UnsupportedVersion):
        return
    if name in REWRITERS:
        assert REWRITERS[name](value) == data


@pytest.mark.parametrize("name", DECODERS)
def test_the_valid_bytes_are_accepted(name: str) -> None:
    decode, valid = DECODERS[name]
    decode(valid)


@pytest.mark.parametrize("name", DECODERS)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(data=st.data())
def test_mangled_bytes(name: str, data: st.DataObject) -> None:
    decode, valid = DECODERS[name]
    refused_or_canonical(name, decode, data.draw(values.mangled(valid)))


@pytest.mark.parametrize("name", CBOR_DECODERS)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_documents_with_other_values_in_them(name: str, data: st.DataObject) -> None:
    decode, valid = CBOR_DECODERS[name]
    refused_or_canonical(name, decode, data.draw(values.rebuilt(valid)))


@pytest.mark.parametrize("name", CBOR_DECODERS)
def test_every_value_of_a_document_replaced_by_every_odd_one(name: str) -> None:
    decode, valid = CBOR_DECODERS[name]
    count = 0
    for mutant in _replacements(cbor.decode(valid, "test")):
        refused_or_canonical(name, decode, cbor.encode(mutant))
        count += 1
    assert count > 100


def _replacements(value: Any) -> Any:
    """Copies of a document, in each of which one value is another one. Of long lists, the first eight items."""
    yield from values.ODD_VALUES
    if isinstance(value, list):
        for i in range(min(len(value), 8)):
            yield value[:i] + value[i + 1 :]
            for inner in _replacements(value[i]):
                yield [*value[:i], inner, *value[i + 1 :]]
    elif isinstance(value, dict):
        for key, item in value.items():
            yield {k: v for k, v in value.items() if k != key}
            for other in (0, 8, 999, True, 1.0, "x", None):
                yield {(other if k == key else k): v for k, v in value.items()}
            for inner in _replacements(item):
                yield value | {key: inner}


@pytest.mark.parametrize("name", sorted(set(DECODERS) - {"scan", "record", "cbor"}))
def test_every_truncation_is_refused(name: str) -> None:
    decode, valid = DECODERS[name]
    for length in itertools.chain(range(min(len(valid), 600)), range(max(0, len(valid) - 200), len(valid))):
        with pytest.raises((FormatDamage, UnsupportedVersion)):
            decode(valid[:length])


@pytest.mark.parametrize("name", sorted(set(DECODERS) - {"scan", "record", "record with its checksum"}))
def test_one_more_byte_is_refused(name: str) -> None:
    decode, valid = DECODERS[name]
    with pytest.raises((FormatDamage, UnsupportedVersion)):
        decode(valid + b"\0")


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_as_a_file_name(text: str) -> None:
    for parse in (snapshot.parse_name, snapshot.parse_marker_name):
        with pytest.raises(FormatDamage):
            parse(text)


CLAIMS = [
    "9b00ffffffffffffff", "9bffffffffffffffff", "9affffffff", "5b00ffffffffffffff", "5bffffffffffffffff",
    "5affffffff", "7b00ffffffffffffff", "7affffffff", "bb00ffffffffffffff", "baffffffff", "8a" * 15,
    "82019b7fffffffffffffff", "8201815affffffff",
]  # fmt: skip
"""Documents of a few bytes that announce very much."""


@pytest.mark.parametrize("name", sorted({*CBOR_DECODERS, "cbor"}))
@pytest.mark.parametrize("claim", CLAIMS)
def test_announced_lengths_are_not_allocated(name: str, claim: str) -> None:
    decode, _ = (CBOR_DECODERS | {"cbor": DECODERS["cbor"]})[name]
    _refused_cheaply(lambda: decode(bytes.fromhex(claim)))


def test_announced_bodies_and_refs_are_not_allocated() -> None:
    header = record.encode_header(3, 1, 4096, 16 << 20, bytes(32), bytes(16))
    _refused_cheaply(lambda: record.parse(header + bytes(100)))
    _refused_cheaply(lambda: pack.decode_trailer(struct.pack("<QI32s5s", 5, (64 << 20) + 1, bytes(32), b"PNBK\1"), 1))


@pytest.mark.parametrize("item", ["80", "a0", "8100", "a10000", "410041ff", "623030", "37"])
def test_millions_of_items_are_not_decoded(item: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sixteen MiB that compress to nothing, decoding would make a gigabyte. Here, a tenth of both."""
    monkeypatch.setattr(cbor, "WEIGHT_LIMIT", cbor.WEIGHT_LIMIT // 10)
    one = bytes.fromhex(item)
    count = 16 * MIB // 10 // len(one)
    document = b"\x9a" + count.to_bytes(4, "big") + one * count
    _refused_cheaply(lambda: cbor.decode(document, "page"))


def test_a_text_is_weighed_as_its_widest_character_may_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cbor, "WEIGHT_LIMIT", cbor.WEIGHT_LIMIT // 10)
    document = cbor.encode(["a" * (4 * MIB) + "\U0001f512"])
    _refused_cheaply(lambda: cbor.decode(document, "page"))
    assert cbor.decode(cbor.encode(["a" * (3 * MIB)]), "page") == ["a" * (3 * MIB)]


@pytest.mark.parametrize("length", [cbor.UNWEIGHED - 99, cbor.UNWEIGHED, 3 * cbor.UNWEIGHED])
def test_a_large_document_of_few_items_is_decoded(length: int) -> None:
    value = [bytes(length), "\x80" * 99, {"name": b"x", 7: -(1 << 40)}, list(range(-300, 300)), 1 << 62, None, True]
    assert cbor.decode(cbor.encode(value), "page") == value


def _refused_cheaply(decode: Callable[[], Any]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatDamage):
            decode()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# --- single flipped bytes -------------------------------------------------------------------------------


def _flips(data: bytes) -> Any:
    """(position, data with one byte changed): the lowest bit, the highest bit, all bits of each byte."""
    for at in range(len(data)):
        for mask in (1, 128, 255):
            yield at, data[:at] + bytes((data[at] ^ mask,)) + data[at + 1 :]


def test_every_flip_in_a_config_is_damage() -> None:
    """Damage, never UnsupportedVersion: a flipped bit must not pass for a file from the future."""
    for _, flipped in _flips(CONFIG):
        with pytest.raises(FormatDamage):
            config.decode(flipped)


def test_every_flip_in_a_footer_or_trailer_is_refused() -> None:
    """The pack's name is the footer's hash, so a trailer is compared with the name, as the store does it.

    The trailer's version byte is the one whose flip reads as a newer version: nothing is deleted because of it.
    """
    name = blake3(FOOTER).digest()
    tail_at = len(META_PACK) - pack.TRAILER_LEN
    for at, flipped in _flips(META_PACK[TRAILER.footer_offset :]):
        footer, tail = flipped[: len(FOOTER)], flipped[len(FOOTER) :]
        newer = TRAILER.footer_offset + at == tail_at + pack.TRAILER_LEN - 1
        with pytest.raises(UnsupportedVersion if newer else FormatDamage):
            trailer = pack.decode_trailer(tail, len(META_PACK))
            pack.decode_footer(footer, trailer)
            assert trailer.footer_hash == name


def test_every_flip_in_a_record_is_damage() -> None:
    raw = META_PACK[5 : 5 + RECORDS[0].length]
    for _, flipped in _flips(raw):
        with pytest.raises(FormatDamage):
            record.parse(flipped)


SIGNED_ONLY = {5, *range(8, 100), *range(164, 172), *range(204, 268)}
"""Where a snapshot file has bytes that nothing but the signature covers: the header's flags, repository, client,
domain, epoch, sequence, prev and time, and the signature itself. The rest of the header (root and the two hashes)
is compared with what follows it; certificate, records and receipt are hashed, the certificate's signature too."""


def test_every_flip_in_a_snapshot_file_is_damage() -> None:
    """By its structure and hashes, or by the signature; and no flip passes for a newer version."""
    undetected_by_format = set()
    for at, flipped in _flips(SNAPSHOT):
        try:
            parts = snapshot.decode_file(flipped)
        except FormatDamage:
            continue
        undetected_by_format.add(at)
        with pytest.raises(Damage):
            verify_snapshot(parse_certificate(parts.certificate).verify_key, parts.header_bytes, parts.signature)
    assert undetected_by_format <= SIGNED_ONLY
    assert set(range(8, 60)) | set(range(164, 172)) | set(range(204, 268)) <= undetected_by_format
