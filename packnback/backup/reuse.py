"""What a backup may take over from an earlier one: the seam where a cache plugs in.

The walk shows each part to a `Reuse`, which answers with a `Visit`: either the whole part is unchanged and its
blocks are known, or single files are, or nothing is. A run without memory uses `NOTHING`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from packnback.backup.tree import Block
from packnback.backup.walk import Part
from packnback.format.entry import Entry


class Visit(Protocol):
    """What is known of one part."""

    @property
    def blocks(self) -> Sequence[Block] | None:
        """All of it, if the part is unchanged and every object in it is in the repository."""

    def file(self, name: bytes, status: os.stat_result) -> Entry | None:
        """The entry of one regular file, if it is unchanged and its objects are in the repository."""

    def stored(self, blocks: Sequence[Block]) -> None:
        """The part was read without error, from files that held still: it now has these blocks.

        Their objects are on their way to the repository, but not durable before the session is flushed.
        """


class Reuse(Protocol):
    """Memory of earlier runs."""

    def visit(self, part: Part) -> Visit:
        """What is known of `part`, whose descriptor and children are not to be kept."""


class _Nothing:
    """Remembers nothing; its own only visit."""

    blocks = None

    def visit(self, part: Part) -> Visit:
        """Nothing."""
        return self

    def file(self, name: bytes, status: os.stat_result) -> Entry | None:
        """Nothing."""
        return None

    def stored(self, blocks: Sequence[Block]) -> None:
        """Forgets them."""


NOTHING: Reuse = _Nothing()
