"""Being a good citizen: streams, signals, pipes, progress, and starting quickly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_program import TIMEOUT_S, Program

import packnback


def test_stdin(program: Program) -> None:
    done = program("backup", "--stdin", "dump.sql", "--json", stdin=b"select 1;\n").json
    assert (done["files"], done["bytes"]) == (1, 10)
    assert program("cat", done["snapshot"], "dump.sql").out == b"select 1;\n"
    assert [row["path"] for row in program("ls", done["snapshot"], "--json").json] == ["/dump.sql"]
    assert next(r["paths"] for r in program("list", "--json").json if r["id"] == done["snapshot"]) == ["dump.sql"]


def test_exec_commits_only_if_the_command_exits_with_0(program: Program) -> None:
    done = program("backup", "--exec", "out", "--json", "--", "sh", "-c", "echo from a command --json").json
    assert program("cat", done["snapshot"], "/out").out == b"from a command --json\n"
    count = len(program("list", "--json").json)
    for command, status in ((["sh", "-c", "echo half; exit 3"], 3), (["/no/such/command"], 127)):
        error = program("backup", "--exec", "out", "--json", "--", *command, code=1).json["error"]
        assert (error["kind"], error["status"]) == ("command-failed", status)
    assert len(program("list", "--json").json) == count


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(program: Program, number: signal.Signals) -> None:
    before = program("list", "--all", "--json").text
    process = program.start(["backup", "--stdin", "endless"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    # More than the pipe holds: when all of it is gone, the backup is at work.
    process.stdin.write(os.urandom(4 << 20))
    process.stdin.flush()
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert out == b""
    assert b"interrupted" in err
    assert b"Traceback" not in err
    assert program("list", "--all", "--json").text == before
    program("backup", "--stdin", "after", stdin=b"fine", code=0)
    program("check")


def test_an_interrupted_restore_says_how_it_goes_on(program: Program, tmp_path: Path) -> None:
    program("backup", "--stdin", "large", stdin=os.urandom(64 << 20))
    to = tmp_path / "to"
    process = program.start(["restore", "latest", "--to", to, "--json"])
    while not to.exists() or not os.listdir(to):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err.strip()) == (130, b"")
    error = json.loads(out)["error"]
    assert error["kind"] == "interrupted"
    assert "--overwrite changed" in error["hint"]
    assert os.listdir(to) == []
    program("restore", "latest", "--to", to, "--overwrite", "changed")
    assert (to / "large").stat().st_size == 64 << 20


def test_whoever_reads_may_go_away(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(3000):
        (tree / f"{number:0100}").touch()
    snapshot = program("backup", tree, "--json").json["snapshot"]
    process = program.start(["ls", "-R", snapshot])
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(TIMEOUT_S) == 1


@pytest.mark.parametrize("arguments", [["list", "--json"], ["--version"]], ids=lambda given: given[0])
def test_a_full_disk_behind_stdout_is_told(program: Program, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        process = program.start(arguments, stdout=full)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert b"cannot write the result" in err
    assert b"Traceback" not in err


def test_closed_streams_are_not_taken_for_files(program: Program, source: Path) -> None:
    """A shell's ``>&-``: what would be printed must not end up in whichever file is opened first."""

    def closed(arguments: str) -> tuple[int, str]:
        script = f'"$0" -m packnback {arguments}'
        run = program.start((), prefix=("sh", "-c", script))
        _, err = run.communicate()
        return run.returncode, err.decode()

    assert program("backup", source).code == 0
    failed = "packnback: cannot write the result: Bad file descriptor\n"
    assert closed("list >&-") == (1, failed)
    assert closed(f"cat latest {source}/hello.txt >&-") == (1, failed)
    assert closed("list 2>&-") == (0, "")
    assert closed("list <&-") == (0, "")
    code, err = closed("backup --stdin stream <&-")
    assert code == 1
    assert "Bad file descriptor" in err
    assert closed(f"-q backup {source} <&- >&- 2>&-") == (0, "")
    assert closed("list /nonsense <&- >&- 2>&-") == (2, "")
    assert program("check", "--read-data").code == 0
    assert program("verify").code == 0


