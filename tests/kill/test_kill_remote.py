"""SIGKILL of either end of a connection at random moments: nothing acknowledged is lost, no lock is left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from packnback.remote import frames
from packnback.remote.frames import Side
from packnback.remote.protocol import Connection
from packnback.store.local import open_local

CLI = Path(__file__).parent.parent / "cli"
sys.path.insert(0, str(CLI))

from cli_program import Program  # noqa: E402  it stands beside the tests of the command line

LONGEST_S = 2.0


def wait_until_gone(pid: int, timeout_s: float = 30.0) -> None:
    """A server whose client is gone ends by itself."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"the server {pid} goes on without a client")


def run_rounds(tmp_path: Path, rounds: int, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    program, source = Program(tmp_path / "home"), tmp_path / "source"
    repository, pid_file = tmp_path / "repository", tmp_path / "pid"
    program("-r", repository, "init")
    source.mkdir()
    environment = {
        "PACKNBACK_SSH": shlex.join([sys.executable, str(CLI / "loopback.py")]),
        "PACKNBACK_REPO": f"ssh://far{repository}",
        "LOOPBACK_PID_FILE": str(pid_file),
        "PATH": f"{Path(sys.executable).parent}:{program.environment['PATH']}",
    }
    acknowledged: dict[str, dict[str, bytes]] = {}
    for round_number in range(rounds):
        name = f"file{round_number % 7}"
        (source / name).write_bytes(chance.randbytes(chance.randrange(1, 6_000_000)))
        now = {path.name: path.read_bytes() for path in source.iterdir()}
        pid_file.unlink(missing_ok=True)
        process = program.start(["backup", "--json", source], environment=environment)
        time.sleep(chance.uniform(0.2, LONGEST_S))
        victim = chance.choice(["client", "server"])
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
            os.kill(process.pid if victim == "client" else int(pid_file.read_text()), signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        if pid_file.exists() and (text := pid_file.read_text()):
            wait_until_gone(int(text))
        if process.returncode == 0:
            acknowledged[json.loads(out)["snapshot"]] = now
        check(repository, set(acknowledged))
    program("-r", repository, "check", "--read-data")
    done = program("backup", "--json", source, environment=environment).json  # and no alarm is raised
    acknowledged[done["snapshot"]] = {path.name: path.read_bytes() for path in source.iterdir()}
    for snapshot in [*acknowledged][-3:]:
        out_dir = tmp_path / f"out-{snapshot[:8]}"
        program("restore", snapshot, "--to", out_dir, environment=environment)
        top = out_dir / source.relative_to("/")
        assert {path.name: path.read_bytes() for path in top.iterdir()} == acknowledged[snapshot]


def check(root: Path, acknowledged: set[str]) -> None:
    """Nothing acknowledged is lost, no snapshot is incomplete, nobody holds a lock."""
    repository = open_local(str(root))
    try:
        with repository.ports.locks.exclusive(0):
            pass
        with repository.reading():
            infos = repository.snapshots()
            assert not repository.damaged_files()
        assert acknowledged <= {info.id.hex() for info in infos}
        assert all(info.complete for info in infos)
    finally:
        repository.close()


def test_a_server_that_is_asked_to_end_lets_go_of_everything(tmp_path: Path) -> None:
    program, repository = Program(tmp_path / "home"), tmp_path / "repository"
    program("-r", repository, "init")
    process = program.start(["serve", repository, "--allow", "put,list"], stdin=subprocess.PIPE)
    assert process.stdin and process.stdout
    assert process.stdout.read(10) == b"packnback-"
    connection = Connection(Side.CLIENT)
    for frame in (frames.Hello("test"), frames.BeginReading(0)):
        process.stdin.write(b"".join(connection.send(frame)))
    process.stdin.flush()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130
    check(repository, set())


def test_a_far_side_that_never_answers_can_be_left(tmp_path: Path) -> None:
    """The server stops but does not end, and takes nothing any more: whoever is asked to end does not wait for it."""
    program, source = Program(tmp_path / "home"), tmp_path / "source"
    repository, pid_file = tmp_path / "repository", tmp_path / "pid"
    program("-r", repository, "init")
    source.mkdir()
    (source / "large").write_bytes(os.urandom(300_000_000))
    environment = {
        "PACKNBACK_SSH": shlex.join([sys.executable, str(CLI / "loopback.py")]),
        "PACKNBACK_REPO": f"ssh://far{repository}",
        "LOOPBACK_PID_FILE": str(pid_file),
        "PATH": f"{Path(sys.executable).parent}:{program.environment['PATH']}",
    }
    process = program.start(["backup", "--json", source], environment=environment, start_new_session=True)
    while not any((repository / "packs").rglob("*.pack")):
        assert process.poll() is None
        time.sleep(0.01)
    server = int(pid_file.read_text())
    os.kill(server, signal.SIGSTOP)
    time.sleep(1.0)  # now everything on the way is full
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    wait_until_gone(server)
    check(repository, set())


def test_kill_either_end(tmp_path: Path) -> None:
    run_rounds(tmp_path, 15, seed=int.from_bytes(os.urandom(4)))


@pytest.mark.nightly
def test_kill_either_end_many_times(tmp_path: Path) -> None:
    run_rounds(tmp_path, 50, seed=int.from_bytes(os.urandom(4)))
