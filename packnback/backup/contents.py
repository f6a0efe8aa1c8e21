"""Small files by their contents: where in which bundle each of them lies.

A file that was moved or copied, or whose directory is not remembered, is read, and found to be stored already.

Before a bundle is pointed to, the repository is asked for it; and with it for those that were made around the same
time, since files that once lay together are likely to be asked for together. So a moved tree costs a question for
every hundred bundles or so, and none that tells which one was meant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from packnback.backup.ahead import Presence
from packnback.backup.cache import BUNDLES, CONTENTS, Cache
from packnback.backup.cache_rows import CONTENT_LEN, ContentRow, Rows, number_key
from packnback.backup.spool import BundledContent, Spool
from packnback.backup.ticket import Ticket
from packnback.format.entry import Extent
from packnback.recent import Recent

_ASK_BEHIND, _ASK_AHEAD = 16, 112
_SIZES_LIMIT = 1 << 15


class Contents:
    """Looks contents up, and notes new ones."""

    def __init__(self, cache: Cache, rows: Rows, presence: Presence, spool: Spool) -> None:
        self._cache = cache
        self._rows = rows
        self._presence = presence
        self._spool = spool
        self._coming: deque[tuple[Ticket, int, Sequence[tuple[bytes, int, int]]]] = deque()
        self._sizes = Recent[bytes, int](_SIZES_LIMIT)
        """Of bundles."""
        with cache.reading() as txn:
            self.is_empty = txn.count(CONTENTS) == 0
            """Whether no earlier run left any."""

    def find(self, content_hash: bytes) -> Extent | None:
        """See `reuse.Reuse.content`."""
        key = content_hash[:CONTENT_LEN]
        with self._cache.reading() as txn:
            row = self._rows.read_content(key, txn.get(CONTENTS, key))
        if row is None:
            return None
        if self._presence.lately(row.bundle) is None:
            self._ask_around(row)
        if not self._presence.lately(row.bundle):
            return None
        self._sizes.note(row.bundle, row.size)
        return Extent(row.bundle, row.offset, row.length)

    def bundled(self, ticket: Ticket, size: int, contents: Sequence[tuple[bytes, int, int]]) -> None:
        """See `reuse.Reuse.bundled`."""
        self._coming.append((ticket, size, contents))
        self.settle()

    def settle(self) -> None:
        """Note the bundles whose ids are known by now."""
        while self._coming and self._coming[0][0].id is not None:
            ticket, size, contents = self._coming.popleft()
            bundle = ticket.wait()
            placed: list[BundledContent] = [
                (content_hash[:CONTENT_LEN], start + ticket.shift, length) for content_hash, start, length in contents
            ]
            self._spool.bundle(bundle, size, placed)
            self._sizes.note(bundle, size)

    def size_of(self, bundle: bytes) -> int:
        """The size of a bundle that was made or found lately; 0 if it is not known."""
        return self._sizes.get(bundle) or 0

    def _ask_around(self, row: ContentRow) -> None:
        first = max(row.number - _ASK_BEHIND, 0)
        ids = {row.bundle}
        with self._cache.reading() as txn:
            for key, value in txn.scan(BUNDLES, number_key(first)):
                bundle = self._rows.read_bundle(key, value)
                if bundle is not None:
                    ids.add(bundle[0])
                if len(ids) > _ASK_BEHIND + _ASK_AHEAD:
                    break
        self._presence.missing(self._presence.ask(ids), ())
