"""The main job, from keys to a restored tree, and the shape of what each command says in JSON."""

from __future__ import annotations

import base64
import filecmp
import os
import re
import time
from pathlib import Path

import pytest
from cli_program import Program, assert_shape, without_privileges

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
BACKUP_SHAPE = {
    "snapshot": str, "files": int, "dirs": int, "bytes": int, "files_unchanged": int, "objects_new": int,
    "bytes_stored": int, "seconds": (int, float), "errors": [{"path": str, "reason": str}],
}  # fmt: skip
LIST_SHAPE = [
    {
        "id": str, "client": str, "sequence": int, "received": str, "state": str, "time": str, "host": str,
        "paths": [str], "tags": dict, "files": int, "bytes": int,
    }
]  # fmt: skip
LS_SHAPE = [
    {"path": str, "type": str, "mode": int, "uid": int, "gid": int, "size": int, "mtime_ns": int, "target?": str}
]


@pytest.fixture(scope="module")
def first(program: Program, source: Path) -> str:
    """The id of a first snapshot of the source."""
    done = program("backup", source, "--tag", "kind=test", "--json").json
    assert_shape(done, BACKUP_SHAPE)
    assert (done["files"], done["errors"]) == (3, [])
    assert done["bytes"] == sum(p.stat().st_size for p in source.rglob("*") if p.is_file() and not p.is_symlink())
    return done["snapshot"]


def test_an_unchanged_tree_stores_next_to_nothing(program: Program, source: Path, first: str) -> None:
    again = program("backup", source, "--json").json
    assert again["snapshot"] != first
    assert again["bytes_stored"] < 200_000


def test_list_with_a_key(program: Program, source: Path, first: str) -> None:
    rows = program("list", "--json").json
    assert_shape(rows, LIST_SHAPE)
    mine = next(row for row in rows if row["id"] == first)
    assert mine["state"] == "live"
    assert mine["paths"] == [str(source)]
    assert mine["tags"] == {"kind": "test"}
    assert mine["host"] == os.uname().nodename
    assert TIME.fullmatch(mine["received"])
    assert TIME.fullmatch(mine["time"])
    assert first[:12] in program("list").text


def test_list_without_a_key_that_opens_anything(program: Program, first: str) -> None:
    put_key = {"PACKNBACK_KEY": str(program.home / ".config/packnback/put.key")}
    for environment in (put_key, {"XDG_CONFIG_HOME": "/nowhere"}):
        mine = next(row for row in program("list", "--json", environment=environment).json if row["id"] == first)
        assert mine["client"] == os.uname().nodename
        assert [mine[name] for name in ("host", "paths", "tags", "files", "bytes")] == [None] * 5


def test_ls(program: Program, source: Path, first: str) -> None:
    rows = program("ls", first, source, "--json").json
    assert_shape(rows, LS_SHAPE)
    by_path = {row["path"]: row for row in rows}
    hello = by_path[f"{source}/hello.txt"]
    assert (hello["type"], hello["mode"], hello["size"]) == ("file", 0o640, 6)
    assert hello["mtime_ns"] == (source / "hello.txt").stat().st_mtime_ns
    assert by_path[f"{source}/link"]["target"] == "sub/deep/note.md"
    assert by_path[f"{source}/sub"]["type"] == "dir"
    deeper = {row["path"] for row in program("ls", first, "-R", "--json").json}
    assert f"{source}/sub/deep/note.md" in deeper
    assert "-rw-r-----" in program("ls", "-l", first, source).text


def test_find(program: Program, source: Path, first: str) -> None:
    found = program("find", "*.md", "--snapshot", first, "--json").json
    assert_shape(found, [{**LS_SHAPE[0], "snapshot": str}])
    assert [row["path"] for row in found] == [f"{source}/sub/deep/note.md"]
    assert f"{source}/sub/deep/note.md" in program("find", "note.*").text
    assert program("find", "absent", "--json").json == []


def test_cat(program: Program, source: Path, first: str) -> None:
    assert program("cat", first, source / "sub/large.bin").out == (source / "sub/large.bin").read_bytes()


