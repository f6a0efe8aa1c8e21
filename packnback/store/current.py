"""The index as one writer knows it: the one that he has brought up to the directories, and no other.

The index is a view. Somebody may throw it away and make it anew under us, and it may turn out to be damaged; neither
is a reason to stop. What was about to be read or written is then read or written once more, after everything was
derived from the directories again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from packnback.errors import IndexDamage
from packnback.store.index import Index, ReadTxn, WriteTxn
from packnback.store.reconcile import reconcile
from packnback.store.truth import Truth

T = TypeVar("T")


class IndexReplaced(Exception):
    """The index was thrown away and made anew while we worked: catch up, then run the transaction again."""


class Current:
    """Reads and writes the index that was up to date when this was made, or when it caught up last.

    The caller holds the lock, shared. `on_change` is called whenever what is known of the index has become worthless.
    """

    def __init__(self, truth: Truth, index: Index, on_change: Callable[[], None]) -> None:
        self._truth = truth
        self._index = index
        self._on_change = on_change
        self._generation = index.generation

    def read(self, body: Callable[[ReadTxn], T]) -> T:
        """Run `body`, not on an index that somebody has just made anew, but after catching up.

        On a damaged one, after everything was derived anew; once, as a disk or a memory that is going bad damages
        the next one, too: then IndexDamage is raised.
        """
        mended = False
        while True:
            try:
                with self._index.read() as txn:
                    if self._index.generation == self._generation:
                        return body(txn)
            except IndexDamage:
                if mended:
                    raise
                self._index.discard()
                mended = True
            self.catch_up()

    def write(self, body: Callable[[WriteTxn], T]) -> T:
        """Run `body`, see `Index.write`; on a damaged index once more, after everything was derived anew.

        It may be another index than the one we know: what relies on that one calls `demand_same`.
        """
        try:
            return self._index.write(body)
        except IndexDamage:
            self._index.discard()
            self.catch_up()
            return self._index.write(body)

    def demand_same(self) -> None:
        """In a transaction: raise IndexReplaced unless it is on the index that we know."""
        if self._index.generation != self._generation:
            raise IndexReplaced

    def catch_up(self) -> None:
        """Bring the index up to the directories."""
        self._generation = self._index.generation
        self._on_change()
        reconcile(self._truth, self._index)
