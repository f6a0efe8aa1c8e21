"""Temporary files that the operating system refuses: said in the tree's terms, and with the directory's name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from packnback.oserrors import failure


@contextmanager
def temporary(operation: str) -> Iterator[None]:
    """Around the use of temporary files for `operation`.

    Raises DiskFull or StorageFailed where the operating system raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise failure(operation, _directory(), error) from error


def _directory() -> str:
    """Where temporary files go, or were to go: it may be that no directory would have them."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return os.environ.get("TMPDIR") or "/tmp"