def test_diff(program: Program, source: Path, first: str) -> None:
    (source / "hello.txt").write_text("changed\n")
    (source / "new.txt").write_text("new\n")
    (source / "empty").rmdir()
    after = program("backup", source, "--json").json["snapshot"]
    changes = program("diff", first, after, "--json").json
    size = (int, type(None))
    assert_shape(changes, [{"path": str, "change": str, "size_before": size, "size_after": size}])
    told = {row["path"].removeprefix(str(source)): row["change"] for row in changes}
    assert (told["/hello.txt"], told["/new.txt"], told["/empty"]) == ("content", "added", "removed")
    assert f"+ {source}/new.txt" in program("diff", first[:10], after[:10]).text
    (source / "empty").mkdir()
    (source / "new.txt").unlink()


def test_restore(program: Program, source: Path, first: str, tmp_path: Path) -> None:
    program("backup", source)
    done = program("restore", "latest", "--to", tmp_path / "out", "--json").json
    assert_shape(done, {**dict.fromkeys(("files", "dirs", "bytes"), int), "snapshot": str, "errors": [dict]})
    assert_same(source, Path(f"{tmp_path}/out{source}"))
    again = program("restore", "latest", "--to", tmp_path / "out", "--json", code=3).json
    assert {problem["kind"] for problem in again["errors"]} == {"exists"}
    program("restore", "latest", "--to", tmp_path / "out", "--overwrite", "changed")
    program("restore", "latest", source / "sub", "--to", tmp_path / "part")
    assert_same(source / "sub", Path(f"{tmp_path}/part{source}/sub"))
    assert not Path(f"{tmp_path}/part{source}/hello.txt").exists()
    program("restore", "latest", "--to", tmp_path / "dry", "--dry-run")
    assert not (tmp_path / "dry").exists()


def assert_same(a: Path, b: Path) -> None:
    """Same names, types, modes, times and contents, all the way down."""
    assert sorted(os.listdir(a)) == sorted(os.listdir(b))
    for name in os.listdir(a):
        one, two = (a / name).lstat(), (b / name).lstat()
        assert (one.st_mode, one.st_mtime_ns) == (two.st_mode, two.st_mtime_ns), name
        if (a / name).is_symlink():
            assert (a / name).readlink() == (b / name).readlink()
        elif (a / name).is_dir():
            assert_same(a / name, b / name)
        else:
            assert filecmp.cmp(a / name, b / name, shallow=False), name


def test_snapshots_by_word(program: Program, source: Path, first: str) -> None:
    client = os.uname().nodename
    assert program("ls", "latest", source).text == program("ls", f"latest:{client}", source).text
    assert program("ls", "latest:nobody", "--json", code=1).json["error"]["kind"] == "snapshot-unknown"
    assert program("ls", first[:3], "--json", code=1).json["error"]["kind"] == "snapshot-unknown"
    assert program("ls", "ffff" * 16, code=1).err


def test_verify_check_and_stats(program: Program, first: str) -> None:
    verified = program("verify", "--json").json
    assert_shape(verified, {"snapshots": int, "objects": int, "bytes": int, "bad": [dict], "affected": [dict]})
    assert verified["bad"] == []
    checked = program("check", "--read-data", "--json").json
    assert_shape(checked, {"packs": int, "objects": int, "snapshots": int, "damage": [dict]})
    assert checked["damage"] == []
    sizes = program("stats", "--snapshots", "--json").json
    assert_shape(
        sizes,
        {
            "packs": int, "objects": int, "snapshots": int, "bytes_total": int, "bytes_live": int,
            "bytes_waste": int, "bytes_logical": int, "per_snapshot": [{"id": str, "bytes_alone": int}],
        },
    )  # fmt: skip
    assert sizes["bytes_waste"] == sizes["bytes_total"] - sizes["bytes_live"]
    assert first in [row["id"] for row in sizes["per_snapshot"]]


def test_options_before_and_after_the_command(program: Program, first: str) -> None:
    repository = program.environment["PACKNBACK_REPO"]
    elsewhere = {"PACKNBACK_REPO": "/nowhere"}
    before = program("--json", "-r", repository, "list", environment=elsewhere).json
    assert before == program("list", "-r", repository, "--json", environment=elsewhere).json


