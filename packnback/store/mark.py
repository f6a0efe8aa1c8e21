"""Marking: from the roots of all snapshots to the count of every object that they need.

A repository has millions of data objects and a hundredth of that many objects with refs. So memory is given to
the latter alone, to remember which were seen. Each reference to anything is one id; they are sorted
(`packnback.sorter`), and equal ones are counted. What comes out is ascending, which is how an index wants to be
written, and compared.

Who refers to whom is asked of the caller: it may come from the index, or from the footers of packs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain

from packnback.ids import ID_LEN
from packnback.sorter import Sorter
from packnback.store.temporary import temporary


def mark(
    roots: Iterable[bytes], inner: AbstractSet[bytes], refs: Callable[[bytes], Sequence[bytes]]
) -> Iterator[tuple[bytes, int]]:
    """(id, count) of everything that is needed, ascending: how often roots and live objects name it.

    `inner` are the objects that are there and have refs, `refs` tells these. Ids behind which nothing stands are
    among the results. Nothing is asked any more once the first result is out.
    """
    seen: set[bytes] = set()
    work: list[bytes] = []

    def refer(ids: Sequence[bytes]) -> None:
        sorter.add(ids)
        if not inner.isdisjoint(ids):
            new = [i for i in ids if i in inner and i not in seen]
            seen.update(new)
            work.extend(new)

    with temporary("sort"), Sorter(ID_LEN) as sorter:
        for root in roots:
            refer([root])
        while work:
            refer(refs(work.pop()))
        yield from _counted(chain.from_iterable(sorter.in_order()))


def _counted(ids: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Runs of equal ids as (id, length of the run)."""
    last, count = b"", 0
    for object_id in ids:
        if object_id == last:
            count += 1
            continue
        if count:
            yield last, count
        last, count = object_id, 1
    if count:
        yield last, count
