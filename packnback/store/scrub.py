"""`check --read-data`: read every byte of every pack, without keys.

A pack's footer tiles the file with records, and every record carries a checksum, so there is no byte that could
rot unnoticed. Packs are read whole, several at a time (hashing releases the GIL). With a sample only the packs
that were read longest ago are read, so that a nightly ``--sample 10`` gets round in ten nights; when each pack
was last read stands in the index's ``meta`` table, which may be lost: then everything counts as unread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from packnback.errors import BlobMissing, FormatDamage, PackDamage, StorageFailed, UnsupportedVersion
from packnback.format import pack as pack_format
from packnback.format import record as record_format
from packnback.format import rows
from packnback.store import adoption, catalog, layout
from packnback.store.damage import Finding, snapshots_needing
from packnback.store.index import WriteTxn
from packnback.store.reconcile import Truth
from packnback.store.repository import LocalRepository

_THREADS = 2
_READ_AT = b"read at "
"""Prefix of the rows in ``meta``, followed by the pack's name."""


@dataclass(slots=True)
class ScrubbedPack:
    """One pack that was read: what is wrong with the file as a whole, and with which objects."""

    name: bytes
    size: int = 0
    problem: str | None = None
    bad: dict[bytes, str] = field(default_factory=dict)
    """Object id → why."""
    objects: int = 0


def scrub_pack(truth: Truth, name: bytes) -> ScrubbedPack:
    """Read a pack and check magic, footer, trailer, and each record against footer and checksum."""
    result = ScrubbedPack(name)
    path = layout.pack_path(name.hex())
    try:
        result.size, footer = adoption.read_footer(truth.blobs, name, truth.watch.counters)
        data = memoryview(truth.blobs.read(path))
    except (PackDamage, UnsupportedVersion, BlobMissing, StorageFailed) as error:
        result.problem = " ".join(str(fact) for fact in error.facts().values())
        return result
    if data[: len(pack_format.MAGIC)] != pack_format.MAGIC:
        result.problem = "magic"
    result.objects = len(footer.records)
    envelopes_bad = set()
    for index, envelope in enumerate(footer.envelopes):
        why = _damage(data, envelope.offset, envelope.length, envelope.id, envelope.checksum)
        if why:
            result.problem = f"envelope {envelope.envelope_id.hex()}: {why}"
            envelopes_bad.add(index)
    for row in footer.records:
        why = _damage(data, row.offset, row.length, row.id, row.checksum)
        if why is None and row.envelope in envelopes_bad:
            why = "its envelope is damaged"
        if why:
            result.bad[row.id] = why
        truth.watch.counters.records_read += 1
    truth.watch.counters.bytes_hashed += len(data)
    return result


def _damage(data: memoryview, offset: int, length: int, object_id: bytes, checksum: bytes) -> str | None:
    try:
        record = record_format.parse(data[offset : offset + length])
    except FormatDamage as damage:
        return damage.why
    if record.id != object_id or record.checksum != checksum or record.length != length:
        return "not the record that the footer names"
    return None


def scrub_packs(truth: Truth, names: Iterable[bytes]) -> Iterator[ScrubbedPack]:
    """Scrub many packs in parallel, in their order; at most a few are in memory at a time."""
    pending: list[Future[ScrubbedPack]] = []
    with ThreadPoolExecutor(_THREADS) as threads:
        for name in names:
            pending.append(threads.submit(scrub_pack, truth, name))
            if len(pending) > _THREADS:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def choose(repository: LocalRepository, sample_percent: float = 100.0) -> list[bytes]:
    """The packs to read: all, or that percentage of them, those first that were read longest ago."""
    with repository.ports.index.read() as txn:
        names = [key for key, _ in txn.scan("pack_names")]
        if sample_percent >= 100:
            return names
        read_at = {name: txn.get("meta", _READ_AT + name) or b"" for name in names}
    wanted = math.ceil(len(names) * sample_percent / 100)
    return sorted(names, key=lambda name: (read_at[name][:8], name))[:wanted]


def scrub(repository: LocalRepository, sample_percent: float = 100.0) -> list[Finding]:
    """Read packs and tell what is damaged and which snapshots that touches. The caller holds the lock.

    May be interrupted at any time: what was read is remembered, pack by pack.
    """
    progress = repository.ports.watch.progress
    names = choose(repository, sample_percent)
    progress.begin("reading packs", len(names), "packs")
    damaged = []
    for scrubbed in scrub_packs(repository.truth, names):
        if scrubbed.problem or scrubbed.bad:
            damaged.append(scrubbed)
        else:
            repository.ports.index.write(_remember(scrubbed.name, repository.ports.now_ns()))
        progress.advance(1)
    return _findings(repository, damaged)


def _remember(name: bytes, now_ns: int) -> Callable[[WriteTxn], None]:
    """A transaction body: this pack was read now, and was good."""
    key = _READ_AT + name
    value = rows.seal(key, max(0, now_ns).to_bytes(8, "big"))
    return lambda txn: txn.put("meta", key, value)


def _findings(repository: LocalRepository, damaged: list[ScrubbedPack]) -> list[Finding]:
    if not damaged:
        return []
    bad = {object_id for scrubbed in damaged for object_id in scrubbed.bad}
    with repository.ports.index.read() as txn:
        needed = snapshots_needing(txn, catalog.snapshots(txn), bad)
    findings = []
    for scrubbed in damaged:
        if scrubbed.problem:
            findings.append(Finding("pack", scrubbed.name.hex(), scrubbed.problem))
        for object_id, why in sorted(scrubbed.bad.items()):
            what = f"{object_id.hex()} in pack {scrubbed.name.hex()}"
            findings.append(Finding("record", what, why, tuple(sorted(needed[object_id]))))
    return findings
