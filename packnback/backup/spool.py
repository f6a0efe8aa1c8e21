"""What is to be remembered once it is true: rows wait here until the objects that they point to are durable.

They wait in a file without a name, so that memory does not grow with the number of files; what a crash leaves
behind is nothing. Nobody else can write there, so the quickest encoding will do. Then they are written to the
cache in transactions of moderate size.

Bytes used of bundles are counted as differences against the rows that are replaced: a row and its differences
go into one transaction, so usage and rows agree whenever a process dies.
"""

from __future__ import annotations

import marshal
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from msgspec import Struct, field

from packnback.backup.cache import AGES, BUNDLES, CONTENTS, META, PIECES, ROWS, USAGE, Cache, CacheFailed, WriteRows
from packnback.backup.cache_rows import (
    CONTENT_LEN,
    CONTENT_ROW_LEN,
    PieceFile,
    Rows,
    aged_file,
    key_number,
    number_key,
    segment_key,
)
from packnback.ids import MIB
from packnback.oserrors import reason_of
from packnback.sorter import LIST_ROWS, Sorter

CONTENTS_LIMIT = 1 << 23
"""Contents of small files that are remembered; beyond, some are forgotten, whichever they are."""
BUNDLES_LIMIT = 1 << 21
PIECES_LIMIT = 1024 * MIB
"""Bytes of piece lists that are kept; those of files that changed longest ago go first."""
_BATCH_BYTES = 8 * MIB
_BATCH_CONTENTS = 1 << 16
_PIECE_BYTES = b"piece bytes"

BundledContent = tuple[bytes, int, int]
"""(hash of a small content, its offset in the bundle, its length)."""


class _Batch(Struct):
    """What goes into one transaction."""

    rows: dict[bytes, bytes | None] = field(default_factory=dict)
    uses: dict[bytes, list[int]] = field(default_factory=dict)
    bundles: list[tuple[bytes, int, list[BundledContent]]] = field(default_factory=list)
    segments: list[tuple[bytes, bytes]] = field(default_factory=list)
    files: list[tuple[bytes, list[int | bytes]]] = field(default_factory=list)
    bytes: int = 0
    contents: int = 0

    @property
    def is_full(self) -> bool:
        return self.bytes > _BATCH_BYTES or self.contents > _BATCH_CONTENTS