def test_names_that_are_not_utf8(program: Program, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/odd"
    os.mkdir(odd)
    name = odd + b"/caf\xe9\n\x1b[2J"
    with open(name, "wb") as file:
        file.write(b"content")
    snapshot = program("backup", odd, "--json").json["snapshot"]
    assert "paths_b64" not in program("list", "--json").json[-1]
    program("backup", name)
    listed = program("list", "--json").json[-1]
    assert [base64.b64decode(path) for path in listed["paths_b64"]] == [name]
    assert [path[:-5] for path in listed["paths"]] == [os.fsdecode(odd) + "/caf\ufffd"]
    assert odd + b"/caf\xe9" in program("list").out
    row = program("ls", snapshot, odd, "--json").json[0]
    assert "\ufffd" in row["path"]
    assert base64.b64decode(row["path_b64"]) == name
    assert program("cat", snapshot, name).out == b"content"
    assert name in program("ls", snapshot, odd).out
    program("restore", snapshot, odd, "--to", tmp_path / "back")
    assert os.path.exists(os.fsencode(tmp_path / "back") + name)


def test_a_file_that_cannot_be_read_is_exit_3(program: Program, tmp_path: Path) -> None:
    prefix = without_privileges()
    if prefix is None:
        pytest.skip("running as root, and setpriv cannot take its privileges away")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "good").write_text("good")
    (tmp_path / "tree" / "secret").write_text("secret")
    (tmp_path / "tree" / "secret").chmod(0)
    done = program("backup", tmp_path / "tree", "--json", code=3, prefix=prefix).json
    assert [error["path"] for error in done["errors"]] == [f"{tmp_path}/tree/secret"]
    assert program("cat", done["snapshot"], tmp_path / "tree/good").out == b"good"
    shown = program("backup", tmp_path / "tree", "-q", code=3, prefix=prefix)
    assert f"{tmp_path}/tree/secret" in shown.err


def test_paths_that_are_not_there(program: Program, source: Path) -> None:
    snapshots = len(program("list", "--json").json)
    assert program("backup", "/no/such", "--json", code=1).json["error"]["kind"] == "nothing-to-back-up"
    assert len(program("list", "--json").json) == snapshots
    done = program("backup", source, "/no/such", "--json", code=3).json
    assert [error["path"] for error in done["errors"]] == ["/no/such"]


def test_a_repository_that_has_moved_is_known_again(program: Program, tmp_path: Path) -> None:
    """A disk that is mounted elsewhere, a host by another name: no reason to read terabytes once more."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / f"{number}").write_bytes(b"%d" % number * 1000)
    old, new = tmp_path / "old", tmp_path / "new"
    program("init", "-r", old, "--owner", program.home / ".config/packnback/owner.key")
    program("backup", tree, "-r", old)
    time.sleep(0.5)  # until what has just been written is surely told apart
    assert program("backup", tree, "-r", old, "--json").json["files_unchanged"] == 20
    old.rename(new)
    assert program("backup", tree, "-r", new, "--json").json["files_unchanged"] == 20


def test_a_path_that_is_a_link_is_told(program: Program, source: Path) -> None:
    for argument in (f"{source}/link", f"{source}/link/"):
        done = program("-q", "backup", argument, "--json")
        assert "is a symbolic link: the link is stored" in done.err
        assert (done.json["files"], done.json["errors"]) == (0, [])
    program("backup", source)
    assert program("backup", source, "--json").err == ""


def test_a_client_that_backs_up_now_this_now_that_is_told(program: Program, source: Path) -> None:
    """A policy would keep the history of only one of them."""
    told = "of other paths"
    program("backup", source)
    assert told not in program("backup", source).err
    assert told in program("backup", f"{source}/hello.txt").err
    assert told in program("backup", "--exec", "dump", "--", "echo", "x").err
    assert told not in program("backup", "--exec", "dump", "--", "echo", "y").err
    program("backup", source)


def test_excludes_and_dry_run(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("keep.txt", "drop.tmp", "listed.o", "cache/CACHEDIR.TAG", "cache/x", "marked/.nobackup", "marked/y"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("Signature: 8a477f597d28d172789f06886806bc55")
    (tmp_path / "patterns").write_text("# comment\n*.o\n")
    arguments = [
        "backup", tree, "--exclude", "*.tmp", "--exclude-from", tmp_path / "patterns", "--exclude-caches",
        "--exclude-if-present", ".nobackup", "--one-file-system", "--compression", "none",
    ]  # fmt: skip
    counted = program(*arguments, "--dry-run", "--json").json
    assert counted["snapshot"] is None
    snapshot = program(*arguments, "--json").json["snapshot"]
    listed = {row["path"].removeprefix(f"{tree}/") for row in program("ls", snapshot, tree, "-R", "--json").json}
    assert listed == {"keep.txt", "cache", "cache/CACHEDIR.TAG", "marked", "marked/.nobackup"}
