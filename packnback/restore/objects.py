"""Opening objects: from what a repository hands over to plaintext whose id was verified.

Here format and crypto meet: the record is parsed, its envelope opened with the reader's key, the body decrypted,
decompressed and compared with its id, always. A repository is not believed in anything: not that it answers
every question, not that it answers only what was asked.

One rule holds the tree together: an object refers only to objects of its own domain. With the root's domain
checked against the signed header (`snapshot`), every object below belongs to the snapshot's domain.

Decryption and decompression run in worker threads (the libraries release the GIL there), while a thread of its own
reads ahead and the caller's consumes; see `ahead`.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from msgspec import Struct

from packnback import errors
from packnback.crypto.envelope import OpenedEnvelope, open_envelope
from packnback.crypto.keys import Reader
from packnback.crypto.reader import open_object
from packnback.format import record
from packnback.ids import MIB, TAG_LEN, Kind, ObjectClass
from packnback.restore.ahead import ReadAhead
from packnback.store.interface import Fetched, Repository

ENVELOPES_KEPT = 4096
"""Opened envelopes remembered; at about 64 MiB each they cover a large repository in 6 MiB."""
SEALED_LIMIT = 16 * MIB
"""Sealed bytes under way at one time."""
AT_ONCE = 2
"""So few objects are opened by the caller's thread itself: cheaper than to hand them over."""
CACHE_LIMIT = 24 * MIB
"""Plaintext of listing objects kept for the next question."""


class Opened(Struct, frozen=True):
    """An object whose plaintext matches its id, or the `problem` that kept it from being opened."""

    id: bytes
    kind: int = 0
    refs: bytes = b""
    plaintext: bytes = b""
    problem: errors.PacknbackError | None = None


