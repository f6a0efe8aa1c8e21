"""Object records: the unit that is sealed, moved, copied and checked.

A record is self-describing and carries its own checksum, so that rot is found without keys and a pack that
lost its footer can still be scanned. Layout (integers little-endian)::

    header 64 = "PNBR" 1 ‖ kind ‖ level ‖ flags ‖ u32 refs ‖ u32 body length ‖ id 32 ‖ envelope id 16
    record    = header ‖ refs 32·n ‖ body ‖ BLAKE3(all preceding)[:16]

The refs are readable by the repository, the body is not: that is what makes keyless pruning possible.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise

from blake3 import blake3
from msgspec import Struct

from packnback.errors import FormatDamage
from packnback.ids import BODY_LIMIT, CHECKSUM_LEN, ID_LEN, LEVEL_LIMIT, REFS_LIMIT, Kind

MAGIC = b"PNBR\x01"
HEADER_LEN = 64
ENVELOPE_BODY_LIMIT = 2048
_HEADER = struct.Struct("<5sBBBII32s16s")
_WHAT = "record"


class Record(Struct, frozen=True):
    """One parsed record. `refs` and `body` are views into the buffer that was parsed."""

    kind: int
    level: int
    id: bytes
    envelope_id: bytes
    header: bytes
    refs: bytes
    """The refs, concatenated: 32 bytes each, strictly ascending."""
    body: memoryview
    checksum: bytes
    length: int
    """Bytes of the whole record."""

    @property
    def ref_list(self) -> list[bytes]:
        """The refs one by one."""
        return split_refs(self.refs)


def split_refs(refs: bytes) -> list[bytes]:
    """Concatenated refs, one by one."""
    return [refs[i : i + ID_LEN] for i in range(0, len(refs), ID_LEN)]


def record_length(refs_count: int, body_length: int) -> int:
    """Bytes of a record with that many refs and that long a body."""
    return HEADER_LEN + ID_LEN * refs_count + body_length + CHECKSUM_LEN


def encode_header(
    kind: int, level: int, refs_count: int, body_length: int, object_id: bytes, envelope_id: bytes
) -> bytes:
    """The 64 header bytes, which are also the first part of the AAD of the body."""
    return _HEADER.pack(MAGIC, kind, level, 0, refs_count, body_length, object_id, envelope_id)


def finish(header: bytes, refs: bytes, body: bytes | bytearray | memoryview) -> bytes:
    """The whole record: header, refs and body in one piece, with the checksum."""
    hasher = blake3(header + refs)
    hasher.update(body)
    return b"".join((header, refs, body, hasher.digest(CHECKSUM_LEN)))


def stamp(record: bytearray) -> None:
    """Write the checksum of all that precedes its place at the end."""
    end = len(record) - CHECKSUM_LEN
    record[end:] = blake3(memoryview(record)[:end]).digest(CHECKSUM_LEN)


def envelope_record(envelope: bytes) -> bytes:
    """An envelope as a record of kind 0: level 0, no refs, id = BLAKE3, its own id in the envelope field."""
    whole = blake3(envelope).digest()
    return finish(encode_header(Kind.ENVELOPE, 0, 0, len(envelope), whole, whole[:16]), b"", envelope)


def check_refs(refs: Sequence[bytes]) -> None:
    """Refuse refs that are too many or not strictly ascending (FormatDamage)."""
    if len(refs) > REFS_LIMIT:
        raise FormatDamage(_WHAT, f"{len(refs)} refs")
    if any(a >= b for a, b in pairwise(refs)):
        raise FormatDamage(_WHAT, "refs not strictly ascending")


def parse(buffer: bytes | bytearray | memoryview, offset: int = 0, *, checksum: bool = True) -> Record:
    """The record that starts at `offset`; what follows it is not looked at.

    Checks the magic, the limits, the order of the refs, the rules of kind and level that need no other
    record, and the checksum unless `checksum` is False. Raises FormatDamage.
    """
    view = memoryview(buffer)
    if offset < 0 or len(view) - offset < HEADER_LEN + CHECKSUM_LEN:
        raise FormatDamage(_WHAT, "cut short")
    header = bytes(view[offset : offset + HEADER_LEN])
    magic, kind, level, flags, refs_count, body_length, object_id, envelope_id = _HEADER.unpack(header)
    _check_header(magic, kind, level, flags, refs_count, body_length)
    refs_end = offset + HEADER_LEN + refs_count * ID_LEN
    body_end = refs_end + body_length
    end = body_end + CHECKSUM_LEN
    if end > len(view):
        raise FormatDamage(_WHAT, "cut short")
    stored = bytes(view[body_end:end])
    if checksum and blake3(view[offset:body_end]).digest(CHECKSUM_LEN) != stored:
        raise FormatDamage(_WHAT, "checksum")
    refs = bytes(view[offset + HEADER_LEN : refs_end])
    check_refs(split_refs(refs))
    body = view[refs_end:body_end]
    record = Record(kind, level, object_id, envelope_id, header, refs, body, stored, end - offset)
    if kind == Kind.ENVELOPE and (
        blake3(record.body).digest() != object_id or envelope_id != object_id[: len(envelope_id)]
    ):
        raise FormatDamage(_WHAT, "envelope under an id that is not its own")
    return record


def _check_header(magic: bytes, kind: int, level: int, flags: int, refs_count: int, body_length: int) -> None:
    if magic[:4] != MAGIC[:4]:
        raise FormatDamage(_WHAT, "magic")
    if magic[4] != MAGIC[4]:
        raise FormatDamage(_WHAT, f"version {magic[4]}")
    if flags:
        raise FormatDamage(_WHAT, f"flags {flags}")
    if refs_count > REFS_LIMIT:
        raise FormatDamage(_WHAT, f"{refs_count} refs")
    if body_length > (ENVELOPE_BODY_LIMIT if kind == Kind.ENVELOPE else BODY_LIMIT):
        raise FormatDamage(_WHAT, f"body of {body_length} bytes")
    check_kind_and_level(kind, level, refs_count)


def check_kind_and_level(kind: int, level: int, refs_count: int) -> None:
    """The rules of kind and level that a single record can break (docs/format.md). Raises FormatDamage."""
    if kind > Kind.METADATA:
        raise FormatDamage(_WHAT, f"kind {kind}")
    if level > LEVEL_LIMIT:
        raise FormatDamage(_WHAT, f"level {level}")
    leaf = kind in (Kind.ENVELOPE, Kind.DATA)
    if leaf and (level or refs_count):
        raise FormatDamage(_WHAT, "an envelope or data record with a level or refs")
    if not leaf and (level == 0 or (not refs_count and level != 1)):
        raise FormatDamage(_WHAT, f"level {level} with {refs_count} refs")


REF_KINDS: dict[int, frozenset[int]] = {
    Kind.ENVELOPE: frozenset(),
    Kind.DATA: frozenset(),
    Kind.EXTENTS: frozenset((Kind.DATA, Kind.EXTENTS)),
    Kind.PAGE: frozenset((Kind.DATA, Kind.EXTENTS)),
    Kind.TABLE: frozenset((Kind.PAGE, Kind.TABLE)),
    Kind.METADATA: frozenset((Kind.TABLE,)),
}
"""Which kinds an object of each kind may refer to."""


def level_of(ref_levels: Sequence[int], kind: int) -> int:
    """1 + the highest level of the refs; without refs 0 for data, 1 otherwise."""
    if kind in (Kind.ENVELOPE, Kind.DATA):
        return 0
    return 1 + max(ref_levels, default=0)


SCAN_EFFORT = 4
"""Bytes that `scan` hashes in vain for each byte that it gets on, at the most."""


def scan(buffer: bytes | memoryview, offset: int = 0) -> Iterator[tuple[int, Record]]:
    """Every intact record in `buffer` with its offset, whatever lies between them: for salvage.

    After an intact record the search goes on at its end, after anything else at the next magic.

    Whoever could write a body can have filled it with headers that claim long bodies, each of which has to be
    hashed to be found wanting. So bytes hashed in vain are a debt that is paid off by getting on: as long as there
    is a debt, candidates are passed over, intact ones included. Work is linear in the length of the buffer. In
    honest damage the debt never gets that far: no ciphertext is full of headers.
    """
    raw = bytes(buffer)
    start, in_vain = offset, 0
    while (at := raw.find(MAGIC, offset)) >= 0:
        if in_vain > SCAN_EFFORT * (at - start) + BODY_LIMIT:
            offset = at + 1
            continue
        try:
            record = parse(raw, at)
        except FormatDamage:
            in_vain += _claimed_length(raw, at)
            offset = at + 1
            continue
        yield at, record
        offset = at + record.length


def _claimed_length(raw: bytes, at: int) -> int:
    """What `parse` hashed, at the most, to refuse the record that seems to start at `at`; bytes."""
    if len(raw) - at < HEADER_LEN:
        return 0
    refs_count, body_length = _HEADER.unpack_from(raw, at)[4:6]
    claimed = record_length(refs_count, body_length)
    return claimed if claimed <= len(raw) - at else 0
