"""Snapshot files: a signed header, the sealed metadata, and the repository's receipt.

::

    header  = "PNBH" 1 ‖ flags ‖ u16 0 ‖ repository id 16 ‖ client id 16 ‖ domain id 16 ‖ u32 epoch
              ‖ u64 sequence ‖ prev 32 ‖ root 32 ‖ BLAKE3(metadata record) 32 ‖ i64 time ns
              ‖ BLAKE3(certificate) 32                                                     (204 bytes)
    file    = header ‖ signature 64 ‖ certificate ‖ envelope record ‖ metadata record ‖ receipt
    receipt = "PNBT" 1 ‖ flags ‖ u16 0 ‖ i64 time ns ‖ u64 counter ‖ u64 bytes added
              ‖ BLAKE3(all preceding)[:16]                                                  (48 bytes)

The snapshot's id is BLAKE3(header). Signatures are verified over these raw bytes, never over a re-encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

from blake3 import blake3
from msgspec import Struct

from packnback.errors import FormatDamage, UnsupportedVersion
from packnback.format import cbor, record
from packnback.ids import CHECKSUM_LEN, Kind

PARTIAL = 1
"""Header flag: a checkpoint of a backup that was still running."""
STATE_LOST = 2
"""Header flag: the client had lost its memory of earlier snapshots."""
SELF_STAMPED = 1
"""Receipt flag: stamped by the writer itself, there being no server."""

SIGNATURE_LEN = 64
_HEADER = struct.Struct("<4sBBH16s16s16sIQ32s32s32sq32s")
HEADER_LEN = _HEADER.size
_RECEIPT = struct.Struct("<4sBBHqQQ")
RECEIPT_LEN = _RECEIPT.size + CHECKSUM_LEN
_CERTIFICATE_NAME_AT = 108
FILE_LIMIT = 32 << 20
COUNTER_MAX = (1 << 64) - 1


class Header(Struct, frozen=True):
    """The signed part of a snapshot."""

    flags: int
    repository_id: bytes
    client_id: bytes
    domain_id: bytes
    epoch: int
    sequence: int
    prev: bytes
    root: bytes
    metadata_hash: bytes
    time_ns: int
    certificate_hash: bytes

    @property
    def partial(self) -> bool:
        """Whether this is a checkpoint."""
        return bool(self.flags & PARTIAL)


class Receipt(Struct, frozen=True):
    """What the repository adds: its own time, and a counter over all its snapshots."""

    time_ns: int
    counter: int
    bytes_added: int
    self_stamped: bool = False


class SnapshotFile(Struct, frozen=True):
    """A snapshot file in its parts. Raw bytes are kept wherever something is signed or hashed."""

    header: Header
    header_bytes: bytes
    signature: bytes
    certificate: bytes
    envelope_record: bytes
    metadata_record: bytes
    receipt: Receipt | None
    """None on its way from the client to the repository."""

    @property
    def id(self) -> bytes:
        """The snapshot id: BLAKE3 of the header, which is also the next header's `prev`."""
        return blake3(self.header_bytes).digest()


def encode_header(h: Header) -> bytes:
    """The 204 bytes that are signed."""
    return _HEADER.pack(
        b"PNBH", 1, h.flags, 0, h.repository_id, h.client_id, h.domain_id, h.epoch, h.sequence,
        h.prev, h.root, h.metadata_hash, h.time_ns, h.certificate_hash,
    )  # fmt: skip


def decode_header(data: bytes) -> Header:
    """The header; raises FormatDamage or UnsupportedVersion."""
    if len(data) != HEADER_LEN:
        raise FormatDamage("snapshot header", "cut short")
    magic, version, flags, reserved, *rest = _HEADER.unpack(data)
    if magic != b"PNBH":
        raise FormatDamage("snapshot header", "magic")
    if version != 1:
        raise UnsupportedVersion("snapshot", version, 1)
    header = Header(flags, *rest)
    if reserved or flags & ~(PARTIAL | STATE_LOST):
        raise FormatDamage("snapshot header", "unknown flags")
    if header.sequence == 0 or (header.sequence == 1) != (header.prev == bytes(32)):
        raise FormatDamage("snapshot header", "sequence and previous hash do not fit")
    return header


