"""Condemned packs: what stands in them is still read, and nobody relies on it any more.

Where no lock keeps other machines from working, a pack cannot be deleted at the moment in which it is found to be
superfluous. It is condemned first, by a list in ``condemned/`` that everybody sees, and deleted a day later. In
between everybody follows one rule: *what stands only in condemned packs counts for nothing when somebody asks
whether it still has to be stored* (`packnback.store.distrust`).

Being condemned is for ever: no pack is taken off a list again. What is needed of it is copied into a new pack, by
whoever finds out. So a pack that was once seen to hold nothing that is needed can be deleted at any later time.
"""

from __future__ import annotations

from packnback.format import rows
from packnback.store.index import ReadTxn


def condemned_packs(txn: ReadTxn) -> set[bytes]:
    """The names of all condemned packs, those that have gone already included."""
    return {rows.split_doomed_key(key)[0] for key, _ in txn.scan("doomed")}


def condemned_numbers(txn: ReadTxn) -> set[int]:
    """The numbers of the condemned packs that are there."""
    if not txn.count("doomed"):
        return set()
    numbers = set()
    for name in condemned_packs(txn):
        value = txn.get("pack_names", name)
        if value is not None:
            numbers.add(rows.decode_number(name, value))
    return numbers


def condemned_lists(txn: ReadTxn) -> dict[str, int]:
    """Name → time in ns of every list that can be parsed."""
    decoded = ((rows.name_of("condemned", *row), rows.decode_condemned(*row)) for row in txn.scan("condemned"))
    return {name: time_ns for name, (status, time_ns) in decoded if status == rows.GOOD}
