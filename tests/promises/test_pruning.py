"""The promises of pruning, on the real program: what stays restores, what went is really gone, no key is needed."""

from __future__ import annotations

import filecmp
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from program import Program

from packnback.ids import KIB, MIB


def grow(root: Path, size: int, rng: random.Random) -> list[Path]:
    """A tree of about `size` bytes, half of it in files that are cut, half in files that are bundled."""
    paths = []
    while size > 0:
        length = rng.choice([rng.randrange(1, 40 * KIB), rng.randrange(600 * KIB, 3 * MIB)])
        path = root / f"d{len(paths) % 23}" / f"f{len(paths)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(length))
        paths.append(path)
        size -= length
    return paths


def change(paths: list[Path], share: float, rng: random.Random) -> None:
    """Rewrite part of the files until `share` of all bytes is new."""
    budget = share * sum(p.stat().st_size for p in paths)
    while budget > 0:
        path = rng.choice(paths)
        data = bytearray(path.read_bytes())
        span = min(len(data), 200 * KIB)
        at = rng.randrange(len(data) - span + 1)
        data[at : at + span] = rng.randbytes(span)
        path.write_bytes(data)
        budget -= span


def same(left: Path, right: Path) -> bool:
    compared = filecmp.dircmp(left, right)
    if compared.left_only or compared.right_only or compared.funny_files:
        return False
    _, mismatch, errors = filecmp.cmpfiles(left, right, compared.common_files, shallow=False)
    return not mismatch and not errors and all(same(left / d, right / d) for d in compared.common_dirs)


def size_of(directory: Path) -> int:
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("megabytes", "snapshots", "forgotten"),
    [(30, 9, 6), pytest.param(500, 30, 20, marks=pytest.mark.nightly)],
    ids=["30 MB", "500 MB"],
)
def test_forget_most_of_a_history(tmp_path: Path, megabytes: int, snapshots: int, forgotten: int) -> None:
    rng = random.Random(20_260_101)
    program = Program(tmp_path)
    program.run("init")
    source, kept = tmp_path / "source", tmp_path / "kept"
    paths = grow(source, megabytes * MIB, rng)
    ids = []
    for number in range(snapshots):
        ids.append(program.run("--json", "backup", source).json["snapshot"])
        if number >= forgotten:
            shutil.copytree(source, kept / ids[-1])
        change(paths, 0.02, rng)
    program.run("forget", *ids[:forgotten])
    before = size_of(program.repo / "packs")
    done = program.run("--json", "compact", "--grace", "0").json
    assert sorted(done["released"]) == sorted(ids[:forgotten])
    assert before - size_of(program.repo / "packs") == done["bytes_freed"]
    assert done["bytes_total"] - done["bytes_live"] <= 0.10 * done["bytes_total"]
    assert program.run("--json", "check", "--read-data").json["damage"] == []
    for snapshot in ids[forgotten:]:
        target = tmp_path / "out"
        program.run("restore", snapshot, "--to", target)
        assert same(kept / snapshot, target / str(source).lstrip("/")), snapshot
        shutil.rmtree(target)
    fresh_base = tmp_path / "fresh"
    fresh_base.mkdir()
    fresh = Program(fresh_base)
    fresh.run("init")
    for snapshot in ids[forgotten:]:
        fresh.run("backup", kept / snapshot)
    ratio = size_of(program.repo / "packs") / size_of(fresh.repo / "packs")
    print(f"{ratio:.3f} of a fresh repository")
    assert ratio <= 1.25
    again = program.run("--json", "compact", "--grace", "0").json
    assert again["packs_deleted"] == again["packs_rewritten"] == again["bytes_written"] == 0


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A repository with four snapshots, and the machine it stands on, which holds no key at all."""
    program = Program(tmp_path_factory.mktemp("pruning"))
    program.run("init")
    source = program.base / "source"
    paths = grow(source, 2 * MIB, random.Random(7))
    for number in range(4):
        program.run("backup", source, "--tag", f"number={number}")
        change(paths, 0.1, random.Random(number))
    shutil.move(program.config, program.base / "keys")
    return program


def test_no_key_is_needed_but_for_tags(pruned: Program) -> None:
    listed = pruned.run("--json", "list").json
    assert [s["state"] for s in listed] == ["live"] * 4 and {s["tags"] for s in listed} == {None}
    first = listed[0]["id"]
    pruned.run("stats", "--snapshots")
    pruned.run("forget", first)
    pruned.run("recover", first)
    pruned.run("prune", "--keep-daily", "7", "--dry-run")
    pruned.run("compact", "--dry-run")
    pruned.run("compact")
    assert pruned.run("--json", "check").json["damage"] == []
    pruned.run("forget", "--keep-newest", "1", "--tag", "number=0", expect=5)
    keys = pruned.base / "keys"
    pruned.run("key", "list", keys / "list.key", "--from", keys / "owner.key")
    chosen = pruned.run(
        "--json", "forget", "--keep-newest", "1", "--tag", "number=0", "--dry-run", "-k", keys / "list.key"
    ).json
    assert [verdict["id"] for verdict in chosen] == [first]


def test_every_verdict_says_why(pruned: Program) -> None:
    verdicts = pruned.run("--json", "forget", "--keep-newest", "2", "--dry-run").json
    assert [v["keep"] for v in verdicts] == [False, False, True, True]
    assert all(v["reasons"] for v in verdicts)


def test_policies_that_are_empty_or_empty_a_client_are_refused(pruned: Program) -> None:
    assert pruned.run("forget", expect=None).code in (1, 2)
    assert pruned.run("prune", expect=None).code in (1, 2)
    ids = [s["id"] for s in pruned.run("--json", "list").json]
    assert "--force" in pruned.run("forget", *ids, expect=1).err
    assert len(pruned.run("--json", "list").json) == 4


def test_compact_names_who_holds_the_lock(pruned: Program) -> None:
    holding = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'rb+'); fcntl.flock(f, fcntl.LOCK_SH);"
        "print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", holding, str(pruned.repo / "lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        error = json.loads(pruned.run("--json", "compact", "--wait", "1", expect=6).out)["error"]
        assert str(holder.pid) in error["message"]
    finally:
        holder.kill()
        holder.wait()
    pruned.run("compact")


def test_grace_counts_from_the_marker(pruned: Program) -> None:
    first = pruned.run("--json", "list").json[0]["id"]
    pruned.run("forget", first)
    assert pruned.run("--json", "compact").json["released"] == []
    assert pruned.run("--json", "compact", "--grace", "0", "--dry-run").json["released"] == [first]
    assert [s["state"] for s in pruned.run("--json", "list", "--all").json].count("forgotten") == 1
