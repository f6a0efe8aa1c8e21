"""``make bench``: packnback beside restic and borg, on the same trees, step by step.

Within a repetition the tools take turns, in an order that rotates, so that a machine that gets slower or busier does
so for all of them. A tool's run on a corpus starts with a new repository and an empty cache, and goes through

    first · unchanged · restore · (changed · restore) · delete the older half and compact · check · check all data

on a copy of the corpus that was read once before: disks are not what is compared. Every restore is compared with
what was backed up, and a difference ends the benchmark. What was measured goes to ``results.jsonl``, one line per
step; ``python -m bench.report`` makes the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from bench.corpora import CORPORA, Corpus, pristine
from bench.measure import Cost, disk_usage, run
from bench.report import report
from bench.tools import TOOLS, Command, Tool
from bench.trees import differences

_SHM = Path("/dev/shm")


def main() -> int:
    options = _options()
    tools = [name for name in options.tools if TOOLS[name].installed()]
    options.work.mkdir(parents=True, exist_ok=True)
    results = options.work / "results.jsonl"
    with open(results, "a", encoding="utf-8") as lines:
        for repetition in range(options.repeat):
            for name in options.corpora:
                for turn in range(len(tools)):
                    tool = tools[(turn + repetition) % len(tools)]
                    _Round(CORPORA[name], TOOLS[tool], options, lines).carry_out()
    print(report(results))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "packnback-bench-work")
    parser.add_argument("--tools", type=lambda s: s.split(","), default=list(TOOLS))
    parser.add_argument("--corpora", type=lambda s: s.split(","), default=list(CORPORA))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the corpora, 1 being full size")
    parser.add_argument(
        "--restore-to", type=Path, default=_SHM if os.access(_SHM, os.W_OK) else None,
        help="where restores go; in memory, if there is such a place, see docs/performance.md",
    )  # fmt: skip
    return parser.parse_args()


class _Round:
    """One tool, one corpus, one repetition."""

    def __init__(self, corpus: Corpus, tool: type[Tool], options: argparse.Namespace, lines: TextIO) -> None:
        self._corpus = corpus
        self._work: Path = options.work / "round"
        shutil.rmtree(self._work, ignore_errors=True)
        self._tool = tool(self._work)
        self._tree = self._work / "tree"
        self._to = (options.restore_to or options.work) / "packnback-bench-restored"
        self._scale: float = options.scale
        self._source = pristine(corpus, options.scale, options.work / "corpora")
        self._lines = lines

    def carry_out(self) -> None:
        subprocess.run(["cp", "-a", str(self._source), str(self._tree)], check=True)  # links stay links
        subprocess.run(["tar", "-cPf", "-", str(self._tree)], check=True, stdout=subprocess.DEVNULL)
        tool = self._tool
        for command in tool.prepare():
            tool.output(command)
        snapshots: list[str] = []
        for step in ("first", "unchanged"):
            snapshots.append(f"s{len(snapshots)}")
            self._measure(step, [tool.backup(self._tree, snapshots[-1])])
        self._restore("restore", snapshots[-1])
        if self._corpus.change is not None:
            self._corpus.change(self._tree)
            snapshots.append(f"s{len(snapshots)}")
            self._measure("changed", [tool.backup(self._tree, snapshots[-1])])
            self._restore("restore changed", snapshots[-1])
        self._measure("delete, compact", tool.delete(snapshots[: (len(snapshots) + 1) // 2]))
        self._measure("check", [tool.check()])
        self._measure("check data", [tool.check_data()])
        shutil.rmtree(self._work)

    def _measure(self, step: str, commands: Sequence[Command], directory: Path | None = None) -> None:
        costs = [
            run(command, self._tool.environment, directory or self._work, self._work / "log") for command in commands
        ]
        self._tell(step, costs)

    def _restore(self, step: str, snapshot: str) -> None:
        shutil.rmtree(self._to, ignore_errors=True)
        self._to.mkdir()
        self._measure(step, [self._tool.restore(snapshot, self._to)], self._to)
        restored = self._to / self._tree.relative_to("/")
        if wrong := differences(self._tree, restored):
            sys.exit("\n".join([f"{self._tool.name} did not restore what was backed up:", *wrong]))
        shutil.rmtree(self._to)

    def _tell(self, step: str, costs: Sequence[Cost]) -> None:
        total = Cost(
            sum(c.wall for c in costs), sum(c.user for c in costs), sum(c.system for c in costs),
            max(c.peak for c in costs), max(c.others for c in costs),
        )  # fmt: skip
        row = {
            "tool": self._tool.name, "corpus": self._corpus.name, "scale": self._scale, "step": step,
            **asdict(total), "repository": disk_usage(self._tool.repository),
        }  # fmt: skip
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        print(
            f"{self._corpus.name:8} {self._tool.name:10} {step:16} {total.wall:8.2f} s  cpu {total.cpu:7.2f} s"
            f"  peak {total.peak >> 20:5} MiB  repository {row['repository'] >> 20:6} MiB  others {total.others:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
