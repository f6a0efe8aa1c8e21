"""`check --read-data`: read every byte of every pack, without keys.

A pack's footer tiles the file with records, and every record carries a checksum, so there is no byte that could
rot unnoticed. Packs are read whole, several at a time (hashing releases the GIL). With a sample only the packs
that were read longest ago are read, so that a nightly ``--sample 10`` gets round in ten nights, whatever is
damaged meanwhile: packs that were found damaged are read every time, on top of the sample, and by each `check`,
and as long as there are any, nothing is deleted. When each pack was last read stands in the index's ``meta`` table,
which may be lost: then everything counts as unread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct, field

from packnback.errors import (
    BlobMissing,
    DiskFull,
    FormatDamage,
    IndexDamage,
    PackDamage,
    PacknbackError,
    StorageFailed,
    Unreadable,
    UnsupportedVersion,
)
from packnback.format import meta_rows, rows
from packnback.format import pack as pack_format
from packnback.format import record as record_format
from packnback.format.pack import EnvelopeRow, RecordRow
from packnback.ids import KIB, Kind
from packnback.store import adoption, catalog, layout, rot
from packnback.store.blobs import BlobStore
from packnback.store.damage import Finding, snapshots_needing
from packnback.store.fetch import locations
from packnback.store.index import ReadTxn, WriteTxn
from packnback.store.repository import LocalRepository
from packnback.store.truth import Truth

_THREADS = 2
_BLOCKS = (64 * KIB, 4 * KIB, 512)
"""What of a file cannot be read is replaced by zeros, in blocks of these sizes, the larger ones first."""


class ScrubbedPack(Struct):
    """One pack that was read: what is wrong with the file as a whole, and with which objects."""

    name: bytes
    size: int = 0
    problem: str | None = None
    """Why readers refuse the whole pack."""
    envelopes_bad: list[str] = field(default_factory=list)
    """What is wrong with its envelopes; the objects that need them are in `bad`."""
    bad: dict[bytes, str] = field(default_factory=dict)
    """Object id → why."""
    objects: int = 0

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return self.problem is None and not self.envelopes_bad and not self.bad


def read_what_can_be_read(blobs: BlobStore, path: str) -> bytes:
    """A blob, with zeros for what the disk does not give back."""
    return b"".join(_readable_parts(blobs, path, 0, blobs.size(path), _BLOCKS))


def _readable_parts(blobs: BlobStore, path: str, start: int, end: int, blocks: Sequence[int]) -> Iterator[bytes]:
    try:
        yield blobs.read(path, start, end - start)
    except Unreadable:
        if not blocks:
            yield bytes(end - start)
            return
        for at in range(start, end, blocks[0]):
            yield from _readable_parts(blobs, path, at, min(at + blocks[0], end), blocks[1:])


def scrub_pack(truth: Truth, name: bytes) -> ScrubbedPack:
    """Read a pack and check magic, footer, trailer, and each record against footer and checksum."""
    result = ScrubbedPack(name)
    try:
        result.size, footer = adoption.read_footer(truth.blobs, name, truth.watch.counters)
        data = memoryview(read_what_can_be_read(truth.blobs, layout.pack_path(name.hex())))
    except (PackDamage, UnsupportedVersion, BlobMissing, StorageFailed) as error:
        result.problem = _told(error)
        return result
    if data[: len(pack_format.MAGIC)] != pack_format.MAGIC:
        result.problem = "magic"
    result.objects = len(footer.records)
    envelopes_bad = set()
    for index, envelope in enumerate(footer.envelopes):
        why = _damage(data, envelope, envelope.envelope_id)
        if why:
            result.envelopes_bad.append(f"envelope {envelope.envelope_id.hex()}: {why}")
            envelopes_bad.add(index)
    for row in footer.records:
        why = _damage(data, row, footer.envelopes[row.envelope].envelope_id)
        if why is None and row.envelope in envelopes_bad:
            why = "its envelope is damaged"
        if why:
            result.bad[row.id] = why
        truth.watch.counters.records_read += 1
    truth.watch.counters.bytes_hashed += len(data)
    return result


def _told(error: PacknbackError) -> str:
    """Why a pack cannot be used, for people who see its name beside it."""
    match error:
        case PackDamage(why=why):
            return why
        case UnsupportedVersion(found=found):
            return f"version {found}"
        case BlobMissing():
            return "missing"
        case StorageFailed(reason=reason):
            return f"cannot be read: {reason}"
        case _:
            return str(error)


def _damage(data: memoryview, row: RecordRow | EnvelopeRow, envelope_id: bytes) -> str | None:
    """Why what stands in a row's place is not what the footer says, in every respect that both tell of."""
    try:
        record = record_format.parse(data[row.offset : row.offset + row.length])
    except FormatDamage as damage:
        return damage.why
    found = (record.id, record.checksum, record.length, record.envelope_id)
    if found != (row.id, row.checksum, row.length, envelope_id):
        return "not the record that the footer names"
    said = (row.kind, row.level, row.refs) if isinstance(row, RecordRow) else (Kind.ENVELOPE, 0, b"")
    if (record.kind, record.level, record.refs) != said:
        return "its kind, level or refs are not what the footer says"
    return None


