"""The truth: the names in the directories, of which the index is a view, and what is needed to judge the files.

A name that somebody else left there (`layout.is_foreign`) is no part of it.
"""

from __future__ import annotations

from msgspec import Struct, field

from packnback.events import Watch
from packnback.store import layout
from packnback.store.blobs import BlobStore

DIRECTORY_OF = {
    "snapshots": layout.SNAPSHOTS,
    "markers": layout.FORGOTTEN,
    "batches": layout.HEADERS,
    "condemned": layout.CONDEMNED,
}
"""By the index's table of them, the directories of all files but packs."""


class Truth(Struct, frozen=True):
    """What is needed to judge files without keys: where they are, and who their owner is."""

    blobs: BlobStore
    repository_id: bytes
    owner_bundle: bytes
    watch: Watch


class Names(Struct):
    """The names that make up the truth, as the index knows them or as the directories hold them."""

    packs: set[bytes] = field(default_factory=set)
    others: dict[str, set[str]] = field(default_factory=dict)
    """By index table: ``snapshots``, ``markers``, ``batches``, ``condemned``."""

    def minus(self, other: Names) -> Names:
        """The names that `other` does not have."""
        return Names(self.packs - other.packs, {t: names - other.others[t] for t, names in self.others.items()})

    def __bool__(self) -> bool:
        return bool(self.packs) or any(self.others.values())


def names_in(truth: Truth, directory: str) -> set[str]:
    """The names in a directory, as the index knows them, without those that are nobody's business here."""
    return {layout.known_as(name) for name in truth.blobs.list(directory) if not layout.is_foreign(name)}


def listed_names(truth: Truth) -> Names:
    """The names that the directories hold: everything else first, packs last."""
    others = {table: names_in(truth, directory) for table, directory in DIRECTORY_OF.items()}
    packs = set()
    for directory in layout.PACK_DIRECTORIES:
        for name in truth.blobs.list(directory):
            stem = layout.pack_name(directory, name)
            if stem is not None:
                packs.add(stem)
    truth.watch.counters.packs_listed += len(packs)
    return Names(packs, others)
