"""What a client elsewhere adds: one session, behind everything that keeps a hostile client in its bounds.

What is sent is checked by `LocalSession`; here stand the limits that need to know more than a record: the quota of
the client, room on the disk, the number of its sessions. A put that failed makes the whole session fail, as its
answer is only given with that of the next request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct

from packnback.errors import DiskFull, NotAllowed, PacknbackError, QuotaExceeded, SnapshotDamage
from packnback.format import rows, snapshot
from packnback.format.snapshot import KeptHeader
from packnback.ids import KIB, MIB
from packnback.remote.slots import Slots
from packnback.store import layout
from packnback.store.index import ReadTxn
from packnback.store.interface import Committed, Head
from packnback.store.objects import pack_row
from packnback.store.repository import LocalRepository
from packnback.store.session import LocalSession

ROOM_KEPT = 256 * MIB
"""No client fills the disk further than this, so that its owner can still forget and compact."""
BLOCK = 4 * KIB
"""What a file takes on a disk is a multiple of this, as a rule."""
HEADER_KEPT = 1 * KIB
"""What a header that is kept takes, in its batch and in the index."""
_RECOUNT_EVERY = 256 * MIB
"""Bytes published after which a quota is counted anew, as other sessions of the client count too."""


class Bounds(Struct, frozen=True):
    """What a server was told about the client that it is for."""

    client: str | None = None
    """The only client that is served, by name."""
    epoch_min: int = 1
    quota: int | None = None
    """Bytes on disk that the packs and snapshots of a client may take, dead or alive."""


class Intake:
    """One open session; see the module's docstring. `room` tells the free bytes on the repository's disk."""

    def __init__(
        self,
        repository: LocalRepository,
        session: LocalSession,
        client_id: bytes,
        bounds: Bounds,
        room: Callable[[], int],
    ) -> None:
        self._repository = repository
        self._session = session
        self._client_id = client_id
        self.quota = bounds.quota
        self._room = room
        self._failure: PacknbackError | None = None
        self._counted_at = 0
        self._counted = self._count()

    # --- limits ---------------------------------------------------------------------------------------------

    def _count(self) -> int:
        """Bytes on disk that the client's records in published packs take, its snapshot files, and its headers."""
        self._counted_at = self._session.bytes_published
        with self._repository.ports.index.read() as txn:
            return sum(part(txn, self._client_id) for part in (_pack_bytes, _snapshot_bytes, _header_bytes))

    @property
    def used(self) -> int:
        """Bytes that count against the quota, those not yet published included."""
        since = self._session.bytes_published - self._counted_at
        return self._counted + since + self._session.bytes_pending

    def _admit(self, length: int) -> None:
        if self._room() < ROOM_KEPT + self._session.bytes_pending + length:
            raise DiskFull(self._repository.location)
        if self.quota is None:
            return
        published = self._session.bytes_published - self._counted_at
        if published >= _RECOUNT_EVERY or self.used + length > self.quota:
            self._counted = self._count()
        if self.used + length > self.quota:
            raise QuotaExceeded(self.used, self.quota)

    # --- requests -------------------------------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        """One record. Raises nothing: the next request does."""
        if self._failure is not None:
            return
        try:
            self._admit(len(data))
            self._session.put([data])
        except PacknbackError as error:
            self._failure = error

    def has(self, ids: Sequence[bytes]) -> list[bool]:
        """See `interface.Session.has`."""
        self._check()
        return self._session.has(ids)

    def flush(self) -> int:
        """See `interface.Session.flush`; bytes published by this session."""
        self._check()
        self._session.flush()
        return self._session.bytes_published

    def commit(self, data: bytes) -> tuple[Committed, int]:
        """See `interface.Session.commit`; and bytes published by this session."""
        self._check()
        self._admit(len(data))
        committed = self._session.commit(data)
        return committed, self._session.bytes_published

    def head(self) -> tuple[Head, KeptHeader] | None:
        """The client's head, and what proves to the client that it has signed it."""
        self._check()
        head = self._session.head()
        if head is None:
            return None
        return head, _signed(self._repository, self._client_id, head)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


def _pack_bytes(txn: ReadTxn, client_id: bytes) -> int:
    """The client's share of each pack with records of it.

    Footers and envelopes count with the records: a pack of one record of 81 bytes is twenty times as large, and a
    footer repeats all refs.
    """
    total = 0
    for key, value in txn.scan("usage", client_id):
        pack = pack_row(txn, rows.split_usage_key(key)[1])
        total += _on_disk(pack.size * rows.decode_usage(key, value) // max(1, pack.record_bytes))
    return total


def _snapshot_bytes(txn: ReadTxn, client_id: bytes) -> int:
    decoded = (rows.decode_snapshot(key, value) for key, value in txn.scan("snapshots", client_id.hex().encode()))
    return sum(_on_disk(row.size) for row in decoded if row.status == rows.GOOD)


def _header_bytes(txn: ReadTxn, client_id: bytes) -> int:
    """Headers of released snapshots are kept for ever."""
    return HEADER_KEPT * sum(1 for _ in txn.scan("released", client_id))


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _signed(repository: LocalRepository, client_id: bytes, head: Head) -> KeptHeader:
    """The signed header of a head, from its snapshot file or, if it was released, from its batch."""
    blobs = repository.ports.blobs
    name = snapshot.snapshot_name(client_id, head.sequence)
    with repository.ports.index.read() as txn:
        prefix = rows.released_key(client_id, head.sequence, b"")
        batches = [rows.split_released_key(key)[2].hex() for key, _ in txn.scan("released", prefix)]
    for batch in batches:
        for kept in snapshot.decode_batch(blobs.read(f"{layout.HEADERS}/{batch}")):
            if kept.id == head.id:
                return kept
    file = snapshot.decode_file(repository.read_snapshot(name))
    if file.id != head.id:
        raise SnapshotDamage(head.id.hex(), "another one stands in its place")
    return KeptHeader(file.header_bytes, file.signature, file.certificate, b"")


@contextmanager
def open_intake(
    repository: LocalRepository,
    certificate: bytes,
    wait_s: float,
    bounds: Bounds,
    room: Callable[[], int],
    slots: Slots,
) -> Iterator[Intake]:
    """Open a session for the client of a certificate, if the bounds let it. A slot is kept beyond its end.

    Raises NotAllowed, Refused (``sessions``), and what `LocalRepository.session` raises.
    """
    client = repository.identify(certificate)
    if bounds.client is not None and client.name != bounds.client:
        raise NotAllowed("put", "another client")
    if client.epoch < bounds.epoch_min:
        raise NotAllowed("put", "epoch lower than before")
    slots.take(client.client_id)
    with repository.session(certificate, wait_s, remote=True) as session:
        yield Intake(repository, session, client.client_id, bounds, room)
