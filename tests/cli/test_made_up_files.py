"""Files of which stat(2) says that they are empty, and which are not: a program makes them up as they are read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_program import Program

FILE_SYSTEM = Path(__file__).with_name("made_up.py")
START_S = 20.0


@pytest.fixture
def made_up(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(where the contents stand, where they are mounted without their sizes)."""
    contents, mounted = tmp_path / "contents", tmp_path / "mounted"
    contents.mkdir()
    mounted.mkdir()
    with subprocess.Popen(
        [sys.executable, str(FILE_SYSTEM), str(contents), str(mounted)], stderr=subprocess.PIPE
    ) as process:
        end = time.monotonic() + START_S
        while not os.path.ismount(mounted) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        try:
            if not os.path.ismount(mounted):
                process.kill()
                pytest.skip(f"no FUSE here: {process.communicate()[1].decode()[-200:]!r}")
            yield contents, mounted
        finally:
            for command in (["fusermount3", "-uz"], ["fusermount", "-uz"], ["umount", "-l"]):
                try:
                    if subprocess.run([*command, mounted], capture_output=True).returncode == 0:
                        break
                except FileNotFoundError:
                    continue
            process.terminate()


def test_what_a_program_makes_up_is_read_to_its_end(program: Program, made_up: tuple[Path, Path]) -> None:
    contents, mounted = made_up
    want = {"empty": b"", "short": b"a few words", "long": os.urandom(3 << 20), "later": b""}
    for name, content in want.items():
        (contents / name).write_bytes(content)
    (contents / "unreadable").touch()
    told = program("--json", "backup", mounted, code=3).json
    assert [os.path.basename(error["path"]) for error in told["errors"]] == ["unreadable"]
    assert told["bytes"] == sum(map(len, want.values()))

    # Nothing that can be seen tells whether it is still the same: it is read again each time.
    want |= {"short": b"other words", "later": b"not empty any more"}
    for name in ("short", "later"):
        (contents / name).write_bytes(want[name])
    program("backup", mounted, code=3)
    program("restore", "latest", "--to", program.home / "to")
    restored = program.home / "to" / str(mounted).lstrip("/")
    assert {path.name: path.read_bytes() for path in restored.iterdir()} == want


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_one_that_is_mounted_by_itself_tells_nothing_of_its_directory(
    program: Program, made_up: tuple[Path, Path], tmp_path: Path
) -> None:
    """As containers mount single files. Its directory lies on a file system of which sizes can be believed."""
    contents, mounted = made_up
    (contents / "doc").write_bytes(b"words")
    tree = tmp_path / "a tree"
    (tree / "above").mkdir(parents=True)
    (tree / "above" / "bound").touch()
    if subprocess.run(["mount", "--bind", mounted / "doc", tree / "above" / "bound"], check=False).returncode:
        pytest.skip("no mounts here")
    try:
        program("backup", tree, mounted)
        (contents / "doc").write_bytes(b"WORDS")
        program("backup", tree, mounted)
    finally:
        subprocess.run(["umount", tree / "above" / "bound"], check=True)
    program("restore", "latest", "--to", program.home / "both")
    for path in (tree / "above" / "bound", mounted / "doc"):
        assert (program.home / "both" / str(path).lstrip("/")).read_bytes() == b"WORDS"


def test_what_the_kernel_makes_up_is_left_as_it_says(program: Program) -> None:
    """A backup of ``/`` would otherwise read the address space of every process."""
    told = program("--json", "backup", "/proc/self/net/dev", "/proc/version", "/proc/kmsg").json
    assert told["errors"] == []
    assert told["bytes"] == 0
