"""Condemned packs: what stands in them is still read, and nobody relies on it any more.

Where no lock keeps other machines from working, a pack cannot be deleted at the moment in which it is found to be
superfluous. It is condemned first, by a list in ``condemned/`` that everybody sees, and deleted a day later. In
between everybody follows one rule: *what stands only in condemned packs counts for nothing when somebody asks
whether it still has to be stored.* `Standing` tells that of a tree of objects, because a page in a good pack may
refer to data in a condemned one.

Being condemned is for ever: no pack is taken off a list again. What is needed of it is copied into a new pack, by
whoever finds out. So a pack that was once seen to hold nothing that is needed can be deleted at any later time.

Nothing of this is derived in advance: a table of what stands would have to be kept up by every change, for
something that is hardly ever the case. Without condemned packs, all that is asked is one count of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from packnback.format import rows
from packnback.format.record import split_refs
from packnback.ids import Kind
from packnback.store.index import ReadTxn
from packnback.store.objects import pack_row


def condemned_packs(txn: ReadTxn) -> set[bytes]:
    """The names of all condemned packs, those that have gone already included."""
    return {rows.split_doomed_key(key)[0] for key, _ in txn.scan("doomed")}


def condemned_numbers(txn: ReadTxn) -> set[int]:
    """The numbers of the condemned packs that are there."""
    if not txn.count("doomed"):
        return set()
    numbers = set()
    for name in condemned_packs(txn):
        value = txn.get("pack_names", name)
        if value is not None:
            numbers.add(rows.decode_number(name, value))
    return numbers


def is_condemned(txn: ReadTxn, number: int) -> bool:
    """Whether the pack of this number is condemned."""
    return bool(txn.count("doomed")) and any(True for _ in txn.scan("doomed", pack_row(txn, number).name))


def condemned_lists(txn: ReadTxn) -> dict[str, int]:
    """Name → time in ns of every list that can be parsed."""
    decoded = ((rows.name_of("condemned", *row), rows.decode_condemned(*row)) for row in txn.scan("condemned"))
    return {name: time_ns for name, (status, time_ns) in decoded if status == rows.GOOD}


def by_level(txn: ReadTxn, ids: Iterable[bytes]) -> list[bytes]:
    """Present objects in the order in which they may be stored: what others need comes before them."""
    return sorted(ids, key=lambda object_id: (_level(txn, object_id), object_id))


def _level(txn: ReadTxn, object_id: bytes) -> int:
    value = txn.get("objects", object_id)
    return 0 if value is None else rows.decode_object(object_id, value).level


class Standing:
    """What stands without condemned packs, for one state of the index: `forget` what was found when that changes.

    Only complete objects are asked about, so there are no cycles. Memory in proportion to the objects with refs.
    """

    def __init__(self) -> None:
        self._stands: set[bytes] = set()
        """Objects with refs of which it is known, with all that they need."""

    def forget(self) -> None:
        """The index has changed."""
        self._stands.clear()

    def all_of(self, txn: ReadTxn, ids: Sequence[bytes]) -> list[bool]:
        """For each of these complete objects, whether it and all it needs stand in packs that are not condemned."""
        condemned = condemned_numbers(txn)
        return [not condemned or not self._walk(txn, condemned, object_id, first=True) for object_id in ids]

    def lacking(self, txn: ReadTxn, root: bytes) -> set[bytes]:
        """All that this complete object needs, itself included, and that stands in condemned packs alone."""
        condemned = condemned_numbers(txn)
        return self._walk(txn, condemned, root, first=False) if condemned else set()

    def _walk(self, txn: ReadTxn, condemned: set[int], root: bytes, *, first: bool) -> set[bytes]:
        """What is lacking below `root`; only one such id with `first`."""
        found: set[bytes] = set()
        seen = {root}
        work = self._look(txn, condemned, [root], found)
        while work and not (first and found):
            object_id = work.pop()
            value = txn.get("refs", object_id)
            refs = [] if value is None else split_refs(rows.unseal("refs", object_id, value))
            inner = [ref for ref in self._look(txn, condemned, refs, found) if ref not in seen]
            seen.update(inner)
            work += inner
        if not found:
            self._stands |= seen
        return found

    def _look(self, txn: ReadTxn, condemned: set[int], ids: Iterable[bytes], found: set[bytes]) -> list[bytes]:
        """Adds to `found` those of `ids` that are in condemned packs; those whose refs have to be looked at."""
        ids = [object_id for object_id in ids if object_id not in self._stands]
        inner = []
        for object_id, value in zip(ids, txn.get_many("objects", ids), strict=True):
            if value is None:
                continue
            row = rows.decode_object(object_id, value)
            if row.pack in condemned:
                found.add(object_id)
            if row.kind != Kind.DATA:
                inner.append(object_id)
        return inner
