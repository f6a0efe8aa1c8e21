"""Publishing a snapshot: the last steps of a backup, in the order that makes a crash between any two harmless.

1. Look at the head, with the client's state locked, and judge it.
2. Seal the metadata, write the header that continues the head, sign it.
3. Store the intent, synced.
4. Commit: the repository makes everything durable and publishes the snapshot file. This is the commit point.
5. Store the acknowledgement.

If the number was taken meanwhile, the next head is judged and continued.
"""

from __future__ import annotations

import time
from contextlib import suppress

from blake3 import blake3
from msgspec import Struct

from packnback.backup.sealing import Sealer
from packnback.backup.state import START, Chain, Verdict, check
from packnback.backup.tree import Root
from packnback.crypto.keys import PutKey
from packnback.crypto.sign import sign_snapshot
from packnback.errors import StaleSequence
from packnback.format import metadata as metadata_format
from packnback.format.metadata import Metadata
from packnback.format.snapshot import (
    PARTIAL,
    STATE_LOST,
    Header,
    SnapshotFile,
    encode_file,
    encode_header,
)
from packnback.ids import Kind
from packnback.store.interface import Head, Session

_SUBJECT_LEN = 16
ATTEMPTS = 5
"""How often a number may be taken by somebody else before that is an error."""


class Published(Struct, frozen=True):
    """A snapshot that is in the repository."""

    id: bytes
    sequence: int
    received_ns: int
    found: Verdict
    """What the head meant that it continues."""
    continued: Head | None
    other_subject: bool = False
    """Whether the snapshot before, from here, was of other paths. Retention counts them together."""


class Publisher:
    """Signs and commits snapshots of one client in one repository."""

    def __init__(self, session: Session, chain: Chain, put_key: PutKey, repository_id: bytes, sealer: Sealer) -> None:
        self._session = session
        self._chain = chain
        self._put_key = put_key
        self._repository_id = repository_id
        self._sealer = sealer

    def publish(self, root: Root, metadata: Metadata, *, partial: bool = False) -> Published:
        """Publish a snapshot of `root`, all of whose objects have been put. `partial` marks a checkpoint.

        Raises ChainAlarm, or StaleSequence when others keep taking the number.
        """
        flags = PARTIAL if partial else 0
        with self._chain.locked():
            for _ in range(ATTEMPTS - 1):
                with suppress(StaleSequence):
                    return self._publish(root, metadata, flags)
            return self._publish(root, metadata, flags)

    def _publish(self, root: Root, metadata: Metadata, flags: int) -> Published:
        head = self._session.head()
        state = self._chain.load()
        verdict = check(head, state, self._put_key.name)
        if verdict is Verdict.REINSTALLED or (state is not None and state.lost):
            flags |= STATE_LOST
        sequence, prev = (head.sequence, head.id) if head is not None else START
        sequence += 1
        snapshot = self._sign(root, metadata, sequence, prev, flags)
        self._chain.intend(head, (sequence, snapshot.id))
        committed = self._session.commit(encode_file(snapshot))
        subject = blake3(b"\0".join(metadata.paths)).digest(_SUBJECT_LEN)
        self._chain.acknowledge((sequence, snapshot.id), subject)
        other = state is not None and state.subject not in (b"", subject)
        return Published(snapshot.id, sequence, committed.received_ns, verdict, head, other)

    def _sign(self, root: Root, metadata: Metadata, sequence: int, prev: bytes, flags: int) -> SnapshotFile:
        key = self._put_key
        plaintext = metadata_format.encode((key.client_id, sequence, prev, root.id), metadata)
        _, sealed = self._sealer.record(Kind.METADATA, root.level + 1, [root.id], plaintext)
        header = Header(
            flags=flags,
            repository_id=self._repository_id,
            client_id=key.client_id,
            domain_id=key.domain_id,
            epoch=key.epoch,
            sequence=sequence,
            prev=prev,
            root=root.id,
            metadata_hash=blake3(sealed.record).digest(),
            time_ns=time.time_ns(),
            certificate_hash=key.certificate.hash,
        )
        raw = encode_header(header)
        return SnapshotFile(
            header=header,
            header_bytes=raw,
            signature=sign_snapshot(key.sign_seed, raw),
            certificate=key.certificate.raw,
            envelope_record=sealed.envelope.record,
            metadata_record=bytes(sealed.record),
            receipt=None,
        )
