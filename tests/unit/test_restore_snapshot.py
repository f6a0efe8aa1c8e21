"""Which snapshot is meant, whether it is what was signed, and whether one is missing."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from snapshot_builder import OWNER, Client

from packnback import errors
from packnback.crypto.sign import sign_snapshot
from packnback.format import snapshot as format_snapshot
from packnback.format.config import Config
from packnback.format.snapshot import PARTIAL, decode_file
from packnback.restore.objects import ObjectReader
from packnback.restore.snapshot import Snapshot, open_snapshot, resolve
from packnback.store.interface import SnapshotInfo


@pytest.fixture
def client() -> Client:
    return Client()


def opened(client: Client, info: SnapshotInfo, key: object = OWNER) -> Snapshot:
    with ObjectReader(client.repository, key) as reader:  # type: ignore[arg-type]
        return open_snapshot(reader, info)


def commit(client: Client, **more: object) -> SnapshotInfo:
    return client.commit(client.listing({b"": []}), **more)  # type: ignore[arg-type]


def test_a_snapshot_opens_with_every_key_that_reads(client: Client) -> None:
    info = commit(client)
    for key in (OWNER, OWNER.restore_key(), OWNER.list_key()):
        found = opened(client, info, key)
        assert found.header.root == info.root
        assert found.metadata.host == "host"


def test_every_flipped_byte_of_a_snapshot_file_is_noticed(client: Client) -> None:
    info = commit(client)
    raw = client.repository.files[info.name]
    receipt_at = len(raw) - format_snapshot.RECEIPT_LEN
    for at in [*range(500), *range(500, receipt_at, 37)]:
        client.repository.files[info.name] = raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]
        with pytest.raises((errors.SnapshotDamage, errors.WrongOwner, errors.EnvelopeRejected)):
            opened(client, info)


@pytest.mark.parametrize("field", ["id", "client_id", "sequence", "root", "prev", "partial", "client"])
def test_a_repository_that_lies_about_a_snapshot_is_caught(client: Client, field: str) -> None:
    info = commit(client)
    lies = {"sequence": 7, "partial": True, "client": "mallory"}
    lie = replace(info, **{field: lies.get(field, b"\1" * len(getattr(info, field)) if field not in lies else 0)})
    with pytest.raises(errors.SnapshotDamage):
        opened(client, lie)


def test_a_snapshot_signed_by_another_client_key_is_refused(client: Client) -> None:
    info = commit(client)
    file = decode_file(client.repository.files[info.name])
    forged = replace(file, signature=sign_snapshot(OWNER.put_key("mallory").sign_seed, file.header_bytes))
    client.repository.files[info.name] = format_snapshot.encode_file(forged)
    with pytest.raises(errors.SnapshotDamage) as caught:
        opened(client, info)
    assert "signature" in caught.value.why


def test_a_snapshot_of_another_repository_is_refused(client: Client) -> None:
    info = commit(client)
    client.repository.config = Config(b"another id of 16", OWNER.bundle.raw)
    with pytest.raises(errors.SnapshotDamage):
        opened(client, info)


def test_words(client: Client) -> None:
    bob = Client(client.repository, "bob")
    first, second, other = commit(client), commit(client), commit(bob)
    partial = commit(client, flags=PARTIAL)
    forgotten = commit(bob, forgotten_ns=5)
    infos = client.repository.snapshots()
    assert resolve("latest", infos) == other
    assert resolve("latest:alice", infos) == second
    assert resolve("latest:bob", infos) == other
    for info in (first, partial, forgotten):
        assert resolve(info.id.hex(), infos) == info
        assert resolve(info.id.hex()[:12].upper(), infos) == info
    for word in ("", "abc", first.id.hex()[:3], "zzzz", "latest:carol", "latest:", "0" * 64, first.id.hex() + "0"):
        with pytest.raises(errors.SnapshotUnknown):
            resolve(word, infos)
    twin = replace(second, id=first.id[:5] + bytes(27))
    with pytest.raises(errors.SnapshotAmbiguous) as caught:
        resolve(first.id.hex()[:8], [first, twin])
    assert len(caught.value.candidates) == 2


def test_latest_without_any_snapshot(client: Client) -> None:
    with pytest.raises(errors.SnapshotUnknown) as caught:
        resolve("latest", [])
    assert caught.value.unfinished is None
    commit(client, flags=PARTIAL)
    for word, unfinished in (("latest", 1), ("latest:alice", 1), ("latest:bob", None)):
        with pytest.raises(errors.SnapshotUnknown) as caught:
            resolve(word, client.repository.snapshots())
        assert caught.value.unfinished == unfinished
