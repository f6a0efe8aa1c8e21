"""A bounded memory of what was noted lately."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `limit` values by key; what was neither noted nor asked for of late is forgotten first, and half of all
    at once. (Two generations: nothing has to be moved with each look.)
    """

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._recent: dict[K, V] = {}
        self._older: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._recent) + len(self._older)

    def get(self, key: K) -> V | None:
        """What was noted; None if nothing was, or too long ago."""
        found = self._recent.get(key)
        if found is None and (found := self._older.get(key)) is not None:
            self.note(key, found)
        return found

    def note(self, key: K, value: V) -> None:
        """Remember it, in place of what was noted before."""
        if len(self._recent) >= self._half:
            self._older, self._recent = self._recent, {}
        self._recent[key] = value