def scrub_packs(truth: Truth, names: Iterable[bytes]) -> Iterator[ScrubbedPack]:
    """Scrub many packs in parallel, in their order; at most a few are in memory at a time."""
    from concurrent.futures import Future, ThreadPoolExecutor  # here: it loads logging, which nothing else does

    pending: list[Future[ScrubbedPack]] = []
    with ThreadPoolExecutor(_THREADS) as threads:
        for name in names:
            pending.append(threads.submit(scrub_pack, truth, name))
            if len(pending) > _THREADS:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def choose(repository: LocalRepository, sample_percent: float = 100.0) -> list[bytes]:
    """The packs to read: all, or those known to be damaged and that percentage of the others, those first that
    were read longest ago.
    """
    with repository.read() as txn:
        names = [key for key, _ in txn.scan("pack_names")]
        if sample_percent >= 100:
            return names
        damaged = rot.damaged_packs(txn)
        read_at = {name: _read_at(txn, name) for name in set(names).difference(damaged)}
    others = sorted(read_at, key=lambda name: (read_at[name], name))
    return damaged + others[: math.ceil(len(others) * sample_percent / 100)]


def _read_at(txn: ReadTxn, name: bytes) -> int:
    key = meta_rows.read_at_key(name)
    try:
        return meta_rows.decode_read_at(key, txn.get(meta_rows.TABLE, key))
    except IndexDamage:  # nothing else follows from this row: no reason to make the index anew
        return meta_rows.UNREAD


def scrub(repository: LocalRepository, sample_percent: float = 100.0) -> list[Finding]:
    """Read packs and tell what is damaged and which snapshots that touches. The caller holds the lock.

    May be interrupted at any time: what was read is remembered, pack by pack.
    """
    progress = repository.ports.watch.progress
    names = choose(repository, sample_percent)
    if not names:
        return []
    progress.begin("reading packs", len(names), "packs")
    memory = _Memory(repository)
    damaged = []
    for scrubbed in scrub_packs(repository.truth, names):
        if not scrubbed.good:
            damaged.append(scrubbed)
        memory.note(scrubbed)
        progress.advance(1)
    return _findings(repository, damaged)


class _Memory:
    """Notes which packs were read, and what of them is damaged (`packnback.store.rot`). A full disk keeps nobody from
    reading on.
    """

    def __init__(self, repository: LocalRepository) -> None:
        self._ports = repository.ports
        self._truth = repository.truth
        self._full = False

    def note(self, scrubbed: ScrubbedPack) -> None:
        """This pack was read now."""
        if self._full:
            return
        name, index = scrubbed.name, self._ports.index
        key = meta_rows.read_at_key(name)
        value = meta_rows.encode_read_at(key, max(0, self._ports.now_ns()))

        def remember(txn: WriteTxn) -> None:
            if txn.get("pack_names", name) is not None:  # a compaction may have deleted it meanwhile
                txn.put(meta_rows.TABLE, key, value)

        try:
            if scrubbed.good:
                rot.strike(self._truth, index, name)
            else:
                rot.note(self._truth, index, name, None if scrubbed.problem else scrubbed.bad)
            index.write(remember)
        except DiskFull:
            self._full = True
            self._ports.watch.progress.note("the disk is full: which packs were read cannot be remembered")


def _findings(repository: LocalRepository, damaged: list[ScrubbedPack]) -> list[Finding]:
    """What the damage touches: objects that now stand nowhere any more, and the snapshots that need them.

    Packs that the index knows to be damaged are left out: the check of the structure has told of them.
    """
    with repository.read() as txn:
        known = {row.name for row in _pack_rows(txn) if row.status != rows.GOOD}
    damaged = [scrubbed for scrubbed in damaged if scrubbed.name not in known]
    if not damaged:
        return []
    unusable = {scrubbed.name for scrubbed in damaged if scrubbed.problem}
    bad_places = {(scrubbed.name, object_id) for scrubbed in damaged for object_id in scrubbed.bad}
    with repository.read() as txn:
        lost: dict[bytes, list[bytes]] = {scrubbed.name: [] for scrubbed in damaged}
        for name, object_id in [*bad_places, *_objects_of(txn, unusable)]:
            places = {place.pack for place in locations(txn, object_id)}
            if all(pack in unusable or (pack, object_id) in bad_places for pack in places):
                lost[name].append(object_id)
        everything = {object_id for ids in lost.values() for object_id in ids}
        needed = snapshots_needing(txn, catalog.snapshots(txn), everything)
    findings = []
    for scrubbed in damaged:
        pack = scrubbed.name
        if scrubbed.problem:
            touched = {name for object_id in lost[pack] for name in needed[object_id]}
            findings.append(Finding("pack", pack.hex(), scrubbed.problem, tuple(sorted(touched)), pack))
        findings += [Finding("pack", pack.hex(), why, (), pack) for why in scrubbed.envelopes_bad]
        for object_id, why in sorted(scrubbed.bad.items()):
            what = f"{object_id.hex()} in pack {pack.hex()}"
            findings.append(Finding("record", what, why, needed.get(object_id, ()), pack))
    return findings


def _pack_rows(txn: ReadTxn) -> Iterator[rows.PackRow]:
    for key, value in txn.scan("packs"):
        yield rows.decode_pack(key, value)


def _objects_of(txn: ReadTxn, packs: set[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """(pack name, object id) for every object whose primary place is in one of `packs`."""
    if packs:
        names = {rows.number_of(key): rows.decode_pack(key, value).name for key, value in txn.scan("packs")}
        for object_id, value in txn.scan("objects"):
            name = names.get(rows.decode_object(object_id, value).pack)
            if name in packs:
                yield name, object_id
