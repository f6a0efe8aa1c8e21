"""Compaction while somebody throws the index away: before any of its operations on the disk, in several situations.

The index is a view and may go at any time: `rm -r index`, or another process that found it damaged when it opened
it, which needs no lock. An empty index says of every object that nobody needs it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from promised import Promises
from scenarios import COMPACT, WEB, WEB2, backed_up, empty, files
from simdisk import SimDisk
from simindex import SimIndex, empty_state
from smallclient import Sealed
from visits import worth_a_visit
from world import World

from packnback.errors import PacknbackError
from packnback.gc.compact import compact
from packnback.ids import ObjectClass
from packnback.store import packer


class DisturbedFs:
    """A disk on which something happens before operation number `at`, with room for `room` more files."""

    def __init__(self, disk: SimDisk, at: int, happen: Callable[[], None], room: int) -> None:
        self._disk = disk
        self._at = at
        self._happen = happen
        self._room = room
        self.log: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._disk, name)

        def disturbed(path: str, *rest: Any) -> Any:
            self.log.append((name, path))
            if len(self.log) == self._at:
                self._happen()
            if name == "create":
                if not self._room:
                    raise OSError(errno.ENOSPC, "no room")
                self._room -= 1
            return operation(path, *rest)

        return disturbed


def half_forgotten() -> tuple[World, Promises]:
    """Every other file of a forgotten snapshot is still needed, and packs are small."""
    half = dict(list(files(0, 12).items())[::2])
    world, promises = backed_up((WEB, files(0, 12)), (WEB, half))()
    promises.forget(world.repository(), list(promises.acknowledged)[:1])
    return world.fork(), promises


def twice_and_rotten(record_of: Callable[[Sealed], bytes]) -> tuple[World, Promises]:
    """Two sessions stored the same files at the same time. What `record_of` says of the primary copies has rotted."""
    world, promises = empty()
    tree = files(0, 4)
    roots = promises.expect(WEB, tree), promises.expect(WEB2, tree)
    left, right = world.repository(), world.repository()
    with ExitStack() as stack:
        first = stack.enter_context(left.session(WEB.certificate, wait_s=0))
        second = stack.enter_context(right.session(WEB2.certificate, wait_s=0))
        WEB.store(first, tree)
        WEB2.store(second, tree)
        promises.acknowledge(first.commit(WEB.snapshot(roots[0], first.head())), roots[0])
        promises.acknowledge(second.commit(WEB2.snapshot(roots[1], second.head())), roots[1])
    path, data = min((p, d) for p, d in world.disk.files("packs").items() if holds_data(d))
    owner = next(who for who in (WEB, WEB2) if who.envelope(ObjectClass.DATA)[0] in data)
    spoilt = bytearray(data)
    for sealed in owner.objects(tree)[0]:
        if not sealed.level:
            record = record_of(sealed) or owner.envelope(ObjectClass.DATA)[0]
            spoilt[data.index(record) + len(record) // 2] = data[data.index(record) + len(record) // 2] ^ 1
    world.disk.plant(path, bytes(spoilt))
    return world.fork(), promises


def holds_data(pack: bytes) -> bool:
    return any(who.envelope(ObjectClass.DATA)[0] in pack for who in (WEB, WEB2))


def rotten_records() -> tuple[World, Promises]:
    return twice_and_rotten(lambda sealed: sealed.record)


def rotten_envelope() -> tuple[World, Promises]:
    """The records are whole, and nobody can ever open them without the envelope."""
    return twice_and_rotten(lambda sealed: b"")


@pytest.mark.parametrize(
    ("prepare", "records", "room"),
    [
        (half_forgotten, 2, 99),
        (half_forgotten, 2, 2),
        (half_forgotten, 2, 3),
        (rotten_records, 8, 99),
        (rotten_envelope, 8, 99),
    ],
)
def test_the_index_goes_during_a_compaction(
    monkeypatch: pytest.MonkeyPatch, prepare: Callable[[], tuple[World, Promises]], records: int, room: int
) -> None:
    monkeypatch.setattr(packer, "RECORDS_LIMIT", records)
    base, promises = prepare()
    log = disturb(base, promises, 0, room)
    visits = list(worth_a_visit(log))
    for at in visits:
        disturb(base, promises, at, room)
    assert len(visits) > 40 and {"unlink", "read"} <= {name for name, _ in log}


@pytest.mark.parametrize("room", [2, 3, 99])
def test_the_index_hides_what_is_live_during_a_compaction(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """A flipped bit in an inner node of its tree: look-ups find nothing, and no row's own check tells."""

    def hide(index: SimIndex) -> None:
        index.history.append({**index.history[-1], "counts": empty_state()["counts"]})

    monkeypatch.setattr(packer, "RECORDS_LIMIT", 2)
    base, promises = half_forgotten()
    for at in worth_a_visit(disturb(base, promises, 0, room)):
        disturb(base, promises, at, room, hide)


def disturb(
    base: World, promises: Promises, at: int, room: int, happen: Callable[[SimIndex], None] = SimIndex.throw_away
) -> list[tuple[str, str]]:
    """Compact, with a disturbance before the operation number `at` (0: none); the operations."""
    world = base.fork()
    fs = DisturbedFs(world.disk, at, lambda: happen(world.index), room)
    with suppress(PacknbackError):
        compact(world.repository(fs=fs), COMPACT)
    world.index.throw_away()
    assert_nothing_lost(world, promises, at)
    return fs.log


def assert_nothing_lost(world: World, promises: Promises, at: int) -> None:
    repository = world.repository()
    with repository.reading(0):
        for name in promises.acknowledged:
            if promises.forgotten.get(name):
                continue
            ids = sorted(promises.trees[promises.acknowledged[name]])
            lost = [f.id.hex() for f in repository.fetch(ids) if f.problem]
            assert not lost, (
                f"the index went before operation {at} (0: never): {len(lost)} of {len(ids)} objects are lost"
            )
