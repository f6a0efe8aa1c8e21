"""Whether all objects have all that they need, asked at once.

Object by object, each ref is a look-up somewhere in a table of millions. Nearly always the answer is yes for all of
them, and that is cheaper to find out: what has refs is a hundredth of all objects and is kept in memory with its
level and kind; the rest of what is referred to is sorted and looked for in order. Where the answer is no, somebody
has to look at each object (`packnback.store.completeness`).
"""

from __future__ import annotations

from collections.abc import Mapping

from packnback.format import rows
from packnback.format.record import REF_KINDS, level_of, split_refs
from packnback.ids import ID_LEN, Kind
from packnback.sorter import Sorter
from packnback.store.index import ReadTxn
from packnback.store.temporary import temporary

Inner = Mapping[bytes, tuple[int, int]]
"""Level and kind of every object that has a row of refs, by its id."""


def all_whole(txn: ReadTxn, inner: Inner) -> bool:
    """Whether every object is there, and has the level and the kind that what it refers to allows.

    Nothing can refer to itself then, as levels fall from object to ref.
    """
    with temporary("sort"), Sorter(ID_LEN) as sorter:
        for object_id, value in txn.scan("refs"):
            if object_id in inner:
                refs = split_refs(rows.unseal("refs", object_id, value))
                leaves = refs if inner.keys().isdisjoint(refs) else [ref for ref in refs if ref not in inner]
                if not _fits(inner, object_id, refs, has_leaves=bool(leaves)):
                    return False
                sorter.add(leaves)
        return all(_are_data(txn, ids) for ids in sorter.in_order())


def _fits(inner: Inner, object_id: bytes, refs: list[bytes], *, has_leaves: bool) -> bool:
    level, kind = inner[object_id]
    found = [inner[ref] for ref in refs if ref in inner]
    kinds = {ref_kind for _, ref_kind in found}
    if has_leaves:
        kinds.add(Kind.DATA)
    return kinds <= REF_KINDS[kind] and level == level_of([ref_level for ref_level, _ in found], kind)


def _are_data(txn: ReadTxn, ids: list[bytes]) -> bool:
    """Whether data stands behind each of these ids, which ascend."""
    found = txn.get_many("objects", list(dict.fromkeys(ids)))
    return all(value is not None and rows.kind_of_object(value) == Kind.DATA for value in found)
