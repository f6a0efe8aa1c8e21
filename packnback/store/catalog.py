"""What the index knows of snapshots: the list, a client's head. Reading only."""

from __future__ import annotations

from packnback.format import rows, snapshot
from packnback.format.rows import SnapshotRow
from packnback.format.snapshot import PARTIAL, Receipt
from packnback.store.index import ReadTxn
from packnback.store.interface import Head, SnapshotInfo
from packnback.store.objects import is_complete


def snapshots(txn: ReadTxn) -> list[SnapshotInfo]:
    """Every good snapshot that is not released, oldest receipt first."""
    forgotten = forgotten_times(txn)
    infos = []
    for key, value in txn.scan("snapshots"):
        row = rows.decode_snapshot(key, value)
        if row.status == rows.GOOD:
            infos.append(_info(txn, rows.name_of("snapshots", key, value), row, forgotten))
    return sorted(infos, key=lambda i: (i.receipt.counter, i.name))


def _info(txn: ReadTxn, name: str, row: SnapshotRow, forgotten: dict[str, int]) -> SnapshotInfo:
    forgotten_ns = forgotten.get(name)
    if forgotten_ns is not None and forgotten_ns < row.receipt.time_ns:
        # It was meant for a snapshot of this number that was lost, after which the number was used again.
        forgotten_ns = None
    return SnapshotInfo(
        name=name,
        id=row.id,
        client_id=row.client_id,
        client=row.client,
        domain_id=row.domain_id,
        epoch=row.epoch,
        sequence=row.sequence,
        prev=row.prev,
        root=row.root,
        time_ns=row.time_ns,
        receipt=row.receipt,
        partial=bool(row.flags & PARTIAL),
        forgotten_ns=forgotten_ns,
        complete=is_complete(txn, row.root),
        size=row.size,
    )


def forgotten_times(txn: ReadTxn) -> dict[str, int]:
    """Snapshot name → time (ns) of its newest marker."""
    times: dict[str, int] = {}
    for key, value in txn.scan("markers"):
        if rows.unseal("markers", key, value)[0] == rows.GOOD:
            client_id, sequence, time_ns = snapshot.parse_marker_name(rows.name_of("markers", key, value))
            name = snapshot.snapshot_name(client_id, sequence)
            times[name] = max(times.get(name, 0), time_ns)
    return times


def markers_of(txn: ReadTxn, name: str) -> list[str]:
    """Names of the markers that say that the snapshot of this name is forgotten."""
    stem = name.partition(".")[0] + "."
    return [rows.name_of("markers", key, value) for key, value in txn.scan("markers", stem.encode())]


def damaged_files(txn: ReadTxn, only: int | None = None) -> list[tuple[str, str, str]]:
    """(directory, name, why) of every file in the truth's directories that could not be parsed.

    `only` leaves one status of two: `rows.DAMAGED`, or `rows.NEWER` for those of a newer version.
    """
    wanted = (rows.DAMAGED, rows.NEWER) if only is None else (only,)
    found = []
    for key, value in txn.scan("snapshots"):
        row = rows.decode_snapshot(key, value)
        if row.status in wanted:
            found.append(("snapshots", rows.name_of("snapshots", key, value), row.reason))
    for table, directory in (("markers", "forgotten"), ("batches", "headers"), ("condemned", "condemned")):
        for key, value in txn.scan(table):
            status = rows.unseal(table, key, value)[0]
            if status in wanted:
                found.append((directory, rows.name_of(table, key, value), _STATUS_WORDS[status]))
    for key, value in txn.scan("packs"):
        pack = rows.decode_pack(key, value)
        if pack.status in wanted:
            found.append(("packs", pack.name.hex(), _STATUS_WORDS[pack.status]))
        elif pack.conflicts and pack.status == rows.GOOD:
            found.append(("packs", pack.name.hex(), f"{pack.conflicts} objects contradict another pack"))
    return found


_STATUS_WORDS = {rows.DAMAGED: "cannot be parsed", rows.NEWER: "written by a newer version"}


def find(txn: ReadTxn, client_id: bytes, sequence: int, snapshot_id: bytes) -> Receipt | None:
    """The receipt of exactly this snapshot, live or released; None when there is no such one."""
    key = snapshot.snapshot_name(client_id, sequence).encode()
    value = txn.get("snapshots", key)
    if value is not None:
        row = rows.decode_snapshot(key, value)
        if row.status in (rows.GOOD, rows.RELEASED) and row.id == snapshot_id:
            return row.receipt
    for kept_key, kept_value in txn.scan("released", rows.released_key(client_id, sequence, b"")):
        kept = rows.decode_released(kept_key, kept_value)
        if kept.id == snapshot_id:
            return kept.receipt
    return None


def head(txn: ReadTxn, client_id: bytes) -> Head | None:
    """The newest snapshot of a client, live or released. Keys go on with the sequence: the last is the newest."""
    best: Head | None = None
    if released := txn.last("released", client_id):
        sequence = rows.split_released_key(released[0])[1]
        key, value = next(txn.scan("released", rows.released_key(client_id, sequence, b"")))
        kept = rows.decode_released(key, value)
        best = Head(sequence, kept.id, kept.receipt.time_ns, kept.epoch)
    prefix, before = client_id.hex().encode(), None
    while found := txn.last("snapshots", prefix, before):
        row = rows.decode_snapshot(*found)
        if row.status == rows.GOOD:
            if best is None or row.sequence > best.sequence:
                best = Head(row.sequence, row.id, row.receipt.time_ns, row.epoch)
            break
        before = found[0]
    return best
