"""What both ways to compact have in common: what is asked, what is told, and when nothing may be deleted.

The two are `packnback.gc.exclusive`, under a lock that keeps everybody out, and `packnback.gc.condemn`, where there
is none; `packnback.gc.compact` chooses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct, field

from packnback.errors import DamageBlocks
from packnback.gc.whatif import pack_uses
from packnback.ids import short
from packnback.store.index import ReadTxn
from packnback.store.interface import SnapshotInfo
from packnback.store.quarantine import put_aside_snapshots
from packnback.store.repository import LocalRepository
from packnback.store.rot import damaged_packs

DEFAULT_GRACE_NS = 7 * 86_400 * 10**9
DEFAULT_MAX_WASTE = 0.10


class CompactOptions(Struct, frozen=True):
    """How to compact. `force` overrides the clock guard and the refusal because of missing objects."""

    grace_ns: int = DEFAULT_GRACE_NS
    max_waste: float = DEFAULT_MAX_WASTE
    force: bool = False
    dry_run: bool = False
    wait_s: float = 0.0


class Compacted(Struct):
    """What a compaction did, or with `dry_run` would do. Bytes are those of packs."""

    released: list[str] = field(default_factory=list)
    """Names of snapshots."""
    objects_dropped: int = 0
    packs_rewritten: int = 0
    packs_deleted: int = 0
    bytes_freed: int = 0
    bytes_written: int = 0
    bytes_total: int = 0
    bytes_live: int = 0
    rotten: list[str] = field(default_factory=list)
    """Packs that were left alone because a live record in them is damaged."""
    condemned: int = 0
    """Packs that wait for being deleted by a later run (`packnback.gc.condemn`)."""
    bytes_condemned: int = 0
    due_ns: int | None = None
    """When the first of them may go."""
    held_up_by: list[str] = field(default_factory=list)
    """Who is at work on other machines, and may need packs that are due."""


@contextmanager
def ballast(repository: LocalRepository) -> Iterator[None]:
    """Room for the index's transactions on a full disk."""
    repository.ports.index.release_ballast()
    try:
        yield
    finally:
        repository.ports.index.restore_ballast()


def refuse_damage(
    repository: LocalRepository, infos: Sequence[SnapshotInfo], expired: Sequence[SnapshotInfo], force: bool
) -> None:
    """Damage never spreads. An unknown version is not an orphan, and no force makes it one."""
    files = repository.damaged_files()
    if files:
        raise DamageBlocks("unreadable files", [f"{where}/{name}: {why}" for where, name, why in files])
    going = {i.name for i in expired}
    incomplete = [
        f"{short(i.id)}, number {i.sequence} of {i.client}" for i in infos if not i.complete and i.name not in going
    ]
    if incomplete and not force:
        raise DamageBlocks("incomplete snapshots", incomplete)
    with repository.read() as txn:
        rotten = damaged_packs(txn)
    if rotten and not force:  # else a policy keeps, of two snapshots, the one that cannot be restored
        raise DamageBlocks("packs with damaged records", [name.hex() for name in rotten])
    aside = put_aside_snapshots(repository.ports.blobs)
    if aside and not force:
        raise DamageBlocks("snapshots that were put aside", aside)


def measure(txn: ReadTxn, done: Compacted) -> None:
    """Fill in what the packs take, and how much of that is in use."""
    uses = list(pack_uses(txn))
    done.bytes_total = sum(u.size for u in uses)
    done.bytes_live = sum(u.size - u.dead_bytes for u in uses if u.live_bytes)