def encode_receipt(r: Receipt) -> bytes:
    """The 48 bytes of a receipt."""
    front = _RECEIPT.pack(
        b"PNBT", 1, SELF_STAMPED if r.self_stamped else 0, 0, r.time_ns, r.counter, r.bytes_added
    )
    return front + blake3(front).digest(CHECKSUM_LEN)


def decode_receipt(data: bytes) -> Receipt:
    """The receipt; raises FormatDamage or UnsupportedVersion."""
    if len(data) != RECEIPT_LEN:
        raise FormatDamage("receipt", "cut short")
    if blake3(data[:-CHECKSUM_LEN]).digest(CHECKSUM_LEN) != data[-CHECKSUM_LEN:]:
        raise FormatDamage("receipt", "checksum")
    magic, version, flags, reserved, time_ns, counter, added = _RECEIPT.unpack_from(data)
    if magic != b"PNBT":
        raise FormatDamage("receipt", "magic")
    if version != 1:
        raise UnsupportedVersion("receipt", version, 1)
    if reserved or flags & ~SELF_STAMPED:
        raise FormatDamage("receipt", "unknown flags")
    return Receipt(time_ns, counter, added, bool(flags & SELF_STAMPED))


def encode_file(s: SnapshotFile) -> bytes:
    """The file's bytes; without a receipt, what a client hands over."""
    receipt = encode_receipt(s.receipt) if s.receipt else b""
    return b"".join(
        (s.header_bytes, s.signature, s.certificate, s.envelope_record, s.metadata_record, receipt)
    )


def decode_file(data: bytes, *, receipt: bool = True) -> SnapshotFile:
    """A snapshot file in its parts, structure and hashes checked; signatures are the crypto layer's business.

    With `receipt` False, what a client hands over is expected: no receipt, nothing trailing.
    Raises FormatDamage or UnsupportedVersion.
    """
    if len(data) > FILE_LIMIT:
        raise FormatDamage("snapshot", "too large")
    header_bytes, at = data[:HEADER_LEN], HEADER_LEN
    try:
        header = decode_header(header_bytes)
    except UnsupportedVersion:
        _refuse_flipped_version(data, receipt)
        raise
    signature, at = data[at : at + SIGNATURE_LEN], at + SIGNATURE_LEN
    certificate = _certificate_at(data, at)
    at += len(certificate)
    if blake3(certificate).digest() != header.certificate_hash:
        raise FormatDamage("snapshot", "certificate is not the one that the header names")
    envelope = record.parse(data, at)
    metadata = record.parse(data, at + envelope.length)
    end = at + envelope.length + metadata.length
    envelope_bytes, metadata_bytes = data[at : at + envelope.length], data[at + envelope.length : end]
    if envelope.kind != Kind.ENVELOPE or metadata.kind != Kind.METADATA:
        raise FormatDamage("snapshot", "kinds of its records")
    if metadata.refs != header.root or metadata.envelope_id != envelope.envelope_id:
        raise FormatDamage("snapshot", "metadata of another snapshot")
    if blake3(metadata_bytes).digest() != header.metadata_hash:
        raise FormatDamage("snapshot", "metadata is not what the header names")
    if not receipt and len(data) != end:
        raise FormatDamage("snapshot", "trailing bytes")
    stamp = decode_receipt(data[end:]) if receipt else None
    return SnapshotFile(header, header_bytes, signature, certificate, envelope_bytes, metadata_bytes, stamp)


def _refuse_flipped_version(data: bytes, receipt: bool) -> None:
    """A file that is intact as version 1 but for that byte is damaged; it is not from the future."""
    mended = data[:4] + b"\x01" + data[5:]
    try:
        decode_file(mended, receipt=receipt)
    except (FormatDamage, UnsupportedVersion):
        return
    raise FormatDamage("snapshot header", "version")


