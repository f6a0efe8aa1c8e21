"""Releasing snapshots: the point of no return, and therefore the place with the strictest order.

1. The headers go into a batch in ``headers/``, so that the client's chain stays unbroken, and so that a snapshot
   file which a power cut brings back is known as released: the batch wins.
2. The snapshot files are deleted, then the markers; a barrier makes both durable.
3. An index transaction takes the roots away.
4. Only then may packs be touched (`packnback.gc.exclusive`, `packnback.gc.condemn`).

A crash after 1 leaves files that count for nothing any more, which the next run deletes.

No file goes on the index's word alone. It is read first, and has to say what the index says of it; one that counts
for nothing has to be named by a batch that is read as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from blake3 import blake3

from packnback.errors import AlreadyExists, BlobMissing, DamageBlocks, FormatDamage, SnapshotDamage, SnapshotUnknown
from packnback.format import rows, snapshot
from packnback.format.snapshot import RECEIPT_LEN, KeptHeader, SnapshotFile
from packnback.store import layout
from packnback.store.blobs import BlobStore
from packnback.store.index import ReadTxn, WriteTxn
from packnback.store.interface import SnapshotInfo
from packnback.store.ledger import changing
from packnback.store.repository import LocalRepository

PARTIAL_AGE_NS = 30 * 86_400 * 10**9
"""A checkpoint that no complete snapshot has superseded is released this long after its receipt."""


def to_release(infos: Iterable[SnapshotInfo], grace_ns: int, now_ns: int) -> list[SnapshotInfo]:
    """The snapshots whose time has come. Pure.

    Forgotten ones after the grace period; partial ones without grace when their client has sent a complete
    snapshot since, or when they are old. A marker from the future, which a wrong clock has left, counts as of now:
    with a grace period it does not expire, without one it does.
    """
    infos = list(infos)
    newest_whole: dict[bytes, int] = {}
    for info in infos:
        if not info.partial and info.complete:
            newest_whole[info.client_id] = max(newest_whole.get(info.client_id, 0), info.sequence)
    return [i for i in infos if _expired(i, grace_ns, now_ns, newest_whole.get(i.client_id, 0))]


def _expired(info: SnapshotInfo, grace_ns: int, now_ns: int, newest_whole: int) -> bool:
    if info.forgotten_ns is not None and min(info.forgotten_ns, now_ns) + grace_ns <= now_ns:
        return True
    return info.partial and (info.sequence < newest_whole or info.receipt.time_ns + PARTIAL_AGE_NS <= now_ns)


BATCH_LIMIT = 4096
"""Headers in one batch: well within what a reader accepts of a file."""


def _returned_files(txn: ReadTxn) -> list[str]:
    """Names of snapshot files that count for nothing, because their header is kept as released."""
    return [
        rows.name_of("snapshots", key, value)
        for key, value in txn.scan("snapshots")
        if rows.decode_snapshot(key, value).status == rows.RELEASED
    ]


def _markers_left(txn: ReadTxn) -> list[str]:
    """Names of markers whose snapshot was released, and its file deleted, before somebody was cut off."""
    return [marker for marker in _markers(txn) if _is_left(txn, marker)]


def _is_left(txn: ReadTxn, marker: str) -> bool:
    if txn.get("snapshots", f"{marker.partition('.')[0]}.snap".encode()) is not None:
        return False
    try:
        client_id, sequence, _ = snapshot.parse_marker_name(marker)
    except FormatDamage:
        return False
    return any(True for _ in txn.scan("released", rows.released_key(client_id, sequence, b"")))


def release(repository: LocalRepository, infos: Sequence[SnapshotInfo]) -> None:
    """Release snapshots for good, and take away what earlier runs have left. The caller holds the lock exclusively.

    Raises SnapshotDamage, SnapshotUnknown, DamageBlocks.
    """
    blobs = repository.ports.blobs
    names = [info.name for info in infos]
    with repository.ports.index.read() as txn:
        returned = [name for name in _returned_files(txn) if name not in names]
        _confirm_returned(repository, txn, returned)
        names += returned
        stems = {name.partition(".")[0] for name in names}
        markers = [m for m in _markers(txn) if m.partition(".")[0] in stems] + _markers_left(txn)
    if not names and not markers:
        return
    batches = [_keep(repository, infos[at : at + BATCH_LIMIT]) for at in range(0, len(infos), BATCH_LIMIT)]
    for name in names:
        _delete(blobs, f"{layout.SNAPSHOTS}/{name}")
    for marker in markers:
        _delete(blobs, f"{layout.FORGOTTEN}/{marker}")
    blobs.barrier()

    def drop(txn: WriteTxn) -> None:
        with changing(txn) as ledger:
            for batch, headers in batches:
                ledger.adopt_batch(batch, headers)
            for name in names:
                ledger.drop_snapshot(name)
            for marker in markers:
                ledger.drop_marker(marker)

    repository.ports.index.write(drop)


def _keep(repository: LocalRepository, infos: Sequence[SnapshotInfo]) -> tuple[str, list[KeptHeader]]:
    """Publish a batch of their headers: its name, and what is in it."""
    headers = [_kept(info, repository.read_snapshot(info.name)) for info in infos]
    data = snapshot.encode_batch(headers)
    batch = blake3(data).hexdigest()
    with suppress(AlreadyExists):  # the very same batch, by its name: an earlier run was cut off after it
        repository.ports.blobs.publish(f"{layout.HEADERS}/{batch}", [data])
    return batch, headers


def _kept(info: SnapshotInfo, data: bytes) -> KeptHeader:
    """The header of exactly this snapshot.

    The file may have become another one since it was adopted; to keep what it says now would be to release that
    other snapshot. Raises SnapshotDamage.
    """
    file = _decoded(info.id.hex(), data)
    if file.id != info.id:
        raise SnapshotDamage(info.id.hex(), "another snapshot stands in its place")
    if (file.header.partial, file.receipt) != (info.partial, info.receipt):
        raise DamageBlocks("the index does not agree with the snapshots", [info.name])
    return KeptHeader(file.header_bytes, file.signature, file.certificate, data[-RECEIPT_LEN:])


def _confirm_returned(repository: LocalRepository, txn: ReadTxn, names: Iterable[str]) -> None:
    """Raise DamageBlocks unless batches in ``headers/`` name the very snapshots that these files hold."""
    kept: dict[str, set[bytes]] = {}
    for name in names:
        try:
            file = _decoded(name, repository.read_snapshot(name))
        except SnapshotUnknown:
            continue
        prefix = rows.released_key(file.header.client_id, file.header.sequence, b"")
        batches = [rows.split_released_key(key)[2].hex() for key, _ in txn.scan("released", prefix)]
        for batch in batches:
            if batch not in kept:
                data = repository.ports.blobs.read(f"{layout.HEADERS}/{batch}")
                kept[batch] = {header.id for header in snapshot.decode_batch(data)}
        if not any(file.id in kept[batch] for batch in batches):
            raise DamageBlocks("the index does not agree with the snapshots", [name])


def _decoded(name: str, data: bytes) -> SnapshotFile:
    try:
        return snapshot.decode_file(data)
    except FormatDamage as damage:
        raise SnapshotDamage(name, f"{damage.what}: {damage.why}") from damage


def _markers(txn: ReadTxn) -> list[str]:
    return [rows.name_of("markers", *row) for row in txn.scan("markers")]


def _delete(blobs: BlobStore, name: str) -> None:
    with suppress(BlobMissing):  # an earlier run was cut off after this
        blobs.delete(name)
