"""SIGKILL during `backup`: what was acknowledged restores, what was not is wholly there or wholly absent."""

from __future__ import annotations

import json
import random
from contextlib import contextmanager
from pathlib import Path

import pytest
from assassin import Assassin, assert_clean, opened, rounds, seeded
from cli_program import Program

from packnback.crypto.keyfile import read_key
from packnback.crypto.keys import Reader
from packnback.restore.objects import ObjectReader
from packnback.restore.restore import restore
from packnback.restore.snapshot import open_snapshot
from packnback.restore.verify import verify


def change(tree: Path, rng: random.Random) -> None:
    """Some new files, some changed, one gone; a large one now and then."""
    for _ in range(8):
        path = tree / f"d{rng.randrange(4)}" / f"f{rng.randrange(40)}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(1, 30_000)))
    (tree / "large").write_bytes(rng.randbytes(rng.randrange(600_000, 1_500_000)))
    victims = sorted(p for p in tree.rglob("f*") if p.is_file())
    rng.choice(victims).unlink()


def contents(top: Path) -> dict[str, bytes]:
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def test_backup(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    rng = seeded(pytestconfig)
    program = Program(tmp_path / "home")
    repo, tree = tmp_path / "repo", tmp_path / "tree"
    tree.mkdir()
    program("-r", repo, "init")
    owner = read_key(str(program.home / ".config/packnback/owner.key"), lambda *_: b"")
    assert isinstance(owner, Reader)
    program("-r", repo, "backup", tree)
    assassin = Assassin(program, repo, rng)
    acknowledged: dict[str, dict[str, bytes]] = {}
    seen = {i for i, _ in restored_newest(repo, owner, tmp_path / "first")}

    for number in range(rounds(pytestconfig)):
        change(tree, rng)
        now = contents(tree)
        out = assassin.run("backup", tree)
        if out is not None:
            acknowledged[json.loads(out)["snapshot"]] = now
        [(newest, there)] = restored_newest(repo, owner, tmp_path / f"out{number}")
        if newest not in seen:
            seen.add(newest)
            assert there == now, "wholly there, acknowledged or not"
        with contextmanager(opened)(repo) as repository:
            ids = {info.id.hex() for info in repository.snapshots()}
            assert acknowledged.keys() <= ids, "what was acknowledged is listed"
            assert_clean(repository)
            with ObjectReader(repository, owner) as reader:
                assert not verify(reader, repository.snapshots()).damaged

    print(f"{assassin.killed} of {rounds(pytestconfig)} killed, {len(seen)} snapshots")
    assert assassin.killed, "a killer who never kills proves nothing"
    done = program("-r", repo, "--json", "backup", tree).json
    acknowledged[done["snapshot"]] = contents(tree)
    for snapshot, expected in acknowledged.items():
        out_to = tmp_path / f"last-{snapshot[:12]}"
        program("-r", repo, "restore", snapshot, "--to", out_to)
        assert contents(out_to / str(tree).lstrip("/")) == expected
    assert program("-r", repo, "--json", "check", "--read-data").json["damage"] == []


def restored_newest(repo: Path, owner: Reader, to: Path) -> list[tuple[str, dict[str, bytes]]]:
    """(id, contents) of the newest snapshot, restored."""
    with contextmanager(opened)(repo) as repository, ObjectReader(repository, owner) as reader:
        info = repository.snapshots()[-1]
        assert not restore(reader, open_snapshot(reader, info), str(to)).incomplete
    return [(info.id.hex(), contents(next(p for p in to.rglob("tree") if p.is_dir())))]
