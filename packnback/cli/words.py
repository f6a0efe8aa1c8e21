"""Errors become words here, and nowhere else: for each class a message, a hint on what to do, an exit code.

The branch of the error tree decides the exit code. Every class has an entry in the table of `phrases`; a test walks
the tree and complains about one that has none.
"""

from __future__ import annotations

import re
from typing import Any

from packnback import errors
from packnback.cli.phrases import WRITERS, Words
from packnback.errors import PacknbackError

DONE = 0
FAILED = 1
USAGE = 2
INCOMPLETE = 3
DAMAGED = 4
KEY = 5
LOCKED = 6
NOT_ALLOWED = 7
INTERRUPTED = 130

_EXIT_CODES: dict[type[PacknbackError], int] = {
    errors.Failed: FAILED,
    errors.UsageError: USAGE,
    errors.Damage: DAMAGED,
    errors.KeyProblem: KEY,
    errors.Locked: LOCKED,
    errors.NotAllowed: NOT_ALLOWED,
}


def exit_code(error: PacknbackError) -> int:
    """The exit code of an error, by its branch of the tree."""
    return next((code for branch, code in _EXIT_CODES.items() if isinstance(error, branch)), FAILED)


def kind(error: PacknbackError) -> str:
    """The stable word for an error's class: ``NotARepository`` → ``not-a-repository``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", type(error).__name__).lower()


def words(error: PacknbackError) -> Words:
    """The message and hint for an error of any class."""
    write = WRITERS.get(type(error))
    return write(error) if write else Words(str(error))


def reason(error: PacknbackError) -> str:
    """The message alone, as the reason why something could not be had."""
    return words(error).message


def as_json(error: PacknbackError, hint: str | None = None) -> dict[str, Any]:
    """``{"error": {"kind", "message", "hint"?, …facts}}``; `hint` is a better one than the error's own."""
    told = words(error)
    document: dict[str, Any] = {"kind": kind(error), "message": told.message}
    if hint or told.hint:
        document["hint"] = hint or told.hint
    for name, value in error.facts().items():
        document.setdefault(name, _plain(value))
    return {"error": document}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
