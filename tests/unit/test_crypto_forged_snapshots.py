"""Snapshots that a repository makes up from genuine parts, and what keeps a reader from believing them.

Each forgery is in order but for one thing: hashes fit, signatures hold under the key that the certificate names, and
what the repository says of the snapshot is what stands in it.
"""

from __future__ import annotations

import pytest
from blake3 import blake3
from msgspec.structs import replace
from snapshot_builder import OWNER, REPOSITORY_ID, Client

from packnback import errors
from packnback.crypto.certificate import Certificate, issue
from packnback.crypto.keys import OwnerKey, PutKey
from packnback.crypto.sign import sign_snapshot
from packnback.format import metadata, record, snapshot
from packnback.ids import Kind, ObjectClass
from packnback.restore.objects import ObjectReader
from packnback.restore.snapshot import Snapshot, open_snapshot
from packnback.store.interface import SnapshotInfo


def forge(
    client: Client,
    root: bytes,
    *,
    named: PutKey | None = None,
    signer: PutKey | None = None,
    certificate: Certificate | None = None,
    bound_to: tuple[bytes, int, bytes, bytes] | None = None,
    sealer: Client | None = None,
) -> SnapshotInfo:
    """A first snapshot of `client`. Without any of the options it is genuine."""
    named, signer, sealer = named or client.key, signer or client.key, sealer or client
    certificate = certificate or signer.certificate
    plaintext = metadata.encode(
        bound_to or (named.client_id, 1, bytes(32), root), metadata.Metadata("host", (b"/home",), 1)
    )
    _, sealed = sealer.seal(Kind.METADATA, 10, [root], plaintext)
    header = snapshot.Header(
        0, REPOSITORY_ID, named.client_id, named.domain_id, named.epoch, 1, bytes(32), root,
        blake3(sealed).digest(), 1_700_000_000_000_000_000, certificate.hash,
    )  # fmt: skip
    raw = snapshot.encode_header(header)
    envelope = bytes(record.envelope_record(sealer.sealers[ObjectClass.META][0]))
    receipt = snapshot.Receipt(1, 1, 0)
    file = snapshot.SnapshotFile(
        header, raw, sign_snapshot(signer.sign_seed, raw), certificate.raw, envelope, sealed, receipt
    )
    name = snapshot.snapshot_name(named.client_id, 1)
    client.repository.files[name] = snapshot.encode_file(file)
    return SnapshotInfo(
        name, file.id, named.client_id, certificate.name, named.domain_id, named.epoch, 1, bytes(32), root,
        header.time_ns, receipt, False, None, True, len(client.repository.files[name]),
    )  # fmt: skip


def opened(client: Client, info: SnapshotInfo) -> Snapshot:
    with ObjectReader(client.repository, OWNER) as reader:
        return open_snapshot(reader, info)


@pytest.fixture
def client() -> Client:
    return Client(name="alice", group="farm")


@pytest.fixture
def root(client: Client) -> bytes:
    return client.listing({b"": []})


@pytest.fixture
def bob(client: Client) -> Client:
    return Client(client.repository, "bob", group="farm")


def refused(client: Client, info: SnapshotInfo, why: str) -> None:
    with pytest.raises(errors.SnapshotDamage) as caught:
        opened(client, info)
    assert why in caught.value.why


def test_the_forger_can_make_a_genuine_one(client: Client, root: bytes) -> None:
    assert opened(client, forge(client, root)).header.root == root


def test_a_certificate_by_somebody_who_calls_himself_the_owner(client: Client, root: bytes) -> None:
    """A server that made its own certifying key: everything in the certificate is right, but for who signed it."""
    mallory = OwnerKey(b"m" * 32)
    own = mallory.put_key("alice")
    certificate = issue(
        mallory._derive("certify ed25519"),
        owner_id=OWNER.owner_id,
        client_id=client.key.client_id,
        domain_id=client.key.domain_id,
        epoch=client.key.epoch,
        verify_key=own.certificate.verify_key,
        name="alice",
    )
    signer = replace(own, certificate=certificate)
    refused(client, forge(client, root, signer=signer), "certificate: the signature does not hold")


def test_a_certificate_of_another_owner(client: Client, root: bytes) -> None:
    with pytest.raises(errors.WrongOwner):
        opened(client, forge(client, root, signer=OwnerKey(b"m" * 32).put_key("alice", group="farm")))


def test_a_header_in_the_name_of_another_member(client: Client, bob: Client, root: bytes) -> None:
    """Bob's stolen key signs, under Bob's certificate, what is said to be Alice's."""
    refused(client, forge(client, root, signer=bob.key), "certificate is for another")


def test_a_header_of_another_epoch(client: Client, root: bytes) -> None:
    older = replace(OWNER.put_key("alice", 2, "farm"), id_key=client.key.id_key)
    refused(client, forge(client, root, signer=older), "certificate is for another")


@pytest.mark.parametrize("part", range(4), ids=["client", "sequence", "prev", "root"])
def test_metadata_that_was_sealed_for_another_header(client: Client, root: bytes, part: int) -> None:
    """The sealed part of one snapshot in the file of another: tags, times and users would be those of the other."""
    genuine = [client.key.client_id, 1, bytes(32), root]
    genuine[part] = 2 if part == 1 else b"\5" * len(genuine[part])  # type: ignore[arg-type]
    refused(client, forge(client, root, bound_to=tuple(genuine)), "bound to another header")  # type: ignore[arg-type]


def test_metadata_in_the_envelope_of_another_member(client: Client, bob: Client, root: bytes) -> None:
    """The id keys of a group are the same, so only the envelope tells whose metadata it is."""
    refused(client, forge(client, root, sealer=bob), "envelope is of another client")
