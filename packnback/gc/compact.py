"""Compaction: release what has expired, then give back the space, without being able to read a byte."""

from __future__ import annotations

from packnback.gc.compaction import Compacted, CompactOptions
from packnback.gc.condemn import compact_in_two_steps
from packnback.gc.exclusive import compact_alone
from packnback.store.repository import LocalRepository


def compact(repository: LocalRepository, options: CompactOptions) -> Compacted:
    """Run a compaction, at once where the lock keeps everybody out, else in two steps.

    Raises Locked, ClockRefused, DamageBlocks; DiskFull after all that can be done on a full disk.
    """
    how = compact_alone if repository.ports.fenced else compact_in_two_steps
    return how(repository, options)
