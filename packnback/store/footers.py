"""Footers of packs, as whoever reads one pack again and again keeps a few of them."""

from __future__ import annotations

from collections import OrderedDict

from packnback.errors import PackDamage
from packnback.events import Counters
from packnback.format.pack import MAGIC, Footer
from packnback.store import adoption, layout
from packnback.store.blobs import BlobStore


class Footers:
    """The footers of `kept` packs, those that were asked for last."""

    def __init__(self, blobs: BlobStore, counters: Counters, kept: int) -> None:
        self._blobs = blobs
        self._counters = counters
        self._kept = kept
        self._known: OrderedDict[bytes, Footer] = OrderedDict()

    def of(self, pack: bytes) -> Footer:
        """The footer of a pack (by its name, 32 bytes) whose magic was looked at, too: readers refuse one without it.

        Raises PackDamage, UnsupportedVersion, BlobMissing, Unreadable.
        """
        known = self._known.get(pack)
        if known is not None:
            self._known.move_to_end(pack)
            return known
        if self._blobs.read(layout.pack_path(pack.hex()), 0, len(MAGIC)) != MAGIC:
            raise PackDamage(pack.hex(), "magic", 0)
        _, footer = adoption.read_footer(self._blobs, pack, self._counters)
        self._known[pack] = footer
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
        return footer
