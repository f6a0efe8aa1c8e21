"""What a commit asks of the index: the newest receipt and the head of the client, whatever the history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from simindex import SimIndex, SimReadTxn
from smallclient import OWNER, SmallClient

from packnback.format import rows
from packnback.format.snapshot import KeptHeader, Receipt, decode_file, encode_receipt
from packnback.gc.compact import CompactOptions, compact
from packnback.gc.forget import forget
from packnback.store import catalog
from packnback.store.check import index_difference
from packnback.store.index import WriteTxn
from packnback.store.local import create_local
from packnback.store.reconcile import reconcile
from packnback.store.refcount import Ledger
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
            return catalog.newest(txn).counter

        return index.write(body)

    assert top_after("adopt", first, 7) == 7
    assert top_after("adopt", second, 3, 5) == 7
    assert top_after("adopt", third, 9, 2) == 9
    assert top_after("drop", third) == 7
    assert top_after("drop", first) == 5
    assert top_after("drop", second) == 0
    with index.read() as txn:
        assert txn.get("meta", catalog.RELEASED_TOP) is None, "as in an index that never heard of any"


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
        assert catalog.newest(txn).counter == 5
    assert len(looked_at) == 1


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
