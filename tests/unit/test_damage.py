"""From bad objects up to the snapshots that need them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from packnback.format import rows
from packnback.format.rows import ObjectRow
from packnback.store.damage import snapshots_needing


class Graph:
    """An index's tables of objects and refs. `reads` counts how often the refs of an object were looked up."""

    def __init__(self, refs: dict[bytes, list[bytes]], levels: dict[bytes, int]) -> None:
        self.refs, self.levels = refs, levels
        self.visits: dict[bytes, int] = {}

    def get(self, table: str, key: bytes) -> bytes | None:
        if table == "objects":
            level = self.levels.get(key)
            return None if level is None else rows.encode_object(key, ObjectRow(1, 0, 1, 1, level))
        refs = self.refs.get(key)
        if refs is None:
            return None
        self.visits[key] = self.visits.get(key, 0) + 1
        return rows.seal(key, b"".join(refs))

    def below(self, root: bytes) -> set[bytes]:
        seen, work = {root}, [root]
        while work:
            for ref in self.refs.get(work.pop(), []):
                if ref not in seen:
                    seen.add(ref)
                    work.append(ref)
        return seen


def ids() -> Iterator[bytes]:
    number = 0
    while True:
        number += 1
        yield number.to_bytes(32, "big")


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("rings", [False, True])
def test_exactly_the_snapshots_that_reach_it(seed: int, rings: bool) -> None:
    rng = random.Random(seed)
    fresh = ids()
    layers = [[next(fresh) for _ in range(rng.randint(1, 6))] for _ in range(rng.randint(2, 6))]
    levels = {object_id: level for level, layer in enumerate(layers) for object_id in layer}
    refs: dict[bytes, list[bytes]] = {}
    for level, layer in enumerate(layers[1:], 1):
        lower = [object_id for below in layers[:level] for object_id in below]
        for object_id in layer:
            refs[object_id] = rng.sample(lower, rng.randint(0, min(4, len(lower))))
            if rings and rng.random() < 0.3:
                refs[object_id].append(rng.choice(list(levels)))
    graph: Any = Graph(refs, levels)
    infos: Any = [SimpleNamespace(name=f"s{n}", root=rng.choice(list(levels))) for n in range(rng.randint(1, 8))]
    bad = set(rng.sample(list(levels), rng.randint(1, len(levels)))) | {next(fresh)}
    for lost in list(bad):
        if rng.random() < 0.5:  # absent, not only damaged
            levels.pop(lost, None)
            refs.pop(lost, None)
    needed = snapshots_needing(graph, infos, bad)
    reached = {info.name: graph.below(info.root) for info in infos}
    assert needed == {b: tuple(sorted(name for name, below in reached.items() if b in below)) for b in bad}


def test_an_object_is_visited_once_however_many_snapshots_share_it() -> None:
    fresh = ids()
    page, lost = next(fresh), next(fresh)
    tables = [next(fresh) for _ in range(300)]
    graph: Any = Graph({page: [lost], **{table: [page] for table in tables}}, {page: 1, **dict.fromkeys(tables, 2)})
    infos: Any = [SimpleNamespace(name=f"s{n:03}", root=table) for n, table in enumerate(tables)]
    needed = snapshots_needing(graph, infos, {lost})
    assert needed == {lost: tuple(info.name for info in infos)}
    assert graph.visits[page] == len(tables) + 1, "asked for whether it has refs by each, and for these once"
