"""Tables of what was measured: medians, and how much faster packnback is than the best of the others.

``python -m bench.report results.jsonl`` prints them as Markdown.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_OURS = "packnback"
_QUIET = 0.3
"""Processors that others may use while a result still counts as undisturbed."""

Row = dict[str, Any]


def report(results: Path) -> str:
    """Markdown: for each corpus and scale a table of times, one of CPU, memory and sizes of repositories."""
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    parts = []
    for corpus, scale in _ordered((row["corpus"], row["scale"]) for row in rows):
        here = [row for row in rows if (row["corpus"], row["scale"]) == (corpus, scale)]
        parts.append(f"### {corpus}" + ("" if scale == 1 else f", at {scale:g} of its size"))
        parts.append(_times(here))
        parts.append(_table("CPU seconds", here, lambda row: row["user"] + row["system"], "{:.2f}"))
        parts.append(_table("peak memory, MiB", here, lambda row: row["peak"] / (1 << 20), "{:.0f}"))
        parts.append(_table("repository afterwards, MB", here, lambda row: row["repository"] / 1e6, "{:.1f}"))
    return "\n\n".join(parts) + "\n"


def _times(rows: list[Row]) -> str:
    """Seconds, and the ratio to the best peer; ``~`` marks what others disturbed."""
    tools, steps = _tools(rows), _ordered(row["step"] for row in rows)
    lines = [_line(["seconds", *tools, "times as fast as the best"]), _rule(len(tools) + 2)]
    for step in steps:
        here, quiet = _comparable(rows, step)
        medians = {tool: _median(here, tool, lambda row: row["wall"]) for tool in tools}
        ours, best = medians.get(_OURS), min((m for t, m in medians.items() if m and t != _OURS), default=None)
        ratio = f"{best / ours:.2f}" if ours and best else ""
        cells = [_shown(medians[tool], "{:.2f}") for tool in tools]
        lines.append(_line([step if quiet else f"{step} ~", *cells, ratio]))
    return "\n".join(lines)


def _table(title: str, rows: list[Row], value: Callable[[Row], float], form: str) -> str:
    tools, steps = _tools(rows), _ordered(row["step"] for row in rows)
    lines = [_line([title, *tools]), _rule(len(tools) + 1)]
    for step in steps:
        here, _ = _comparable(rows, step)
        lines.append(_line([step, *(_shown(_median(here, tool, value), form) for tool in tools)]))
    return "\n".join(lines)


def _comparable(rows: list[Row], step: str) -> tuple[list[Row], bool]:
    """The undisturbed results of a step if every tool has one, else all of them; and which it is."""
    found = [row for row in rows if row["step"] == step]
    quiet = [row for row in found if row["others"] <= _QUIET]
    if {row["tool"] for row in quiet} == {row["tool"] for row in found}:
        return quiet, True
    return found, False


def _median(rows: list[Row], tool: str, value: Callable[[Row], float]) -> float | None:
    found = [value(row) for row in rows if row["tool"] == tool]
    return statistics.median(found) if found else None


def _tools(rows: list[Row]) -> list[str]:
    return sorted({row["tool"] for row in rows}, key=lambda tool: (tool != _OURS, tool))


def _ordered(values: Iterable[Any]) -> list[Any]:
    """Different values, in the order in which they come first."""
    return list(dict.fromkeys(values))


def _shown(number: float | None, form: str) -> str:
    return "" if number is None else form.format(number)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return "|---" + "|---:" * (columns - 1) + "|"


if __name__ == "__main__":
    print(report(Path(sys.argv[1])), end="")
