"""`check --repair`: put damaged files aside, after saving what is still good in them. Nothing is ever deleted.

The order, for each damaged pack:

1. its good records go into a new pack, with their envelopes; published, and adopted by the index;
2. a copy of the damaged file is published in ``quarantine/``;
3. only then the file leaves ``packs/``; when that is durable, reconcile takes its rows out of the index.

Snapshot files, markers and header batches that cannot be parsed are put aside as well: a snapshot's number can be
taken again then, and deletion is blocked by what is known to be lost, not by what nobody can read.

From then on `has` answers for the lost objects with no, and the next backup that meets the same data uploads
it again: the repository heals by being used. A crash anywhere leaves both packs, or the damaged one alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from msgspec import Struct, field

from packnback.errors import (
    BlobMissing,
    EnvelopeRejected,
    FormatDamage,
    PackDamage,
    StorageFailed,
    Unreadable,
    UnsupportedVersion,
)
from packnback.format import record as record_format
from packnback.format import rows
from packnback.format.pack import EnvelopeRow, Footer, RecordRow
from packnback.format.record import Record
from packnback.ids import Kind, ObjectClass, class_of
from packnback.store import adoption, catalog, layout
from packnback.store.index import WriteTxn
from packnback.store.ledger import changing
from packnback.store.objects import contradicts, lookup, pack_row
from packnback.store.packer import PackedEnvelope, Packer
from packnback.store.quarantine import put_aside
from packnback.store.repository import LocalRepository
from packnback.store.scrub import read_what_can_be_read, scrub_pack


class Repaired(Struct):
    """What a repair did."""

    packs: list[str] = field(default_factory=list)
    """Names of the packs that stand in ``quarantine/`` now."""
    objects_saved: int = 0
    objects_lost: list[bytes] = field(default_factory=list)
    """Objects that stand nowhere any more."""
    files: list[str] = field(default_factory=list)
    """Where the snapshot files, markers and header batches stand that were put aside."""


def repair(repository: LocalRepository, bad_ids: Iterable[bytes] = (), suspects: Iterable[bytes] = ()) -> Repaired:
    """Put aside every pack that cannot be parsed, every one of `suspects` that turns out damaged, and every
    one that holds one of `bad_ids` (which a reader with a key has found wanting).

    The caller holds the lock exclusively, and has rebuilt the index.
    """
    done, bad = Repaired(), set(bad_ids)
    done.files = _put_aside_files(repository)
    before = _object_ids(repository, bad)
    for name in _packs_to_repair(repository, bad, suspects):
        before |= _repair_pack(repository, name, bad, done)
    repository.reconcile()
    with repository.read() as txn:
        done.objects_lost = sorted(i for i in before if lookup(txn, i) is None)
    return done


def _put_aside_files(repository: LocalRepository) -> list[str]:
    blobs = repository.truth.blobs
    with repository.read() as txn:
        damaged = catalog.damaged_files(txn, only=rows.DAMAGED)
    moved = []
    for path in (f"{directory}/{name}" for directory, name, _ in damaged if directory != layout.PACKS):
        try:
            if blobs.exists(path):
                moved.append(put_aside(blobs, path, read_what_can_be_read(blobs, path)))
        except StorageFailed:
            continue  # a directory, say: it is told again by the check that follows
    return moved


def _object_ids(repository: LocalRepository, ids: set[bytes]) -> set[bytes]:
    with repository.read() as txn:
        return {i for i in ids if lookup(txn, i) is not None}


def _packs_to_repair(repository: LocalRepository, bad: set[bytes], suspects: Iterable[bytes]) -> list[bytes]:
    found = set(suspects)
    with repository.read() as txn:
        for key, value in txn.scan("packs"):
            row = rows.decode_pack(key, value)
            if row.status == rows.DAMAGED or row.conflicts:
                found.add(row.name)
        for object_id in bad:
            row_of_object = lookup(txn, object_id)
            if row_of_object is not None:
                found.add(pack_row(txn, row_of_object.pack).name)
            for key, _ in txn.scan("more", object_id):
                found.add(pack_row(txn, rows.split_more_key(key)[1]).name)
    return sorted(found)


def _repair_pack(repository: LocalRepository, name: bytes, bad: set[bytes], done: Repaired) -> set[bytes]:
    """Salvage and put aside one pack; the ids of the objects in it that are not good."""
    truth, path = repository.truth, layout.pack_path(name.hex())
    try:
        if not truth.blobs.exists(path):
            return set()  # since it was suspected, another repair has put it aside, or a compaction rewrote it
    except Unreadable:
        return set()  # a directory or a link has its name: that is for a person to take away, and is told again
    scrubbed = scrub_pack(truth, name)
    footer: Footer | None = None
    try:
        _, footer = adoption.read_footer(truth.blobs, name, truth.watch.counters)
    except (PackDamage, BlobMissing, StorageFailed):
        named: set[bytes] = set()
    except UnsupportedVersion:
        return set()  # not damage: a newer program will know what to do with it
    else:
        named = {row.id for row in footer.records}
    suspicious = not scrubbed.good or named & bad or _in_conflict(repository, name)
    if named and not suspicious:
        return set()
    data = read_what_can_be_read(truth.blobs, path)
    saved = _salvage(repository, data, footer, bad)
    done.objects_saved += len(saved)
    put_aside(truth.blobs, path, data)
    done.packs.append(name.hex())
    return named - saved


def _in_conflict(repository: LocalRepository, name: bytes) -> bool:
    with repository.read() as txn:
        value = txn.get("pack_names", name)
        return value is not None and bool(pack_row(txn, rows.decode_number(name, value)).conflicts)


def _salvage(repository: LocalRepository, data: bytes, footer: Footer | None, bad: set[bytes]) -> set[bytes]:
    """Publish the good records of a damaged pack in new packs, one for each class; the ids that were saved.

    A record of which another pack has a different copy is left behind: the other one counts.
    """
    envelopes: dict[bytes, PackedEnvelope] = {}
    objects: dict[bytes, tuple[bytes, Record]] = {}
    for at, record in _good_records(data, footer):
        whole = data[at : at + record.length]
        if record.kind == Kind.ENVELOPE:
            with suppress(EnvelopeRejected):
                envelopes[record.envelope_id] = PackedEnvelope.of(whole, record)
        elif record.kind != Kind.METADATA and record.id not in bad:
            objects.setdefault(record.id, (whole, record))
    wanted = {record.envelope_id for _, record in objects.values()} - envelopes.keys()
    envelopes |= _envelopes_elsewhere(repository, wanted)
    packers = {c: Packer(repository.ports.random) for c in ObjectClass}
    saved = set()
    for object_id, (whole, record) in objects.items():
        envelope = envelopes.get(record.envelope_id)
        if envelope is None or envelope.object_class != class_of(record.kind):
            continue
        if object_id[:8] != envelope.domain_id[:8] or _contradicts(repository, record):
            continue
        packers[class_of(record.kind)].add(whole, record, envelope)
        saved.add(object_id)
    for packer in packers.values():
        if packer:
            _publish(repository, packer)
    return saved


def _good_records(data: bytes, footer: Footer | None) -> Iterator[tuple[int, Record]]:
    """(offset, record) of what is intact in a pack.

    Where there is a footer, which the pack's name commits to, only what it names is believed: not what somebody
    may have hidden inside the body of another record.
    """
    if footer is None:
        yield from record_format.scan(data)
        return
    named: list[EnvelopeRow | RecordRow] = [*footer.envelopes, *footer.records]
    for row in named:
        with suppress(FormatDamage):  # what is not saved is told as lost
            record = record_format.parse(data, row.offset)
            if (record.id, record.checksum, record.length) == (row.id, row.checksum, row.length):
                yield row.offset, record


def _envelopes_elsewhere(repository: LocalRepository, wanted: set[bytes]) -> dict[bytes, PackedEnvelope]:
    """Envelopes out of other packs: one serves for about 64 MiB, so it often stands in several."""
    found: dict[bytes, PackedEnvelope] = {}
    with repository.read() as txn:
        names = [key for key, _ in txn.scan("pack_names")] if wanted else []
    blobs, counters = repository.truth.blobs, repository.truth.watch.counters
    for name in names:
        with suppress(PackDamage, UnsupportedVersion, BlobMissing, FormatDamage, StorageFailed):
            for row in adoption.read_footer(blobs, name, counters)[1].envelopes:
                if row.envelope_id not in wanted - found.keys():
                    continue
                whole = blobs.read(layout.pack_path(name.hex()), row.offset, row.length)
                with suppress(EnvelopeRejected):
                    envelope = PackedEnvelope.of(whole, record_format.parse(whole))
                    if envelope.id == row.id:
                        found[row.envelope_id] = envelope
        # A pack that is damaged as well has nothing to offer, and is told of on its own account.
        if not wanted - found.keys():
            break
    return found


def _contradicts(repository: LocalRepository, record: Record) -> bool:
    with repository.read() as txn:
        return contradicts(txn, record.id, (record.kind, record.level, record.refs))


def _publish(repository: LocalRepository, packer: Packer) -> None:
    built = packer.finish()
    repository.truth.blobs.publish(layout.pack_path(built.name.hex()), built.buffers)

    def adopt(txn: WriteTxn) -> None:
        with changing(txn) as ledger:
            ledger.adopt_packs([built.found])

    repository.ports.index.write(adopt)
