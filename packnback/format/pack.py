"""Packs: many records in one immutable file, with a footer that tells all that a keyless repository needs.

::

    pack    = "PNBK" 1 ‖ records … ‖ footer (CBOR) ‖ trailer
    trailer = u64 footer offset ‖ u32 footer length ‖ BLAKE3(footer) 32 ‖ "PNBK" 1
    footer  = [1, nonce 16, [record row …], [envelope row …]]
    record row   = [offset, length, kind, level, id, checksum, index of its envelope row, refs]
    envelope row = [offset, length, id 32, checksum, client id, domain id, epoch, class]

The pack's name is BLAKE3(footer) in hexadecimal: the name commits to the contents, and the random nonce
makes every pack's name its own, even with the same records. Records and footer tile the file without a gap,
so no byte of a pack is outside some checksum. Adopting a pack reads trailer and footer and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from blake3 import blake3
from msgspec import Struct

from packnback.errors import FormatDamage, UnsupportedVersion
from packnback.format import cbor
from packnback.format.record import (
    ENVELOPE_BODY_LIMIT,
    check_kind_and_level,
    check_refs,
    record_length,
    split_refs,
)
from packnback.ids import (
    BODY_LIMIT,
    CHECKSUM_LEN,
    CLIENT_ID_LEN,
    DOMAIN_ID_LEN,
    HASH_LEN,
    ID_LEN,
    MIB,
    Kind,
    ObjectClass,
    class_of,
)

MAGIC = b"PNBK\x01"
NONCE_LEN = 16
FOOTER_LIMIT = 64 * MIB
_TRAILER = struct.Struct("<QI32s5s")
TRAILER_LEN = _TRAILER.size
_VERSION = 1
_WHAT = "pack footer"


class RecordRow(NamedTuple):
    """One object of a pack, as its footer tells it. `refs` is the concatenation of the ids.

    (A tuple, because there are millions of them.)
    """

    offset: int
    length: int
    kind: int
    level: int
    id: bytes
    checksum: bytes
    envelope: int
    """Index into the footer's envelope rows."""
    refs: bytes

    @property
    def ref_list(self) -> list[bytes]:
        """The refs one by one."""
        return split_refs(self.refs)


class EnvelopeRow(Struct, frozen=True):
    """One envelope of a pack, with who made it: quotas and epochs are counted from these."""

    offset: int
    length: int
    id: bytes
    checksum: bytes
    client_id: bytes
    domain_id: bytes
    epoch: int
    object_class: int

    @property
    def envelope_id(self) -> bytes:
        """The 16 bytes by which records name it."""
        return self.id[:16]


class Footer(Struct, frozen=True):
    """All that a pack says about itself."""

    nonce: bytes
    records: tuple[RecordRow, ...]
    envelopes: tuple[EnvelopeRow, ...]

    @property
    def object_class(self) -> ObjectClass:
        """The class of every object in the pack."""
        return ObjectClass(self.envelopes[0].object_class)


class Trailer(Struct, frozen=True):
    """Where the footer is, and its hash, which is the pack's name."""

    footer_offset: int
    footer_length: int
    footer_hash: bytes


def encode_footer(nonce: bytes, records: Sequence[RecordRow], envelopes: Sequence[EnvelopeRow]) -> bytes:
    """The footer's bytes; rows in order of their offset."""
    return cbor.encode(
        [
            _VERSION,
            nonce,
            [[r.offset, r.length, r.kind, r.level, r.id, r.checksum, r.envelope, r.refs] for r in records],
            [
                [e.offset, e.length, e.id, e.checksum, e.client_id, e.domain_id, e.epoch, e.object_class]
                for e in envelopes
            ],
        ]
    )


def encode_trailer(footer_offset: int, footer: bytes) -> bytes:
    """The last bytes of the pack."""
    return _TRAILER.pack(footer_offset, len(footer), blake3(footer).digest(), MAGIC)


def decode_trailer(tail: bytes, pack_size: int) -> Trailer:
    """The trailer from the last TRAILER_LEN bytes of a pack of `pack_size` bytes.

    Raises FormatDamage, or UnsupportedVersion for a pack that a newer version wrote.
    """
    if len(tail) != TRAILER_LEN:
        raise FormatDamage("pack trailer", "cut short")
    offset, length, digest, magic = _TRAILER.unpack(tail)
    if magic[:4] != MAGIC[:4]:
        raise FormatDamage("pack trailer", "magic")
    if magic[4] != MAGIC[4]:
        raise UnsupportedVersion("pack", magic[4], MAGIC[4])
    if length > FOOTER_LIMIT or offset < len(MAGIC) or offset + length + TRAILER_LEN != pack_size:
        raise FormatDamage("pack trailer", "footer out of bounds")
    return Trailer(offset, length, digest)


