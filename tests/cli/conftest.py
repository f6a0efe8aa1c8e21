"""A repository with keys, made once for each module of tests: a run of the program costs a third of a second."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cli_program import Program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program, with unprotected keys where it looks for them, and a repository named in its environment."""
    program = Program(tmp_path_factory.mktemp("cli") / "home")
    program.environment["PACKNBACK_REPO"] = str(program.home / "repository")
    program("init")
    return program


@pytest.fixture(scope="module")
def source(program: Program) -> Path:
    """A small tree with a bit of everything."""
    top = program.home / "source"
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "hello.txt").write_text("hello\n")
    (top / "hello.txt").chmod(0o640)
    (top / "sub" / "large.bin").write_bytes(random.Random(1).randbytes(1 << 20))
    (top / "sub" / "deep" / "note.md").write_text("# note\n")
    (top / "link").symlink_to("sub/deep/note.md")
    return top
