"""Payloads, bodies, ids: pinned bytes, and everything that a hostile client or repository may try."""

from __future__ import annotations

import random
import struct
import threading

import pytest
import zstandard
from blake3 import blake3
from crypto_vectors import (
    DATA,
    FARM,
    GOLDENS,
    META,
    OWNER,
    PUT,
    REPOSITORY,
    VECTORS,
    Sealed,
    data_envelope,
    meta_envelope,
    seal,
)
from hypothesis import given
from hypothesis import strategies as st

from packnback import errors
from packnback.crypto.derive import H
from packnback.crypto.envelope import make_envelope, open_envelope
from packnback.crypto.payload import FLOORS, decode_payload, encode_payload, padded_length, padme
from packnback.crypto.reader import open_object
from packnback.crypto.seal import BODY_OVERHEAD, body_length, object_id, open_body, seal_body
from packnback.ids import KIB, MIB, RAW_LIMIT, ObjectClass

HEADER = struct.Struct("<BII")
REFS = b"\x55" * 32 + b"\x66" * 32
TEXT = b"the quick brown fox jumps over the lazy dog. " * 2000
RANDOM = random.Random(4711).randbytes(100_000)

DATA_OPENED = open_envelope(data_envelope()[0], OWNER)
META_OPENED = open_envelope(meta_envelope()[0], OWNER)


def framed(codec: int, payload: bytes, raw: int, *, stored: int | None = None, floor: int = 0) -> bytes:
    """A payload that is padded as it should be, whatever it claims."""
    header = HEADER.pack(codec, len(payload) if stored is None else stored, raw)
    return (header + payload).ljust(padded_length(len(payload), floor), b"\0")


def opened(sealed: Sealed, **changed: object) -> bytes:
    parts = {**sealed._asdict(), **changed}
    wanted = parts.pop("id")
    envelope = META_OPENED if sealed.kind != 1 else DATA_OPENED
    return open_object(envelope, wanted, parts["kind"], parts["header"], parts["refs"], parts["body"])


def refused(padded: bytes, why: str) -> None:
    with pytest.raises(errors.FormatDamage, match=why):
        decode_payload(padded, DATA, floor=0)


# --- pinned bytes ------------------------------------------------------------------------------------------


def test_data_record_is_the_pinned_one() -> None:
    sealed = seal(PUT, data_envelope(), 1, b"hello", floor=0, randomness=bytes(32))
    assert sealed.id.hex() == VECTORS["object_id"]
    assert sealed.record().hex() == VECTORS["record"]
    plaintext = open_object(DATA_OPENED, sealed.id, 1, sealed.header, sealed.refs, sealed.body, floor=0)
    assert plaintext == b"hello"


def test_meta_record_with_refs_is_the_pinned_one() -> None:
    sealed = seal(FARM, meta_envelope(), 3, b"a page", level=2, refs=REFS, randomness=b"\x77" * 32)
    assert sealed.id.hex() == GOLDENS["meta_object_id"]
    assert H(sealed.record()).hex() == GOLDENS["meta_record_blake3"]
    assert opened(sealed) == b"a page"


def test_object_id_is_a_keyed_hash_behind_a_domain_tag() -> None:
    key, domain = b"k" * 32, bytes(range(16))
    identifier = object_id(key, domain, 3, REFS, b"plain")
    assert identifier[:8] == domain[:8]
    assert identifier[8:] == blake3(b"\x03\x02\0\0\0" + REFS + b"plain", key=key).digest(24)
    for other in (
        object_id(key, domain, 4, REFS, b"plain"),
        object_id(key, domain, 3, REFS[:32], b"plain"),
        object_id(key, domain, 3, REFS[:32], REFS[32:] + b"plain"),
        object_id(b"K" * 32, domain, 3, REFS, b"plain"),
    ):
        assert other[8:] != identifier[8:]


@pytest.mark.parametrize(("length", "padded"), VECTORS["padme"].items())
def test_padme_is_the_pinned_one(length: str, padded: int) -> None:
    assert padme(int(length)) == padded


