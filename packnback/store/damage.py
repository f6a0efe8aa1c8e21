"""What damage touches, told without a key: from missing or rotten objects up to the snapshots that need them.

Only identifiers come out of here; which paths they mean can only be told by `verify`, which has a key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set

from msgspec import Struct

from packnback.store.index import ReadTxn
from packnback.store.interface import SnapshotInfo
from packnback.store.objects import is_complete, lookup, refs_of


class Finding(Struct, frozen=True):
    """One piece of damage: its kind, the file or object, and the names of the snapshots that it touches."""

    kind: str
    """``pack``, ``record``, ``object``, ``snapshot``, ``marker``, ``headers``, ``condemned``, ``chain``
    or ``stranger``."""
    what: str
    why: str
    affects: tuple[str, ...] = ()
    pack: bytes = b""
    """Name of the pack whose bytes are damaged, for `repair`; empty when it is about something else."""


def suspects_of(findings: Iterable[Finding]) -> list[bytes]:
    """The packs that a repair should look at."""
    return sorted({finding.pack for finding in findings if finding.pack})


def missing_below(txn: ReadTxn, root: bytes) -> set[bytes]:
    """The ids of absent objects that `root` needs; only incomplete objects are visited."""
    missing, seen, work = set(), {root}, [root]
    while work:
        object_id = work.pop()
        if lookup(txn, object_id) is None:
            missing.add(object_id)
            continue
        for ref in refs_of(txn, object_id):
            if ref not in seen and not is_complete(txn, ref):
                seen.add(ref)
                work.append(ref)
    return missing


def snapshots_needing(
    txn: ReadTxn, snapshots: Collection[SnapshotInfo], bad: Set[bytes]
) -> dict[bytes, tuple[str, ...]]:
    """For each bad id, the names of the snapshots that reach it, ascending. Ids that need the same share one tuple.

    Snapshots are handed down from the roots, all at once, as a bit each: an object with refs is visited once, when
    all that refer to it, which have a higher level, have been. Memory: an integer for each object that waits.
    """
    names = sorted(info.name for info in snapshots)
    bit = {name: 1 << number for number, name in enumerate(names)}
    masks = dict.fromkeys(bad, 0)
    descent = _Descent(txn, masks)
    for info in snapshots:
        descent.reach(info.root, bit[info.name])
    descent.run()
    shared: dict[int, tuple[str, ...]] = {}
    for mask in masks.values():
        if mask not in shared:
            shared[mask] = tuple(name for name in names if mask & bit[name])
    return {object_id: shared[mask] for object_id, mask in masks.items()}


class _Descent:
    """Hands masks down. Those of the ids in `masks` are gathered there."""

    def __init__(self, txn: ReadTxn, masks: dict[bytes, int]) -> None:
        self._txn = txn
        self._masks = masks
        self._waiting: dict[int, dict[bytes, int]] = {}
        """By level: objects with refs, and what is to be handed down through them."""
        self._upwards: dict[bytes, int] = {}

    def reach(self, object_id: bytes, mask: int, above: int | None = None) -> None:
        """`object_id` is needed by the snapshots of `mask`: as a root, or by an object of the level `above`."""
        if object_id in self._masks:
            self._masks[object_id] |= mask
        if self._txn.get("refs", object_id) is None:
            return
        row = lookup(self._txn, object_id)
        level = 0 if row is None else row.level
        if above is not None and level >= above:
            # No session takes such a ref, but who can write here can make one, and a ring of them.
            known = self._upwards.get(object_id, 0)
            if known | mask == known:
                return
            self._upwards[object_id] = known | mask
        waiting = self._waiting.setdefault(level, {})
        waiting[object_id] = waiting.get(object_id, 0) | mask

    def run(self) -> None:
        """Until nothing waits."""
        while self._waiting:
            level = max(self._waiting)
            object_id, mask = self._waiting[level].popitem()
            if not self._waiting[level]:
                del self._waiting[level]
            for ref in refs_of(self._txn, object_id):
                self.reach(ref, mask, level)
