"""What a snapshot has to be before it is published, and the receipt that it gets. Decides, and changes nothing."""

from __future__ import annotations

from msgspec import Struct

from packnback.crypto.envelope_layout import EnvelopeFacts, parse_envelope
from packnback.errors import (
    ClientTimeRefused,
    ClockRefused,
    NotAllowed,
    ObjectMissing,
    Refused,
    StaleSequence,
)
from packnback.format import record as record_format
from packnback.format.snapshot import COUNTER_MAX, Header, Receipt, SnapshotFile
from packnback.ids import Kind, ObjectClass
from packnback.store import adoption, catalog
from packnback.store.index import ReadTxn
from packnback.store.objects import is_complete, lookup
from packnback.store.receipts import newest_receipt
from packnback.store.truth import Truth

CLOCK_BACKWARDS_NS = 15 * 60 * 10**9
"""A clock may be this much behind the newest receipt."""
CLIENT_CLOCK_NS = 15 * 60 * 10**9
"""The clock of a client elsewhere may be this much ahead of the repository's, or behind it."""


class ClientIdentity(Struct, frozen=True):
    """Who writes: the facts of a verified certificate."""

    name: str
    client_id: bytes
    domain_id: bytes
    epoch: int
    owner_id: bytes


def is_of(truth: Truth, client: ClientIdentity, facts: EnvelopeFacts) -> bool:
    """Whether an envelope was made for this repository and its owner, by this client in this epoch."""
    found = (facts.repository_id, facts.owner_id, facts.client_id, facts.domain_id, facts.epoch)
    return found == (truth.repository_id, client.owner_id, client.client_id, client.domain_id, client.epoch)


def check_identity(truth: Truth, client: ClientIdentity, name: str, file: SnapshotFile) -> None:
    """The certificate, the signature, and that everything in the file is of one client, this one.

    Raises NotAllowed, and what `adoption.check_snapshot` raises.
    """
    certified = adoption.check_snapshot(name, file, truth.repository_id, truth.owner_bundle)
    named = (certified, file.header.client_id, file.header.domain_id, file.header.epoch)
    if named != (client.name, client.client_id, client.domain_id, client.epoch):
        raise NotAllowed("commit", "another client's snapshot")
    facts = parse_envelope(bytes(record_format.parse(file.envelope_record).body))
    if not is_of(truth, client, facts):
        raise NotAllowed("commit", "envelope of another repository, owner, client, domain or epoch")
    if facts.object_class != ObjectClass.META:
        raise NotAllowed("commit", "envelope of the other class")


def check_client_time(client_ns: int, now_ns: int) -> None:
    """A client elsewhere has about the same time. Raises ClientTimeRefused."""
    if abs(client_ns - now_ns) > CLIENT_CLOCK_NS:
        raise ClientTimeRefused(client_ns, now_ns)


def check_chain(txn: ReadTxn, header: Header) -> None:
    """The snapshot continues its client's chain. Raises StaleSequence, Refused (``chain``), NotAllowed (epoch)."""
    head = catalog.head(txn, header.client_id)
    expected = (head.sequence + 1, head.id) if head else (1, bytes(32))
    if header.sequence < expected[0]:
        raise StaleSequence(header.sequence, expected[0] - 1)
    if (header.sequence, header.prev) != expected:
        raise Refused("chain", f"sequence {header.sequence} does not continue {expected[0] - 1}")
    if head and header.epoch < head.epoch:
        raise NotAllowed("commit", "epoch lower than before")


def check_root(txn: ReadTxn, file: SnapshotFile) -> None:
    """The root is a table, complete, of the client's domain, and on the level that is claimed.

    Raises ObjectMissing, NotAllowed.
    """
    header = file.header
    root = lookup(txn, header.root)
    if root is None or not is_complete(txn, header.root):
        raise ObjectMissing(header.root, file.id.hex())
    metadata = record_format.parse(file.metadata_record, checksum=False)
    if root.kind != Kind.TABLE or metadata.level != root.level + 1 or header.root[:8] != header.domain_id[:8]:
        raise NotAllowed("commit", "root")


def stamp(txn: ReadTxn, now_ns: int, bytes_published: int, *, self_stamped: bool) -> Receipt:
    """The receipt of the next snapshot: not before the newest one. Raises ClockRefused.

    Whoever can write into the directory can make a file with the last counter that there is. From then on all
    receipts carry it, and backups go on: counters only order what is listed.
    """
    newest = newest_receipt(txn)
    newest_ns = newest.received_ns
    if newest_ns is not None and now_ns < newest_ns - CLOCK_BACKWARDS_NS:
        raise ClockRefused(now_ns, newest_ns)
    received_ns = now_ns if newest_ns is None else max(now_ns, newest_ns)
    return Receipt(received_ns, min(newest.counter + 1, COUNTER_MAX), bytes_published, self_stamped)
