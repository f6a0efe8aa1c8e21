"""What goes wrong, told in words, with the right exit code and never a traceback."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from pathlib import Path

import pytest
from blake3 import blake3
from cli_program import Done, Program, assert_shape

ERROR_SHAPE = {"error": {"kind": str, "message": str, "hint?": str}}


def kind(done: Done) -> str:
    """The kind of the error that a command with ``--json`` told."""
    assert_shape(done.json, ERROR_SHAPE)
    return str(done.json["error"]["kind"])


@pytest.fixture(scope="module")
def snapshot(program: Program, source: Path) -> str:
    """The id of a snapshot of the source."""
    return str(program("backup", source, "--json").json["snapshot"])


def test_usage(program: Program) -> None:
    for arguments in (
        [], ["no-such-command"], ["backup"], ["backup", "/", "--no-such-option"], ["restore", "latest"],
        ["forget", "latest", "--keep-daily", "1"], ["prune", "--keep-daily", "-1", "--json"],
        ["backup", "--stdin", "a", "/etc"], ["backup", "--stdin", "a", "--exec", "b"], ["backup", "--exec", "b"],
        ["backup", "--stdin", "a/b"], ["backup", "/", "--tag", "novalue"], ["backup", "/", "--compression", "gzip"],
        ["restore", "latest", "--to", "x", "--overwrite", "perhaps"], ["check", "--bad", "file"],
        ["--progress", "loud", "list"], ["compact", "--grace", "soon"], ["accept-rollback"],
        ["backup", ""], ["backup", "/etc", ""], ["ls", "latest", ""], ["cat", "latest", ""],
        ["restore", "latest", "", "--to", "x"], ["restore", "latest", "--to", ""],
        ["-r", "", "list"], ["list", "-r", ""], ["-r", "", "prune", "--keep-last", "1"], ["-k", "", "list"],
        ["forget"], ["forget", "--client", "web1"], ["prune"],
        ["serve", "x", "--allow", "everything"], ["check", "--sample", "10"],
        ["key", "put", "x.key", "--client", "x@2"],
        *(["-r", place, "init"] for place in ("me@nas:/srv/repo", "nas:repo", "sftp://nas/x", "file:///srv/x")),
    ):  # fmt: skip
        program(*arguments, code=2)
    assert kind(program("backup", "--json", code=2)) == "usage-error"
    assert kind(program("no-such-command", "--json", code=2)) == "usage-error"
    assert "Did you mean 'backup'?" in program("bakup", code=2).err
    assert not (program.home / "nas:repo").exists()
    assert "--allow takes" in program("serve", "x", "--allow", "everything", code=2).err


def test_version_where_nobody_listens(program: Program) -> None:
    for redirection in (">&-", "| true", "| head -c 0"):
        command = f"{sys.executable} -m packnback --version {redirection}"
        for _ in range(3):
            process = program.start(["-c", command], program=("sh",))
            out, err = process.communicate(timeout=60)
            assert (out, err) == (b"", b"")


def test_help_is_not_an_error(program: Program) -> None:
    for arguments in (["--help"], ["key", "--help"], ["backup", "--help"], ["key", "put", "--help"]):
        assert "Usage: packnback" in program(*arguments).text


def test_no_repository_named(program: Program) -> None:
    assert kind(program("list", "--json", code=2, environment={"PACKNBACK_REPO": ""})) == "usage-error"


def test_not_a_repository(program: Program, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        for arguments in (["list"], ["backup", "/etc/hostname"], ["check"], ["compact"], ["ls", "latest"]):
            assert kind(program("-r", place, *arguments, "--json", code=1)) == "not-a-repository"


def test_init_twice_and_over_something_else(program: Program, tmp_path: Path) -> None:
    assert kind(program("init", "--json", code=1)) == "already-exists"
    (tmp_path / "file").write_text("mine")
    assert kind(program("-r", tmp_path, "init", "--json", code=1)) == "already-exists"
    assert os.listdir(tmp_path) == ["file"]


def test_init_elsewhere_is_refused_with_a_hint(program: Program) -> None:
    done = program("-r", "ssh://host/srv/b", "init", code=2)
    assert "log in to host" in done.err


def test_a_newer_version(program: Program, tmp_path: Path) -> None:
    copy = tmp_path / "newer"
    shutil.copytree(program.environment["PACKNBACK_REPO"], copy)
    config = bytearray((copy / "config").read_bytes()[:-16])
    config[4] = 9
    (copy / "config").write_bytes(config + blake3(config).digest(16))
    for arguments in (["list"], ["backup", "/etc/hostname"], ["check"], ["compact"]):
        error = program("-r", copy, *arguments, "--json", code=1).json["error"]
        assert (error["kind"], error["found"]) == ("unsupported-version", 9)


def test_a_damaged_config(program: Program, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(program.environment["PACKNBACK_REPO"], copy)
    (copy / "config").write_bytes((copy / "config").read_bytes()[:-1])
    assert kind(program("-r", copy, "list", "--json", code=4)) == "config-damage"
    error = program("-r", copy, "init", "--json", code=4).json["error"]
    assert error["kind"] == "config-damage" and "nothing in its place" in error["hint"]
    (copy / "config").unlink()
    program("-r", copy, "init")
    assert program("-r", copy, "list", "--json").json == program("list", "--json").json


def test_keys_of_another_owner(program: Program, snapshot: str, tmp_path: Path) -> None:
    program("key", "new", tmp_path / "o.key")
    program("key", "put", tmp_path / "p.key", "--from", tmp_path / "o.key", "--client", "x")
    for key, arguments in (
        ("o.key", ["list"]),
        ("o.key", ["restore", snapshot, "--to", tmp_path / "out"]),
        ("p.key", ["backup", "/etc/hostname"]),
    ):
        assert kind(program("-k", tmp_path / key, *arguments, "--json", code=5)) == "wrong-owner"
    assert not (tmp_path / "out").exists()


def test_a_put_key_opens_nothing(program: Program, snapshot: str, tmp_path: Path) -> None:
    put_key = program.home / ".config/packnback/put.key"
    for arguments in (
        ["restore", snapshot, "--to", tmp_path / "out"], ["ls", snapshot], ["cat", snapshot, "/x"],
        ["verify"], ["diff", snapshot, snapshot], ["find", "x"],
    ):  # fmt: skip
        done = program("-k", put_key, *arguments, code=5)
        assert "this key can add backups but not read them; use the owner key" in done.err
        assert done.out == b""
    assert not (tmp_path / "out").exists()


def test_other_keys_make_no_backups(program: Program, tmp_path: Path) -> None:
    owner = program.home / ".config/packnback/owner.key"
    program("key", "list", tmp_path / "list.key", "--from", owner)
    for key in (owner, tmp_path / "list.key"):
        assert kind(program("-k", key, "backup", "/etc/hostname", "--json", code=5)) == "key-cannot"


def test_a_list_key_reads_names_only(program: Program, source: Path, snapshot: str, tmp_path: Path) -> None:
    program("key", "list", tmp_path / "list.key", "--from", program.home / ".config/packnback/owner.key")
    assert program("-k", tmp_path / "list.key", "ls", snapshot, source).code == 0
    restore = ["restore", snapshot, "--to", tmp_path / "out"]
    for arguments in (["cat", snapshot, source / "hello.txt"], restore, ["verify"]):
        assert kind(program("-k", tmp_path / "list.key", *arguments, "--json", code=5)) == "key-cannot"


def test_no_key_at_all(program: Program) -> None:
    for arguments in (["backup", "/etc/hostname"], ["verify"], ["ls", "latest"]):
        done = program(*arguments, "--json", code=5, environment={"XDG_CONFIG_HOME": "/nowhere"})
        assert kind(done) == "key-missing"


def test_paths_that_are_not_in_a_snapshot(program: Program, source: Path, snapshot: str, tmp_path: Path) -> None:
    assert kind(program("ls", snapshot, "/absent", "--json", code=1)) == "path-unknown"
    assert kind(program("cat", snapshot, "/absent", "--json", code=1)) == "path-unknown"
    assert kind(program("cat", snapshot, source, "--json", code=2)) == "usage-error"
    assert kind(program("restore", snapshot, "/absent", "--to", tmp_path / "o", "--json", code=1)) == "path-unknown"
    assert not (tmp_path / "o").exists()
    for command in (["ls"], ["cat"], ["restore", "--to", tmp_path / "o"]):
        error = program(*command, snapshot, "/absent", "--json", code=1).json["error"]
        assert (error["snapshot"], error["message"]) == (snapshot, f"/absent is not in snapshot {snapshot[:12]}")
    assert kind(program("restore", "latest:nobody", "--to", tmp_path / "o", "--json", code=1)) == "snapshot-unknown"


def test_a_target_that_is_a_file(program: Program, snapshot: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    failed = program("restore", snapshot, "--to", tmp_path / "file", "--json", code=1)
    assert kind(failed) == "storage-failed"
    assert failed.json["error"]["message"] == f"cannot restore to {tmp_path}/file: Not a directory"
    assert kind(program("restore", snapshot, "--to", "/dev/null/x", "--json", code=1)) == "storage-failed"
    assert (tmp_path / "file").read_text() == "mine"


def test_locked_by_another_process(program: Program) -> None:
    with open(Path(program.environment["PACKNBACK_REPO"]) / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        error = program("backup", "/etc/hostname", "--wait", "0", "--json", code=6).json["error"]
    assert error["kind"] == "locked"
    assert str(os.getpid()) in error["holder"]


def test_damage_is_found_told_and_kept_from_spreading(program: Program, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    program("-r", copy, "init")
    snapshot = program("-r", copy, "backup", source, "--json").json["snapshot"]
    largest = max((copy / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.chmod(0o600)
    largest.write_bytes(content)

    checked = program("-r", copy, "check", "--read-data", "--json", code=4).json
    assert_shape(checked["damage"], [{"kind": str, "what": str, "affects": [str]}])
    assert [snapshot] in [finding["affects"] for finding in checked["damage"]]
    verified = program("-r", copy, "verify", "--bad", tmp_path / "bad", "--json", code=4).json
    assert [a["path"] for a in verified["affected"]] == [f"{source}/sub/large.bin"]
    restored = program("-r", copy, "restore", snapshot, "--to", tmp_path / "out", "--json", code=4).json
    assert {e["path"] for e in restored["errors"] if e["kind"] == "damage"} == {f"{source}/sub/large.bin"}
    assert Path(f"{tmp_path}/out{source}/hello.txt").read_text() == (source / "hello.txt").read_text()

    program("-r", copy, "check", "--repair", "--bad", tmp_path / "bad", code=4)
    program("-r", copy, "backup", source)
    assert program("-r", copy, "check", "--read-data", "--json").json["damage"] == []
    assert program("-r", copy, "verify", "--json").json["bad"] == []


def test_damage_is_told_however_quiet(program: Program, source: Path, tmp_path: Path) -> None:
    repository = tmp_path / "r"
    environment = {"PACKNBACK_REPO": str(repository)}
    program("init", environment=environment)
    program("backup", source, environment=environment)
    for pack in (repository / "packs").glob("*/*.pack"):
        pack.unlink()
    for command in (["ls", "latest"], ["find", "x"]):
        done = program("-q", *command, code=4, environment=environment)
        assert "missing" in done.err


def test_another_repository_in_its_place(program: Program, tmp_path: Path) -> None:
    place = tmp_path / "place"
    program("-r", place, "init")
    program("-r", place, "backup", "/etc/hostname")
    shutil.rmtree(place)
    program("-r", place, "init")
    assert kind(program("-r", place, "backup", "/etc/hostname", "--json", code=1)) == "wrong-repository"
    program("-r", place, "accept-rollback", "--reason", "made anew")
    program("-r", place, "backup", "/etc/hostname")


def test_a_repository_that_went_back_in_time(program: Program, tmp_path: Path) -> None:
    place, saved = tmp_path / "place", tmp_path / "saved"
    program("-r", place, "init")
    program("-r", place, "backup", "/etc/hostname")
    shutil.copytree(place, saved)
    program("-r", place, "backup", "/etc/hostname")
    program("-r", place, "list")
    shutil.rmtree(place)
    saved.rename(place)

    error = program("-r", place, "backup", "/etc/hostname", "--json", code=1).json["error"]
    assert (error["kind"], error["state"]) == ("chain-alarm", "rollback")
    assert (error["known_sequence"], error["found_sequence"]) == (2, 1)
    listed = program("-r", place, "list", code=4)
    assert "not here any more" in listed.err
    program("-r", place, "accept-rollback", "--reason", "the disk was restored")
    program("-r", place, "list")
    assert program("-r", place, "backup", "/etc/hostname", "--json").json["sequence"] == 2


def test_only_a_key_of_the_repositorys_owner_accepts_a_rollback(program: Program) -> None:
    """Whose repository this is, only the key can say: with a foreign one, nothing is pinned anew."""
    program("key", "new", "foreign.key")
    program("key", "put", "foreign-put.key", "--from", "foreign.key", "--client", "web1")
    for key in ("foreign.key", "foreign-put.key"):
        told = program("accept-rollback", "--reason", "why not", "-k", key, "--json", code=5)
        assert told.json["error"]["kind"] == "wrong-owner"


def test_a_reason_in_bytes_that_are_no_text(program: Program) -> None:
    told = program("accept-rollback", "--reason", b"restored \xff", "--json")
    assert told.json["accepted"] == "go-on"
