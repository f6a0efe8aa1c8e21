"""Who needs what: the counts of objects, and with them the live bytes of packs.

count = snapshots whose root it is + live objects that refer to it; live means a count above zero. Going from 0 to
1 activates the refs, from 1 to 0 releases them, by a work-list: committing and releasing cost in proportion to
what changes. Where everything changes, as with the first snapshots that an index is told of, all counts are
derived in one pass and written in their order (`Liveness.count_all`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice

from packnback.format import rows
from packnback.format.rows import PackRow
from packnback.ids import ID_LEN, Kind
from packnback.store.index import WriteTxn
from packnback.store.mark import mark
from packnback.store.objects import pack_row, refs_of

_BATCH = 1_000
"""Rows computed before they are written."""


class Liveness:
    """Changes of counts and of packs' rows within one write transaction. `settle` ends it."""

    def __init__(self, txn: WriteTxn) -> None:
        self._txn = txn
        self._packs: dict[int, PackRow] = {}
        self.bytes_released = 0
        """Of the records that have died."""

    def settle(self) -> None:
        """Write the packs' rows."""
        for number, row in self._packs.items():
            key = rows.pack_key(number)
            self._txn.put("packs", key, rows.encode_pack(key, row))
        self._packs.clear()

    # --- packs --------------------------------------------------------------------------------------------

    def pack(self, number: int) -> PackRow:
        """The row of a pack, to be changed in place."""
        row = self._packs.get(number)
        if row is None:
            row = self._packs[number] = pack_row(self._txn, number)
        return row

    def add_pack(self, number: int, row: PackRow) -> None:
        """A pack that nobody knows yet."""
        self._packs[number] = row

    def forget_packs(self, numbers: Iterable[int]) -> None:
        """Packs whose rows were deleted."""
        for number in numbers:
            self._packs.pop(number, None)

    # --- counts -------------------------------------------------------------------------------------------

    def activate(self, ids: Sequence[bytes]) -> None:
        """One more live referrer for each id."""
        work: list[bytes] = []
        while True:
            changed, fresh = [], []
            for object_id, value in zip(ids, self._txn.get_many("counts", ids), strict=True):
                if value is None:
                    fresh.append(object_id)
                else:
                    count = rows.decode_count(object_id, value)
                    changed.append((object_id, rows.encode_count(object_id, count + 1)))
            for object_id, value in zip(fresh, self._txn.get_many("objects", fresh), strict=True):
                if value is None:
                    continue  # counted when it arrives
                row = rows.decode_object(object_id, value)
                changed.append((object_id, rows.encode_count(object_id, 1)))
                self.pack(row.pack).live_bytes += row.length
                if row.kind != Kind.DATA:
                    work.append(object_id)
            self._txn.put_many("counts", changed)
            if not work:
                return
            ids = refs_of(self._txn, work.pop())

    def release(self, ids: Sequence[bytes]) -> None:
        """One live referrer less for each id."""
        work: list[bytes] = []
        while True:
            changed, dead = [], []
            for object_id, value in zip(ids, self._txn.get_many("counts", ids), strict=True):
                if value is None:
                    continue  # absent
                count = rows.decode_count(object_id, value) - 1
                if count:
                    changed.append((object_id, rows.encode_count(object_id, count)))
                else:
                    dead.append(object_id)
            self._txn.put_many("counts", changed)
            for object_id, value in zip(dead, self._txn.get_many("objects", dead), strict=True):
                self._txn.delete("counts", object_id)
                if value is not None:
                    row = rows.decode_object(object_id, value)
                    self.pack(row.pack).live_bytes -= row.length
                    self.bytes_released += row.length
                    if row.kind != Kind.DATA:
                        work.append(object_id)
            if not work:
                return
            ids = refs_of(self._txn, work.pop())

    def count_all(self) -> None:
        """Counts and live bytes anew, from the roots down."""
        self._txn.clear("counts")
        for key, _ in list(self._txn.scan("packs")):
            self.pack(rows.number_of(key)).live_bytes = 0
        for pack in self._packs.values():
            pack.live_bytes = 0
        roots = [key[:ID_LEN] for key, _ in self._txn.scan("roots")]
        inner = {key for key, _ in self._txn.scan("refs")}
        counted = mark(roots, inner, partial(refs_of, self._txn))
        live_bytes: defaultdict[int, int] = defaultdict(int)
        while batch := list(islice(counted, _BATCH)):
            found = self._txn.get_many("objects", [object_id for object_id, _ in batch])
            live = []
            for (object_id, count), value in zip(batch, found, strict=True):
                if value is not None:
                    row = rows.decode_object(object_id, value)
                    live.append((object_id, rows.encode_count(object_id, count)))
                    live_bytes[row.pack] += row.length
            self._txn.append_many("counts", live)
        for number, length in live_bytes.items():
            self.pack(number).live_bytes = length