class Spool:
    """Rows on their way into `cache`. Raises CacheFailed when there is no room for them."""

    def __init__(self, cache: Cache, rows: Rows) -> None:
        self._cache = cache
        self._rows = rows
        try:
            self._file = tempfile.TemporaryFile(dir=cache.directory, buffering=1 * MIB)  # noqa: SIM115  it lives as long as this
        except OSError as error:
            raise CacheFailed(f"{cache.directory}: {reason_of(error)}") from error

    def part(self, key: bytes, value: bytes, uses: Mapping[bytes, Sequence[int]]) -> None:
        """A part of a directory. `uses`: usage key → (bytes that it uses more than before, the bundle's size)."""
        self._add(["part", key, value, dict(uses)])

    def drop(self, key: bytes, uses: Mapping[bytes, Sequence[int]]) -> None:
        """A part that is not there any more."""
        self._add(["part", key, None, dict(uses)])

    def bundle(self, bundle: bytes, size: int, contents: Sequence[BundledContent]) -> None:
        """A bundle and what is in it."""
        self._add(["bundle", bundle, size, contents])

    def segment(self, key: bytes, value: bytes) -> None:
        """A segment of a large file's pieces; `pieces` follows when it was the last one."""
        self._add(["segment", key, value])

    def pieces(self, file: bytes, row: PieceFile) -> None:
        """All segments of a large file have been given."""
        self._add(["pieces", file, list(row)])

    def write(self) -> None:
        """Write everything to the cache: what it points to is durable now."""
        try:
            self._file.flush()
            self._file.seek(0)
            with Sorter(CONTENT_ROW_LEN, self._cache.directory, LIST_ROWS) as contents:
                batch = _Batch()
                for record in self._records():
                    _enter(batch, record)
                    if batch.is_full:
                        self._write(batch, contents)
                        batch = _Batch()
                self._write(batch, contents)
                for rows in contents.in_order():
                    self._cache.write(partial(_write_contents, rows=rows))
            self._file.seek(0)
            self._file.truncate()
        except OSError as error:
            raise CacheFailed(f"{self._cache.directory}: {reason_of(error)}") from error

    def close(self) -> None:
        """Forget what was not written."""
        with suppress(OSError):  # a full disk does not take what is still buffered: it was to be forgotten anyway
            self._file.close()

    def _add(self, record: list[object]) -> None:
        data = marshal.dumps(record)
        try:
            self._file.write(len(data).to_bytes(4, "little"))
            self._file.write(data)
        except OSError as error:
            raise CacheFailed(f"{self._cache.directory}: {reason_of(error)}") from error

    def _records(self) -> Iterator[list[object]]:
        while length := self._file.read(4):
            yield marshal.loads(self._file.read(int.from_bytes(length, "little")))

    def _write(self, batch: _Batch, contents: Sorter) -> None:
        """Write a batch; the rows of its contents are for `contents`, as they go into an order of their own."""
        for bundle, number, size, placed in self._cache.write(lambda txn: self._write_in(txn, batch)):
            contents.add(self._rows.contents(bundle, number, size, placed))

    def _write_in(self, txn: WriteRows, batch: _Batch) -> list[tuple[bytes, int, int, list[BundledContent]]]:
        txn.put_many(ROWS, sorted((k, v) for k, v in batch.rows.items() if v is not None))
        for key, value in batch.rows.items():
            if value is None:
                txn.delete(ROWS, key)
        self._write_uses(txn, batch)
        self._write_pieces(txn, batch)
        return self._write_bundles(txn, batch)

    def _write_uses(self, txn: WriteRows, batch: _Batch) -> None:
        for key, (more, size) in sorted(batch.uses.items()):
            known = self._rows.read_usage(key, txn.get(USAGE, key))
            used, known_size = known or (0, 0)
            used += more
            if used > 0:
                txn.put(USAGE, key, self._rows.usage(key, used, size or known_size))
            else:
                txn.delete(USAGE, key)

    def _write_bundles(self, txn: WriteRows, batch: _Batch) -> list[tuple[bytes, int, int, list[BundledContent]]]:
        """(id, number, size, contents) of each bundle, once its row is written."""
        number = key_number(txn.last(BUNDLES))
        numbered = []
        for bundle, size, contents in batch.bundles:
            number += 1
            key = number_key(number)
            txn.put(BUNDLES, key, self._rows.bundle(key, bundle, size))
            numbered.append((bundle, number, size, contents))
        txn.delete_some(BUNDLES, b"", max(txn.count(BUNDLES) - BUNDLES_LIMIT, 0))
        return numbered

    def _write_pieces(self, txn: WriteRows, batch: _Batch) -> None:
        txn.put_many(PIECES, batch.segments)
        if not batch.files:
            return
        total = int.from_bytes(txn.get(META, _PIECE_BYTES) or b"", "little")
        for file, fields in batch.files:
            row = PieceFile(*fields)  # type: ignore[arg-type]
            total -= self._forget_pieces(txn, file, keep=row.segments)
            txn.put(PIECES, file, self._rows.piece_file(file, row))
            txn.put(AGES, *self._rows.age(row.changed_ns, file))
            total += row.length
        oldest = next(txn.scan(AGES, b"\0"), None)
        while total > PIECES_LIMIT and oldest is not None:
            txn.delete(AGES, oldest[0])
            total -= self._forget_pieces(txn, aged_file(oldest[0]), keep=0)
            oldest = next(txn.scan(AGES, b"\0"), None)
        if oldest is None:
            total = 0  # whatever damage had made of it
        txn.put(META, _PIECE_BYTES, max(total, 0).to_bytes(8, "little"))

    def _forget_pieces(self, txn: WriteRows, file: bytes, keep: int) -> int:
        """Remove what there is of a file but for the first `keep` segments; how many bytes it was counted as."""
        known = self._rows.read_piece_file(file, txn.get(PIECES, file))
        if known is None:
            return 0
        txn.delete(PIECES, file)
        txn.delete(AGES, self._rows.age(known.changed_ns, file)[0])
        for segment in range(keep, known.segments):
            txn.delete(PIECES, segment_key(file, segment))
        return known.length


def _write_contents(txn: WriteRows, rows: list[bytes]) -> None:
    txn.put_many(CONTENTS, [(row[:CONTENT_LEN], row[CONTENT_LEN:]) for row in rows])
    excess = txn.count(CONTENTS) - CONTENTS_LIMIT
    if excess > 0:
        # Keys are hashes: a run of them from anywhere on is a sample of all.
        txn.delete_some(CONTENTS, os.urandom(CONTENT_LEN), excess)


def _enter(batch: _Batch, record: list[object]) -> None:
    match record:
        case ["part", bytes(key), value, dict(uses)]:
            batch.rows[key] = value  # type: ignore[assignment]
            batch.bytes += len(key) + (len(value) if isinstance(value, bytes) else 0)
            for bundle, (more, size) in uses.items():
                known = batch.uses.setdefault(bundle, [0, 0])
                known[0] += more
                known[1] = size or known[1]
            batch.bytes += 64 * len(uses)
        case ["bundle", bytes(bundle), int(size), list(contents)]:
            batch.bundles.append((bundle, size, contents))
            batch.contents += len(contents)
        case ["segment", bytes(key), bytes(value)]:
            batch.segments.append((key, value))
            batch.bytes += len(value)
        case ["pieces", bytes(file), list(fields)]:
            batch.files.append((file, fields))
        case _:
            raise CacheFailed("what was to be remembered cannot be read back")