@given(st.integers(0, 1 << 40))
def test_padme_grows_by_an_eighth_at_most_and_stays_when_repeated(length: int) -> None:
    padded = padme(length)
    assert length <= padded <= length + length // 8 + 1
    assert padme(padded) == padded
    assert padme(length + 1) >= padded


# --- payloads ----------------------------------------------------------------------------------------------


@given(st.binary(max_size=20_000), st.sampled_from([DATA, META]), st.sampled_from([None, 1, 3, 19]))
def test_payload_round_trip(plaintext: bytes, object_class: ObjectClass, level: int | None) -> None:
    for view in (plaintext, bytearray(plaintext), memoryview(plaintext)):
        padded = encode_payload(view, object_class, codec_level=level)
        assert decode_payload(padded, object_class) == plaintext
        assert len(padded) >= FLOORS[object_class]


@pytest.mark.parametrize("length", [0, 1, 4086, 4087, 4088, 16_374, 16_375, 16_376, 65_527, 65_528, MIB])
@pytest.mark.parametrize("object_class", [DATA, META])
def test_no_payload_is_below_its_floor_and_all_have_padme_sizes(length: int, object_class: ObjectClass) -> None:
    padded = encode_payload(bytes(length), object_class, codec_level=None)
    assert len(padded) == max(padme(9 + length), FLOORS[object_class])
    assert FLOORS == {DATA: 16 * KIB, META: 4 * KIB}


def test_compression_is_kept_only_if_the_padded_size_shrinks() -> None:
    codecs = {
        "text": encode_payload(TEXT, DATA, codec_level=3)[0],
        "text, no compression": encode_payload(TEXT, DATA, codec_level=None)[0],
        "random": encode_payload(RANDOM, DATA, codec_level=3)[0],
        "below the floor": encode_payload(b"a" * 9000, DATA, codec_level=3)[0],
        "below the meta floor": encode_payload(b"a" * 9000, META, codec_level=3)[0],
    }
    assert codecs == {
        "text": 1,
        "text, no compression": 0,
        "random": 0,
        "below the floor": 0,
        "below the meta floor": 1,
    }


def test_the_largest_plaintext_and_one_more() -> None:
    largest = bytes(RAW_LIMIT)
    assert decode_payload(encode_payload(largest, DATA, codec_level=1), DATA) == largest
    with pytest.raises(ValueError, match="at most"):
        encode_payload(largest + b"\0", DATA, codec_level=1)
    refused(framed(1, zstandard.compress(largest + b"\0"), RAW_LIMIT + 1), "more than")


