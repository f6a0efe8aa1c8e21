"""What the constructions must refuse where they meet the repository: cycles, colliding tags; and what groups may do.

The other negative tests stand beside what they are about: envelopes, seals, keys, formats, the wire (`tests/attack`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace
from smallclient import OWNER, SmallClient

from packnback.backup.save import SaveOptions, save
from packnback.crypto.certificate import issue
from packnback.crypto.keys import PutKey
from packnback.errors import FormatDamage, NotAllowed, ObjectMissing
from packnback.format import pack, record
from packnback.ids import KIB, Kind, ObjectClass
from packnback.restore.objects import ObjectReader
from packnback.restore.options import RestoreOptions
from packnback.restore.restore import restore
from packnback.restore.snapshot import open_snapshot
from packnback.store.check import index_difference
from packnback.store.local import create_local, open_local
from packnback.store.reconcile import reconcile
from packnback.store.repository import LocalRepository

FILES = {"a": b"some content", "b": b"other content"}


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


# --- cycles --------------------------------------------------------------------------------------------------


def circle(client: SmallClient, links: dict[bytes, bytes], levels: dict[bytes, int]) -> dict[bytes, bytes]:
    """Records of made-up ids that refer to each other: no honest id does, but nobody without a key can tell."""
    tag, envelope_id = client.key.domain_id[:8], client.envelope(ObjectClass.META)[1]
    made = {}
    for name, target in links.items():
        header = record.encode_header(Kind.EXTENTS, levels[name], 1, 64, tag + name * 24, envelope_id)
        made[tag + name * 24] = record.finish(header, tag + target * 24, bytes(64))
    return made


CIRCLES = pytest.mark.parametrize(
    ("links", "levels"),
    [
        ({b"a": b"a"}, {b"a": 1}),
        ({b"a": b"b", b"b": b"a"}, {b"a": 1, b"b": 2}),
        ({b"a": b"b", b"b": b"a"}, {b"a": 2, b"b": 1}),
        ({b"a": b"b", b"b": b"c", b"c": b"a"}, {b"a": 3, b"b": 2, b"c": 1}),
        ({b"a": b"b", b"b": b"a"}, {b"a": 2, b"b": 2}),
    ],
    ids=["itself", "two", "two, the other way", "three", "two of one level"],
)


@CIRCLES
def test_no_order_of_putting_makes_a_cycle(
    repository: LocalRepository, links: dict[bytes, bytes], levels: dict[bytes, int]
) -> None:
    client = SmallClient(repository.config.repository_id)
    records = circle(client, links, levels)
    with repository.session(client.certificate) as session:
        session.put([client.envelope(ObjectClass.META)[0]])
        for _ in range(3):
            for each in records.values():
                with pytest.raises((ObjectMissing, FormatDamage)):
                    session.put([each])
        session.flush()
        assert session.has(list(records)) == [False] * len(records)


@CIRCLES
def test_a_cycle_within_one_pack_is_never_complete(
    repository: LocalRepository, links: dict[bytes, bytes], levels: dict[bytes, int]
) -> None:
    """Whoever can write to the directory puts a whole pack there, whose footer is in order but for the cycle."""
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        client.backup(session, FILES)
    records = circle(client, links, levels)
    plant(Path(repository.location), client, records)
    with repository.session(client.certificate) as session:
        assert session.has(list(records)) == [False] * len(records)
        for target in records:  # nor does anything that needs it come in
            page = client.seal(Kind.PAGE, [target], b"", 1 + max(levels.values()))
            session.put([client.envelope(ObjectClass.META)[0]])
            with pytest.raises(ObjectMissing):
                session.put([page.record])
    with repository.ports.scratch_index() as fresh:
        reconcile(repository.truth, fresh)
        assert index_difference(repository.ports.index, fresh) is None
    assert [info.complete for info in repository.snapshots()] == [True]


def plant(root: Path, client: SmallClient, records: dict[bytes, bytes]) -> None:
    envelope = client.envelope(ObjectClass.META)[0]
    at, rows = 5 + len(envelope), []
    for each in records.values():
        parsed = record.parse(each)
        rows.append(
            pack.RecordRow(at, len(each), parsed.kind, parsed.level, parsed.id, parsed.checksum, 0, parsed.refs)
        )
        at += len(each)
    parsed = record.parse(envelope)
    key = client.key
    named = pack.EnvelopeRow(
        5, len(envelope), parsed.id, parsed.checksum, key.client_id, key.domain_id, key.epoch, ObjectClass.META
    )
    footer = pack.encode_footer(b"circle".ljust(16), rows, [named])
    trailer = pack.encode_trailer(at, footer)
    name = pack.decode_trailer(trailer, at + len(footer) + len(trailer)).footer_hash.hex()
    whole = b"".join((pack.MAGIC, envelope, *records.values(), footer, trailer))
    (root / "packs" / name[:2] / f"{name}.pack").write_bytes(whole)


# --- tags ----------------------------------------------------------------------------------------------------


def with_domain(key: PutKey, domain_id: bytes) -> PutKey:
    """The key as if its name had given that domain: what happens by chance once in 2⁶⁴ pairs."""
    certified = key.certificate
    certificate = issue(
        OWNER._derive("certify ed25519"),
        owner_id=key.owner_id,
        client_id=certified.client_id,
        domain_id=domain_id,
        epoch=certified.epoch,
        verify_key=certified.verify_key,
        name=certified.name,
    )
    return replace(key, certificate=certificate)


def test_a_second_domain_behind_a_known_tag_is_refused(repository: LocalRepository) -> None:
    """Ids carry 8 bytes of the domain: two domains behind one tag could ask for, and poison, each other's objects."""
    web1, web2 = (SmallClient(repository.config.repository_id, name) for name in ("web1", "web2"))
    with repository.session(web1.certificate) as session:
        web1.backup(session, FILES)
    tag = web1.key.domain_id[:8]
    web2.key = with_domain(web2.key, tag + bytes(8))
    with pytest.raises(NotAllowed) as caught, repository.session(web2.key.certificate.raw):
        pass
    assert "collides" in str(caught.value)
    # The very same domain is a group, and its members come in.
    web2.key = with_domain(web2.key, web1.key.domain_id)
    with repository.session(web2.key.certificate.raw) as session:
        assert session.has([o.id for o in web1.objects(FILES)[0]]) == [True] * 3


