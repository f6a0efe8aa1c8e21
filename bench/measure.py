"""Running a command and seeing what it costs: time, CPU, memory of the whole process tree.

Memory is sampled from /proc: what the kernel reports of a finished child (ru_maxrss) would do for one process, but
not for a tree, and a forked child inherits the peak of this very program. The peak of a sampled sum can be missed by
a sample's interval; so for each process its own high-water mark counts where that is more.

How much of the machine others used is noted too: it tells which results to believe.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.02
_TICKS = os.sysconf("SC_CLK_TCK")


class CommandFailed(Exception):
    """A measured command did not end with 0. `told` is the end of what it said."""

    def __init__(self, command: Sequence[str], status: int, told: str) -> None:
        super().__init__(f"{' '.join(command)} ended with {status}:\n{told}")


@dataclass(frozen=True)
class Cost:
    """What a command took. Seconds, and bytes."""

    wall: float
    user: float
    system: float
    peak: int
    """Largest resident set of the process tree; pages that processes share count for each of them."""
    others: float
    """Processors that the rest of the machine used meanwhile, on average."""

    @property
    def cpu(self) -> float:
        """User and system time."""
        return self.user + self.system


def run(command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path) -> Cost:
    """Run a command to its end; what it says goes to `log`. Raises CommandFailed."""
    os.sync()  # so that nobody pays for the dirty pages of whoever ran before
    with open(log, "wb") as told:
        busy, began = _busy_s(), time.perf_counter()
        process = subprocess.Popen(
            command, env=dict(environment), cwd=directory, stdin=subprocess.DEVNULL, stdout=told, stderr=told
        )
        sampler = _Sampler(process.pid)
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        busy = _busy_s() - busy
        sampler.stop()
    if process.returncode != 0:
        raise CommandFailed(command, process.returncode, log.read_text(errors="replace")[-2000:])
    others = max(0.0, busy - usage.ru_utime - usage.ru_stime) / wall
    return Cost(wall, usage.ru_utime, usage.ru_stime, sampler.peak, others)


class _Sampler(threading.Thread):
    """Follows a process and its descendants until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._pid = pid
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample until the end."""
        while not self._ended.wait(SAMPLE_S):
            tree = [_resident(pid) for pid in _descendants(self._pid)]
            highest = max((high for _, high in tree), default=0)
            self.peak = max(self.peak, sum(now for now, _ in tree), highest)

    def stop(self) -> None:
        """Stop, and wait for the last sample."""
        self._ended.set()
        self.join()


def _descendants(pid: int) -> list[int]:
    found, todo = [], [pid]
    while todo:
        here = todo.pop()
        found.append(here)
        try:
            for task in os.listdir(f"/proc/{here}/task"):
                todo += map(int, Path(f"/proc/{here}/task/{task}/children").read_text().split())
        except OSError:  # it has ended meanwhile
            continue
    return found


def _resident(pid: int) -> tuple[int, int]:
    """(bytes now, most bytes ever) of a process; zeros when it has ended."""
    now = high = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                now = int(line.split()[1]) << 10
            elif line.startswith("VmHWM:"):
                high = int(line.split()[1]) << 10
    except OSError:
        return 0, 0
    return now, high


def _busy_s() -> float:
    """Seconds that all processors together have worked since the machine started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _, _, interrupts, soft, stolen = fields[:8]
    return (user + nice + system + interrupts + soft + stolen) / _TICKS


def disk_usage(top: Path) -> int:
    """Bytes that a tree takes on the disk, as du says."""
    found = os.lstat(top).st_blocks
    for folder, folders, names in os.walk(top):
        found += sum(os.lstat(os.path.join(folder, name)).st_blocks for name in (*folders, *names))
    return 512 * found
