"""Reading remembered parts ahead of the walk, and asking the repository for their objects in large batches.

Rows stand in the order of the walk, so the cache is read from one end to the other, a window at a time; and while
one window is being used, the repository is already asked for what the next one needs. Nothing is taken over whose
objects it does not have, or of which so little is in use that what remains is to be stored anew (`is_poor`).

Rows that the walk passes by below its roots are of directories that are gone; they are given to `drop`. Between the
roots, rows of other backups are jumped over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct, field

from packnback.backup.cache import KEY_LIMIT, ROWS, Cache
from packnback.backup.cache_rows import SCOPE_LEN, PartRow, Rows
from packnback.backup.schedule import Question
from packnback.ids import MIB
from packnback.recent import Recent

WINDOW_BYTES = 1 * MIB
WINDOW_IDS = 2048
WINDOW_ROWS = 1024
KNOWN_LIMIT = 1 << 14
"""Ids whose presence is remembered, at least half of them at any time."""


class Repository(Protocol):
    """Whom to ask; the pipeline."""

    def ask(self, ids: Sequence[bytes]) -> Question:
        """Ask, without waiting, which of `ids` (ascending) are there."""

    def answer(self, question: Question) -> list[bool]:
        """The answer; waits for it."""


class Presence:
    """Which objects are there and worth pointing to. Remembers the recent answers."""

    def __init__(self, repository: Repository, poor: Callable[[Iterable[bytes]], set[bytes]]) -> None:
        self._repository = repository
        self._poor = poor
        self._recent = Recent[bytes, bool](KNOWN_LIMIT)

    def ask(self, ids: Iterable[bytes]) -> Question | None:
        """Ask for those of `ids` about which nothing is known yet."""
        unknown = sorted(i for i in set(ids) if self.lately(i) is None)
        return self._repository.ask(unknown) if unknown else None

    def missing(self, question: Question | None, ids: Iterable[bytes]) -> set[bytes]:
        """Those of `ids` (once asked for with `question`) that are not there, or not worth pointing to."""
        if question is not None:
            answers = self._repository.answer(question)
            poor = self._poor(question.ids)
            for object_id, there in zip(question.ids, answers, strict=True):
                self._recent.note(object_id, there and object_id not in poor)
        return {i for i in ids if not self.lately(i)}

    def lately(self, object_id: bytes) -> bool | None:
        """What was noted; None if nothing, or too long ago."""
        return self._recent.get(object_id)


class Known(NamedTuple):
    """A remembered part, and those of its objects that cannot be used."""

    row: PartRow
    missing: set[bytes]


class _Window(Struct):
    rows: deque[tuple[bytes, PartRow | None]] = field(default_factory=deque)
    ids: set[bytes] = field(default_factory=set)
    question: Question | None = None
    missing: set[bytes] | None = None
    resume: bytes | None = None
    """Where the next window starts; None behind the last row of the scope."""
    last: bytes = b""


class Ahead:
    """The rows of one scope, looked up in the order of the walk below `roots` (prefixes of keys)."""

    def __init__(
        self,
        cache: Cache,
        rows: Rows,
        scope: bytes,
        roots: Sequence[bytes],
        presence: Presence,
        drop: Callable[[bytes, PartRow | None], None],
    ) -> None:
        self._cache = cache
        self._rows = rows
        self._scope = scope
        self._roots = roots
        self._presence = presence
        self._drop = drop
        self._now: _Window | None = None
        self._next: _Window | None = None
        self._at = b""

    def find(self, key: bytes) -> Known | None:
        """What is remembered under `key`."""
        if key <= self._at:
            return self._single(key)
        self._at = key
        window = self._now or self._move_to(key)
        while True:
            rows = window.rows
            while rows and rows[0][0] < key:
                self._pass(*rows.popleft())
            if rows:
                if rows[0][0] > key:
                    return None
                row = rows.popleft()[1]
                return None if row is None else self._judged(window, row)
            if window.resume is None:
                return None
            window = self._move_on(window, key)

    def finish(self) -> None:
        """The walk is over: what is left below the roots is gone."""
        if self._now is not None:
            self.find(self._scope + b"\xff" * (KEY_LIMIT - SCOPE_LEN))

    def _single(self, key: bytes) -> Known | None:
        """A row that stands out of order."""
        with self._cache.reading() as txn:
            value = txn.get(ROWS, key)
        row = self._rows.read_part(key, value) if value is not None else None
        if row is None:
            return None
        ids = _ids(row)
        return Known(row, self._presence.missing(self._presence.ask(ids), ids))

    def _judged(self, window: _Window, row: PartRow) -> Known:
        if window.missing is None:
            window.missing = self._presence.missing(window.question, window.ids)
        return Known(row, window.missing.intersection(_ids(row)) if window.missing else _NONE)

    def _move_on(self, window: _Window, key: bytes) -> _Window:
        assert window.resume is not None
        if window.resume <= key and not self._is_below(window.last):
            return self._move_to(key)
        self._now = self._next or self._load(window.resume)
        return self._prepare(self._now)

    def _move_to(self, key: bytes) -> _Window:
        self._now = self._load(key)
        return self._prepare(self._now)

    def _prepare(self, window: _Window) -> _Window:
        self._next = self._load(window.resume) if window.resume is not None else None
        return window

    def _load(self, start: bytes) -> _Window:
        window, size = _Window(), 0
        with self._cache.reading() as txn:
            for key, value in txn.scan(ROWS, start):
                if not key.startswith(self._scope):
                    break
                if size >= WINDOW_BYTES or len(window.ids) >= WINDOW_IDS or len(window.rows) >= WINDOW_ROWS:
                    window.resume = key
                    break
                row = self._rows.read_part(key, value)
                window.rows.append((key, row))
                window.last = key
                if row is not None:
                    window.ids.update(_ids(row))
                size += len(value)
        window.question = self._presence.ask(window.ids)
        return window

    def _pass(self, key: bytes, row: PartRow | None) -> None:
        # A key of full length may stand out of order, and its directory be still to come.
        if self._is_below(key) and len(key) < KEY_LIMIT:
            self._drop(key, row)

    def _is_below(self, key: bytes) -> bool:
        path = key[SCOPE_LEN:]
        return any(path == root or path.startswith(root + b"\0") or not root for root in self._roots)


_NONE: set[bytes] = set()


def _ids(row: PartRow) -> list[bytes]:
    return [object_id for block in row.blocks for object_id in block.ids]
