"""The progress port: what the engine tells whoever watches, and the counters that tests assert on.

The engine never prints. It adds to one `Counters` record and calls a `Progress`; the command line draws
a bar from it, tests read the counters, and everybody else passes `SILENT`.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct, field
from msgspec.structs import asdict


class Counters(Struct):
    """Work done, in plain numbers. Assert on these instead of on time."""

    packs_listed: int = 0
    footers_read: int = 0
    records_read: int = 0
    files_opened: int = 0
    bytes_hashed: int = 0
    fsyncs: int = 0
    round_trips: int = 0
    objects_marked: int = 0

    def as_dict(self) -> dict[str, int]:
        """All counters by name."""
        return asdict(self)


class Progress(Protocol):
    """Where a long operation is. Called from any thread, often; implementations throttle themselves."""

    def begin(self, phase: str, total: int | None, unit: str) -> None:
        """A phase starts. `total` is None when it cannot be known; `unit` is ``bytes``, a plural noun, or empty."""

    def advance(self, amount: int) -> None:
        """`amount` more units of the current phase are done."""

    def note(self, message: str) -> None:
        """Something that a person should see (a file that could not be read, a clock that is off)."""


class _Silent:
    def begin(self, phase: str, total: int | None, unit: str) -> None:
        """Tells nobody."""

    def advance(self, amount: int) -> None:
        """Tells nobody."""

    def note(self, message: str) -> None:
        """Tells nobody."""


SILENT: Progress = _Silent()


class Watch(Struct):
    """What is passed down: the counters, and somebody to tell."""

    counters: Counters = field(default_factory=Counters)
    progress: Progress = SILENT
