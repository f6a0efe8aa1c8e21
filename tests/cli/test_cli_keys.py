"""``packnback key``: files, shapes, passphrases; and that no secret is ever printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_program import Program, assert_shape

KEY_SHAPE = {"path": str, "kind": str, "fingerprint": str, "owner": str}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A home with one key of each kind."""
    program = Program(tmp_path_factory.mktemp("keys") / "home")
    program("key", "new", "owner.key")
    program("key", "put", "put.key", "--from", "owner.key", "--client", "web", "--epoch", "3")
    for kind in ("list", "restore"):
        program("key", kind, f"{kind}.key", "--from", "owner.key")
    program("key", "public", "owner.pub", "--from", "owner.key")
    return program


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("owner.key", "owner"), ("put.key", "put"), ("list.key", "list"), ("restore.key", "restore"),
        ("owner.pub", "public"),
    ],
)  # fmt: skip
def test_show(keys: Program, file: str, kind: str) -> None:
    shown = keys("key", "show", file, "--json").json
    assert_shape(shown, KEY_SHAPE)
    assert shown["kind"] == kind
    assert re.fullmatch("[0-9a-f]{16}", shown["fingerprint"])
    if kind == "put":
        assert (shown["client"], shown["epoch"]) == ("web", 3)


@pytest.mark.parametrize("file", ["owner.key", "put.key", "list.key", "restore.key"])
def test_no_line_of_a_key_is_ever_printed(keys: Program, file: str) -> None:
    secret_lines = [line for line in (keys.home / file).read_text().splitlines()[1:] if len(line) >= 16]
    printed = keys("key", "show", file).text + keys("-v", "key", "show", file, "--json").text
    assert secret_lines
    assert not any(line in printed for line in secret_lines)


