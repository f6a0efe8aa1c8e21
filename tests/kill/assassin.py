"""Starting the real program and killing it, at a moment drawn at random, as a power cut of the process alone would.

Uniform moments mostly hit the start of the interpreter. So a part of the kills waits until the program has touched
the repository, and comes shortly after: that is where publications, transactions and deletions are.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cli_program import Program

from packnback.store.check import check_structure
from packnback.store.local import open_local
from packnback.store.repository import LocalRepository
from packnback.store.scrub import scrub

TIMEOUT_S = 120.0


@dataclass
class Assassin:
    """Kills runs of `program`, which work on the repository at `path`."""

    program: Program
    path: Path
    rng: random.Random
    duration_s: float = 1.0
    """How long a whole run takes, as far as is known."""
    killed: int = 0
    finished: list[bytes] = field(default_factory=list)
    """What runs that were faster than their killer printed."""

    def run(self, *arguments: str | Path) -> bytes | None:
        """Start it and kill it; what it printed if it had exited with 0 before that, else None."""
        start = time.monotonic()
        process = self.program.start(["-r", self.path, "--json", *arguments])
        try:
            if self.rng.random() < 0.6:
                self._wait_for_a_change(process)
                self._wait(process, self.rng.random() ** 2 * 0.2 * self.duration_s)
            else:
                self._wait(process, self.rng.uniform(0.2, 1.1) * self.duration_s)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        finally:
            out, err = process.communicate(timeout=TIMEOUT_S)
        if process.returncode == -signal.SIGKILL:
            self.killed += 1
            return None
        assert process.returncode == 0, (out, err)
        self.duration_s = time.monotonic() - start
        self.finished.append(out)
        return out

    def _wait_for_a_change(self, process: subprocess.Popen[bytes]) -> None:
        before = self._marks()
        deadline = time.monotonic() + TIMEOUT_S
        while process.poll() is None and self._marks() == before and time.monotonic() < deadline:
            time.sleep(0.001)

    def _marks(self) -> tuple[int, ...]:
        """Changes with every publication, deletion and transaction."""
        names = ("tmp", "snapshots", "forgotten", "headers", "index/data.mdb")
        return tuple(os.stat(self.path / name).st_mtime_ns for name in names)

    @staticmethod
    def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return


def opened(path: Path) -> Iterator[LocalRepository]:
    """For `with contextmanager(opened)(path)`: the repository, its index up to date."""
    repository = open_local(str(path))
    try:
        with repository.reading():
            yield repository
    finally:
        repository.close()


def assert_clean(repository: LocalRepository) -> None:
    """Structure, index and every byte."""
    report = check_structure(repository)
    assert not report.damage, report.damage
    assert not report.repaired, report.repaired
    assert not scrub(repository)


def rounds(config: pytest.Config, ci: int = 20, nightly: int = 100) -> int:
    return nightly if config.getoption("--nightly") else ci


def seeded(config: pytest.Config) -> random.Random:
    """From the clock, and printed: kill moments are not reproducible anyway, trees are."""
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
    print(f"KILL_SEED={seed}")
    return random.Random(seed)
