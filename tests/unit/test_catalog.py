"""What a commit asks of the index: the newest receipt and the head of the client, whatever the history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from msgspec.structs import replace
from simindex import SimIndex, SimReadTxn
from smallclient import OWNER, SmallClient

from packnback.format import rows, snapshot
from packnback.format.snapshot import (
    COUNTER_MAX,
    Header,
    KeptHeader,
    Receipt,
    decode_file,
    encode_receipt,
    snapshot_name,
)
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.forget import forget
from packnback.store import catalog
from packnback.store.check import index_difference
from packnback.store.index import WriteTxn
from packnback.store.ledger import Ledger
from packnback.store.local import create_local
from packnback.store.receipts import derive_newest, newest_receipt
from packnback.store.reconcile import reconcile
from packnback.store.repository import LocalRepository


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


def back_up(repository: LocalRepository, client: SmallClient, text: bytes) -> None:
    with repository.session(client.certificate) as session:
        client.backup(session, {"file": text})


def kept_header(repository: LocalRepository) -> KeptHeader:
    [info] = repository.snapshots()
    file = decode_file(repository.read_snapshot(info.name))
    return KeptHeader(file.header_bytes, file.signature, file.certificate, encode_receipt(file.receipt))


HEADER = Header(0, bytes(16), b"client id of 16B", bytes(16), 1, 1, bytes(32), bytes(32), bytes(32), 0, bytes(32))


def with_counter(kept: KeptHeader, counter: int) -> KeptHeader:
    return KeptHeader(kept.header, kept.signature, kept.certificate, encode_receipt(Receipt(1, counter, 1)))


def test_the_highest_counter_follows_the_batches(repository: LocalRepository) -> None:
    back_up(repository, SmallClient(repository.config.repository_id), b"text")
    kept, index = kept_header(repository), SimIndex(run_twice=True)
    first, second, third = (bytes([n]).hex() * 32 for n in range(3))

    def top_after(change: str, name: str, *counters: int) -> int:
        def body(txn: WriteTxn) -> int:
            ledger = Ledger(txn)
            if change == "adopt":
                ledger.adopt_batch(name, [with_counter(kept, counter) for counter in counters])
            else:
                ledger.drop_batch(name)
            ledger.settle()
            return newest_receipt(txn).counter

        return index.write(body)

    assert top_after("adopt", first, 7) == 7
    assert top_after("adopt", second, 3, 5) == 7
    assert top_after("adopt", third, 9, 2) == 9
    assert top_after("drop", third) == 7
    assert top_after("drop", first) == 5
    assert top_after("drop", second) == 0
    with index.read() as txn:
        assert [key for key, _ in txn.scan("meta")] == [b"next pack"], "as in an index that never heard of any"


def test_counters_go_on_when_everything_older_is_released(repository: LocalRepository) -> None:
    clients = [SmallClient(repository.config.repository_id, name) for name in ("web1", "web2")]
    for turn in range(3):
        for client in clients:
            back_up(repository, client, b"%d" % turn)
    forget(repository, [info.name for info in repository.snapshots()], force=True)
    compact(repository, CompactOptions(grace_ns=0, force=True))
    assert repository.snapshots() == []
    with repository.ports.scratch_index() as fresh:
        reconcile(repository.truth, fresh)
        assert index_difference(repository.ports.index, fresh) is None
    back_up(repository, clients[1], b"after")
    [info] = repository.snapshots()
    assert (info.receipt.counter, info.sequence) == (7, 4)


def test_a_commit_looks_at_no_kept_header_but_its_clients_last(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = SmallClient(repository.config.repository_id)
    for turn in range(5):
        back_up(repository, client, b"%d" % turn)
    forget(repository, [info.name for info in repository.snapshots()][:-1], force=True)
    compact(repository, CompactOptions(grace_ns=0, force=True))
    index = SimIndex()
    reconcile(repository.truth, index)
    looked_at: list[bytes] = []
    scan = SimReadTxn.scan

    def counting(
        self: SimReadTxn, table: str, prefix: bytes = b"", start: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        for key, value in scan(self, table, prefix, start):
            if table == "released":
                looked_at.append(key)
            yield key, value

    monkeypatch.setattr(SimReadTxn, "scan", counting)
    with index.read() as txn:
        assert txn.count("released") == 4
        head = catalog.head(txn, client.key.client_id)
        assert head is not None and head.sequence == 5
        assert newest_receipt(txn).counter == 5
    assert len(looked_at) == 1


def test_the_last_counter_that_there_is_stops_nobody(repository: LocalRepository) -> None:
    client, other = (SmallClient(repository.config.repository_id, name) for name in ("web1", "web2"))
    back_up(repository, client, b"text")
    [info] = repository.snapshots()
    path = Path(repository.location, "snapshots", info.name)
    file = path.read_bytes()
    receipt = Receipt(info.receipt.time_ns, COUNTER_MAX, 0, self_stamped=True)
    path.unlink()
    with repository.reading():
        assert repository.snapshots() == []
    path.write_bytes(file[: -len(encode_receipt(receipt))] + encode_receipt(receipt))
    for turn in range(2):
        back_up(repository, other, b"%d" % turn)
    assert {info.receipt.counter for info in repository.snapshots()} == {COUNTER_MAX}
    assert len(repository.snapshots()) == 3


def test_the_head_is_the_newest_good_snapshot_or_header(repository: LocalRepository) -> None:
    client = SmallClient(repository.config.repository_id)
    for turn in range(3):
        back_up(repository, client, b"%d" % turn)
    index = SimIndex()
    reconcile(repository.truth, index)
    names = [info.name for info in repository.snapshots()]

    def damage(txn: WriteTxn, name: str) -> None:
        key = name.encode()
        txn.put("snapshots", key, rows.encode_snapshot(key, rows.SnapshotRow(rows.DAMAGED, reason="test")))

    for left in (2, 1, 0):
        index.write(lambda txn, left=left: damage(txn, names[left]))  # type: ignore[misc]
        with index.read() as txn:
            head = catalog.head(txn, client.key.client_id)
        assert (head.sequence if head else 0) == left


@given(seed=st.integers(0, 2**64 - 1), steps=st.integers(1, 25))
def test_the_newest_receipt_is_what_a_look_at_all_of_them_tells(seed: int, steps: int) -> None:
    """Snapshots and header batches come and go, counters and times in no order, as files do that others write."""
    note(f"seed {seed}, {steps} steps")
    random, index = Random(seed), SimIndex()
    header = snapshot.encode_header(HEADER)
    names: list[str] = []
    batches: list[str] = []

    def receipt() -> Receipt:
        return Receipt(random.randrange(-3, 9), random.randrange(1, 9), 0)

    def step(ledger: Ledger) -> None:
        choice = random.randrange(6)
        if choice < 2:
            sequence = random.randrange(4)
            name = snapshot_name(HEADER.client_id, sequence)
            status = random.choice((rows.GOOD, rows.GOOD, rows.DAMAGED))
            row = rows.SnapshotRow(status, sequence.to_bytes(32, "big"), HEADER.client_id, sequence=sequence)
            ledger.adopt_snapshot(name, replace(row, receipt=receipt()))
            names.append(name)
        elif choice == 2 and names:
            ledger.drop_snapshot(random.choice(names))
        elif choice == 3:
            batches.append(random.randbytes(32).hex())
            kept = KeptHeader(header, bytes(64), b"", encode_receipt(receipt()))
            ledger.adopt_batch(batches[-1], [kept] * random.randrange(1, 3))
        elif choice == 4 and batches:
            ledger.drop_batch(random.choice(batches))
            ledger.recount()
        else:
            ledger.recount()

    def body(txn: WriteTxn) -> None:
        ledger = Ledger(txn)
        for _ in range(random.randrange(1, 4)):
            step(ledger)
        ledger.settle()
        assert newest_receipt(txn) == derive_newest(txn)

    for _ in range(steps):
        index.write(body)
