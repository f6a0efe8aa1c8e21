"""Sizes: what the packs take, what of it is in use, and what compaction could give back."""

from __future__ import annotations

from msgspec import Struct

from packnback.format import rows
from packnback.store import catalog
from packnback.store.condemned import condemned_packs
from packnback.store.repository import LocalRepository


class Stats(Struct, frozen=True):
    """Sizes, in bytes. Live are the records that some snapshot needs, with the packs' framing left out."""

    packs: int
    objects: int
    objects_live: int
    snapshots: int
    bytes_total: int
    bytes_live: int
    packs_condemned: int = 0
    """Packs that wait for being deleted (`packnback.gc.condemn`)."""
    bytes_condemned: int = 0

    @property
    def bytes_waste(self) -> int:
        """What compaction could free at the most."""
        return self.bytes_total - self.bytes_live


def stats(repository: LocalRepository) -> Stats:
    """Sizes as the index knows them. The caller holds the lock, and has reconciled."""
    with repository.read() as txn:
        packs = [rows.decode_pack(key, value) for key, value in txn.scan("packs")]
        infos = catalog.snapshots(txn)
        snapshot_bytes = sum(info.size for info in infos)
        condemned = condemned_packs(txn)
        framing = sum(p.size - p.record_bytes for p in packs if p.live_bytes)
        return Stats(
            packs=len(packs),
            objects=txn.count("objects"),
            objects_live=txn.count("counts"),
            snapshots=len(infos),
            bytes_total=sum(p.size for p in packs) + snapshot_bytes,
            bytes_live=sum(p.live_bytes for p in packs) + framing + snapshot_bytes,
            packs_condemned=sum(p.name in condemned for p in packs),
            bytes_condemned=sum(p.size for p in packs if p.name in condemned),
        )
