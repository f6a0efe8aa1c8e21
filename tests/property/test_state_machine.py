"""A repository lives through whatever a random sequence of events does to it; the model is a dict.

Clients back up, snapshots are forgotten, recovered and compacted away, the power is cut in the middle of any of
these, the index is lost or comes back as it once was, packs rot and are repaired. After each event the index must
be what a plain recount of the disk makes of it, and everything that was acknowledged must be there; from time to
time, and at the end, all of it is read back and decrypted.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from invariants import check_disk, check_index, check_rows_are_durable, check_running, demand
from promised import Files, Promises
from readback import read_back
from recount import derive
from rehearsed import RehearsedClient
from scenarios import compact_all
from simindex import empty_state
from steps import PowerCut, Steps
from world import Effort, World, new_world

from packnback.format.snapshot import PARTIAL
from packnback.store import packer
from packnback.store.layout import pack_path
from packnback.store.repair import repair
from packnback.store.scrub import scrub_packs

CLIENTS = (RehearsedClient("web1", group="web"), RehearsedClient("web2", group="web"), RehearsedClient("mail"))
TREES = st.dictionaries(
    st.sampled_from([f"file{i}" for i in range(8)]),
    st.integers(0, 11).map(lambda i: bytes([65 + i]) * (1 + 37 * i)),
    max_size=8,
)
PICK = st.integers(0, 1 << 16)
"""Which of the things that there are at the time."""
EFFORT = Effort(disks=8, disks_with_tmp=2, indexes=6)

Operation = Callable[[World, Promises], None]


class RepositoryMachine(RuleBasedStateMachine):
    """See the module's docstring."""

    @initialize(seed=st.integers(0, 1 << 32), records=st.integers(1, 5))
    def begin(self, seed: int, records: int) -> None:
        packer.RECORDS_LIMIT = records
        self.rng = random.Random(seed)
        self.world = new_world(f"machine {seed}")
        self.promises = Promises()
        self.begun: dict[bytes, tuple[RehearsedClient, Files]] = {}
        """Root → whose backup of what: the model."""

    # --- events ---------------------------------------------------------------------------------------------

    def happen(self, operation: Operation, cut_at: int | None) -> None:
        """Do it; or cut it short at a step, and go on with one of the machines that may come up."""
        world = self.world
        if cut_at is None:
            operation(world, self.promises)
            return
        world.restart(Steps(cut_at))
        try:
            operation(world, self.promises)
        except PowerCut:
            note(f"cut short: {world.steps.log[-1]}")
        if self.rng.random() < 0.3:
            return  # only the process was killed: what it left is there, and not safe
        wreck = self.rng.choice(list(world.crash_states(EFFORT, self.rng)))
        check_disk(wreck.disk, self.promises)
        check_rows_are_durable(wreck, self.promises)
        self.world = world.start(wreck)
        self.world.index.history = [*world.index.history, wreck.index]

    CUT = st.none() | st.integers(1, 60)

    @rule(who=st.sampled_from(CLIENTS), tree=TREES, partial=st.booleans(), cut_at=CUT)
    def backup(self, who: RehearsedClient, tree: Files, partial: bool, cut_at: int | None) -> None:
        root = self.promises.expect(who, tree)
        self.begun[root] = who, tree
        flags = PARTIAL if partial else 0
        self.happen(
            lambda world, promises: promises.backup(world.repository(), who, tree, flags=flags) and None, cut_at
        )

    def listed(self) -> list[str]:
        """Snapshots that were acknowledged and not given up."""
        return sorted(self.promises.protected)

    @precondition(lambda self: self.listed())
    @rule(which=PICK, cut_at=CUT)
    def forget(self, which: int, cut_at: int | None) -> None:
        name = self.listed()[which % len(self.listed())]
        self.happen(lambda world, promises: promises.forget(world.repository(), [name]), cut_at)

    @precondition(lambda self: self.listed())
    @rule(which=PICK, cut_at=CUT)
    def recover(self, which: int, cut_at: int | None) -> None:
        name = self.listed()[which % len(self.listed())]
        self.happen(lambda world, promises: promises.recover(world.repository(), [name]), cut_at)

    @rule(cut_at=CUT)
    def compact(self, cut_at: int | None) -> None:
        """Releases what is forgotten, and what is in doubt: superseded checkpoints, interrupted forgetting."""
        with self.world.repository().reading(0):
            infos = self.world.repository().snapshots()
        for info in infos:
            newer = [
                i for i in infos if i.client_id == info.client_id and i.sequence > info.sequence and not i.partial
            ]
            if info.forgotten_ns is not None or (info.partial and newer):
                self.promises.releasing.add(info.name)
        self.happen(compact_all, cut_at)

    @rule()
    def reopen(self) -> None:
        self.world.restart(Steps())

    @rule(cut_at=CUT)
    def idle(self, cut_at: int | None) -> None:
        """Open, look, and perhaps lose power over it: recovery can be interrupted, too."""

        def look(world: World, promises: Promises) -> None:
            with world.repository().reading(0):
                pass

        self.happen(look, cut_at)

    # --- accidents ---------------------------------------------------------------------------------------------

    @rule()
    def lose_the_index(self) -> None:
        self.world.index.history.append(empty_state())

    @rule(which=PICK)
    def roll_the_index_back(self, which: int) -> None:
        history = self.world.index.history
        history.append(history[which % len(history)])

    @precondition(lambda self: derive(self.world.disk).packs)
    @rule(which=PICK, how=st.sampled_from(["delete", "flip", "cut"]), at=PICK)
    def rot_and_repair(self, which: int, how: str, at: int) -> None:
        """A pack is damaged; check finds it, repair puts it aside, the next backups bring back what was lost."""
        names = sorted(derive(self.world.disk).packs)
        name = names[which % len(names)]
        path = pack_path(name.hex())
        data = bytearray(self.world.disk.read(path))
        if how == "delete":
            self.world.disk.unlink(path)
            self.world.disk.sync_dir(path.rpartition("/")[0])
        else:
            if how == "flip":
                data[at % len(data)] ^= 1 << at % 8
            else:
                del data[at % len(data) :]
            self.world.disk.plant(path, bytes(data))
        self._repair()
        self._heal()
        self.promises.deleting = True

    def _repair(self) -> None:
        repository = self.world.repository()
        with repository.ports.locks.exclusive(0):
            repository.rebuild()
            with repository.ports.index.read() as txn:
                names = [key for key, _ in txn.scan("pack_names")]
            scrubbed = scrub_packs(repository.truth, names)
            repair(repository, suspects=[s.name for s in scrubbed if s.problem or s.bad])

    def _heal(self) -> None:
        """What is lost now is what the damaged pack alone held; the clients still have their files."""
        truth = derive(self.world.disk)
        for root in set(truth.roots.values()):
            if root not in truth.complete:
                who, tree = self.begun[root]
                self.promises.backup(self.world.repository(), who, tree)
        truth = derive(self.world.disk)
        demand(truth.complete >= set(truth.roots.values()), "healing", "a snapshot is still not complete")

    # --- what always holds -----------------------------------------------------------------------------------

    @invariant()
    def index_is_what_the_disk_says(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.restart(Steps())
        repository = self.world.repository()
        with repository.reading(0):
            check_index(repository, self.world.disk)
            names = {info.name for info in repository.snapshots() if info.complete}
        demand(names >= self.promises.protected.keys(), "I1", "an acknowledged snapshot is gone or not complete")

    @rule()
    def restore(self) -> None:
        check_disk(self.world.disk, self.promises)
        check_running(self.world, self.promises)
        repository = self.world.repository()
        for info in repository.snapshots():
            demand(read_back(repository, info.root) == self.begun[info.root][1], "I1", f"{info.name} has other files")

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.restart(Steps())
            self.restore()


TestRepository = RepositoryMachine.TestCase
# An example is a whole life, so a third of the examples of other tests will do.
TestRepository.settings = settings(
    max_examples=max(10, settings().max_examples // 3), stateful_step_count=20, print_blob=True
)


@pytest.fixture(autouse=True)
def _records_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packer, "RECORDS_LIMIT", packer.RECORDS_LIMIT)  # puts back what the machine has set
