"""Forgetting and recovering: immutable markers, nothing else.

A marker is an empty file that says: this snapshot was forgotten at this time. The snapshot leaves the list and
goes on protecting its objects until a compaction after the grace period releases it; until then `recover`
deletes the markers and everything is as before.

Order: publish the markers, then the index; delete markers, wait until that is durable, then the index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from packnback.errors import AlreadyExists, BlobMissing, Refused
from packnback.format import rows, snapshot
from packnback.gc.retention import Candidate, Policy, Verdict, decide, guard_clock
from packnback.store import catalog, layout
from packnback.store.index import ReadTxn, WriteTxn
from packnback.store.interface import SnapshotInfo
from packnback.store.ledger import changing
from packnback.store.receipts import newest_receipt
from packnback.store.repository import LocalRepository


def newest_time(txn: ReadTxn) -> int | None:
    """Time in ns of the newest receipt or marker: what the clock is compared with."""
    newest = newest_receipt(txn).received_ns
    times = [*catalog.forgotten_times(txn).values(), *((newest,) if newest is not None else ())]
    return max(times, default=None)


def check_clock(repository: LocalRepository, force: bool) -> int:
    """The present time in ns, unless it cannot be believed (ClockRefused; `force` believes it anyway)."""
    now_ns = repository.ports.now_ns()
    if not force:
        with repository.read() as txn:
            guard_clock(now_ns, newest_time(txn))
    return now_ns


def judge(infos: Iterable[SnapshotInfo], policy: Policy, now_ns: int) -> list[tuple[SnapshotInfo, Verdict]]:
    """The verdict of a policy on live snapshots, in their order. Pure.

    Partial and forgotten ones are left out. A damaged one counts in no bucket, so that it cannot stand in for
    a good one, and no policy forgets it: that is for a person to say.
    """
    if policy.empty:
        raise Refused("empty policy")
    live = [i for i in infos if i.forgotten_ns is None and not i.partial]
    candidates = [Candidate(i.name, i.client_id, i.receipt.time_ns, i.receipt.counter) for i in live if i.complete]
    verdicts = decide(candidates, policy, now_ns)
    damaged = Verdict(True, ["damaged: forget it by its id"])
    return [(i, verdicts.get(i.name, damaged)) for i in live]


def forget(repository: LocalRepository, names: Sequence[str], *, force: bool = False) -> list[str]:
    """Publish a marker for each of these snapshots that has none; the names of the markers.

    The caller holds the lock, shared is enough. Raises ClockRefused, and Refused when a client would be left
    without any live snapshot; `force` overrides both.
    """
    now_ns = check_clock(repository, force)
    ports = repository.ports
    ports.index.release_ballast()
    try:
        markers = repository.write(lambda txn: _forget_in(repository, txn, names, now_ns, force))
    finally:
        ports.index.restore_ballast()
    if markers and not force and (ports.makeshift or not ports.fenced):
        _look_again(repository, markers)
    return markers


def _look_again(repository: LocalRepository, markers: Sequence[str]) -> None:
    """Where each process has an index of its own, the transaction is no meeting place; the directories are.

    Our markers stand there now, and so does what somebody else has marked meanwhile. Of two who would leave a client
    without any snapshot at least one sees the other; it takes its markers back. Raises Refused.
    """
    repository.reconcile()
    wanted = {_snapshot_of(marker) for marker in markers}
    infos = repository.snapshots()
    try:
        _refuse_to_empty(infos, [info for info in infos if info.name in wanted])
    except Refused:
        _take_back(repository, markers)
        raise


def _forget_in(
    repository: LocalRepository, txn: WriteTxn, names: Sequence[str], now_ns: int, force: bool
) -> list[str]:
    """All in one transaction: of two that forget at the same time, the second one sees what the first has left."""
    infos = {i.name: i for i in catalog.snapshots(txn)}
    wanted = [infos[n] for n in dict.fromkeys(names) if n in infos and infos[n].forgotten_ns is None]
    if not force:
        _refuse_to_empty(infos.values(), wanted)
    markers = [_marker(info, now_ns) for info in wanted]
    with changing(txn) as ledger:
        for marker in markers:
            with suppress(AlreadyExists):  # by an earlier run of this transaction, or by one that was cut off
                repository.ports.blobs.publish(f"{layout.FORGOTTEN}/{marker}", [])
            ledger.adopt_marker(marker)
    return markers


def _refuse_to_empty(infos: Iterable[SnapshotInfo], wanted: Sequence[SnapshotInfo]) -> None:
    """A client keeps a snapshot that can be restored, if it has any: a damaged one is no reason to give that up."""
    going = {i.name for i in wanted}
    staying = [i for i in infos if i.forgotten_ns is None and not i.partial and i.name not in going]
    any_stays, whole_stays = {i.client_id for i in staying}, {i.client_id for i in staying if i.complete}
    emptied = {
        i.client for i in wanted if not i.partial and i.client_id not in (whole_stays if i.complete else any_stays)
    }
    if emptied:
        raise Refused("last snapshot", ", ".join(sorted(emptied)))


def _marker(info: SnapshotInfo, now_ns: int) -> str:
    # Never before the receipt, however the clock stands: such a marker would belong to an earlier snapshot.
    return snapshot.marker_name(info.client_id, info.sequence, max(now_ns, info.receipt.time_ns))


def _take_back(repository: LocalRepository, markers: Sequence[str]) -> None:
    for marker in markers:
        with suppress(BlobMissing):  # somebody else recovers it at the same time
            repository.ports.blobs.delete(f"{layout.FORGOTTEN}/{marker}")
    repository.ports.blobs.barrier()

    def drop(txn: WriteTxn) -> None:
        with changing(txn) as ledger:
            for marker in markers:
                ledger.drop_marker(marker)

    repository.ports.index.write(drop)


def recover(repository: LocalRepository, names: Sequence[str]) -> list[str]:
    """Delete the markers of these snapshots; the names of those that were forgotten. The caller holds the lock."""
    wanted = set(names)
    with repository.read() as txn:
        names_of_markers = [rows.name_of("markers", *row) for row in txn.scan("markers")]
    markers = [marker for marker in names_of_markers if _snapshot_of(marker) in wanted]
    _take_back(repository, markers)
    names_forgotten = {_snapshot_of(marker) for marker in markers}
    if not repository.ports.fenced:  # a compaction that no lock keeps out may have released them meanwhile
        repository.reconcile()
        names_forgotten &= {info.name for info in repository.snapshots()}
    return sorted(names_forgotten)


def _snapshot_of(marker: str) -> str:
    return marker.partition(".")[0] + ".snap"
