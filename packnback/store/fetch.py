"""Reading objects out of packs: each once, pack by pack, in the order in which they lie.

A reader names ids; this finds where they stand, joins neighbouring ranges into large reads, checks every
record's checksum, and goes to the next location when one is damaged. It reports a problem per object and
raises none, so that one rotten record or bad sector does not hide the thousand good ones behind it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from msgspec import Struct

from packnback.errors import (
    BlobMissing,
    FormatDamage,
    ObjectDamage,
    ObjectMissing,
    PackDamage,
    PacknbackError,
    Unreadable,
)
from packnback.events import Watch
from packnback.format import record as record_format
from packnback.format import rows
from packnback.format.pack import EnvelopeRow
from packnback.ids import KIB, MIB
from packnback.store import layout
from packnback.store.blobs import BlobStore
from packnback.store.footers import Footers
from packnback.store.index import IndexReader, ReadTxn
from packnback.store.interface import Fetched
from packnback.store.objects import lookup, pack_row

_READ_LIMIT = 8 * MIB
"""Neighbouring records are read together up to so many bytes."""
_GAP_LIMIT = 64 * KIB
"""… also across a gap of so many bytes, which costs less than another read."""
_ENVELOPES_KEPT = 256
_FOOTERS_KEPT = 4


class Location(Struct, frozen=True):
    """One place where an object stands: pack name, offset and length of the record in bytes."""

    pack: bytes
    offset: int
    length: int
    id: bytes


def locations(txn: ReadTxn, object_id: bytes) -> list[Location]:
    """Every place where the object stands, the primary one first; empty when it is absent."""
    row = lookup(txn, object_id)
    if row is None:
        return []
    found = [Location(pack_row(txn, row.pack).name, row.offset, row.length, object_id)]
    for key, value in txn.scan("more", object_id):
        offset, length = rows.decode_more(key, value)
        found.append(Location(pack_row(txn, rows.split_more_key(key)[1]).name, offset, length, object_id))
    return found


_PACK_PROBLEMS = (PackDamage, FormatDamage, BlobMissing, Unreadable)
"""What keeps an object from being read at one place."""


def _damage(place: Location, problem: PacknbackError) -> ObjectDamage:
    """What is wrong with a pack, said of one of its objects."""
    match problem:
        case PackDamage(why=why) | FormatDamage(why=why):
            pass
        case Unreadable(reason=reason):
            why = f"cannot be read: {reason}"
        case _:
            why = "the pack is missing"
    return ObjectDamage(place.id, why, place.pack.hex())


class Fetcher:
    """Reads records, for any number of threads. Keeps a few footers and envelopes."""

    def __init__(self, blobs: BlobStore, index: IndexReader, watch: Watch) -> None:
        self._blobs = blobs
        self._index = index
        self._watch = watch
        self._mutex = threading.Lock()
        """Over what is kept, and the counters."""
        self._footers = Footers(blobs, watch.counters, _FOOTERS_KEPT)
        self._envelopes: OrderedDict[bytes, bytes] = OrderedDict()

    def fetch(self, ids: Sequence[bytes], *, checked: bool = True) -> Iterator[Fetched]:
        """See `interface.Repository.fetch`."""
        with self._index.read() as txn:
            places = {object_id: locations(txn, object_id) for object_id in ids}
        problems: dict[bytes, PacknbackError] = {i: ObjectMissing(i) for i, found in places.items() if not found}
        while current := [found.pop(0) for found in places.values() if found]:
            for place, fetched in self._read_all(current, checked):
                if isinstance(fetched, Fetched):
                    places[place.id].clear()
                    problems.pop(place.id, None)
                    yield fetched
                else:
                    problems[place.id] = fetched
        for object_id, problem in problems.items():
            yield Fetched(object_id, b"", b"", problem)

    def _read_all(
        self, places: list[Location], checked: bool
    ) -> Iterator[tuple[Location, Fetched | PacknbackError]]:
        by_pack: dict[bytes, list[Location]] = {}
        for place in places:
            by_pack.setdefault(place.pack, []).append(place)
        for pack in sorted(by_pack):
            wanted = sorted(by_pack[pack], key=lambda place: place.offset)
            try:
                with self._mutex:
                    footer = self._footers.of(pack)
            except _PACK_PROBLEMS as problem:
                yield from ((place, _damage(place, problem)) for place in wanted)
                continue
            envelopes = {row.envelope_id: row for row in footer.envelopes}
            for span in _spans(wanted):
                yield from self._read_span(span, envelopes, checked)

    def _read_span(
        self, span: list[Location], envelopes: dict[bytes, EnvelopeRow], checked: bool
    ) -> Iterator[tuple[Location, Fetched | PacknbackError]]:
        """One read for several records that lie close together."""
        path = layout.pack_path(span[0].pack.hex())
        start = span[0].offset
        try:
            data = memoryview(self._blobs.read(path, start, span[-1].offset + span[-1].length - start))
        except Unreadable as problem:
            if len(span) == 1:
                yield span[0], _damage(span[0], problem)
            else:  # one bad sector in up to 8 MiB: find out whose it is
                for place in span:
                    yield from self._read_span([place], envelopes, checked)
            return
        except BlobMissing as problem:
            yield from ((place, _damage(place, problem)) for place in span)
            return
        with self._mutex:
            self._watch.counters.records_read += len(span)
        for place in span:
            at = place.offset - start
            try:
                record = record_format.parse(data[at : at + place.length], checksum=checked)
                if record.id != place.id or record.length != place.length:
                    raise FormatDamage("record", "another object's")
                with self._mutex:
                    envelope = self._envelope(place.pack, envelopes, record.envelope_id)
            except _PACK_PROBLEMS as problem:
                yield place, _damage(place, problem)
            else:
                yield place, Fetched(place.id, data[at : at + place.length], envelope)

    def _envelope(self, pack: bytes, envelopes: dict[bytes, EnvelopeRow], envelope_id: bytes) -> bytes:
        known = self._envelopes.get(envelope_id)
        if known is not None:
            return known
        row = envelopes.get(envelope_id)
        if row is None:
            raise PackDamage(pack.hex(), "an envelope is missing")
        try:
            record = record_format.parse(self._blobs.read(layout.pack_path(pack.hex()), row.offset, row.length))
        except FormatDamage as damage:
            raise PackDamage(pack.hex(), f"its envelope: {damage.why}", row.offset) from damage
        if record.id != row.id:
            raise PackDamage(pack.hex(), "another envelope stands in its envelope's place", row.offset)
        self._envelopes[envelope_id] = envelope = bytes(record.body)
        while len(self._envelopes) > _ENVELOPES_KEPT:
            self._envelopes.popitem(last=False)
        return envelope


def _spans(places: list[Location]) -> Iterator[list[Location]]:
    """Runs of places (ascending by offset) that are worth one read each."""
    span: list[Location] = []
    for place in places:
        if span:
            end = span[-1].offset + span[-1].length
            if place.offset - end > _GAP_LIMIT or place.offset + place.length - span[0].offset > _READ_LIMIT:
                yield span
                span = []
        span.append(place)
    if span:
        yield span