class ObjectReader:
    """Opens the objects of one repository with one key.

    `open_many` and `open_fetched` may be called in any thread, and at the same time; the rest in one.

    Raises WrongOwner at once if the repository belongs to somebody else's key.
    """

    def __init__(self, repository: Repository, key: Reader, *, workers: int | None = None) -> None:
        owner_id = repository.config.owner_id
        if key.owner_id != owner_id:
            raise errors.WrongOwner(key_owner=key.owner_id.hex(), repository_owner=owner_id.hex())
        self.repository = repository
        self.key = key
        self._workers = workers or min(4, len(os.sched_getaffinity(0)))
        self._pool: ThreadPoolExecutor | None = None
        self._envelopes: OrderedDict[bytes, OpenedEnvelope] = OrderedDict()
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, Opened] = OrderedDict()
        self._cached_bytes = 0

    def __enter__(self) -> ObjectReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the worker threads go. The repository stays open: it belongs to the caller."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def require(self, object_class: ObjectClass) -> None:
        """Raise KeyCannot unless the key opens objects of this class: asked once, before work begins."""
        self.key.secrets_of(object_class)

    def envelope(self, raw: bytes) -> OpenedEnvelope:
        """The opened envelope. Raises EnvelopeRejected, WrongOwner or KeyCannot."""
        with self._lock:
            if (known := self._envelopes.get(raw)) is not None:
                self._envelopes.move_to_end(raw)
                return known
        opened = open_envelope(raw, self.key, repository_id=self.repository.config.repository_id)
        with self._lock:
            self._envelopes[raw] = opened
            if len(self._envelopes) > ENVELOPES_KEPT:
                self._envelopes.popitem(last=False)
        return opened

    def holds(self, object_id: bytes) -> bool:
        """Whether a listing object is remembered, and need not be read."""
        with self._lock:
            return object_id in self._cache

    def open_many(self, ids: Sequence[bytes]) -> Iterator[Opened]:
        """Each of the (different) ids once, in the order in which the repository reads them.

        One bad object is one Opened with a problem; the others are not affected.
        """
        missing = set(ids)
        source = self._asked(self.repository.fetch(ids, checked=False), missing)
        if len(missing) <= AT_ONCE:
            for fetched in source:
                yield self._open_somehow(fetched)
        else:
            yield from self._open_ahead(source)
        for object_id in sorted(missing):
            yield Opened(object_id, problem=errors.ObjectMissing(object_id))

    def _open_ahead(self, source: Iterator[Fetched]) -> Iterator[Opened]:
        pool = self._threads()

        def submit(fetched: Fetched) -> Future[Opened]:
            return pool.submit(self._open_somehow, fetched)

        ahead = ReadAhead(
            source, submit, _sealed_size, count_limit=2 * self._workers + 2, bytes_limit=SEALED_LIMIT
        )
        try:
            yield from ahead
        finally:
            ahead.close()

    def _open_somehow(self, fetched: Fetched) -> Opened:
        """The object that came unchecked; if it does not open, the one at another place, or what is wrong with it."""
        opened = self.open_fetched(fetched)
        if opened.problem is None or fetched.problem is not None:
            return opened
        # To its end: other threads ask again, too, and a repository elsewhere has few streams open at a time.
        again = list(self._asked(self.repository.fetch([fetched.id]), {fetched.id}))
        return self.open_fetched(again[0]) if again else opened

    @staticmethod
    def _asked(source: Iterator[Fetched], missing: set[bytes]) -> Iterator[Fetched]:
        """What was asked for, the first time that it comes. Takes out of `missing` what it passes on."""
        for fetched in source:
            if fetched.id in missing:
                missing.discard(fetched.id)
                yield fetched

    def open_fetched(self, fetched: Fetched) -> Opened:
        """The object that a repository handed over. Safe in any thread."""
        if fetched.problem is not None:
            return Opened(fetched.id, problem=fetched.problem)
        try:
            return self._open(fetched)
        except errors.FormatDamage as damage:
            return Opened(fetched.id, problem=errors.ObjectDamage(fetched.id, f"{damage.what}: {damage.why}"))
        except errors.PacknbackError as problem:
            return Opened(fetched.id, problem=problem)

    def listing_object(self, object_id: bytes, kind: Kind) -> Opened:
        """One object of a listing, from memory if it was read lately. Raises its problem.

        Raises ObjectDamage if it is not of the `kind` that its parent says it is.
        """
        opened = self._cache.get(object_id)
        if opened is None:
            opened = next(iter(self.open_many([object_id])))
            self._remember(opened)
        else:
            self._cache.move_to_end(object_id)
        if opened.problem is not None:
            raise opened.problem
        if opened.kind != kind:
            raise errors.ObjectDamage(object_id, f"is of kind {opened.kind} where {int(kind)} belongs")
        return opened

    def prefetch(self, ids: Sequence[bytes]) -> None:
        """Read what will be asked of `listing_object` next, in one go: a few pages or tables."""
        wanted = [object_id for object_id in dict.fromkeys(ids) if object_id not in self._cache]
        if len(wanted) > 1:
            for opened in self.open_many(wanted):
                self._remember(opened)

    def _open(self, fetched: Fetched) -> Opened:
        # No checksum here: the tag of the body covers the header and the refs as well.
        parsed = record.parse(fetched.record, checksum=False)
        if parsed.id != fetched.id:
            raise errors.ObjectDamage(fetched.id, "another object stands in its place")
        envelope = self.envelope(fetched.envelope)
        if envelope.facts.id != parsed.envelope_id:
            raise errors.ObjectDamage(fetched.id, "came with an envelope that is not its own")
        plaintext = open_object(envelope, parsed.id, parsed.kind, parsed.header, parsed.refs, parsed.body)
        tag = parsed.id[:TAG_LEN]
        if any(not ref.startswith(tag) for ref in parsed.ref_list):
            raise errors.ObjectDamage(fetched.id, "refers to an object of another domain")
        return Opened(parsed.id, parsed.kind, parsed.refs, plaintext)

    def _remember(self, opened: Opened) -> None:
        before = self._cache.pop(opened.id, None)
        self._cache[opened.id] = opened
        self._cached_bytes += len(opened.plaintext) - (len(before.plaintext) if before is not None else 0)
        while self._cached_bytes > CACHE_LIMIT and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= len(dropped.plaintext)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="open")
            return self._pool


def _sealed_size(fetched: Fetched) -> int:
    return len(fetched.record)