def test_progress_as_json_lines(program: Program, source: Path) -> None:
    done = program("--progress", "json", "backup", source, "--json")
    events = [json.loads(line) for line in done.err.splitlines()]
    assert events[0]["event"] == "begin"
    assert {event["event"] for event in events} <= {"begin", "advance", "end", "note"}
    assert done.json["snapshot"]


def test_nothing_but_results_on_stdout(program: Program, source: Path) -> None:
    assert program("-q", "backup", source).out == b""
    assert program("backup", source).err == ""
    assert "compress" in program("-v", "backup", source).text


def test_the_version_is_told_without_loading_anything() -> None:
    script = "import sys; sys.argv = ['packnback', '--version']\n"
    script += "from packnback.cli.main import main; main()\n"
    script += "print(sorted(set(sys.modules) & {'typer', 'click', 'rich', 'json', 'packnback.errors'}))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [f"packnback {packnback.__version__}", "[]"]


def test_whatever_is_left_behind_is_waited_for_and_written() -> None:
    script = "import atexit, threading, time; from packnback.cli import main\n"
    script += "def leave():\n    atexit.register(print, 'the end')\n    print('first')\n    return 3\n"
    script += "main.main = leave\n"
    late = "threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()\n"
    for before, told in (("", "first\nthe end\n"), (late, "first\nlate\nthe end\n")):
        done = subprocess.run(
            [sys.executable, "-c", script + before + "main.start()"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (3, told, "")


def test_list_loads_only_what_it_needs(program: Program) -> None:
    script = "import sys; sys.argv = ['packnback', 'list', '-q']\n"
    script += "from packnback.cli.main import main; code = main()\n"
    script += "heavy = {'rich', 'pydantic', 'nacl', 'cryptography', 'zstandard', 'asyncio', 'fastcdc'}\n"
    script += "print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    environment = {**program.environment, "XDG_CONFIG_HOME": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == "0 []\n"


def test_the_console_script_is_the_same_program(program: Program) -> None:
    script = Path(sys.executable).parent / "packnback"
    if not script.exists():
        pytest.skip("not installed beside this Python")
    shown = subprocess.run([script, "list"], capture_output=True, text=True, env=program.environment, check=True)
    assert shown.stdout == program("list").text


def test_a_bar_on_a_terminal(program: Program, source: Path) -> None:
    """rich draws on a terminal's stderr only, and stdout stays clean."""
    ours, theirs = os.openpty()
    process = program.start(["backup", source], stderr=theirs)
    os.close(theirs)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    shown = b""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.returncode == 0
    assert b"\x1b" in shown
    assert b"\x1b" not in out


def test_the_demonstration(tmp_path: Path) -> None:
    demo = Path(__file__).parents[2] / "demo" / "demo.py"
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "file").write_text("content")
    done = subprocess.run([sys.executable, demo, tmp_path / "src"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "are the same" in done.stdout


def test_no_core_file_tells_secrets(program: Program) -> None:
    """Whatever the shell allows, a run that dies leaves nothing of its memory on the disk."""
    code = (
        "import resource as r, sys; from packnback.cli.run import run\n"
        "r.setrlimit(r.RLIMIT_CORE, (r.getrlimit(r.RLIMIT_CORE)[1],) * 2); before = r.getrlimit(r.RLIMIT_CORE)[0]\n"
        "run(['key', 'show', 'none.key']); print(before, r.getrlimit(r.RLIMIT_CORE)[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=program.environment, capture_output=True, timeout=TIMEOUT_S, check=True
    )
    before, after = done.stdout.split()
    if before == b"0":
        pytest.skip("the system allows no core files anyway")
    assert after == b"0"
