"""What damage touches, told without a key: from missing or rotten objects up to the snapshots that need them.

Only identifiers come out of here; which paths they mean can only be told by `verify`, which has a key.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from packnback.format import rows
from packnback.format.record import split_refs
from packnback.store.index import ReadTxn
from packnback.store.interface import SnapshotInfo
from packnback.store.objects import is_complete, lookup


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


def refs_of(txn: ReadTxn, object_id: bytes) -> list[bytes]:
    """The refs of a present object."""
    value = txn.get("refs", object_id)
    return [] if value is None else split_refs(rows.unseal("refs", object_id, value))


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


def snapshots_needing(txn: ReadTxn, snapshots: Iterable[SnapshotInfo], bad: set[bytes]) -> dict[bytes, set[str]]:
    """For each bad id, the names of the snapshots that reach it.

    Every object with refs is visited once for all snapshots together: what each one reaches of `bad` is
    remembered. Memory in proportion to the number of listing objects, not of data objects.
    """
    reaches: dict[bytes, frozenset[bytes]] = {}
    needed: dict[bytes, set[str]] = {i: set() for i in bad}
    for info in snapshots:
        for object_id in _reached(txn, info.root, bad, reaches):
            needed[object_id].add(info.name)
    return needed


def _reached(txn: ReadTxn, root: bytes, bad: set[bytes], reaches: dict[bytes, frozenset[bytes]]) -> frozenset[bytes]:
    work, entered = [root], set[bytes]()
    while work:
        object_id = work[-1]
        if object_id in reaches:
            work.pop()
            continue
        refs = refs_of(txn, object_id)
        if object_id not in entered:
            # Never twice: whoever can write here could make a ring of ids, which no session would take.
            entered.add(object_id)
            # A leaf needs no memory of its own: it is bad or it is not.
            inner = [r for r in refs if r not in reaches and r not in entered and txn.get("refs", r) is not None]
            if inner:
                work += inner
                continue
        found = {r for r in refs if r in bad} | ({object_id} & bad)
        found.update(*(reaches[r] for r in refs if r in reaches))
        reaches[object_id] = frozenset(found)
        work.pop()
    return reaches[root]
