"""Sorting more rows than memory holds: for tables whose keys are hashes.

Rows that come in any other order hit every page of such a table; written in batches, each batch copies nearly all
pages once more. A first backup of a million files left a cache of three times its size that way, and an index of
five million objects took twice its time. In order, every page is written once.

Rows are gathered, sorted, and written as runs to one temporary file, which has no name. Read back is a range of
keys at a time, from all runs at once. Every so many rows of a run one is kept in memory; these samples tell where the
ranges are to be cut (as in a sample sort: Frazer and McKellar, 1970). The keys' first bytes would not do: they tell
whose an object is.
"""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import pairwise
from types import TracebackType
from typing import IO, Self

RUN_ROWS = 200_000
"""So many rows are kept in memory (some 45 bytes each beside themselves) before they go to the file."""
LIST_ROWS = 1 << 16
"""About so many are handed out at a time."""
SAMPLED = 1024
"""One row of so many is kept in memory."""


class Sorter:
    """Sorts rows of `row_length` bytes. Its file is made in `directory`, or where temporary files go.

    A context manager. All methods raise OSError when there is no room for the file, or it cannot be read.
    """

    def __init__(self, row_length: int, directory: str | None = None, run_rows: int | None = None) -> None:
        self._row_length = row_length
        self._directory = directory
        self._run_rows = RUN_ROWS if run_rows is None else run_rows
        self._rows: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._runs: list[tuple[int, list[bytes]]] = []
        """Of each run: the number of its first row in the file, and its samples, of which that row is one."""
        self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back memory and disk."""
        self._rows = []
        if self._file is not None:
            self._file.close()

    def add(self, rows: Iterable[bytes]) -> None:
        """More rows, in any order, as often as they come."""
        self._rows += rows
        if len(self._rows) >= self._run_rows:
            self._spill()

    def in_order(self) -> Iterator[list[bytes]]:
        """All rows, ascending, equal ones as often as they were added, in lists of some LIST_ROWS.

        May be asked for again; nothing is added meanwhile.
        """
        if self._file is None:
            self._rows.sort()
            for at in range(0, len(self._rows), LIST_ROWS):
                yield self._rows[at : at + LIST_ROWS]
            return
        if self._rows:
            self._spill()
        for ranges in pairwise(self._cuts()):
            # Runs one behind the other: list.sort merges what it finds ascending.
            rows = [row for start, end in zip(*ranges, strict=True) for row in self._read(start, end)]
            rows.sort()
            yield rows

    def _spill(self) -> None:
        self._rows.sort()
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="packnback-sort-", dir=self._directory)  # noqa: SIM115 - `close`
        self._file.write(b"".join(self._rows))
        self._file.flush()
        self._runs.append((self._written, self._rows[::SAMPLED]))
        self._written += len(self._rows)
        self._rows = []

    def _cuts(self) -> Iterator[list[int]]:
        """Ascending, from the first row to behind the last: numbers of rows in the file, one for each run."""
        starts = [start for start, _ in self._runs]
        ends = [*starts[1:], self._written]
        samples = sorted(sample for _, some in self._runs for sample in some)
        yield starts
        for row in sorted(set(samples[LIST_ROWS // SAMPLED :: LIST_ROWS // SAMPLED])):
            yield [self._find(row, start, end, some) for (start, some), end in zip(self._runs, ends, strict=True)]
        yield ends

    def _find(self, row: bytes, start: int, end: int, samples: list[bytes]) -> int:
        """Where in a run `row` would stand: before all that are equal to it."""
        sample = bisect_left(samples, row)
        first = start + max(sample - 1, 0) * SAMPLED
        last = min(start + sample * SAMPLED, end)
        return first + bisect_left(range(first, last), row, key=lambda number: self._read(number, number + 1)[0])

    def _read(self, start: int, end: int) -> list[bytes]:
        """Rows of the file by their numbers."""
        if self._file is None or start == end:
            return []
        length = self._row_length
        data = os.pread(self._file.fileno(), (end - start) * length, start * length)
        return [data[at : at + length] for at in range(0, len(data), length)]