def _certificate_at(data: bytes, at: int) -> bytes:
    name_at = at + _CERTIFICATE_NAME_AT
    if len(data) < name_at + 2 or data[at : at + 4] != b"PNBC":
        raise FormatDamage("snapshot", "no certificate")
    end = name_at + 2 + int.from_bytes(data[name_at : name_at + 2], "little") + SIGNATURE_LEN
    if len(data) < end:
        raise FormatDamage("snapshot", "certificate cut short")
    return data[at:end]


class KeptHeader(Struct, frozen=True, order=True):
    """What is kept of a released snapshot, so that its client's chain stays unbroken. All raw bytes."""

    header: bytes
    signature: bytes
    certificate: bytes
    receipt: bytes

    @property
    def id(self) -> bytes:
        """The snapshot id."""
        return blake3(self.header).digest()


def encode_batch(headers: Sequence[KeptHeader]) -> bytes:
    """A batch of kept headers, sorted; its file is named by its BLAKE3."""
    return cbor.encode([1, [[h.header, h.signature, h.certificate, h.receipt] for h in sorted(headers)]])


def decode_batch(data: bytes) -> list[KeptHeader]:
    """The headers of a batch; each one decodes, and comes with what its signature is checked by.

    Raises FormatDamage or UnsupportedVersion.
    """
    what = "header batch"
    value = cbor.decode(data, what)
    cbor.expect(type(value) is list and len(value) > 0, what, "shape")
    cbor.expect_version(value[0], what)
    cbor.expect(len(value) == 2 and type(value[1]) is list, what, "shape")
    kept = []
    for row in value[1]:
        cbor.expect(type(row) is list and len(row) == 4 and all(type(x) is bytes for x in row), what, "row")
        cbor.expect(len(row[1]) == SIGNATURE_LEN, what, "signature")
        named = decode_header(row[0]).certificate_hash
        cbor.expect(blake3(row[2]).digest() == named, what, "certificate is not the one that its header names")
        decode_receipt(row[3])
        kept.append(KeptHeader(*row))
    cbor.expect(all(a < b for a, b in pairwise(kept)), what, "not sorted")
    return kept


def snapshot_name(client_id: bytes, sequence: int) -> str:
    """The file's name in ``snapshots/``."""
    return f"{client_id.hex()}-{sequence:016x}.snap"


def marker_name(client_id: bytes, sequence: int, time_ns: int) -> str:
    """A marker's name in ``forgotten/``."""
    return f"{client_id.hex()}-{sequence:016x}.{time_ns:016x}"


def parse_name(name: str) -> tuple[bytes, int, str]:
    """(client id, sequence, what follows the dot) of a name in ``snapshots/`` or ``forgotten/``."""
    stem, _, rest = name.partition(".")
    client, _, sequence = stem.partition("-")
    try:
        parsed = bytes.fromhex(client), int(sequence, 16), rest
    except ValueError:
        raise FormatDamage("file name", "not CLIENTID-SEQ", name) from None
    # `int` also takes signs, prefixes and underscores: only the name that would be written is accepted.
    if not 0 < parsed[1] < 1 << 64 or len(parsed[0]) != 16 or f"{parsed[0].hex()}-{parsed[1]:016x}.{rest}" != name:
        raise FormatDamage("file name", "not CLIENTID-SEQ", name)
    return parsed


def parse_marker_name(name: str) -> tuple[bytes, int, int]:
    """(client id, sequence, time in ns) of a marker."""
    client_id, sequence, rest = parse_name(name)
    try:
        time_ns = int(rest, 16)
    except ValueError:
        raise FormatDamage("file name", "no time", name) from None
    if not 0 <= time_ns < 1 << 63 or f"{time_ns:016x}" != rest:
        raise FormatDamage("file name", "no time", name)
    return client_id, sequence, time_ns