# --- groups --------------------------------------------------------------------------------------------------


def test_a_snapshot_over_another_members_objects_restores(tmp_path: Path) -> None:
    """B stores no contents of its own. What A sealed, under A's psk, opens for B's snapshot all the same."""
    tree, states = tmp_path / "tree", tmp_path / "states"
    tree.mkdir()
    contents = {f"large{i}": Random(i).randbytes(900 * KIB) for i in range(3)}
    for name, content in contents.items():
        (tree / name).write_bytes(content)
    create_local(str(tmp_path / "repo"), OWNER.bundle.raw).close()
    results = []
    for name in ("a", "b"):
        with closing(open_local(str(tmp_path / "repo"))) as repository:
            options = SaveOptions(paths=[bytes(tree)], state_directory=bytes(states / name))
            results.append(save(repository, OWNER.put_key(name, group="farm"), options))
    assert results[0].objects_new > 3
    assert results[1].objects_new <= 2  # the listing, as the times of directories above the tree are in it
    with (
        closing(open_local(str(tmp_path / "repo"))) as repository,
        repository.reading(),
        ObjectReader(repository, OWNER.restore_key()) as reader,
    ):
        _, info = sorted(repository.snapshots(), key=lambda info: info.receipt.counter)
        assert info.client == "b"
        done = restore(reader, open_snapshot(reader, info), str(tmp_path / "out"), RestoreOptions())
        assert not done.problems
        opened = {(e.facts.object_class, e.facts.client_id) for e in reader._envelopes.values()}
    out = tmp_path / "out" / tree.relative_to("/")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == contents
    a, b = (OWNER.put_key(name, group="farm").client_id for name in ("a", "b"))
    assert (ObjectClass.META, b) in opened
    assert {maker for object_class, maker in opened if object_class is ObjectClass.DATA} == {a}


def test_an_id_with_the_tag_of_another_domain_is_not_taken(repository: LocalRepository) -> None:
    """Under one's own envelope, so that nothing but the tag is wrong."""
    web1, web2 = (SmallClient(repository.config.repository_id, name) for name in ("web1", "web2"))
    sealed = web1.seal(Kind.DATA, [], b"mine", 0).record
    foreign = record.parse(sealed)
    header = record.encode_header(
        Kind.DATA, 0, 0, len(foreign.body), web2.key.domain_id[:8] + foreign.id[8:], foreign.envelope_id
    )
    with repository.session(web1.certificate) as session:
        session.put([web1.envelope(ObjectClass.DATA)[0]])
        with pytest.raises(NotAllowed) as caught:
            session.put([record.finish(header, b"", foreign.body)])
        assert "foreign domain" in str(caught.value)
        session.put([sealed])