def test_threads_do_not_share_zstd_contexts() -> None:
    texts = [bytes((number,)) * 50_000 + RANDOM[:30_000] for number in range(4)]
    wrong: list[int] = []

    def work(number: int) -> None:
        for level in (1, 3) * 5:
            padded = encode_payload(texts[number], DATA, codec_level=level)
            if decode_payload(padded, DATA) != texts[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("at", [100, 180, -1])
def test_padding_must_be_zero(at: int) -> None:
    padded = bytearray(framed(0, b"x" * 91, 91, floor=256))
    padded[at] = 1
    with pytest.raises(errors.FormatDamage, match="not zero"):
        decode_payload(padded, DATA, floor=256)


@pytest.mark.parametrize("change", [-1, 1, 8])
def test_lengths_other_than_the_padded_one_are_refused(change: int) -> None:
    padded = framed(0, b"x" * 91, 91)
    assert len(padded) == 104
    refused((padded + bytes(8))[: len(padded) + change], "padded length")


def test_a_payload_padded_to_another_floor_is_refused() -> None:
    small = encode_payload(b"x", META, codec_level=None)
    with pytest.raises(errors.FormatDamage, match="padded length"):
        decode_payload(small, DATA)


@pytest.mark.parametrize("length", range(9))
def test_payload_without_a_whole_header(length: int) -> None:
    refused(bytes(length), "shorter")


def test_stored_and_raw_length_must_agree() -> None:
    refused(framed(0, b"x" * 100, 99), "differ")
    refused(framed(0, b"x" * 100, 101), "differ")
    refused(framed(0, b"x" * 100, 100, stored=5000), "padded length")
    refused(framed(0, b"x", 0xFFFFFFFF), "more than")


@pytest.mark.parametrize("codec", [2, 3, 255])
def test_unknown_codecs_are_refused(codec: int) -> None:
    refused(framed(codec, b"x" * 100, 100), "codec")


# --- zstd frames of a hostile client -----------------------------------------------------------------------


def frame(content: bytes, **parameters: int) -> bytes:
    return zstandard.ZstdCompressor(**parameters).compress(content)


def frame_header(content_size: int, *, window_log: int | None = None, dict_id: int | None = None) -> bytes:
    """A zstd frame header with an 8-byte content size (RFC 8878 §3.1.1.1); single segment without a window."""
    descriptor = 0b11000000 | (0 if window_log is not None else 0b00100000) | (1 if dict_id is not None else 0)
    window = b"" if window_log is None else bytes(((window_log - 10) << 3,))
    dictionary = b"" if dict_id is None else bytes((dict_id,))
    return zstandard.FRAME_HEADER + bytes((descriptor,)) + window + dictionary + struct.pack("<Q", content_size)


def last_raw_block(content: bytes) -> bytes:
    return (1 | len(content) << 3).to_bytes(3, "little") + content


def test_a_frame_made_by_hand_is_fine() -> None:
    """The hostile ones below differ from this one in a single respect each."""
    for header in (frame_header(5), frame_header(5, window_log=24)):
        assert decode_payload(framed(1, header + last_raw_block(b"hello"), 5), DATA, floor=0) == b"hello"


def test_false_content_size() -> None:
    refused(framed(1, frame_header(6) + last_raw_block(b"hello"), 6), "zstd")
    refused(framed(1, frame_header(4) + last_raw_block(b"hello"), 4), "zstd")
    refused(framed(1, frame(TEXT), len(TEXT) - 1), "another size")


def test_claim_of_a_terabyte_is_refused_before_anything_is_allocated() -> None:
    for header in (frame_header(1 << 40), frame_header(1 << 40, window_log=24)):
        refused(framed(1, header + last_raw_block(b"hello"), 5), "another size")


def test_frames_without_a_content_size() -> None:
    refused(framed(1, frame(TEXT, write_content_size=False), len(TEXT)), "another size")


def test_window_above_16_mib() -> None:
    refused(framed(1, frame_header(5, window_log=25) + last_raw_block(b"hello"), 5), "window")


def test_frames_with_a_dictionary() -> None:
    refused(framed(1, frame_header(5, dict_id=7) + last_raw_block(b"hello"), 5), "dictionary")


def test_trailing_bytes() -> None:
    refused(framed(1, frame(TEXT) + b"\0", len(TEXT)), "unused data")


def test_two_frames() -> None:
    refused(framed(1, frame(TEXT) * 2, len(TEXT)), "unused data")
    refused(framed(1, frame(TEXT) * 2, 2 * len(TEXT)), "another size")


def test_skippable_frames() -> None:
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    refused(framed(1, skippable, 4), "not a zstd frame")
    refused(framed(1, skippable + frame(TEXT), len(TEXT)), "not a zstd frame")
    refused(framed(1, frame(TEXT) + skippable, len(TEXT)), "unused data")


def test_truncated_frames() -> None:
    whole = frame(TEXT)
    for length in range(len(whole)):
        refused(framed(1, whole[:length], len(TEXT)), "zstd")


def test_an_empty_plaintext_is_never_compressed() -> None:
    """The library returns early for a content size of 0 and would overlook what trails."""
    assert encode_payload(b"", DATA, codec_level=3)[0] == 0
    refused(framed(1, frame(b""), 0), "not a zstd frame")
    refused(framed(1, frame(b"") + b"hidden", 0), "not a zstd frame")


def test_corrupt_frames_give_damage_or_what_was_compressed() -> None:
    """zstd ignores one bit of its frame header; everything else its checksum covers."""
    content = RANDOM[:200] + TEXT[:2000]
    whole = frame(content, write_checksum=True)
    refusals = 0
    for at in range(len(whole)):
        for bit in (0x01, 0x10, 0x80):
            changed = bytearray(whole)
            changed[at] ^= bit
            try:
                assert decode_payload(framed(1, bytes(changed), len(content)), DATA, floor=0) == content
            except errors.FormatDamage:
                refusals += 1
    assert refusals >= 3 * len(whole) - 10


# --- bodies ------------------------------------------------------------------------------------------------


def test_body_is_as_long_as_the_header_was_told() -> None:
    for length in (0, 1, 16 * KIB, 100_000):
        assert len(seal_body(data_envelope()[2], b"h" * 64, b"", bytes(length))) == length + BODY_OVERHEAD
        assert body_length(bytes(length)) == length + BODY_OVERHEAD


def test_sealing_twice_gives_different_bytes() -> None:
    keys = data_envelope()[2]
    assert seal_body(keys, b"h" * 64, b"", b"p" * 100) != seal_body(keys, b"h" * 64, b"", b"p" * 100)


def test_nonces_differ_even_when_the_random_source_repeats_itself() -> None:
    keys = data_envelope()[2]
    nonces = {
        bytes(seal_body(keys, header, refs, b"", randomness=bytes(32))[:24])
        for header in (b"h" * 64, b"H" * 64)
        for refs in (b"", REFS)
    }
    assert len(nonces) == 4


@pytest.mark.parametrize("length", [0, 23, 24, 39])
def test_bodies_too_short_to_hold_a_nonce_and_a_tag(length: int) -> None:
    with pytest.raises(errors.FormatDamage, match="too short"):
        open_body(DATA_OPENED.object_key, b"h" * 64, b"", bytes(length))


def test_body_opens_from_any_buffer() -> None:
    keys = data_envelope()[2]
    body = seal_body(keys, b"h" * 64, REFS, b"padded")
    for view in (body, bytes(body), memoryview(body), memoryview(b"x" + bytes(body))[1:]):
        assert open_body(keys.object_key, b"h" * 64, memoryview(REFS), view) == b"padded"


# --- whole objects -----------------------------------------------------------------------------------------


def test_objects_of_every_kind_open() -> None:
    for kind in (2, 3, 4, 5):
        assert opened(seal(FARM, meta_envelope(), kind, TEXT, refs=REFS, codec_level=3)) == TEXT
    assert opened(seal(PUT, data_envelope(), 1, TEXT, codec_level=3)) == TEXT


def test_every_byte_of_header_refs_and_body_is_authenticated() -> None:
    sealed = seal(FARM, meta_envelope(), 3, b"a page", level=2, refs=REFS, floor=0)
    for part in ("header", "refs", "body"):
        original = getattr(sealed, part)
        for at in range(len(original)):
            changed = bytearray(original)
            changed[at] ^= 1
            with pytest.raises(errors.ObjectDamage, match="authenticate"):
                opened(sealed, **{part: bytes(changed)})


def test_parts_swapped_between_records_do_not_open() -> None:
    one = seal(FARM, meta_envelope(), 3, b"one", level=2, refs=REFS)
    two = seal(FARM, meta_envelope(), 3, b"two", level=2, refs=REFS[:32])
    for part in ("header", "refs", "body"):
        with pytest.raises(errors.ObjectDamage, match="authenticate"):
            opened(one, **{part: getattr(two, part)})
    with pytest.raises(errors.ObjectDamage, match="promises"):
        opened(two, id=one.id)


@pytest.mark.parametrize("at", [5, 6, 7], ids=["kind", "level", "flags"])
def test_kind_level_and_flags_are_bound(at: int) -> None:
    sealed = seal(FARM, meta_envelope(), 3, b"page", level=2, refs=REFS)
    changed = bytearray(sealed.header)
    changed[at] ^= 7
    with pytest.raises(errors.ObjectDamage, match="authenticate"):
        opened(sealed, header=bytes(changed))


def test_envelope_ids_swapped_between_records_do_not_open() -> None:
    session = make_envelope(FARM, REPOSITORY, META)
    sealed = seal(FARM, session, 3, b"page")
    assert session[1] in sealed.header
    swapped = sealed.header.replace(session[1], meta_envelope()[1])
    for envelope in (META_OPENED, open_envelope(session[0], OWNER)):
        with pytest.raises(errors.ObjectDamage, match="authenticate"):
            open_object(envelope, sealed.id, 3, swapped, b"", sealed.body)


def test_a_page_sealed_with_fewer_refs_is_not_the_page() -> None:
    """A client that has the keys, seals the plaintext under the same id and drops a ref."""
    whole = seal(FARM, meta_envelope(), 3, b"page", refs=REFS)
    fewer = seal(FARM, meta_envelope(), 3, b"page", refs=REFS[:32], identifier=whole.id)
    with pytest.raises(errors.ObjectDamage, match="promises"):
        opened(fewer)


def test_poison_under_a_wanted_id_is_found() -> None:
    wanted = seal(PUT, data_envelope(), 1, b"wanted").id
    with pytest.raises(errors.ObjectDamage, match="promises") as caught:
        opened(seal(PUT, data_envelope(), 1, b"poison", identifier=wanted))
    assert caught.value.id == wanted


def test_a_data_id_made_with_the_meta_id_key_is_refused() -> None:
    identifier = object_id(PUT.id_key[META], PUT.domain_id, 1, b"", b"hello")
    with pytest.raises(errors.ObjectDamage, match="promises"):
        opened(seal(PUT, data_envelope(), 1, b"hello", identifier=identifier))


def test_kind_must_fit_the_class_of_the_envelope() -> None:
    data = seal(PUT, data_envelope(), 1, b"hello")
    meta = seal(FARM, meta_envelope(), 3, b"hello")
    for envelope, sealed in ((META_OPENED, data), (DATA_OPENED, meta)):
        with pytest.raises(errors.ObjectDamage, match="class"):
            open_object(envelope, sealed.id, sealed.kind, sealed.header, sealed.refs, sealed.body)
    for kind in (0, 6, 255):
        with pytest.raises(errors.ObjectDamage, match="class"):
            open_object(META_OPENED, meta.id, kind, meta.header, meta.refs, meta.body)


def test_an_id_of_another_domain_is_refused() -> None:
    foreign = object_id(PUT.id_key[META], PUT.domain_id, 3, b"", b"page")
    with pytest.raises(errors.ObjectDamage, match="domain"):
        opened(seal(FARM, meta_envelope(), 3, b"page", identifier=foreign))


def test_a_bad_payload_in_an_authentic_body_is_damage_of_that_object() -> None:
    for padded in (framed(1, frame(TEXT) * 2, len(TEXT), floor=16 * KIB), framed(7, b"", 0, floor=16 * KIB)):
        sealed = seal(PUT, data_envelope(), 1, TEXT, padded=padded)
        with pytest.raises(errors.ObjectDamage, match="payload") as caught:
            opened(sealed)
        assert caught.value.id == sealed.id


def test_another_client_of_the_domain_opens_to_the_same_id() -> None:
    """Deduplication in a group: either client's record serves the other's snapshot."""
    other = OWNER.put_key("web2", epoch=7, group="farm")
    session = make_envelope(other, REPOSITORY, META)
    mine, theirs = seal(FARM, meta_envelope(), 3, b"page"), seal(other, session, 3, b"page")
    assert mine.id == theirs.id
    envelope = open_envelope(session[0], OWNER)
    assert open_object(envelope, mine.id, 3, theirs.header, theirs.refs, theirs.body) == b"page"