def test_files_are_private(keys: Program) -> None:
    for name in ("owner.key", "put.key", "list.key", "restore.key"):
        assert (keys.home / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("mode", "told"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_key_that_everybody_can_read_is_told_of(keys: Program, mode: int, told: bool) -> None:
    """A group may be meant to."""
    (keys.home / "owner.key").chmod(mode)
    assert ("every user" in keys("key", "show", "owner.key").err) == told
    assert keys("-q", "key", "show", "owner.key").err == ""


def test_the_same_arguments_make_the_same_put_key(keys: Program) -> None:
    keys("key", "put", "again.key", "--from", "owner.key", "--client", "web", "--epoch", "3")
    assert (keys.home / "again.key").read_bytes() == (keys.home / "put.key").read_bytes()
    keys("key", "put", "other.key", "--from", "owner.key", "--client", "web", "--epoch", "4")
    assert (keys.home / "other.key").read_bytes() != (keys.home / "put.key").read_bytes()


def test_nothing_is_ever_replaced(keys: Program) -> None:
    before = (keys.home / "owner.key").read_bytes()
    error = keys("key", "new", "owner.key", "--json", code=1).json["error"]
    assert error["kind"] == "already-exists"
    assert (keys.home / "owner.key").read_bytes() == before


def test_only_an_owner_key_makes_keys(keys: Program) -> None:
    for kind in ("put.key", "list.key", "restore.key", "owner.pub"):
        error = keys("key", "list", "x.key", "--from", kind, "--json", code=5).json["error"]
        assert error["kind"] == "key-cannot"
        assert not (keys.home / "x.key").exists()


def test_bad_names_and_epochs_are_usage(keys: Program) -> None:
    for arguments in (["--client", ""], ["--client", "a\nb"], ["--client", "a", "--epoch", "0"], []):
        keys("key", "put", "x.key", "--from", "owner.key", *arguments, code=2)
        assert not (keys.home / "x.key").exists()


def test_damaged_and_absent_files(keys: Program) -> None:
    text = (keys.home / "put.key").read_bytes()
    cases = {"cut.key": text[:-40], "empty.key": b"", "script.key": b"#!/bin/sh\n", "flipped.key": _flip(text, 300)}
    for name, content in cases.items():
        (keys.home / name).write_bytes(content)
        assert keys("key", "show", name, "--json", code=5).json["error"]["kind"] == "key-damaged"
    assert keys("key", "show", "absent.key", "--json", code=5).json["error"]["kind"] == "key-missing"


def _flip(text: bytes, at: int) -> bytes:
    return text[:at] + (b"A" if text[at : at + 1] != b"A" else b"B") + text[at + 1 :]


def test_passphrases(keys: Program) -> None:
    """One story, as Argon2id takes its time: set, read in three ways, refuse two, change, remove."""
    (keys.home / "one").write_text("first secret\n")
    (keys.home / "two").write_text("second secret\n")
    (keys.home / "nothing").write_text("\n")
    made = keys("key", "new", "safe.key", "--new-passphrase-file", "one", "--json").json
    assert made["protected"] is True
    assert b"argon2id" in (keys.home / "safe.key").read_bytes()

    shown = keys("key", "show", "safe.key", "--passphrase-file", "one", "--json").json
    assert shown["fingerprint"] == made["fingerprint"]
    command = {"PACKNBACK_PASSPHRASE_COMMAND": "cat 'one'"}
    assert keys("key", "show", "safe.key", "--json", environment=command).json["kind"] == "owner"
    keys("key", "new", "new.key", "--passphrase", environment=command)
    assert keys("key", "show", "new.key", "--passphrase-file", "one", "--json").json["kind"] == "owner"
    wrong = keys("key", "show", "safe.key", "--passphrase-file", "two", "--json", code=5)
    assert wrong.json["error"]["kind"] == "wrong-passphrase"

    keys("key", "passphrase", "safe.key", "--passphrase-file", "one", "--new-passphrase-file", "two")
    keys("key", "show", "safe.key", "--passphrase-file", "two")
    keys("key", "passphrase", "safe.key", "--passphrase-file", "two", "--remove")
    assert keys("key", "show", "safe.key", "--json").json["fingerprint"] == made["fingerprint"]


def test_a_passphrase_is_asked_for_once(keys: Program) -> None:
    old, new = _written(keys, "old", "secret"), _written(keys, "new", "another")
    keys("key", "new", "once.key", "--new-passphrase-file", old)
    command = {"PACKNBACK_PASSPHRASE_COMMAND": f"sh -c 'echo asked >> {keys.home}/asked; cat {old}'"}
    keys("key", "passphrase", "once.key", "--new-passphrase-file", new, environment=command)
    assert (keys.home / "asked").read_text() == "asked\n"
    assert keys("key", "show", "once.key", "--passphrase-file", new).code == 0


def test_nobody_to_ask_and_bad_sources(keys: Program) -> None:
    keys("key", "new", "guarded.key", "--new-passphrase-file", _written(keys, "word", "secret"))
    assert keys("key", "show", "guarded.key", "--json", code=5).json["error"]["kind"] == "passphrase-needed"
    for command in ("false", "no-such-command", "'", "true"):
        environment = {"PACKNBACK_PASSPHRASE_COMMAND": command}
        failed = keys("key", "show", "guarded.key", "--json", code=5, environment=environment)
        assert failed.json["error"]["kind"] == "passphrase-source-failed"
    secret_in_command = {"PACKNBACK_PASSPHRASE_COMMAND": "sh -c 'exit 3' hunter2"}
    failed = keys("key", "show", "guarded.key", code=5, environment=secret_in_command)
    assert "hunter2" not in failed.err
    absent = keys("key", "show", "guarded.key", "--passphrase-file", "absent", "--json", code=5)
    assert absent.json["error"]["kind"] == "passphrase-source-failed"
    assert keys("key", "new", "x.key", "--passphrase", code=5).err
    assert not (keys.home / "x.key").exists()


def test_a_passphrase_file_protects_a_new_owner_key(keys: Program) -> None:
    made = keys("key", "new", "implied.key", "--passphrase-file", _written(keys, "word2", "secret"), "--json").json
    assert made["protected"] is True


def _written(program: Program, name: str, text: str) -> Path:
    path = program.home / name
    path.write_text(text)
    return path
