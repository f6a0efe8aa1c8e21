"""The real program in a home of its own: every promise to users is tested through this."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Finished:
    code: int
    out: str
    err: str
    peak_rss: int
    """Bytes, of the program's process."""

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Program:
    """`packnback` with home, configuration, cache and state below one directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.home = base / "home"
        self.repo = base / "repo"
        self.config = self.home / "config" / "packnback"
        self.put_key = self.config / "put.key"
        self.owner_key = self.config / "owner.key"
        self.home.mkdir()
        self.environ = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "PACKNBACK_REPO": str(self.repo),
        }

    def run(self, *arguments: str | Path, expect: int | None = 0) -> Finished:
        """Run to the end; `expect` is the exit code, None for any."""
        command = [sys.executable, "-m", "packnback", *map(str, arguments)]
        out, err = self.base / "stdout", self.base / "stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                command, env=self.environ, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL
            )
            peak = 0
            while process.poll() is None:
                peak = max(peak, _peak_rss(process.pid))
                time.sleep(0.02)
        done = Finished(process.returncode, out.read_text(), err.read_text(), peak)
        assert "Traceback" not in done.err, done.err
        assert expect is None or done.code == expect, (arguments, done)
        return done


def _peak_rss(pid: int) -> int:
    """VmHWM in bytes. (What wait4 tells includes the peak of whoever forked: the test runner's.)"""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
