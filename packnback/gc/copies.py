"""Copies of objects in packs, read and checked: those that are to be written elsewhere, and those to be relied on.

A copy is whole when whoever holds the key could open it there: its record is the one that the pack's footer names,
and so is its envelope, without which the best record is noise.
"""

from __future__ import annotations

from collections.abc import Sequence

from packnback.errors import BlobMissing, FormatDamage, PackDamage, Unreadable, UnsupportedVersion
from packnback.format import record as record_format
from packnback.format.pack import EnvelopeRow, Footer, RecordRow
from packnback.format.record import Record
from packnback.store import layout
from packnback.store.footers import Footers
from packnback.store.packer import PackedEnvelope
from packnback.store.truth import Truth

ROT = (PackDamage, FormatDamage, UnsupportedVersion, Unreadable)
"""What keeps a pack, or something in it, from being used."""

_FOOTERS_KEPT = 8


def read_records(truth: Truth, name: bytes, wanted: Sequence[RecordRow]) -> list[tuple[bytes, Record]]:
    """The records, each checked against its own checksum and the footer's. Raises FormatDamage, Unreadable."""
    copies = []
    for row in wanted:
        data = truth.blobs.read(layout.pack_path(name.hex()), row.offset, row.length)
        record = record_format.parse(data)
        if record.id != row.id or record.checksum != row.checksum or record.length != row.length:
            raise FormatDamage("record", "not the one that the footer names")
        truth.watch.counters.records_read += 1
        copies.append((data, record))
    return copies


def read_envelopes(
    truth: Truth, name: bytes, footer: Footer, wanted: Sequence[RecordRow]
) -> dict[int, PackedEnvelope]:
    """The envelopes that these records need, by their place in the footer. Raises FormatDamage, Unreadable."""
    found = {}
    for index in sorted({row.envelope for row in wanted}):
        row: EnvelopeRow = footer.envelopes[index]
        data = truth.blobs.read(layout.pack_path(name.hex()), row.offset, row.length)
        record = record_format.parse(data)
        if record.id != row.id or record.length != row.length:
            raise FormatDamage("record", "another envelope")
        found[index] = PackedEnvelope(data, row.id, row.client_id, row.domain_id, row.epoch, row.object_class)
    return found


class Copies:
    """Looks at copies that something else is about to be deleted for."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._footers = Footers(truth.blobs, truth.watch.counters, _FOOTERS_KEPT)

    def are_whole(self, name: bytes, row: RecordRow) -> bool:
        """Whether the pack `name` has the object that `row` tells of, and a reader could have it from there."""
        try:
            footer = self._footers.of(name)
            copies = [copy for copy in footer.records if copy.id == row.id]
            read_records(self._truth, name, copies)
            read_envelopes(self._truth, name, footer, copies)
        except (*ROT, BlobMissing):
            return False
        facts = row.kind, row.level, row.refs
        return bool(copies) and all((copy.kind, copy.level, copy.refs) == facts for copy in copies)
