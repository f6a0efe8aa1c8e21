"""SIGKILL during `forget` and `compact`: nothing that any snapshot needs is lost, and the next run finishes."""

from __future__ import annotations

import random
from contextlib import contextmanager
from pathlib import Path

import pytest
from assassin import Assassin, assert_clean, opened, rounds, seeded
from cli_program import Program
from smallclient import OWNER, SmallClient

from packnback.gc.forget import forget
from packnback.store import packer
from packnback.store.local import create_local
from packnback.store.repository import LocalRepository


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process stores is in many packs; the program that is killed rewrites them into larger ones."""
    monkeypatch.setattr(packer, "PACK_TARGET", 150_000)


class Shop:
    """A repository that is used by this process, and tidied by one that is killed."""

    def __init__(self, tmp_path: Path, rng: random.Random) -> None:
        self.path = tmp_path / "repo"
        self.rng = rng
        opened_now = create_local(str(self.path), OWNER.bundle.raw)
        self.client = SmallClient(opened_now.config.repository_id)
        opened_now.close()
        self.tree = {f"f{i:02}": rng.randbytes(rng.randrange(1, 40_000)) for i in range(16)}
        self.trees: dict[str, dict[str, bytes]] = {}
        self.assassin = Assassin(Program(tmp_path / "home"), self.path, rng)

    def grow(self, count: int) -> None:
        """More snapshots of a tree that changes."""
        with contextmanager(opened)(self.path) as repository:
            for _ in range(count):
                for name in self.rng.sample(sorted(self.tree), 5):
                    self.tree[name] = self.rng.randbytes(self.rng.randrange(1, 40_000))
                with repository.session(self.client.certificate) as session:
                    done = self.client.backup(session, self.tree)
                self.trees[done.id.hex()] = dict(self.tree)

    def live(self) -> list[str]:
        with contextmanager(opened)(self.path) as repository:
            return [i.id.hex() for i in repository.snapshots() if i.forgotten_ns is None]

    def forget(self, snapshots: list[str]) -> None:
        with contextmanager(opened)(self.path) as repository:
            forget(repository, [i.name for i in repository.snapshots() if i.id.hex() in snapshots])

    def check(self, must_be_there: set[str], *, read: int = 4) -> None:
        """Everything is clean, these snapshots are there, and some of what is there can be read, forgotten or not."""
        with contextmanager(opened)(self.path) as repository:
            assert_clean(repository)
            infos = {i.id.hex(): i for i in repository.snapshots()}
            assert must_be_there <= infos.keys()
            assert all(info.complete for info in infos.values())
            for snapshot_id in self.rng.sample(sorted(infos), min(read, len(infos))):
                self._read(repository, snapshot_id)

    def _read(self, repository: LocalRepository, snapshot_id: str) -> None:
        objects, root = self.client.objects(self.trees[snapshot_id])
        fetched = list(repository.fetch([o.id for o in objects] + [root.id]))
        assert not [f for f in fetched if f.problem]


def test_compact(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    shop = Shop(tmp_path, seeded(pytestconfig))
    program = shop.assassin.program
    for _ in range(rounds(pytestconfig)):
        shop.grow(2)
        live = shop.live()
        going = live[: max(0, len(live) - 3)]
        shop.forget(going)
        shop.assassin.run("compact", "--grace", "0s", "--max-waste", "0")
        shop.check(set(live) - set(going))
    print(f"{shop.assassin.killed} of {rounds(pytestconfig)} killed")
    assert shop.assassin.killed

    program("-r", shop.path, "compact", "--grace", "0s", "--max-waste", "0")
    shop.check(set(shop.live()), read=100)
    assert len(shop.live()) <= 5 and not list((shop.path / "tmp").iterdir())
    sizes = program("-r", shop.path, "--json", "stats").json
    assert sizes["bytes_waste"] <= 0.01 * sizes["bytes_total"], "the last run has finished the job"
    again = program("-r", shop.path, "--json", "compact", "--grace", "0s", "--max-waste", "0").json
    assert again["packs_deleted"] == again["bytes_written"] == 0
    assert program("-r", shop.path, "--json", "check", "--read-data").json["damage"] == []


def test_forget(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    shop = Shop(tmp_path, seeded(pytestconfig))
    program = shop.assassin.program
    forgotten: set[str] = set()
    for _ in range(rounds(pytestconfig)):
        shop.grow(2)
        live = shop.live()
        going = live[:-1]
        if shop.assassin.run("forget", *going) is not None:
            forgotten |= set(going)
        still = set(shop.live())
        assert still >= set(live) - set(going), "nobody else was forgotten"
        assert not still & forgotten, "what was acknowledged as forgotten is"
        shop.check(set(live))
    print(f"{shop.assassin.killed} of {rounds(pytestconfig)} killed")
    assert shop.assassin.killed
    shop.forget(shop.live()[:-1])
    assert len(shop.live()) == 1
    program("-r", shop.path, "recover", *shop.trees)
    assert set(shop.live()) == set(shop.trees)
    shop.check(set(shop.trees), read=len(shop.trees))
    assert program("-r", shop.path, "--json", "check", "--read-data").json["damage"] == []
