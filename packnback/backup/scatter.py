"""Rows whose keys are hashes, brought into order in bounded memory.

Rows in the order in which files were walked hit every page of a table that is ordered by hash. Written in batches,
each batch copies nearly all pages once more: a first backup of a million files left a cache of three times its size,
all of it mapped. So the rows are scattered over files by their first bytes, and each file is sorted by itself: every
page is touched once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from packnback.ids import KIB

SHARE_ROWS = 1 << 16
"""Rows that are sorted at once, about."""
SHARES_MOST = 256
_BUFFER = 16 * KIB


class Scatter:
    """Collects rows with keys of `key_length` bytes and values of one length. `expected` is how many are to come.

    A context manager. Raises OSError when there is no room in `directory` for what does not fit into memory.
    """

    def __init__(self, directory: str, expected: int, key_length: int) -> None:
        self._key_length = key_length
        self._shares = min(-(-expected // SHARE_ROWS), SHARES_MOST)
        self._rows: dict[bytes, bytes] = {}
        self._length = 0
        self._stack = ExitStack()
        self._files = []
        if self._shares > 1:
            self._files = [
                self._stack.enter_context(tempfile.TemporaryFile(dir=directory, buffering=_BUFFER))  # noqa: SIM115  it does
                for _ in range(self._shares)
            ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, rows: Iterator[tuple[bytes, bytes]]) -> None:
        """More rows. Of those under the same key the last one counts."""
        if not self._files:
            self._rows.update(rows)
            return
        files, shares = self._files, self._shares
        for key, value in rows:
            self._length = len(key) + len(value)
            files[int.from_bytes(key[:2], "big") * shares >> 16].write(key + value)

    def in_order(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """All rows, ascending, in lists of about SHARE_ROWS."""
        if self._rows:
            yield sorted(self._rows.items())
        at, length = self._key_length, self._length
        for file in self._files:
            file.seek(0)
            data = file.read()
            found = {data[i : i + at]: data[i + at : i + length] for i in range(0, len(data), length or 1)}
            if found:
                yield sorted(found.items())
