"""A session that keeps everything in memory and insists on the rules of the interface.

Every record is parsed and its checksum verified; an envelope stands before the first record that names it, and
what a record refers to before the record. The calls are logged, for tests that ask what a repository can see.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from packnback.crypto.certificate import parse_certificate
from packnback.crypto.envelope import OpenedEnvelope, open_envelope
from packnback.crypto.envelope_layout import parse_envelope
from packnback.crypto.keys import Reader
from packnback.crypto.reader import open_object
from packnback.errors import ObjectMissing, StaleSequence
from packnback.format.record import Record, parse
from packnback.format.snapshot import SnapshotFile, decode_file, snapshot_name
from packnback.ids import Kind, class_of
from packnback.store.interface import Committed, Head


class MemorySession:
    """Implements `packnback.store.interface.Session`."""

    def __init__(self) -> None:
        self.records: dict[bytes, Record] = {}
        """Objects by id, in the order in which they were put."""
        self.envelopes: dict[bytes, bytes] = {}
        """Envelope bytes by envelope id."""
        self.asked: list[list[bytes]] = []
        """The ids of each call of `has`."""
        self.put_again: list[bytes] = []
        """Ids that were put although they were there."""
        self.snapshots: dict[str, SnapshotFile] = {}
        self.durable: set[bytes] = set()
        self.flushes = 0
        self.bytes_put = 0
        self._busy = threading.Lock()

    def has(self, ids: Sequence[bytes]) -> list[bool]:
        with self._alone():
            self.asked.append(list(ids))
            return [i in self.records for i in ids]

    def put(self, records: Iterable[bytes]) -> None:
        with self._alone():
            for data in records:
                self._put_one(data)

    def _put_one(self, data: bytes) -> None:
        record = parse(data)
        assert record.length == len(data), "trailing bytes"
        self.bytes_put += len(data)
        if record.kind == Kind.ENVELOPE:
            self.envelopes[record.envelope_id] = bytes(record.body)
            return
        envelope = parse_envelope(self.envelopes[record.envelope_id])
        assert envelope.object_class == class_of(record.kind), "envelope of the other class"
        assert record.id[:8] == envelope.domain_id[:8], "tag of another domain"
        for ref in record.ref_list:
            if ref not in self.records:
                raise ObjectMissing(ref, record.id.hex())
        levels = [self.records[ref].level for ref in record.ref_list]
        expected = 1 + max(levels) if levels else (0 if record.kind == Kind.DATA else 1)
        assert record.level == expected, f"level {record.level} instead of {expected}"
        if record.id in self.records:
            self.put_again.append(record.id)
        else:
            self.records[record.id] = record

    def abandon(self) -> None:
        """Nobody waits here."""

    def flush(self) -> None:
        with self._alone():
            self.flushes += 1
            self.durable |= set(self.records)

    def head(self) -> Head | None:
        if not self.snapshots:
            return None
        newest = max(self.snapshots.values(), key=lambda s: s.header.sequence)
        return Head(newest.header.sequence, newest.id, newest.header.time_ns, newest.header.epoch)

    def commit(self, snapshot: bytes) -> Committed:
        self.flush()
        parsed = decode_file(snapshot, receipt=False)
        if parsed.header.root not in self.records:
            raise ObjectMissing(parsed.header.root, parsed.id.hex())
        certificate = parse_certificate(parsed.certificate)
        name = snapshot_name(certificate.client_id, parsed.header.sequence)
        head = self.head()
        if name in self.snapshots and self.snapshots[name].id != parsed.id:
            raise StaleSequence(parsed.header.sequence, head.sequence if head else 0)
        self.snapshots[name] = parsed
        return Committed(name, parsed.id, parsed.header.time_ns)

    @property
    def bytes_published(self) -> int:
        return self.bytes_put

    def _alone(self) -> threading.Lock:
        assert not self._busy.locked(), "two threads use the session at once"
        return self._busy


class MemoryReader:
    """Opens what a MemorySession holds, with an owner, restore or list key; every check of a real reader."""

    def __init__(self, session: MemorySession, reader: Reader) -> None:
        self._session = session
        self._reader = reader
        self._opened: dict[bytes, OpenedEnvelope] = {}

    def read(self, object_id: bytes) -> bytes:
        """The plaintext of an object."""
        return self.open(self._session.records[object_id])

    def open(self, record: Record) -> bytes:
        """The plaintext of a record."""
        opened = self._opened.get(record.envelope_id)
        if opened is None:
            opened = open_envelope(self._session.envelopes[record.envelope_id], self._reader)
            self._opened[record.envelope_id] = opened
        return open_object(opened, record.id, record.kind, record.header, record.refs, record.body)
