"""Many packs for an index that knows none: everything is sorted before it is put down.

Ids are hashes. Rows that are put in the order in which packs are found go each to another page, and with millions of
them every transaction copies nearly the whole table. So the footers of data packs are read, their rows sorted
(`packnback.sorter`) and appended. Objects that need others are a hundredth of all; they are put among them, and what
they need is looked up when everything is there: nothing waits for anything.

All of this is one transaction: in the middle of it objects would seem complete that are not, and others may be at
work on the same index. One that nobody else will ever see is filled step by step, as a transaction keeps in memory
what it has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from packnback.events import Watch
from packnback.format import rows
from packnback.ids import ID_LEN, ObjectClass
from packnback.sorter import Sorter
from packnback.store import adoption
from packnback.store.adoption import FoundPack, PackFacts, pack_facts
from packnback.store.blobs import BlobStore
from packnback.store.ledger import Ledger
from packnback.store.objects import location, lookup
from packnback.store.temporary import temporary

MANY_PACKS = 256
"""Fewer are adopted as they are found: their rows fit into one transaction or a few."""


class SortedPacks:
    """Packs to be adopted, the first one under the number `first`. A context manager.

    Raises DiskFull and StorageFailed when rows cannot be kept where temporary files go, and what `BlobStore` raises.
    """

    def __init__(self, blobs: BlobStore, watch: Watch, names: Sequence[bytes], first: int) -> None:
        self._blobs = blobs
        self._watch = watch
        self._first = first
        self._facts: list[PackFacts] = []
        self._inner: list[bytes] = []
        """Names of packs whose objects need others. Their footers are read again, as refs are what is large."""
        self._objects = Sorter(ID_LEN + rows.OBJECT_LEN)
        try:
            self._read(names)
        except BaseException:
            self._objects.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._objects.close()

    def adopt(self, ledger: Ledger) -> bool:
        """Add all packs. False, and nothing is done, when somebody else has added some meanwhile."""
        if ledger.txn.count("pack_names") or ledger.next_number != self._first:
            return False
        for step in self.steps():
            step(ledger)
        return True

    def steps(self) -> Iterator[Callable[[Ledger], None]]:
        """What adds all packs to an index that knows none, in parts; each may be done more than once.

        Objects are not judged before the last one.
        """
        yield self._adopt_names
        last = b""
        with temporary("sort"):
            for found in self._objects.in_order():
                yield partial(_append, found=found, last=last)
                last = found[-1][:ID_LEN]
        for pack in self._found(self._inner):
            yield partial(_put_inner, pack=pack)
        yield Ledger.recount

    def _adopt_names(self, ledger: Ledger) -> None:
        for facts in self._facts:
            ledger.adopt_name(facts)

    def _read(self, names: Sequence[bytes]) -> None:
        for pack in self._found(names):
            if pack.footer is not None and pack.footer.object_class == ObjectClass.META:
                self._inner.append(pack.name)
                continue
            number = self._first + len(self._facts)
            self._facts.append(pack_facts(pack))
            self._watch.progress.advance(1)
            if pack.footer is not None:
                located = rows.encode_objects((record.id, location(number, record)) for record in pack.footer.records)
                with temporary("sort"):
                    self._objects.add(key + value for key, value in located)

    def _found(self, names: Sequence[bytes]) -> Iterator[FoundPack]:
        return adoption.find_packs(self._blobs, names, self._watch.counters)


def _append(ledger: Ledger, found: list[bytes], last: bytes) -> None:
    """Put rows of objects that need nothing behind those that are there, which end with the id `last`.

    Rows that have an id in common follow each other: the first is appended, the others are copies.
    """
    fresh: list[tuple[bytes, bytes]] = []
    copies: list[tuple[bytes, bytes]] = []
    for row in found:
        object_id = row[:ID_LEN]
        (copies if object_id == last else fresh).append((object_id, row[ID_LEN:]))
        last = object_id
    ledger.txn.append_many("objects", fresh)
    for object_id, value in copies:
        known = lookup(ledger.txn, object_id)
        if known is not None:
            ledger.adopt_copy(object_id, rows.decode_object(object_id, value), b"", known)


def _put_inner(ledger: Ledger, pack: FoundPack) -> None:
    number = ledger.adopt_name(pack_facts(pack))
    if pack.footer is not None:
        ledger.put_inner(number, sorted(pack.footer.records, key=lambda record: record.id))
