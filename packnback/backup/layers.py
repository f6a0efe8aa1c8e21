"""A long sequence as a shallow tree, built while it is still coming in.

Tables over pages and extent objects over extents grow the same way: items are joined into an object where a keyed
decision about the last of them says so, the objects are joined into further objects, and so on. At no time is
more than one unfinished object per depth held, so neither a file nor a tree is ever too long for memory.

A minimum makes every depth shorter than the one below it, even should all items be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from msgspec import Struct, field

Item = TypeVar("Item")


class Limits(Struct, frozen=True):
    """How many items an object joins: from `least` (the last one of a depth may be shorter) to `most`."""

    least: int
    most: int


class _Depth(Struct, Generic[Item]):
    items: list[Item] = field(default_factory=list)
    joining: bool = False
    """Whether there are too many items at this depth to remain as they are."""


class Layers(Generic[Item]):
    """Joins a sequence until what remains may remain.

    `join(items, depth)` makes the object that stands for items of `depth` and returns it as an item of the next
    one; `ends(item)` says whether an object ends with `item`; at most `keep(depth)` items remain unjoined.
    """

    def __init__(
        self,
        join: Callable[[Sequence[Item], int], Item],
        ends: Callable[[Item], bool],
        keep: Callable[[int], int],
        limits: Limits,
    ) -> None:
        self._join = join
        self._ends = ends
        self._keep = keep
        self._limits = limits
        self._depths: list[_Depth[Item]] = [_Depth()]

    def append(self, item: Item) -> None:
        """The next item of depth 0."""
        self._append(item, 0)

    def finish(self) -> tuple[Sequence[Item], int]:
        """What remains, and its depth: 0 if nothing had to be joined."""
        depth = 0
        while self._depths[depth].joining:
            if self._depths[depth].items:
                self._end(depth)
            depth += 1
        return self._depths[depth].items, depth

    def copy(self) -> Layers[Item]:
        """Another one that goes on from here; finishing it does not finish this one."""
        other = Layers(self._join, self._ends, self._keep, self._limits)
        other._depths = [_Depth(list(depth.items), depth.joining) for depth in self._depths]
        return other

    def _append(self, item: Item, depth: int) -> None:
        level = self._depths[depth]
        if level.joining:
            self._feed(item, depth)
        else:
            level.items.append(item)
            if len(level.items) > self._keep(depth):
                # Only now is it known that these are to be joined: where, must not depend on when that was.
                waiting, level.items, level.joining = level.items, [], True
                for each in waiting:
                    self._feed(each, depth)

    def _feed(self, item: Item, depth: int) -> None:
        items = self._depths[depth].items
        items.append(item)
        count = len(items)
        if count >= self._limits.most or (count >= self._limits.least and self._ends(item)):
            self._end(depth)

    def _end(self, depth: int) -> None:
        level = self._depths[depth]
        items, level.items = level.items, []
        if depth + 1 == len(self._depths):
            self._depths.append(_Depth())
        self._append(self._join(items, depth), depth + 1)
