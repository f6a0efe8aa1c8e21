"""What is there, but nobody relies on it when he asks whether something has to be stored.

That is what stands in condemned packs alone (`packnback.store.condemned`), and what was damaged when it was read last
(`packnback.store.rot`): the next backup stores it again, as long as its client still has it, and not only after
somebody has seen to the damage. `Standing` tells that of a tree of objects, because a page in a good pack may refer
to data in a bad one.

Nothing of this is derived in advance: a table of what stands would have to be kept up by every change, for
something that is hardly ever the case. Without condemned and damaged packs, all that is asked is whether there are
such rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct, field

from packnback.errors import IndexDamage
from packnback.format import meta_rows, rows
from packnback.format.record import split_refs
from packnback.format.rows import ObjectRow
from packnback.ids import Kind
from packnback.store.condemned import condemned_numbers
from packnback.store.index import ReadTxn


class Distrusted(Struct):
    """Places that are not relied on."""

    condemned: set[int]
    """Numbers of packs."""
    damaged: dict[int, frozenset[bytes] | None] = field(default_factory=dict)
    """By the number of a pack, the objects that are damaged there; None for all of it."""

    def __bool__(self) -> bool:
        return bool(self.condemned or self.damaged)

    def leaves(self, txn: ReadTxn, object_id: bytes, row: ObjectRow) -> bool:
        """Whether the object, without what it needs, also stands in a place that is relied on."""
        if not self._is_at(row.pack, object_id):
            return True
        others = (rows.split_more_key(key)[1] for key, _ in txn.scan("more", object_id))
        return not all(self._is_at(number, object_id) for number in others)

    def _is_at(self, pack: int, object_id: bytes) -> bool:
        if pack in self.condemned:
            return True
        ids = self.damaged.get(pack, frozenset())
        return ids is None or object_id in ids


def distrusted(txn: ReadTxn) -> Distrusted:
    """All such places."""
    damaged = {}
    for key, value in txn.scan(meta_rows.TABLE, meta_rows.DAMAGED):
        name = meta_rows.split_damaged_key(key)
        number = txn.get("pack_names", name)
        if number is not None:
            damaged[rows.decode_number(name, number)] = _decoded(key, value)
    return Distrusted(condemned_numbers(txn), damaged)


def by_level(txn: ReadTxn, ids: Iterable[bytes]) -> list[bytes]:
    """Present objects in the order in which they may be stored: what others need comes before them."""
    return sorted(ids, key=lambda object_id: (_level(txn, object_id), object_id))


def _level(txn: ReadTxn, object_id: bytes) -> int:
    value = txn.get("objects", object_id)
    return 0 if value is None else rows.decode_object(object_id, value).level


def _decoded(key: bytes, value: bytes) -> frozenset[bytes] | None:
    try:
        return meta_rows.decode_damaged(key, value)
    except IndexDamage:
        return None


class Standing:
    """What stands without that, for one state of the index: `forget` what was found when that changes.

    Only complete objects are asked about, so there are no cycles. Memory in proportion to the objects with refs.
    """

    def __init__(self) -> None:
        self._stands: set[bytes] = set()
        """Objects with refs of which it is known, with all that they need."""

    def forget(self) -> None:
        """The index has changed."""
        self._stands.clear()

    def all_of(self, txn: ReadTxn, ids: Sequence[bytes]) -> list[bool]:
        """For each of these complete objects, whether it and all it needs stand where they can be relied on."""
        without = distrusted(txn)
        return [not without or not self._walk(txn, without, object_id, first=True) for object_id in ids]

    def lacking(self, txn: ReadTxn, root: bytes) -> set[bytes]:
        """All that this complete object needs, itself included, and that stands in condemned packs alone."""
        without = Distrusted(condemned_numbers(txn))
        return self._walk(txn, without, root, first=False) if without else set()

    def _walk(self, txn: ReadTxn, without: Distrusted, root: bytes, *, first: bool) -> set[bytes]:
        """What is lacking below `root`; only one such id with `first`."""
        found: set[bytes] = set()
        seen = {root}
        work = self._look(txn, without, [root], found)
        while work and not (first and found):
            object_id = work.pop()
            value = txn.get("refs", object_id)
            refs = [] if value is None else split_refs(rows.unseal("refs", object_id, value))
            inner = [ref for ref in self._look(txn, without, refs, found) if ref not in seen]
            seen.update(inner)
            work += inner
        if not found:
            self._stands |= seen
        return found

    def _look(self, txn: ReadTxn, without: Distrusted, ids: Iterable[bytes], found: set[bytes]) -> list[bytes]:
        """Adds to `found` those of `ids` that do not stand; returns those whose refs have to be looked at."""
        ids = [object_id for object_id in ids if object_id not in self._stands]
        inner = []
        for object_id, value in zip(ids, txn.get_many("objects", ids), strict=True):
            if value is None:
                continue
            row = rows.decode_object(object_id, value)
            if not without.leaves(txn, object_id, row):
                found.add(object_id)
            if row.kind != Kind.DATA:
                inner.append(object_id)
        return inner
