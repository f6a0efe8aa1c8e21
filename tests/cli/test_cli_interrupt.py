"""Being asked to stop where a single KeyboardInterrupt is not enough."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_program import Program

HEAD = """
import contextlib, threading, time
from packnback.cli import interrupt
interrupt.PATIENCE_S = 0.2
told = interrupt.Interrupts(lambda: print("last words", flush=True))
told.listen()
def listening():
    print("listening", flush=True)
    time.sleep(60)
"""


def asked_to_stop(body: str) -> tuple[int, str, str]:
    """(status, stdout, stderr) of a process that gets one SIGINT while it runs `body`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_an_interrupt_that_was_dropped_comes_again() -> None:
    body = """
class Dropped:
    def __del__(self):
        listening()
try:
    del (d := Dropped()).__dict__, d
    time.sleep(60)
except KeyboardInterrupt:
    told.obeyed()
    print("stopped")
"""
    assert asked_to_stop(body) == (0, "stopped\n", "")


def test_who_cannot_clean_up_is_ended() -> None:
    """The lock of a condition that an interrupt leaked: whoever closes waits for a thread that waits for it."""
    body = """
leaked = threading.Lock()
leaked.acquire()
with contextlib.ExitStack() as stack:
    for _ in range(interrupt.REMINDERS + 1):
        stack.callback(leaked.acquire)
    listening()
"""
    assert asked_to_stop(body) == (130, "last words\n", "")


def test_who_cannot_even_say_so_is_ended() -> None:
    """Somebody prints to a pipe that nobody reads, and holds the stream meanwhile."""
    body = """
import os, sys
interrupt.LAST_WORDS_S = 0.2
interrupt.REMINDERS = 2
full = os.pipe()
stream = open(full[1], "w")
told._last_words = lambda: print("last words", file=stream, flush=True)
threading.Thread(target=lambda: print("x" * 1_000_000, file=stream, flush=True), daemon=True).start()
time.sleep(0.2)
with contextlib.ExitStack() as stack:
    for _ in range(interrupt.REMINDERS + 1):
        stack.callback(lambda: print("on the way out", file=stream, flush=True))
    listening()
"""
    assert asked_to_stop(body)[0] == 130


def test_an_alarm_does_not_outlive_the_command() -> None:
    body = """
try:
    listening()
except KeyboardInterrupt:
    pass
told.ended()
time.sleep(0.5)
print("done")
"""
    assert asked_to_stop(body) == (0, "done\n", "")


@pytest.mark.parametrize("command", ["restore", "backup"])
def test_interrupted_at_any_moment_a_command_ends_soon(program: Program, tmp_path: Path, command: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "large").write_bytes(os.urandom(32 << 20))
    for number in range(300):
        (tmp_path / "source" / f"{number}").write_bytes(b"%d" % number * 1000)
    program("backup", tmp_path / "source")
    for moment in range(12):
        to = tmp_path / f"to{moment}"
        (tmp_path / "source" / "large").write_bytes(os.urandom(32 << 20))
        arguments = ["restore", "latest", "--to", to] if command == "restore" else ["backup", tmp_path / "source"]
        process = program.start([*arguments, "--json"])
        time.sleep(0.1 + 0.025 * moment)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, err = process.communicate(timeout=60)
        if b"Failed to import the site module" in err:
            continue  # Python itself had not started yet, on a machine that has much to do
        assert process.returncode in (0, 130, -signal.SIGINT), (out, err)
        assert b"Traceback" not in err
        assert time.monotonic() - began < 9, "it had to be reminded"
