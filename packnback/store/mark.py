"""Marking: from the roots of all snapshots to the count of every object that they need.

A repository has millions of data objects and a hundredth of that many objects with refs. So memory is given to
the latter alone, to remember which were seen. Each reference to anything is one id; they are gathered in sorted
runs, which go to a temporary file when they are too many, and are counted when the runs are merged. What comes
out is ascending, which is how an index wants to be written, and compared.

Who refers to whom is asked of the caller: it may come from the index, or from the footers of packs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from heapq import merge
from typing import IO

from packnback.ids import ID_LEN
from packnback.store.index_files import storage_error

RUN_IDS = 200_000
"""So many ids are kept in memory (some 75 bytes each) before they go to the file."""
_READ_IDS = 1024


class IdSorter:
    """Sorts more ids than memory holds. `close` it."""

    def __init__(self, run_ids: int = RUN_IDS) -> None:
        self._run_ids = run_ids
        self._ids: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._ends: list[int] = []
        """Where each run ends in the file, in bytes."""

    def add(self, ids: Iterable[bytes]) -> None:
        """More ids, in any order, as often as they come."""
        self._ids += ids
        if len(self._ids) >= self._run_ids:
            self._spill()

    def __iter__(self) -> Iterator[bytes]:
        """All ids in ascending order, repeated ones as often as they were added."""
        self._ids.sort()
        bounds = zip([0, *self._ends], self._ends, strict=False)
        return merge(*(self._run(start, end) for start, end in bounds), self._ids)

    def close(self) -> None:
        """Give back memory and disk."""
        self._ids = []
        if self._file is not None:
            self._file.close()

    def _spill(self) -> None:
        self._ids.sort()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="packnback-mark-")  # noqa: SIM115 - `close` does
            self._file.write(b"".join(self._ids))
            self._file.flush()
        except OSError as error:
            raise storage_error("write", tempfile.gettempdir(), error) from error
        self._ends.append(self._file.tell())
        self._ids = []

    def _run(self, start: int, end: int) -> Iterator[bytes]:
        if self._file is None:
            return
        step = _READ_IDS * ID_LEN
        for at in range(start, end, step):
            block = os.pread(self._file.fileno(), min(step, end - at), at)
            for i in range(0, len(block), ID_LEN):
                yield block[i : i + ID_LEN]


def mark(
    roots: Iterable[bytes], inner: AbstractSet[bytes], refs: Callable[[bytes], Sequence[bytes]]
) -> Iterator[tuple[bytes, int]]:
    """(id, count) of everything that is needed, ascending: how often roots and live objects name it.

    `inner` are the objects that are there and have refs, `refs` tells these. Ids behind which nothing stands are
    among the results. Nothing is asked any more once the first result is out.
    """
    with closing(IdSorter()) as sorter:
        seen: set[bytes] = set()
        work: list[bytes] = []

        def refer(ids: Sequence[bytes]) -> None:
            sorter.add(ids)
            if not inner.isdisjoint(ids):
                new = [i for i in ids if i in inner and i not in seen]
                seen.update(new)
                work.extend(new)

        for root in roots:
            refer([root])
        while work:
            refer(refs(work.pop()))
        yield from _counted(sorter)


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
