"""The repository as backup, restore and the command line see it.

Whether it is a directory (`store.repository`) or the far end of an ssh pipe (`remote.client`) is decided in
the command line; nobody else can tell. Everything that crosses this line is bytes that the format layer
describes, and small frozen values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from msgspec import Struct

from packnback.errors import PacknbackError
from packnback.format.config import Config
from packnback.format.snapshot import Receipt


class SnapshotInfo(Struct, frozen=True):
    """What a repository itself knows of a snapshot, without any key."""

    name: str
    """Its file's name in ``snapshots/``."""
    id: bytes
    client_id: bytes
    client: str
    """The client's name, from the certificate."""
    domain_id: bytes
    epoch: int
    sequence: int
    prev: bytes
    root: bytes
    time_ns: int
    """The client's own time, from the signed header."""
    receipt: Receipt
    partial: bool
    forgotten_ns: int | None
    """Time in the newest marker, or None when live."""
    complete: bool
    """Whether its root and all that the root needs is there."""
    size: int
    """Bytes of the snapshot file."""


class Head(Struct, frozen=True):
    """The newest snapshot of a client, live or released: where its chain goes on."""

    sequence: int
    id: bytes
    received_ns: int
    epoch: int


class Committed(Struct, frozen=True):
    """The answer to a commit. Put clients are told the time, never the repository-wide counter."""

    name: str
    id: bytes
    received_ns: int


class Fetched(Struct, frozen=True):
    """One object on its way to a reader: its whole record and its envelope, or why it cannot be had."""

    id: bytes
    record: memoryview | bytes
    envelope: bytes
    """The 1292 envelope bytes; empty when there is a problem."""
    problem: PacknbackError | None = None


class Session(Protocol):
    """One writer at work: it adds packs and, at the end, a snapshot. Not thread-safe."""

    def has(self, ids: Sequence[bytes]) -> list[bool]:
        """For each id, whether the object *and everything it needs* is there, open packs included."""

    def put(self, records: Iterable[bytes | bytearray]) -> None:
        """Add whole records (format.record), which nobody changes any more. An envelope record comes before the
        first record that needs it.

        What an object needs has been put before it, or is there. Putting what is there already changes
        nothing. Durable only after `flush`.
        """

    def flush(self) -> None:
        """Everything put so far is durable and in the index when this returns."""

    def head(self) -> Head | None:
        """This client's newest snapshot."""

    def commit(self, snapshot: bytes) -> Committed:
        """Flush, then publish the snapshot (format.snapshot without receipt): the commit point.

        Idempotent: the same header gets the stored receipt. Raises StaleSequence when another header has
        the number, Damage when the root is not complete.
        """

    def abandon(self) -> None:
        """Wait for nobody any more: a call that waits in another thread for a far side raises now. For whoever was
        interrupted; nothing can be asked of the session after it.
        """

    @property
    def bytes_published(self) -> int:
        """Bytes of packs and snapshot files that this session has published."""


class Repository(Protocol):
    """A repository, wherever it is."""

    location: str
    """As the user wrote it, resolved: an absolute path or an ssh URL."""
    config: Config

    def session(self, certificate: bytes) -> AbstractContextManager[Session]:
        """Open a session for the client that the certificate names. Holds the lock shared."""

    def snapshots(self) -> list[SnapshotInfo]:
        """Every snapshot that can be read: live, forgotten and partial, oldest receipt first."""

    def read_snapshot(self, name: str) -> bytes:
        """A snapshot file's bytes (with receipt). Raises SnapshotUnknown."""

    def expect_snapshots(self, names: Iterable[str]) -> None:
        """These are about to be read, in this order: a repository that is far away may ask for some ahead."""

    def fetch(self, ids: Sequence[bytes], *, checked: bool = True) -> Iterator[Fetched]:
        """Each object once, in the order in which they are cheapest to read, not in that of `ids`.

        Records are checked against their checksum; every location is tried before a problem is reported
        (ObjectMissing, ObjectDamage), one Fetched per id, never an exception for one of many.

        Whoever opens each record will know without a checksum whether it is whole. With ``checked=False`` a
        repository may leave that to them: they ask again, `checked`, for what does not open.

        May be called in any thread, and again while an earlier answer is still being read.
        """

    def close(self) -> None:
        """Give back locks and handles."""
