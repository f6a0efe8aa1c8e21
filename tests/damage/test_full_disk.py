"""A full disk: the backup that did not fit fails with a clear word, and costs nothing that was there before.

On a small file system of its own (tmpfs, which takes root), or where that is not possible under RLIMIT_FSIZE.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_program import Program
from damaged_repository import contents

from packnback.ids import KIB, MIB

DISK_MIB = 48


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of some tens of MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0700", "none", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system takes root")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """A file that takes all the room that is left, but for `leave` bytes."""
    filler = disk / "somebody else's file"
    with filler.open("wb") as file:
        try:
            while shutil.disk_usage(disk).free > leave:
                file.write(os.urandom(min(64 * KIB, shutil.disk_usage(disk).free - leave)))
                file.flush()
        except OSError:
            return filler
    return filler


def tree_of(top: Path, name: str, size: int) -> None:
    rng = random.Random(name)
    (top / name).mkdir(parents=True)
    (top / name / "large").write_bytes(rng.randbytes(size))
    for number in range(10):
        (top / name / f"small{number}").write_bytes(rng.randbytes(3000))


def two_backups(program: Program, repo: Path, tree: Path) -> list[str]:
    """A new repository, and the ids of two snapshots, of which the first holds most by itself."""
    program("-r", repo, "init")
    ids = []
    for name, size in (("one", 9 * MIB), ("two", 3 * MIB)):
        shutil.rmtree(tree, ignore_errors=True)
        tree_of(tree, name, size)
        ids.append(program("-r", repo, "--json", "backup", tree).json["snapshot"])
    return ids


def restored_is(program: Program, repo: Path, tree: Path, to: Path) -> bool:
    program("-r", repo, "restore", "latest", "--to", to)
    return contents(to / str(tree).lstrip("/")) == contents(tree)


def test_backup_forget_and_compact(disk: Path, tmp_path: Path) -> None:
    program = Program(tmp_path / "home")
    repo, tree = disk / "repo", tmp_path / "tree"
    first, second = two_backups(program, repo, tree)
    filler = fill(disk)
    tree_of(tree, "three", 6 * MIB)

    refused = program("-r", repo, "backup", tree, code=1)
    assert "full" in refused.err and "free some space" in refused.err
    document = program("-r", repo, "--json", "backup", tree, code=1).json
    assert document["error"]["kind"] == "disk-full"
    assert [row["id"] for row in program("-r", repo, "--json", "list").json] == [first, second]
    program("-r", repo, "restore", second, "--to", tmp_path / "before")
    assert program("-r", repo, "--json", "check", "--read-data").json["damage"] == []

    # There is not a byte to write to, and yet this is the way to get some.
    program("-r", repo, "forget", first)
    freed = program("-r", repo, "--json", "compact", "--grace", "0s").json
    assert freed["released"] == [first] and freed["bytes_freed"] > 8 * MIB
    program("-r", repo, "backup", tree)
    assert restored_is(program, repo, tree, tmp_path / "after")
    filler.unlink()
    program("-r", repo, "compact", "--grace", "0s")
    assert program("-r", repo, "--json", "check", "--read-data").json["damage"] == []
    assert not list((repo / "tmp").iterdir())


@pytest.mark.parametrize("room", [40 * KIB, 600 * KIB, 2 * MIB, 5 * MIB])
def test_wherever_the_room_ends(disk: Path, tmp_path: Path, room: int) -> None:
    """The disk fills up in a pack, in the index, in the snapshot; afterwards the same command does it."""
    program = Program(tmp_path / "home")
    repo, tree = disk / "repo", tmp_path / "tree"
    program("-r", repo, "init")
    tree_of(tree, "one", 1 * MIB)
    first = program("-r", repo, "--json", "backup", tree).json["snapshot"]
    tree_of(tree, "two", 4 * MIB)
    filler = fill(disk, leave=room)
    done = program.start(["-r", repo, "--json", "backup", tree])
    out, err = done.communicate(timeout=100)
    assert done.returncode in ((0,) if room > 4 * MIB + 200 * KIB else (0, 1)), (out, err)
    assert b"Traceback" not in err and b"internal" not in out + err
    if done.returncode:
        assert b'"disk-full"' in out
    ids = [row["id"] for row in program("-r", repo, "--json", "list").json]
    assert first in ids
    filler.unlink()
    program("-r", repo, "backup", tree)
    assert restored_is(program, repo, tree, tmp_path / "out")
    assert program("-r", repo, "--json", "check", "--read-data").json["damage"] == []


@pytest.mark.parametrize("room", [0, 8 * KIB, 40 * KIB, 100 * KIB])
def test_no_room_for_an_index(disk: Path, tmp_path: Path, room: int) -> None:
    """The index is gone, and another cannot be made, or not filled. Everything can be read all the same."""
    program = Program(tmp_path / "home")
    repo, tree = disk / "repo", tmp_path / "tree"
    first, second = two_backups(program, repo, tree)
    for file in (repo / "index").iterdir():
        file.unlink()
    filler = fill(disk, leave=room)

    assert [row["id"] for row in program("-r", repo, "--json", "list").json] == [first, second]
    assert restored_is(program, repo, tree, tmp_path / "before")
    refused = program("-r", repo, "--json", "backup", tree, code=1).json
    assert refused["error"]["kind"] == "disk-full"

    if not room:  # what a forgotten snapshot leaves of itself needs some
        os.truncate(filler, filler.stat().st_size - 16 * KIB)
    program("-r", repo, "forget", first)
    freed = program("-r", repo, "--json", "compact", "--grace", "0s").json
    assert freed["released"] == [first] and freed["bytes_freed"] > 8 * MIB
    program("-r", repo, "backup", tree)
    assert (repo / "index" / "data.mdb").stat().st_size
    assert program("-r", repo, "--json", "check", "--read-data").json["damage"] == []


def test_a_full_home_keeps_nobody_from_his_files(disk: Path, tmp_path: Path) -> None:
    """What this machine has seen of the repository cannot be remembered then."""
    program = Program(tmp_path / "home")
    repo, tree = tmp_path / "repo", tmp_path / "tree"
    first, second = two_backups(program, repo, tree)
    fill(disk)
    program.environment["XDG_STATE_HOME"] = str(disk / "state")
    told = program("-r", repo, "-v", "list")
    assert first[:12] in told.text and "cannot be remembered here" in told.err and "the disk is full" in told.err
    program("-r", repo, "restore", second, "--to", tmp_path / "out")
    assert contents(tmp_path / "out" / str(tree).lstrip("/")) == contents(tree)
    assert program("-r", repo, "check").code == 0


def test_a_restore_that_did_not_fit_is_told_how_to_go_on(disk: Path, tmp_path: Path) -> None:
    """Run again as it was, it would leave every directory as it made it: its owner root, its mode 0700."""
    program = Program(tmp_path / "home")
    repo, tree = tmp_path / "repo", tmp_path / "tree"
    program("-r", repo, "init")
    for name in ("one", "two", "three"):
        tree_of(tree, name, 5 * MIB)
        os.chmod(tree / name, 0o751)
    program("-r", repo, "backup", tree)
    filler = fill(disk, leave=8 * MIB)
    stopped = program("-r", repo, "--json", "restore", "latest", "--to", disk / "out", code=1).json["error"]
    assert stopped["kind"] in ("disk-full", "storage-failed", "system-error")
    assert "--overwrite changed" in stopped["hint"]
    filler.unlink()
    program("-r", repo, "restore", "latest", "--to", disk / "out", "--overwrite", "changed")
    restored = disk / "out" / str(tree).lstrip("/")
    assert contents(restored) == contents(tree)
    assert {(restored / name).stat().st_mode & 0o777 for name in ("one", "two", "three")} == {0o751}


@pytest.mark.parametrize("limit", [4 * KIB, 1 * MIB])
def test_a_limit_on_the_size_of_files(tmp_path: Path, limit: int) -> None:
    """RLIMIT_FSIZE: what quotas and old file systems do."""
    if shutil.which("prlimit") is None:
        pytest.skip("needs prlimit")
    program = Program(tmp_path / "home")
    repo, tree = tmp_path / "repo", tmp_path / "tree"
    program("-r", repo, "init")
    tree_of(tree, "one", 600 * KIB)
    program("-r", repo, "backup", tree)
    tree_of(tree, "two", 3 * MIB)
    prefix = ["prlimit", f"--fsize={limit}"]
    refused = program("-r", repo, "--json", "backup", tree, code=1, prefix=prefix).json
    assert refused["error"]["kind"] == "disk-full"
    assert len(program("-r", repo, "--json", "list").json) == 1
    program("-r", repo, "backup", tree)
    assert restored_is(program, repo, tree, tmp_path / "out")
    assert program("-r", repo, "--json", "check", "--read-data").json["damage"] == []
