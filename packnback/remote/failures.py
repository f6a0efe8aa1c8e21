"""Errors across the wire: a class from the error tree by its name, and its facts, nothing else.

What arrives was written by somebody else. Only classes of `packnback.errors` are made of it, only those that
can arise at the other end, and only with facts of the right types; everything else becomes ProtocolViolation.
"""

from __future__ import annotations

from typing import Any

from packnback import errors
from packnback.errors import PacknbackError, ProtocolViolation, RemoteFailed

_TEXT_LIMIT = 4096
_LIST_LIMIT = 256
_ITEM_LIMIT = 512

_TOLD: tuple[type[PacknbackError], ...] = (
    errors.NotARepository,
    errors.UnsupportedVersion,
    errors.DiskFull,
    errors.StorageFailed,
    errors.Unreadable,
    errors.BlobMissing,
    errors.Poisoned,
    errors.SnapshotUnknown,
    errors.ClockRefused,
    errors.Refused,
    errors.StaleSequence,
    errors.ClientTimeRefused,
    errors.QuotaExceeded,
    errors.RemoteFailed,
    errors.RemoteVersion,
    errors.ProtocolViolation,
    errors.FormatDamage,
    errors.PackDamage,
    errors.ObjectMissing,
    errors.ObjectDamage,
    errors.SnapshotDamage,
    errors.ConfigDamage,
    errors.DamageBlocks,
    errors.IndexDamage,
    errors.WrongOwner,
    errors.EnvelopeRejected,
    errors.Locked,
    errors.NotAllowed,
)
_BY_NAME = {cls.__name__: cls for cls in _TOLD}

_REDACTED = {"path": "the repository", "holder": "another process", "location": "the repository"}
"""Facts about the far machine that are none of a client's business."""

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bytes": (bytes,),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
}


def tell(error: PacknbackError, *, redact: bool) -> tuple[str, dict[str, Any]]:
    """(class name, facts) of an error, to be sent. With `redact`, without paths and processes.

    A class that is not meant to cross the wire is told as an internal error.
    """
    name = type(error).__name__
    if name not in _BY_NAME:
        return "RemoteFailed", {"host": "", "why": "internal", "detail": name}
    facts = {key: _shortened(value) for key, value in error.facts().items()}
    if redact:
        facts = {key: _REDACTED.get(key, value) for key, value in facts.items()}
    return name, facts


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value[:_TEXT_LIMIT].encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_shortened(str(item)[:_ITEM_LIMIT]) for item in value[:_LIST_LIMIT]]
    return value


def understand(name: str, facts: dict[str, Any], host: str) -> PacknbackError:
    """The error that the other end told. `host` is where it came from."""
    cls = _BY_NAME.get(name)
    if cls is None:
        return ProtocolViolation("error", f"unknown class {name[:100]!r}")
    declared = cls.DECLARED
    for key, value in facts.items():
        if key not in declared or not _fits(value, declared[key]):
            return ProtocolViolation("error", f"{name} with a wrong {key[:100]!r}")
    try:
        error = cls(**facts)
    except TypeError:
        return ProtocolViolation("error", f"{name} without some of its facts")
    if isinstance(error, RemoteFailed):
        error.host, error.address = host, None  # where it is, the other end does not say
    return error


def _fits(value: object, declared: str) -> bool:
    if declared == "list[str]":
        return type(value) is list and all(type(item) is str for item in value) and len(value) <= _LIST_LIMIT
    return type(value) in _TYPES[declared]
