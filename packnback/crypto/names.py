"""Names of clients and groups: what may be certified, shown on terminals, and compared byte for byte."""

from __future__ import annotations

import unicodedata

from packnback import errors

NAME_LIMIT = 255
"""Longest name, in bytes of UTF-8."""

_FORBIDDEN = {"Cc", "Cs", "Zl", "Zp"}


def encode_name(name: str) -> bytes:
    """The UTF-8 of a valid name; nothing is normalised. Raises UsageError saying which rule is broken."""
    problem = _problem(name)
    if problem is not None:
        raise errors.UsageError(f"the name {name!r} {problem}")
    return name.encode()


def decode_name(raw: bytes) -> str:
    """The name in a certificate. Raises FormatDamage if no such name would have been certified."""
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise errors.FormatDamage("name", "is not UTF-8") from error
    problem = _problem(name)
    if problem is not None:
        raise errors.FormatDamage("name", problem)
    return name


def _problem(name: str) -> str | None:
    if not name:
        return "is empty"
    if any(unicodedata.category(character) in _FORBIDDEN for character in name):
        return "has control characters"
    if len(name.encode()) > NAME_LIMIT:
        return f"is longer than {NAME_LIMIT} bytes"
    return None
