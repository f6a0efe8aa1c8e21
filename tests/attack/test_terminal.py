"""What others have written reaches a terminal as text: no title is set, nothing is turned round or wiped out.

Names in snapshots were chosen by whoever could make files on a client; errors, progress and notes by the server.
"""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cli_program import Program

from packnback import errors
from packnback.cli import words
from packnback.cli.output import escaped

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b1A\u202etxt.exe\r"
LOOPBACK = Path(__file__).parent.parent / "cli" / "loopback.py"
FORBIDDEN = ["\x1b]0;", "\x1b[2J", "\x07", "\x9b", "\u202e"]


def on_terminal(program: Program, *arguments: str | Path, environment: dict[str, str] | None = None) -> str:
    """What a terminal would get of both streams."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "packnback", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=program.home,
        env={**program.environment, "COLUMNS": "200", "TERM": "xterm", **(environment or {})},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 1 << 16):
            seen += data
    except OSError:  # that is how a terminal ends
        pass
    process.wait(60)
    os.close(ours)
    return seen.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    program = Program(tmp_path_factory.mktemp("terminal") / "home")
    program.environment["PACKNBACK_REPO"] = str(program.home / "repository")
    program("init")
    source = program.home / "source"
    source.mkdir()
    (source / EVIL.replace("\r", "")).write_text("x")
    (source / "link").symlink_to(EVIL)
    (source / "[red]markup[yellow]").write_text("y")
    program("backup", source, "--tag", f"note={EVIL}")
    return program


@pytest.mark.parametrize(
    "command",
    [
        ["list"], ["ls", "-l", "-R", "latest"], ["find", "*"], ["ls", "--json", "-R", "latest"], ["list", "--json"],
        ["restore", "latest", "--to", "out"], ["restore", "latest", "--to", "out"], ["verify"],
        ["ls", "latest", EVIL],
    ],
    ids=" ".join,
)  # fmt: skip
def test_hostile_names_on_a_terminal(program: Program, command: list[str]) -> None:
    seen = on_terminal(program, *command)
    assert not [bad for bad in FORBIDDEN if bad in seen], seen
    if "--json" in command:
        assert json.loads(seen)


BAR = """
import sys, time
from packnback.cli.progress import Bar
evil = sys.argv[1]
for phase, unit in ((evil, "bytes"), ("x", evil), ("[/x] [red]r[/]", "[/y] {task.description.__class__} {0}")):
    bar = Bar()
    bar.begin(phase, 10, unit)
    for _ in range(3):
        bar.advance(3)
        time.sleep(0.15)
    bar.note(evil)
    bar.close()
"""


def test_phases_and_units_from_a_far_machine(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", BAR, EVIL], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 1 << 16):
            seen += data
    except OSError:
        pass
    assert process.wait(30) == 0, seen
    text = seen.decode("utf-8", "replace")
    assert not [bad for bad in FORBIDDEN if bad in text]
    assert "[/x] [red]r[/]" in text and "[/y] {task.description.__class__} {0}" in text


def test_words_of_a_far_machine(program: Program) -> None:
    """What stands in its errors, and what it prints in place of the protocol."""
    far = {
        "banner": f"printf %s {shlex.quote(EVIL + ' welcome')}",
        "stderr": f"printf %s {shlex.quote(EVIL)} >&2; exit 3",
    }
    for script in far.values():
        seen = on_terminal(
            program, "-r", "ssh://far/r", "list", environment={"PACKNBACK_SSH": f"sh -c {shlex.quote(script)} --"}
        )
        assert "packnback:" in seen and "owned" in seen
        assert not [bad for bad in FORBIDDEN if bad in seen], seen


def test_every_text_in_an_error_is_escaped() -> None:
    for error in (errors.Refused(EVIL, EVIL), errors.RemoteFailed("far", "internal", EVIL), errors.Locked("p", EVIL)):
        told = words.words(error)
        assert escaped(told.message).isprintable()
