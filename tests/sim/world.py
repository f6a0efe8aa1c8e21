"""A whole machine in memory: disk, index, locks, clock and randomness on one count of steps.

Cut its power at a step, ask `crash_states` what may be found when power is back, and `start` the machine again
on each of these. The disk may be in any state of its own crash model; the index may come back as any state that
it ever committed, or empty; and every disk may meet every index.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rehearsed import REPOSITORY_ID
from simdisk import SimDisk
from simindex import SimIndex, State, empty_state
from simlocks import SimLocks
from smallclient import OWNER
from steps import Steps

from packnback.format.config import Config
from packnback.store import repository
from packnback.store.blobs import FileBlobStore
from packnback.store.fs import FileSystem
from packnback.store.index import Index
from packnback.store.layout import LEASES, make_layout
from packnback.store.leases import Lease
from packnback.store.repository import LocalRepository, Ports

LOCATION = "/simulated"
_START_NS = 1_700_000_000 * 10**9
_SECOND = 10**9
CONFIG = Config(REPOSITORY_ID, OWNER.bundle.raw)


@dataclass(frozen=True, slots=True)
class Effort:
    """How many possible states are looked at, per crash point: disks, disks that keep ``tmp/`` as it was left,
    and states of the index."""

    disks: int = 12
    disks_with_tmp: int = 2
    indexes: int = 4


@dataclass(frozen=True, slots=True)
class Wreck:
    """What may be found after a power cut."""

    disk: SimDisk
    index: State
    newest: bool
    """Whether the index is in the last state that it committed."""


class World:
    """See the module's docstring. `seed` decides every random byte of this life of the machine."""

    def __init__(
        self, disk: SimDisk, index: SimIndex, *, steps: Steps | None = None, seed: str = "", now_ns: int = _START_NS
    ) -> None:
        self.disk = disk
        self.index = index
        self.clock_ns = now_ns
        self.seed = seed
        self.fenced = True
        """Whether the disk is this machine's alone. If not, locks mean nothing between machines."""
        self.alive: list[Lease] = []
        """Leases that go on ticking while somebody sleeps."""
        self.disk.now_ns = lambda: self.clock_ns
        self._rng = random.Random(f"world {seed}")
        self.restart(steps or Steps())

    # --- what a repository stands on -----------------------------------------------------------------------

    def restart(self, steps: Steps) -> None:
        """Go on on a machine that lives: what is not synced is still not synced, but no process is left."""
        self.steps = self.disk.steps = self.index.steps = steps
        self.locks = SimLocks(steps)

    def now_ns(self) -> int:
        """A clock that moves by a second whenever somebody looks at it."""
        self.clock_ns += _SECOND
        return self.clock_ns

    def sleep(self, seconds: float) -> None:
        """Time passes, and the leases of those who are alive go on."""
        self.clock_ns += int(seconds * _SECOND)
        for lease in self.alive:
            if any(name.startswith(lease.holder) for name in self.disk.list(LEASES)):
                lease.tick()

    def random(self, length: int) -> bytes:
        """The machine's random source."""
        return self._rng.randbytes(length)

    def blobs(self, fs: FileSystem | None = None) -> FileBlobStore:
        """A blob store on the disk (or on `fs`, something that stands before it)."""
        return FileBlobStore(fs if fs is not None else self.disk, tmp_name=lambda: self.random(16).hex())

    def repository(self, *, fs: FileSystem | None = None, index: Index | None = None) -> LocalRepository:
        """A handle, as a new process would have it; with an index of its own, on another machine."""
        own = index if index is not None else self.index
        locks = self.locks if self.fenced or own is self.index else SimLocks(self.steps)
        ports = Ports(
            self.blobs(fs),
            own,
            locks,
            self.now_ns,
            self.random,
            scratch_index,
            fenced=self.fenced,
            sleep=self.sleep,
            monotonic=lambda: self.clock_ns / _SECOND,
        )
        return LocalRepository(LOCATION, CONFIG, ports)

    def init(self) -> LocalRepository:
        """What ``packnback init`` does, with a repository id that is known beforehand."""
        make_layout(self.disk)
        drawn = iter((REPOSITORY_ID,))
        repository.create(self.blobs(), OWNER.bundle.raw, lambda length: next(drawn))
        return self.repository()

    # --- the power cut ---------------------------------------------------------------------------------------

    def crash_states(self, effort: Effort, rng: random.Random) -> Iterator[Wreck]:
        """Disks × states of the index. Everything when it is little, draws from `rng` otherwise.

        ``tmp/`` is not looked at by anybody, yet every publication leaves an unsynced name in it; so most of the
        disks have it as it is now, and a few are drawn without that restriction.
        """
        disks = list(self.disk.possible_states(effort.disks_with_tmp, rng)) if effort.disks_with_tmp else []
        if "tmp" in self.disk._root.now:
            self.disk._directory("tmp").sync()
        disks += self.disk.possible_states(effort.disks, rng)
        states = self.index_states(effort.indexes, rng)
        for disk in disks:
            for state in states:
                yield Wreck(disk, state, state is self.index.history[-1])

    def index_states(self, limit: int, rng: random.Random) -> list[State]:
        """The newest state, an empty one, the one before the newest, and drawn older ones."""
        history = self.index.history
        older = history[:-2]
        drawn = rng.sample(older, min(len(older), max(0, limit - 3)))
        return [history[-1], empty_state(), *history[-2:-1], *drawn]

    def start(self, wreck: Wreck) -> World:
        """A machine that comes up on what was found. The wreck can be started any number of times."""
        disk = copy_of(wreck.disk)
        world = World(
            disk, SimIndex(state=wreck.index), seed=f"{self.seed}/started", now_ns=self.clock_ns + 60 * _SECOND
        )
        world.fenced = self.fenced
        return world

    def fork(self, steps: Steps | None = None, *, seed: str | None = None) -> World:
        """A copy of a machine at rest: everything on its disk is safe. The index keeps its history.

        It draws the same random bytes once more, unless it is given another seed.
        """
        seed = self.seed if seed is None else seed
        world = World(copy_of(self.disk), SimIndex(), seed=seed, now_ns=self.clock_ns)
        world.index.history = list(self.index.history)
        world.fenced = self.fenced
        world.restart(steps or Steps())
        return world


@contextmanager
def scratch_index() -> Iterator[Index]:
    """An index that vanishes after use. Nothing of it can be found after a crash, so it takes no steps."""
    yield SimIndex()


def copy_of(disk: SimDisk) -> SimDisk:
    """The disk as it is now, with everything safe."""
    [copy] = disk.possible_states(1, random.Random(0))
    return copy


def new_world(seed: str = "") -> World:
    """A machine with an empty repository, at rest."""
    world = World(SimDisk(), SimIndex(), seed=seed)
    world.init()
    return world.fork()


def rows_of(state: State) -> dict[str, dict[bytes, bytes]]:
    """All rows, by table."""
    return {name: table.rows for name, table in state.items()}


def table_rows(index: Any, table: str) -> dict[bytes, bytes]:
    """All rows of one table of any index."""
    with index.read() as txn:
        return dict(txn.scan(table))
