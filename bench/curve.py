"""``make bench-scale``: how time and memory of packnback grow with the number of files, and with their bytes.

Cost should grow as the work does, and memory not at all. So the same steps are taken with 10,000, 30,000 and 100,000
files of up to 200 bytes, and with 0.2, 0.6 and 2 GB in one file. What repositories of millions of objects cost is
measured without such files, by ``bench/scale``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.corpora import make_files, make_random
from bench.measure import Cost, run
from bench.tools import Packnback

_FILES = "10000,30000,100000"
_BYTES = "200000000,600000000,2000000000"
_TINY = 200
STEPS = ("first", "unchanged", "restore", "check data")

Make = Callable[[Path, int], None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "packnback-bench-scale")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--files", type=_amounts, default=_FILES, help="how many; '' for none")
    parser.add_argument("--bytes", type=_amounts, default=_BYTES, help="how many; '' for none")
    options = parser.parse_args()
    makers: dict[str, tuple[list[int], Make]] = {
        "files": (options.files, lambda top, n: make_files(top, n, f"tiny {n}", _TINY)),
        "bytes": (options.bytes, lambda top, n: make_random(top, n, f"curve {n}")),
    }
    for unit, (amounts, make) in makers.items():
        scaled = [round(amount * options.scale) for amount in amounts]
        costs = {amount: _measured(options.work, make, amount) for amount in scaled}
        if costs:
            print(_table(unit, costs), flush=True)
    return 0


def _amounts(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _measured(work: Path, make: Make, amount: int) -> dict[str, Cost]:
    """What each step costs with so much to back up."""
    shutil.rmtree(work, ignore_errors=True)
    tree, restored, log = work / "tree", work / "restored", work / "log"
    tool = Packnback(work)
    tree.mkdir()
    restored.mkdir()
    make(tree, amount)
    for command in tool.prepare():
        tool.output(command)
    costs: dict[str, Cost] = {}

    def measure(step: str, command: list[str]) -> None:
        costs[step] = run(command, tool.environment, work, log)

    measure("first", tool.backup(tree, "s0"))
    measure("unchanged", tool.backup(tree, "s1"))
    measure("restore", tool.restore("s1", restored))
    measure("check data", tool.check_data())
    shutil.rmtree(work)
    return costs


def _table(unit: str, costs: dict[int, dict[str, Cost]]) -> str:
    amounts = list(costs)
    heads = [f"{amount:,} {unit}" for amount in amounts]
    lines = [f"| CPU s, peak MiB | {' | '.join(heads)} | times for {amounts[-1] / amounts[0]:g} times the {unit} |"]
    lines.append("|---" * (len(amounts) + 2) + "|")
    for step in STEPS:
        here = [costs[amount][step] for amount in amounts]
        cells = [f"{cost.cpu:.2f} s, {cost.peak >> 20} MiB" for cost in here]
        lines.append(f"| {step} | {' | '.join(cells)} | {here[-1].cpu / here[0].cpu:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
