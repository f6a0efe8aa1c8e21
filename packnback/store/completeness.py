"""Completeness: an object is complete when it is present, all its refs are, and kind and level are what they allow.

Rows in ``incomplete`` name the objects that are not. Rows in ``waiting`` lead from an absent or incomplete object to
those that need it, so that its arrival wakes exactly them, and costs in proportion to what changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat

from packnback.format import rows
from packnback.format.record import REF_KINDS, level_of
from packnback.format.rows import ObjectRow
from packnback.ids import ID_LEN
from packnback.store.index import WriteTxn
from packnback.store.objects import batches, is_complete, lookup, refs_of
from packnback.store.whole import all_whole


class Completeness:
    """Changes of completeness within one write transaction."""

    def __init__(self, txn: WriteTxn) -> None:
        self._txn = txn
        self.waiting = txn.count("waiting")
        """So many rows there are, at the most: nobody is looked for where nobody waits."""

    def waiting_for(self, object_id: bytes) -> list[bytes]:
        """The objects that wait for this one."""
        return [key[ID_LEN:] for key, _ in self._txn.scan("waiting", object_id)] if self.waiting else []

    def judge(self, object_id: bytes, kind: int, level: int, refs: Sequence[bytes]) -> bool:
        """Whether an object is complete. If it is not, that is noted, and for what it waits.

        One that refers to itself never is: no level fits.
        """
        txn = self._txn
        missing, highest, fits, allowed = [], 0, True, REF_KINDS[kind]
        found = txn.get_many("objects", refs)
        broken = txn.get_many("incomplete", refs) if txn.count("incomplete") else repeat(None)
        for ref, value, incomplete in zip(refs, found, broken, strict=False):
            if (value is None or incomplete is not None) and ref != object_id:
                missing.append(ref)
            if value is not None:
                row = rows.decode_object(ref, value)
                fits = fits and row.kind in allowed
                highest = max(highest, row.level)
        if not missing and fits and level == level_of([highest], kind):
            return True
        txn.put("incomplete", object_id, rows.seal(object_id, b""))
        for ref in missing:
            key = ref + object_id
            txn.put("waiting", key, rows.seal(key, b""))
            self.waiting += 1
        return False

    def wake(self, arrived: bytes) -> None:
        """`arrived` is complete now; so may be those who waited for it, and those who waited for them."""
        work = [arrived]
        while work and self.waiting:
            object_id = work.pop()
            for referrer in self.waiting_for(object_id):
                self._txn.delete("waiting", object_id + referrer)
                self.waiting -= 1
                row = lookup(self._txn, referrer)
                if row is not None and self._is_whole(referrer, row):
                    self._txn.delete("incomplete", referrer)
                    work.append(referrer)

    def _is_whole(self, object_id: bytes, row: ObjectRow) -> bool:
        refs = refs_of(self._txn, object_id)
        found = [lookup(self._txn, ref) if is_complete(self._txn, ref) else None for ref in refs]
        known = [ref for ref in found if ref is not None]
        return (
            len(known) == len(found)
            and all(ref.kind in REF_KINDS[row.kind] for ref in known)
            and row.level == level_of([ref.level for ref in known], row.kind)
        )

    def forget(self, object_id: bytes) -> None:
        """An object is about to lose its row: it waits for nothing any more."""
        if self._txn.delete("incomplete", object_id):
            for ref in refs_of(self._txn, object_id):
                self._txn.delete("waiting", ref + object_id)

    def judge_the_dead(self) -> None:
        """Look at all dead objects that have refs: what they need may be gone."""
        dead: dict[bytes, tuple[int, int]] = {}
        for batch in batches(self._txn, "refs"):
            ids = [object_id for object_id, _ in batch]
            for object_id, count in zip(ids, self._txn.get_many("counts", ids), strict=True):
                row = lookup(self._txn, object_id) if count is None else None
                if row is not None:
                    dead[object_id] = row.level, row.kind
        self._judge_all(dead)

    def judge_everything(self) -> None:
        """From scratch: one pass over the objects that have refs, unless all are seen to be complete."""
        for table in ("incomplete", "waiting"):
            self._txn.clear(table)
        self.waiting = 0
        found = ((object_id, lookup(self._txn, object_id)) for object_id, _ in self._txn.scan("refs"))
        inner = {object_id: (row.level, row.kind) for object_id, row in found if row is not None}
        if not all_whole(self._txn, inner):
            self._judge_all(inner)

    def _judge_all(self, inner: Mapping[bytes, tuple[int, int]]) -> None:
        """Judge objects, given with level and kind, after those that they need."""
        for object_id, (level, kind) in sorted(inner.items(), key=lambda item: item[1][0]):
            self.judge(object_id, kind, level, refs_of(self._txn, object_id))
        # Where levels lie, what an object needs may have been judged after it: now it is known for what it waits.
        for object_id in [object_id for object_id, _ in self._txn.scan("incomplete") if object_id in inner]:
            level, kind = inner[object_id]
            self.judge(object_id, kind, level, refs_of(self._txn, object_id))
        self.waiting = self._txn.count("waiting")