def decode_footer(data: bytes, trailer: Trailer) -> Footer:
    """The footer, checked against its hash and in itself.

    Every row within the limits, kinds of one class, refs ascending, envelopes known, records and envelopes
    tiling the pack without gap or overlap. Raises FormatDamage or UnsupportedVersion.
    """
    if len(data) != trailer.footer_length or blake3(data).digest() != trailer.footer_hash:
        raise FormatDamage(_WHAT, "hash")
    value = cbor.decode(data, _WHAT)
    cbor.expect(type(value) is list and len(value) > 0, _WHAT, "shape")
    cbor.expect_version(value[0], _WHAT, _VERSION)
    cbor.expect(len(value) == 4, _WHAT, "shape")
    _, nonce, record_rows, envelope_rows = value
    cbor.expect(type(nonce) is bytes and len(nonce) == NONCE_LEN, _WHAT, "nonce")
    cbor.expect(type(record_rows) is list and type(envelope_rows) is list, _WHAT, "shape")
    envelopes = tuple(_envelope_row(row) for row in envelope_rows)
    cbor.expect(len({e.object_class for e in envelopes}) == 1, _WHAT, "envelopes of no or several classes")
    cbor.expect(len({e.envelope_id for e in envelopes}) == len(envelopes), _WHAT, "envelope twice")
    records = _record_rows(record_rows, envelopes)
    cbor.expect(len({r.id for r in records}) == len(records), _WHAT, "object twice")
    _check_tiling(records, envelopes, trailer.footer_offset)
    return Footer(nonce, records, envelopes)


_SHAPE = [int, int, int, int, bytes, bytes, int, bytes]
_LEAST = record_length(0, 0)


def _record_rows(found: list[Any], envelopes: tuple[EnvelopeRow, ...]) -> tuple[RecordRow, ...]:
    """Each row checked. In a large repository nearly all are of data, and take the short way."""
    data_tags = [e.domain_id[:8] if e.object_class == ObjectClass.DATA else None for e in envelopes]
    makers, most, make = len(envelopes), _LEAST + BODY_LIMIT, RecordRow._make
    records = []
    for row in found:
        if type(row) is list and list(map(type, row)) == _SHAPE:
            offset, length, kind, level, object_id, checksum, envelope, refs = row
            if (
                kind == 1  # Kind.DATA; looking it up would take as long as all the rest
                and not level
                and not refs
                and offset >= 0
                and _LEAST <= length <= most
                and len(object_id) == ID_LEN
                and len(checksum) == CHECKSUM_LEN
                and 0 <= envelope < makers
                and object_id[:8] == data_tags[envelope]
            ):
                records.append(make(row))
                continue
        records.append(_record_row(row, envelopes))
    return tuple(records)


def _record_row(row: Any, envelopes: tuple[EnvelopeRow, ...]) -> RecordRow:
    cbor.expect(type(row) is list and len(row) == 8, _WHAT, "record row")
    offset, length, kind, level, object_id, checksum, envelope, refs = row
    cbor.expect(all(cbor.is_uint(x) for x in (offset, length, kind, level, envelope)), _WHAT, "record row")
    cbor.expect(type(object_id) is bytes and len(object_id) == ID_LEN, _WHAT, "id")
    cbor.expect(type(checksum) is bytes and len(checksum) == CHECKSUM_LEN, _WHAT, "checksum")
    cbor.expect(type(refs) is bytes and len(refs) % ID_LEN == 0, _WHAT, "refs")
    cbor.expect(envelope < len(envelopes), _WHAT, "no such envelope")
    cbor.expect(kind not in (Kind.ENVELOPE, Kind.METADATA), _WHAT, f"a record of kind {kind}")
    refs_count = len(refs) // ID_LEN
    check_kind_and_level(kind, level, refs_count)
    check_refs(split_refs(refs))
    least = record_length(refs_count, 0)
    cbor.expect(least <= length <= least + BODY_LIMIT, _WHAT, "record length")
    maker = envelopes[envelope]
    cbor.expect(maker.object_class == class_of(kind), _WHAT, "kind outside the envelope's class")
    cbor.expect(object_id[:8] == maker.domain_id[:8], _WHAT, "domain tag")
    return RecordRow(offset, length, kind, level, object_id, checksum, envelope, refs)


def _envelope_row(row: Any) -> EnvelopeRow:
    cbor.expect(type(row) is list and len(row) == 8, _WHAT, "envelope row")
    offset, length, object_id, checksum, client_id, domain_id, epoch, object_class = row
    cbor.expect(cbor.is_uint(offset) and cbor.is_uint(length), _WHAT, "envelope row")
    least = record_length(0, 0)
    cbor.expect(least < length <= least + ENVELOPE_BODY_LIMIT, _WHAT, "envelope length")
    for value, size in (
        (object_id, HASH_LEN),
        (checksum, CHECKSUM_LEN),
        (client_id, CLIENT_ID_LEN),
        (domain_id, DOMAIN_ID_LEN),
    ):
        cbor.expect(type(value) is bytes and len(value) == size, _WHAT, "envelope row")
    cbor.expect(cbor.is_uint(epoch, 1 << 32) and cbor.is_uint(object_class), _WHAT, "envelope row")
    cbor.expect(object_class in (ObjectClass.DATA, ObjectClass.META), _WHAT, "class")
    return EnvelopeRow(offset, length, object_id, checksum, client_id, domain_id, epoch, object_class)


def _check_tiling(records: Sequence[RecordRow], envelopes: Sequence[EnvelopeRow], end: int) -> None:
    spans = sorted([r[:2] for r in records] + [(e.offset, e.length) for e in envelopes])
    positions = list(accumulate((length for _, length in spans), initial=len(MAGIC)))
    cbor.expect([offset for offset, _ in spans] == positions[:-1], _WHAT, "gap or overlap")
    cbor.expect(positions[-1] == end, _WHAT, "gap before the footer")
