"""What the index must say, derived a second time: slowly, plainly, from the bytes on the disk, without the ledger.

The engine keeps completeness and counts by work-lists, in proportion to what changed. Here every pack is parsed
whole, record by record, completeness is a fixed point and life is plain reachability. Where the two disagree,
the engine is wrong, or this is, and it is short enough to be looked through.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from blake3 import blake3
from simdisk import SimDisk

from packnback.errors import FormatDamage, UnsupportedVersion
from packnback.format import condemned, rows, snapshot
from packnback.format import pack as pack_format
from packnback.format import record as record_format
from packnback.format.pack import Footer
from packnback.ids import Kind
from packnback.store.index import ReadTxn


class Torn(Exception):
    """A file under a final name is not whole."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a copy of an object stands; ordered by the name of the pack, as the choice of the primary one is."""

    pack: bytes
    offset: int
    length: int


@dataclass(slots=True)
class Truth:
    """All that the directories say."""

    packs: dict[bytes, Footer] = field(default_factory=dict)
    places: dict[bytes, list[Place]] = field(default_factory=dict)
    """For each object, its copies, the primary one first: in the pack of the smallest name that is not condemned."""
    facts: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Kind and level."""
    refs: dict[bytes, list[bytes]] = field(default_factory=dict)
    roots: dict[str, bytes] = field(default_factory=dict)
    """Name of every snapshot that counts → its root."""
    headers: set[bytes] = field(default_factory=set)
    """Ids of all snapshots whose header is there, in a file of its own or kept in a batch."""
    condemned: set[bytes] = field(default_factory=set)
    """Packs on condemned lists, there or not."""
    rotten: set[bytes] = field(default_factory=set)
    """Objects of which some copy does not stand where its footer says, or not whole."""
    complete: set[bytes] = field(default_factory=set)
    standing: set[bytes] = field(default_factory=set)
    """Objects that are complete without any condemned pack."""
    counts: dict[bytes, int] = field(default_factory=dict)


@lru_cache(maxsize=512)
def _pack(data: bytes) -> tuple[bytes, Footer, frozenset[bytes]]:
    """(name that the contents ask for, footer, ids whose record is not whole)."""
    trailer = pack_format.decode_trailer(data[-pack_format.TRAILER_LEN :], len(data))
    footer_bytes = data[trailer.footer_offset : trailer.footer_offset + trailer.footer_length]
    footer = pack_format.decode_footer(footer_bytes, trailer)
    rotten = set()
    for row in footer.records:
        try:
            record = record_format.parse(data[row.offset : row.offset + row.length])
            whole = (record.id, record.kind, record.level, record.refs, record.checksum) == (
                *(row.id, row.kind, row.level, row.refs, row.checksum),
            )
        except FormatDamage:
            whole = False
        if not whole:
            rotten.add(row.id)
    return blake3(footer_bytes).digest(), footer, frozenset(rotten)


def derive(disk: SimDisk) -> Truth:
    """Read everything. Raises `Torn` for a file that cannot be parsed: no honest run leaves one."""
    truth = Truth()
    for path, data in disk.files("packs").items():
        stem = path.rpartition("/")[2].removesuffix(".pack")
        try:
            name, footer, rotten = _pack(data)
        except (FormatDamage, UnsupportedVersion) as damage:
            raise Torn(f"{path}: {damage.facts()}") from None
        if name.hex() != stem:
            raise Torn(f"{path}: has another pack's contents")
        truth.packs[name] = footer
        truth.rotten |= rotten
        for row in footer.records:
            truth.places.setdefault(row.id, []).append(Place(name, row.offset, row.length))
            truth.facts[row.id] = row.kind, row.level
            truth.refs[row.id] = row.ref_list
    _read_condemned(disk, truth)
    for places in truth.places.values():
        places.sort(key=lambda place: _rank(truth, place))
    _read_snapshots(disk, truth)
    _complete(truth)
    _count(truth)
    return truth


def _rank(truth: Truth, place: Place) -> tuple[bool, bytes]:
    return place.pack in truth.condemned, place.pack


def _read_condemned(disk: SimDisk, truth: Truth) -> None:
    for path, data in disk.files("condemned").items():
        try:
            truth.condemned.update(condemned.decode(data).packs)
        except (FormatDamage, UnsupportedVersion) as damage:
            raise Torn(f"{path}: {damage.facts()}") from None
        if blake3(data).hexdigest() != path.rpartition("/")[2]:
            raise Torn(f"{path}: has another list's contents")


def _read_snapshots(disk: SimDisk, truth: Truth) -> None:
    released = set()
    for path, data in disk.files("headers").items():
        try:
            released |= {kept.id for kept in snapshot.decode_batch(data)}
        except (FormatDamage, UnsupportedVersion) as damage:
            raise Torn(f"{path}: {damage.facts()}") from None
        if blake3(data).hexdigest() != path.rpartition("/")[2]:
            raise Torn(f"{path}: has another batch's contents")
    truth.headers |= released
    for path, data in disk.files("snapshots").items():
        try:
            file = snapshot.decode_file(data)
        except (FormatDamage, UnsupportedVersion) as damage:
            raise Torn(f"{path}: {damage.facts()}") from None
        truth.headers.add(file.id)
        if file.id not in released:
            truth.roots[path.rpartition("/")[2]] = file.header.root


def _complete(truth: Truth) -> None:
    for object_id in sorted(truth.places, key=lambda i: truth.facts[i][1]):
        refs = truth.refs[object_id]
        if all(ref in truth.complete for ref in refs):
            truth.complete.add(object_id)
            if truth.places[object_id][0].pack not in truth.condemned and truth.standing.issuperset(refs):
                truth.standing.add(object_id)


def _count(truth: Truth) -> None:
    work = list(truth.roots.values())
    while work:
        object_id = work.pop()
        if object_id not in truth.places:
            continue
        truth.counts[object_id] = truth.counts.get(object_id, 0) + 1
        if truth.counts[object_id] == 1:
            work += truth.refs[object_id]


def contradiction(txn: ReadTxn, truth: Truth) -> str | None:
    """The first thing in the index that is not what the truth makes of it, or None."""
    packs = {rows.number_of(key): rows.decode_pack(key, value) for key, value in txn.scan("packs")}
    if {row.name for row in packs.values()} != truth.packs.keys():
        return "packs"
    named: dict[bytes, list[Place]] = {}
    for key, value in txn.scan("objects"):
        row = rows.decode_object(key, value)
        named[key] = [Place(packs[row.pack].name, row.offset, row.length)]
        if truth.facts.get(key) != (row.kind, row.level):
            return f"kind or level of {key.hex()}"
    for key, value in txn.scan("more"):
        object_id, number = rows.split_more_key(key)
        named[object_id].append(Place(packs[number].name, *rows.decode_more(key, value)))
    for object_id in named.keys() | truth.places.keys():
        mine, true = named.get(object_id, []), truth.places.get(object_id, [])
        if mine[:1] != true[:1] or sorted(mine[1:], key=lambda p: _rank(truth, p)) != true[1:]:
            return f"locations of {object_id.hex()}"
    for object_id, refs in truth.refs.items():
        value = txn.get("refs", object_id)
        if (value is None) != (truth.facts[object_id][0] == Kind.DATA):
            return f"refs of {object_id.hex()}"
        if value is not None and rows.unseal("refs", object_id, value) != b"".join(refs):
            return f"refs of {object_id.hex()}"
    return _wrong_count(txn, truth, packs)


def _wrong_count(txn: ReadTxn, truth: Truth, packs: dict[int, rows.PackRow]) -> str | None:
    incomplete = {key for key, _ in txn.scan("incomplete")}
    if incomplete != truth.places.keys() - truth.complete:
        return "completeness"
    counts = {key: rows.decode_count(key, value) for key, value in txn.scan("counts")}
    if counts != truth.counts:
        return "counts"
    live = dict.fromkeys(truth.packs, 0)
    for object_id in truth.counts:
        primary = truth.places[object_id][0]
        live[primary.pack] += primary.length
    if {row.name: row.live_bytes for row in packs.values()} != live:
        return "live bytes"
    return None
