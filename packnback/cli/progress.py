"""Progress on stderr: a bar on a terminal, JSON lines for programs (``--progress json``), else only notes.

The engine calls from any of its threads and often; what is shown is brought up to date at most ten times a second.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from packnback.cli.output import escaped

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_INTERVAL_S = 0.1


class Notes:
    """Shows notes only: for pipes, cron and ``-q``, where nobody watches."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def begin(self, phase: str, total: int | None, unit: str) -> None:
        """Nothing to show."""

    def advance(self, amount: int) -> None:
        """Nothing to show."""

    def note(self, message: str) -> None:
        """A line on stderr, unless quiet."""
        if not self._quiet:
            self.complain(message)

    def complain(self, message: str) -> None:
        """A line on stderr that even ``-q`` does not silence."""
        print(f"packnback: {escaped(message)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to end."""


class Bar:
    """A bar with rate and time left, drawn by rich, which is imported when the first phase begins."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown: RichProgress | None = None
        self._task: TaskID | None = None
        self._pending = 0
        self._drawn_at = 0.0

    def begin(self, phase: str, total: int | None, unit: str) -> None:
        """Draw a new bar for the phase in place of the last one."""
        with self._lock:
            self._end()
            self._shown = _drawing(unit)
            self._task = self._shown.add_task(escaped(phase), total=total)
            self._shown.start()

    def advance(self, amount: int) -> None:
        """Move the bar."""
        with self._lock:
            self._pending += amount
            now = time.monotonic()
            if now - self._drawn_at >= _INTERVAL_S:
                self._drawn_at = now
                self._draw()

    def note(self, message: str) -> None:
        """A line above the bar."""
        text = f"packnback: {escaped(message)}"
        with self._lock:
            if self._shown is None:
                print(text, file=sys.stderr, flush=True)
            else:
                self._shown.console.print(text, markup=False, highlight=False, soft_wrap=True)

    complain = note

    def close(self) -> None:
        """Remove the bar."""
        with self._lock:
            self._end()

    def _draw(self) -> None:
        if self._shown is not None and self._task is not None:
            self._shown.advance(self._task, self._pending)
            self._pending = 0

    def _end(self) -> None:
        if self._shown is not None:
            self._draw()
            self._shown.stop()
        self._shown, self._task, self._pending = None, None, 0


def _drawing(unit: str) -> RichProgress:
    from rich import progress
    from rich.console import Console

    # Phase and unit may come from a far machine: neither is rich's markup, nor a template.
    columns: list[Any] = [progress.TextColumn("{task.description}", markup=False), progress.BarColumn()]
    if unit == "bytes":
        columns += [progress.DownloadColumn(binary_units=True), progress.TransferSpeedColumn()]
    else:
        columns += [progress.MofNCompleteColumn(), progress.TextColumn(_literal(unit), markup=False)]
    columns += [progress.TimeElapsedColumn(), progress.TimeRemainingColumn()]
    return progress.Progress(*columns, console=Console(stderr=True), transient=True)


def _literal(text: str) -> str:
    """A template of `str.format` that gives `text`."""
    return escaped(text).replace("{", "{{").replace("}", "}}")


class JsonLines:
    """One JSON object per line: ``begin`` with phase, total and unit; ``advance`` with done; ``note``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase = ""
        self._done = 0
        self._written_at = 0.0

    def begin(self, phase: str, total: int | None, unit: str) -> None:
        """``{"event": "begin", "phase", "total", "unit"}``."""
        with self._lock:
            self._end()
            self._phase, self._done = phase, 0
            _write_line({"event": "begin", "phase": phase, "total": total, "unit": unit})

    def advance(self, amount: int) -> None:
        """``{"event": "advance", "phase", "done"}``, at most ten times a second."""
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if now - self._written_at >= _INTERVAL_S:
                self._written_at = now
                _write_line({"event": "advance", "phase": self._phase, "done": self._done})

    def note(self, message: str) -> None:
        """``{"event": "note", "message"}``."""
        with self._lock:
            _write_line({"event": "note", "message": message})

    complain = note

    def close(self) -> None:
        """The last phase ends."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._phase:
            _write_line({"event": "end", "phase": self._phase, "done": self._done})
        self._phase = ""


def _write_line(value: dict[str, Any]) -> None:
    print(json.dumps(value), file=sys.stderr, flush=True)


Reporter = Notes | Bar | JsonLines


def reporter(mode: str, *, quiet: bool) -> Reporter:
    """What shows progress; `mode` is ``auto``, ``json`` or ``none``."""
    if mode == "json":
        return JsonLines()
    if mode == "auto" and not quiet and sys.stderr.isatty():
        return Bar()
    return Notes(quiet=quiet)
