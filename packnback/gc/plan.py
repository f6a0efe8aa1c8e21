"""Which packs to drop, and which to rewrite: a pure function of their sizes.

A pack without a live record costs nothing to drop. Of the others those are rewritten that free the most for each
byte copied, until what is wasted in the rest is at most the bound. Small packs are merged when many have
collected. Framing and envelopes of a pack that stays count as live: no rewriting frees them.

Condemned packs (`packnback.store.condemned`) go in any case, and what is needed of them is copied first.

Nothing else is rewritten unless bytes or the number of packs strictly fall, so a second run finds nothing to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet

from msgspec import Struct

from packnback.ids import MIB
from packnback.store.packer import PACK_TARGET

SMALL = 8 * MIB
"""Packs below this size are merged …"""
SMALL_COUNT = 16
"""… when there are so many of one class."""


class PackUse(Struct, frozen=True):
    """A pack as the plan sees it; bytes. `record_bytes` are those of its objects, `live_bytes` of the live ones."""

    name: bytes
    size: int
    object_class: int
    record_bytes: int
    live_bytes: int

    @property
    def dead_bytes(self) -> int:
        """What rewriting would free."""
        return self.record_bytes - self.live_bytes


class Plan(Struct, frozen=True):
    """What a compaction is going to do. Names ascending."""

    drop: tuple[bytes, ...]
    rewrite: tuple[bytes, ...]
    bytes_freed: int
    """Dead bytes in these packs, the framing of dropped packs included."""
    bytes_copied: int

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.drop and not self.rewrite


def make_plan(packs: Iterable[PackUse], max_waste: float, condemned: Collection[bytes] = ()) -> Plan:
    """A plan after which dead bytes are at most the fraction `max_waste` (0 … 1) of all records' bytes."""
    packs = list(packs)
    drop = [p for p in packs if not p.live_bytes]
    kept = [p for p in packs if p.live_bytes and p.name not in condemned]
    rewrite = {p.name: p for p in _wasteful(kept, max_waste)}
    rewrite.update({p.name: p for p in packs if p.live_bytes and p.name in condemned})
    for object_class in sorted({p.object_class for p in kept}):
        of_class = [p for p in packs if p.live_bytes and p.object_class == object_class]
        for pack in _small(of_class, rewrite.keys()):
            rewrite[pack.name] = pack
    chosen = list(rewrite.values())
    return Plan(
        tuple(sorted(p.name for p in drop)),
        tuple(sorted(p.name for p in chosen)),
        sum(p.size for p in drop) + sum(p.dead_bytes for p in chosen),
        sum(p.live_bytes for p in chosen),
    )


def _wasteful(packs: Sequence[PackUse], max_waste: float) -> list[PackUse]:
    """The packs that free the most for each byte copied, as many as it takes."""
    # Framing is left out: how much of it the new packs have is not known, and the next plan must find enough done.
    total = sum(p.record_bytes for p in packs)
    dead = sum(p.dead_bytes for p in packs)
    chosen = []
    for pack in sorted(packs, key=lambda p: (-p.dead_bytes / p.live_bytes, p.name)):
        if dead <= max_waste * total or not pack.dead_bytes:
            break
        chosen.append(pack)
        dead -= pack.dead_bytes
        total -= pack.dead_bytes
    return chosen


def _small(packs: Sequence[PackUse], chosen: AbstractSet[bytes]) -> list[PackUse]:
    """The small packs of a class, to be merged with what is rewritten anyway; none if that makes no fewer packs.

    Of what is rewritten a small pack may remain, too: it counts as one.
    """
    rewritten = [p for p in packs if p.name in chosen]
    small = [p for p in packs if p.size < SMALL and p.name not in chosen]
    if len(small) + bool(rewritten) < SMALL_COUNT:
        return []
    merged = [*small, *rewritten]
    packs_after = -(-sum(p.live_bytes for p in merged) // PACK_TARGET)
    return small if packs_after < len(merged) else []
