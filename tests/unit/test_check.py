"""check, scrub and repair on a real repository: what is told, in which order packs are read, what is put aside."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from smallclient import OWNER, SmallClient

from packnback.crypto.payload import encode_payload
from packnback.crypto.seal import body_length, object_id, seal_body
from packnback.errors import DamageBlocks, DiskFull, SnapshotDamage, Unreadable
from packnback.format import meta_rows, record, rows
from packnback.format.pack import TRAILER_LEN
from packnback.format.record import parse
from packnback.format.snapshot import marker_name
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.forget import forget
from packnback.gc.maintenance import CheckOptions, LocalMaintenance
from packnback.gc.whatif import what_if
from packnback.ids import Kind, ObjectClass
from packnback.store import layout, lmdb_index, packer
from packnback.store.blobs import FileBlobStore
from packnback.store.check import chain_findings, check_structure
from packnback.store.damage import suspects_of
from packnback.store.index import WriteTxn
from packnback.store.local import create_local, open_local
from packnback.store.packer import PackedEnvelope, Packer
from packnback.store.repair import repair
from packnback.store.repository import LocalRepository
from packnback.store.rot import damaged_packs
from packnback.store.scrub import choose, scrub


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packer, "PACK_TARGET", 100_000)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


def tree_of(seed: int, count: int = 12) -> dict[str, bytes]:
    rng = random.Random(seed)
    return {f"f{i:02}": rng.randbytes(rng.randrange(20_000, 60_000)) for i in range(count)}


def backup(repository: LocalRepository, files: dict[str, bytes]) -> SmallClient:
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        client.backup(session, files)
    return client


def data_packs(repository: LocalRepository) -> list[Path]:
    found = Path(repository.location).glob("packs/*/*.pack")
    return sorted((p for p in found if b"PNBR\x01\x01" in p.read_bytes()), key=lambda p: p.name)


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 16
    path.write_bytes(raw)


# --- samples -----------------------------------------------------------------------------------------------------


def test_consecutive_samples_read_every_pack_whatever_is_damaged(repository: LocalRepository) -> None:
    backup(repository, tree_of(1))
    names = set(choose(repository))
    assert len(names) >= 5
    damaged = data_packs(repository)[:3]
    for path in damaged:
        flip(path, 2000)
    read: set[bytes] = set()
    rounds = 0
    while read != names:
        rounds += 1
        assert rounds <= 8, "samples go round"
        chosen = set(choose(repository, 20))
        assert len(chosen) <= 3 + len(names) // 5 + 1
        read |= chosen
        told = suspects_of(scrub(repository, 20))
        assert {p.stem for p in damaged if bytes.fromhex(p.stem) in read} == {n.hex() for n in told}, (
            "what is damaged is told every time"
        )


def test_what_is_remembered_of_a_pack_goes_with_it(repository: LocalRepository) -> None:
    def remembered() -> int:
        with repository.read() as txn:
            return sum(1 for _ in txn.scan("meta", meta_rows.read_at_key(b"")))

    backup(repository, tree_of(1))
    victim = data_packs(repository)[0]
    flip(victim, 2000)
    assert scrub(repository)
    packs = len(choose(repository))
    assert remembered() == packs
    rotten = victim.read_bytes()
    victim.unlink()
    repository.reconcile()
    assert remembered() == packs - 1
    with repository.read() as txn:
        assert damaged_packs(txn) == []
    assert not list(Path(repository.location).glob("quarantine/*"))
    victim.write_bytes(rotten)
    repository.reconcile()
    assert victim.stem in {name.hex() for name in choose(repository, 1)}, "it is unread, and so the first to be read"


def test_what_is_known_to_be_rotten_is_stored_again(repository: LocalRepository) -> None:
    """At once, not only when somebody has repaired it: until then the file may be gone."""
    files = tree_of(1)
    client = backup(repository, files)
    victim = data_packs(repository)[0]
    flip(victim, 2000)
    [finding] = scrub(repository)
    assert finding.affects
    rotten = bytes.fromhex(finding.what.partition(" ")[0])
    with repository.session(client.certificate) as session:
        with repository.read() as txn:
            others = [key for key, _ in txn.scan("objects") if key != rotten]
            leaves = [key for key in others if txn.get("refs", key) is None]
            above = [key for key in others if key not in leaves]
        assert session.has([rotten]) == [False]
        assert session.has(leaves) == [True] * len(leaves), "those beside it are good"
        assert False in session.has(above), "what needs it does not stand either"
        client.backup(session, files)
        assert session.has([rotten, *above]) == [True] * (1 + len(above))
    assert [f.affects for f in scrub(repository)] == [()], "it is rotten still, and nobody misses it"
    checked = LocalMaintenance(repository).check(CheckOptions(read_data=True, repair=True))
    assert checked.repaired is not None and checked.repaired.packs == [victim.stem]
    assert checked.repaired.objects_lost == []
    assert not check_structure(repository).damage and not scrub(repository)


def test_what_is_known_to_be_rotten_outlives_the_index(repository: LocalRepository) -> None:
    """Another machine has another one, and anybody may throw it away at any time."""
    files = tree_of(1)
    client = backup(repository, files)
    one, two = data_packs(repository)[:2]
    flip(one, 2000)
    assert scrub(repository)
    repository.rebuild()
    with repository.read() as txn:
        assert damaged_packs(txn) == [bytes.fromhex(one.stem)]
    with pytest.raises(DamageBlocks):
        compact(repository, CompactOptions())
    flip(two, two.stat().st_size - 3)  # its trailer: makes `check` build the index anew
    maintenance = LocalMaintenance(repository)
    checked = maintenance.check(CheckOptions(repair=True))
    assert checked.repaired is not None and sorted(checked.repaired.packs) == sorted([one.stem, two.stem])
    with repository.session(client.certificate) as session:
        client.backup(session, files)
    assert maintenance.check(CheckOptions(read_data=True)).standing == []
    assert not [p for p in Path(repository.location).glob("quarantine/*") if p.name.startswith("rot-")]


def test_rot_that_compaction_finds_is_remembered(repository: LocalRepository) -> None:
    client = backup(repository, tree_of(1))
    with repository.session(client.certificate) as session:
        client.backup(session, dict(list(tree_of(1).items())[:3]))
    first = repository.snapshots()[0].name
    with repository.reading():
        forget(repository, [first])
    for path in data_packs(repository):
        flip(path, 2000)
    found = compact(repository, CompactOptions(grace_ns=0, max_waste=0.0))
    assert found.rotten
    with repository.read() as txn:
        assert {name.hex() for name in damaged_packs(txn)} == set(found.rotten)
    with pytest.raises(DamageBlocks):
        compact(repository, CompactOptions(grace_ns=0))


def test_a_new_note_of_rot_stands_before_the_old_one_goes(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(repository, tree_of(1))
    victim = data_packs(repository)[0]
    flip(victim, 2000)
    assert scrub(repository)

    def notes() -> list[Path]:
        return sorted(Path(repository.location).glob(f"quarantine/rot-{victim.stem}-*"))

    [first] = notes()
    real, seen = FileBlobStore.delete, list[int]()

    def delete(blobs: FileBlobStore, name: str) -> None:
        seen.append(len(notes()))
        real(blobs, name)

    monkeypatch.setattr(FileBlobStore, "delete", delete)
    flip(victim, victim.stat().st_size // 2)
    assert scrub(repository)
    [second] = notes()
    assert second != first and seen == [2]
    first.write_bytes(b"")  # as after a crash between the two: then both count
    repository.rebuild()
    with repository.read() as txn:
        key = meta_rows.damaged_key(bytes.fromhex(victim.stem))
        assert meta_rows.decode_damaged(key, txn.get(meta_rows.TABLE, key) or b"") is None
    assert scrub(repository) and notes() == [second]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"ab\n", bytes(100)])
def test_a_note_of_rot_that_cannot_be_read_means_the_whole_pack(repository: LocalRepository, content: bytes) -> None:
    client = backup(repository, tree_of(1))
    victim = data_packs(repository)[0]
    (Path(repository.location) / "quarantine" / f"rot-{victim.stem}-{0:016x}").write_bytes(content)
    (Path(repository.location) / "quarantine" / "rot-of-another-kind").write_bytes(content)
    name = bytes.fromhex(victim.stem)
    with repository.session(client.certificate) as session:
        with repository.read() as txn:
            number = rows.decode_number(name, txn.get("pack_names", name) or b"")
            inside = [key for key, value in txn.scan("objects") if rows.pack_of_object(value) == number]
        assert inside and not any(session.has(inside))
    assert not scrub(repository), "it is read, and is whole"
    with repository.read() as txn:
        assert damaged_packs(txn) == []


def test_a_bit_in_what_is_remembered_of_a_reading_locks_nobody_out(repository: LocalRepository) -> None:
    backup(repository, tree_of(1))
    flip(data_packs(repository)[0], 2000)
    assert scrub(repository)

    def flip_rows(txn: WriteTxn) -> None:
        for prefix in (meta_rows.read_at_key(b""), meta_rows.DAMAGED):
            for key, value in list(txn.scan(meta_rows.TABLE, prefix)):
                txn.put(meta_rows.TABLE, key, value[:-1] + bytes((value[-1] ^ 1,)))

    repository.ports.index.write(flip_rows)
    assert len(choose(repository, 1)) >= 1
    with pytest.raises(DamageBlocks):
        compact(repository, CompactOptions())
    maintenance = LocalMaintenance(repository)
    assert maintenance.check(CheckOptions()).standing
    assert maintenance.check(CheckOptions(read_data=True, repair=True)).standing


def test_nothing_of_a_pack_that_is_known_to_be_unreadable_counts(repository: LocalRepository) -> None:
    files = tree_of(1)
    client = backup(repository, files)
    victim = data_packs(repository)[0]
    flip(victim, 0)  # its magic
    assert scrub(repository)
    with repository.session(client.certificate) as session:
        before = session.bytes_published
        client.backup(session, files)
        assert session.bytes_published - before > 0.9 * victim.stat().st_size
    victim.unlink()
    repository.reconcile()
    assert not check_structure(repository).damage and not scrub(repository)


def test_an_interrupted_scrub_goes_on_where_it_was(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(repository, tree_of(1))
    names = choose(repository)
    told = 0

    def interrupt(amount: int) -> None:
        nonlocal told
        told += amount
        if told == 2:
            raise KeyboardInterrupt

    progress = type("Interrupting", (), {"begin": lambda *a: None, "note": lambda *a: None})()
    progress.advance = interrupt
    repository.ports.watch.progress = progress
    with pytest.raises(KeyboardInterrupt):
        scrub(repository)
    done = set(names) - set(choose(repository, 100 * (len(names) - 2) / len(names)))
    assert len(done) == 2 and done <= set(names[:3])


def test_scrub_reads_on_when_the_disk_is_full(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    backup(repository, tree_of(1))
    flip(data_packs(repository)[-1], 2000)

    def full(body: object) -> None:
        raise DiskFull("index")

    monkeypatch.setattr(repository.ports.index, "write", full)
    assert [f.kind for f in scrub(repository)] == ["record"]


# --- what is told ------------------------------------------------------------------------------------------------


def test_an_object_that_stands_elsewhere_too_is_not_lost(repository: LocalRepository) -> None:
    """Two sessions stored the same object at once: one copy rots, and no snapshot is the worse for it."""
    files = {"a": b"a" * 20_000, "b": b"b" * 20_000}
    client = SmallClient(repository.config.repository_id)
    other = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as one, repository.session(other.certificate) as two:
        other.store(two, files)
        client.store(one, files)
        two.flush()
        client.backup(one, files)
    assert len(data_packs(repository)) == 2
    flip(data_packs(repository)[0], 3000)
    [finding] = scrub(repository)
    assert finding.kind == "record" and finding.affects == ()
    objects, root = client.objects(files)
    assert not [f for f in repository.fetch([o.id for o in objects]) if f.problem]
    suspects = suspects_of([finding])
    with repository.ports.locks.exclusive(0):
        repository.rebuild()
        done = repair(repository, (), suspects)
    assert len(done.packs) == 1 and not done.objects_lost
    assert not check_structure(repository).damage and not scrub(repository)
    assert not [f for f in repository.fetch([o.id for o in objects] + [root.id]) if f.problem]


def test_a_damaged_magic_touches_every_object_of_the_pack(repository: LocalRepository) -> None:
    backup(repository, tree_of(3))
    [info] = repository.snapshots()
    flip(data_packs(repository)[0], 0)
    [finding] = scrub(repository)
    assert (finding.kind, finding.why, finding.affects) == ("pack", "magic", (info.name,))


def test_objects_that_contradict_each_other_are_told(repository: LocalRepository) -> None:
    """A root whose level is not what its refs make it: nothing is missing, and yet it cannot be relied on."""
    client = SmallClient(repository.config.repository_id)
    data = client.seal(Kind.DATA, [], b"data", 0)
    page = client.seal(Kind.PAGE, [data.id], b"page", 4)
    table = client.seal(Kind.TABLE, [page.id], b"table", 5)
    with repository.session(client.certificate) as session:
        done = client.backup(session, {"a": b"a"})
    publish_unchecked(repository, client, [data.record])
    publish_unchecked(repository, client, [page.record, table.record])
    [good] = repository.snapshots()
    file = Path(repository.location) / "snapshots" / good.name
    head = type("Head", (), {"sequence": 1, "id": done.id})()
    raw = client.snapshot(table.id, head, level=6)
    receipt = file.read_bytes()[-48:]
    (file.parent / good.name.replace("1.snap", "2.snap")).write_bytes(raw + receipt)
    repository.reconcile()
    assert [i.complete for i in repository.snapshots()] == [True, False]
    [finding] = check_structure(repository).damage
    assert finding.kind == "snapshot" and "contradict" in finding.why and finding.affects == (finding.what,)


def publish_unchecked(repository: LocalRepository, client: SmallClient, records: list[bytes]) -> None:
    """A pack that no session would have taken."""
    builder = Packer(repository.ports.random)
    key = client.key
    for raw in records:
        parsed = parse(raw)
        object_class = ObjectClass.DATA if parsed.kind == Kind.DATA else ObjectClass.META
        envelope, _, _ = client.envelope(object_class)
        facts = PackedEnvelope(
            envelope, parse(envelope).id, key.client_id, key.domain_id, key.epoch, int(object_class)
        )
        builder.add(raw, parsed, facts)
    built = builder.finish()
    repository.ports.blobs.publish(layout.pack_path(built.name.hex()), built.buffers)


def test_damaged_index_is_told_apart_from_damaged_files(repository: LocalRepository) -> None:
    backup(repository, tree_of(1))
    assert check_structure(repository).repaired == []

    def drop_a_count(txn: lmdb_index._Writer) -> None:
        key, _ = next(iter(list(txn.scan("counts"))))
        txn.delete("counts", key)

    repository.ports.index.write(drop_a_count)
    report = check_structure(repository)
    assert report.repaired and not report.damage
    flip(data_packs(repository)[0], -TRAILER_LEN - 5)
    report = check_structure(repository)
    assert not report.repaired and {f.kind for f in report.damage} == {"pack", "object"}
    assert check_structure(repository).repaired == []


@pytest.mark.parametrize("field", ["pack", "offset", "length", "kind", "level", None])
def test_a_row_that_lies_with_a_good_checksum_is_found(repository: LocalRepository, field: str | None) -> None:
    backup(repository, tree_of(1))
    backup(repository, tree_of(2))

    def lie(txn: lmdb_index._Writer) -> None:
        found = list(txn.scan("objects"))
        key, value = found[len(found) // 2]
        row = rows.decode_object(key, value)
        if field is None:
            txn.delete("objects", key)
            return
        packs = [rows.decode_object(*pair).pack for pair in found]
        other = next(p for p in packs if p != row.pack) if field == "pack" else getattr(row, field) ^ 1
        txn.put("objects", key, rows.encode_object(key, row._replace(**{field: other})))

    repository.ports.index.write(lie)
    report = check_structure(repository)
    assert not report.damage and ["objects" in difference for difference in report.repaired] == [True]
    assert check_structure(repository).repaired == []


# --- a disk that does not give back what it has --------------------------------------------------------------------


@contextmanager
def bad_sector(monkeypatch: pytest.MonkeyPatch, path: Path, start: int, length: int = 512) -> Iterator[None]:
    """Reading any of these bytes fails with EIO."""
    whole = FileBlobStore.read
    bad = range(start, start + length)

    def read(self: FileBlobStore, name: str, offset: int = 0, count: int | None = None) -> bytes:
        if path.as_posix().endswith(name):
            end = path.stat().st_size if count is None else offset + count
            if offset < bad.stop and bad.start < end:
                raise Unreadable("read", name, "Input/output error")
        return whole(self, name, offset, count)

    with monkeypatch.context() as patch:
        patch.setattr(FileBlobStore, "read", read)
        yield


@pytest.mark.parametrize("pick", [min, max], ids=["small pack", "large pack"])
def test_a_bad_sector_costs_one_object(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch, pick: Callable[..., Path]
) -> None:
    """Also where it lies in what is read at once from the end of a pack, to get its footer."""
    client = backup(repository, tree_of(1))
    objects, _ = client.objects(tree_of(1))
    path = pick(data_packs(repository), key=lambda p: p.stat().st_size)
    assert (path.stat().st_size < 64 * 1024) == (pick is min)
    with bad_sector(monkeypatch, path, 3000):
        problems = [f for f in repository.fetch([o.id for o in objects]) if f.problem]
        assert len(problems) == 1 and "cannot be read" in str(problems[0].problem)
        [finding] = scrub(repository)
        assert finding.kind == "record" and problems[0].id.hex() in finding.what and finding.affects
        assert not check_structure(repository).damage
        with repository.ports.locks.exclusive(0):
            repository.rebuild()
            done = repair(repository, (), suspects_of([finding]))
        assert done.objects_lost == [problems[0].id] and done.packs == [path.stem]
    assert len(list((Path(repository.location) / "quarantine").iterdir())) == 1
    backup(repository, tree_of(1))
    assert not check_structure(repository).damage and not scrub(repository)


@pytest.mark.parametrize("where", ["footer", "snapshot", "headers"])
def test_a_bad_sector_does_not_close_the_repository(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    for seed in (1, 2, 3):
        backup(repository, tree_of(seed, 3))
    forget(repository, [repository.snapshots()[0].name])
    compact(repository, CompactOptions(grace_ns=0, max_waste=1.0))
    top = Path(repository.location)
    path = {
        "footer": data_packs(repository)[0],
        "snapshot": min((top / "snapshots").iterdir()),
        "headers": next((top / "headers").iterdir()),
    }[where]
    size = path.stat().st_size
    repository.close()
    shutil.rmtree(top / "index")
    with bad_sector(monkeypatch, path, size - 100, 10):
        again = open_local(str(top))
        with again.reading():
            assert len(again.snapshots()) == 2 - (where == "snapshot")
            report = check_structure(again)
        assert any(path.stem in f.what for f in report.damage)
        with pytest.raises(DamageBlocks):
            compact(again, CompactOptions(grace_ns=0, force=True))
    report = check_structure(again)
    assert not report.damage, "the disk has come back to life"
    assert not check_structure(again).repaired
    again.close()


# --- repair --------------------------------------------------------------------------------------------------------


def test_an_envelope_that_stands_in_another_pack_saves_its_objects(repository: LocalRepository) -> None:
    client = backup(repository, tree_of(1))
    path = data_packs(repository)[0]
    at = path.read_bytes().index(b"PNBR\x01\x00")
    flip(path, at + 500)
    findings = scrub(repository)
    assert any(f.kind == "pack" and "envelope" in f.why for f in findings) and len(findings) > 1
    with repository.ports.locks.exclusive(0):
        repository.rebuild()
        done = repair(repository, (), suspects_of(findings))
    assert done.packs == [path.stem] and done.objects_saved and not done.objects_lost
    objects, _ = client.objects(tree_of(1))
    assert not [f for f in repository.fetch([o.id for o in objects]) if f.problem]
    assert not check_structure(repository).damage and not scrub(repository)


@pytest.mark.parametrize("footer_lost", [False, True])
def test_records_hidden_in_a_body_are_not_believed_where_there_is_a_footer(
    repository: LocalRepository, footer_lost: bool
) -> None:
    """Whoever made a body could hide a record in it, and hope that damage around it brings it to light."""
    client = SmallClient(repository.config.repository_id)
    hidden = client.seal(Kind.DATA, [], b"hidden", 0)
    outer = seal_raw(client, client.seal(Kind.DATA, [], b"outer", 0).id, b"x" * 100 + hidden.record + b"x" * 100)
    with repository.session(client.certificate) as session:
        session.put([client.envelope(ObjectClass.DATA)[0], outer])
        session.flush()
    [path] = data_packs(repository)
    flip(path, path.read_bytes().index(b"x" * 50))
    if footer_lost:
        flip(path, -1)
    with repository.ports.locks.exclusive(0):
        repository.rebuild()
        done = repair(repository, (), [bytes.fromhex(path.stem)])
    assert done.objects_saved == footer_lost, "without a footer, it cannot be told from an honest record"


def seal_raw(client: SmallClient, object_id_: bytes, body: bytes) -> bytes:
    """A record whose body is not even ciphertext."""
    header = record.encode_header(Kind.DATA, 0, 0, len(body), object_id_, client.envelope(ObjectClass.DATA)[1])
    return record.finish(header, b"", body)


def test_poison_is_put_aside_by_its_id_and_everything_else_in_the_pack_is_saved(repository: LocalRepository) -> None:
    """Garbage under an id that an honest client will want: no keyless check can see it, a list of ids mends it."""
    client = SmallClient(repository.config.repository_id)
    files = tree_of(1, 3)
    wanted = object_id(client.key.id_key[ObjectClass.DATA], client.key.domain_id, Kind.DATA, b"", files["f01"])
    padded = encode_payload(b"poison", ObjectClass.DATA, codec_level=None)
    record_, envelope_id, keys = client.envelope(ObjectClass.DATA)
    header = record.encode_header(Kind.DATA, 0, 0, body_length(padded), wanted, envelope_id)
    with repository.session(client.certificate) as session:
        session.put([record_, record.finish(header, b"", bytes(seal_body(keys, header, b"", padded)))])
    with repository.session(client.certificate) as session:
        session.put([record_, record.finish(header, b"", bytes(seal_body(keys, header, b"", padded)))])
        session.flush()
        client.backup(session, files)
    assert not check_structure(repository).damage and not scrub(repository)
    with repository.ports.locks.exclusive(0):
        done = repair(repository, [wanted])
    assert done.objects_lost == [wanted] and len(done.packs) == 1
    assert [f.what for f in check_structure(repository).damage] == [wanted.hex()]
    backup(repository, files)
    assert not check_structure(repository).damage, "the next backup brought it again, also for the older snapshot"


def test_a_number_that_is_used_again_is_not_forgotten_by_an_old_marker(repository: LocalRepository) -> None:
    """The snapshot was lost, its marker was not: it must not take the next one of that number with it."""
    client = backup(repository, tree_of(1, 2))
    [info] = repository.snapshots()
    forget(repository, [info.name], force=True)
    (Path(repository.location) / "snapshots" / info.name).unlink()
    repository.reconcile()
    with repository.session(client.certificate) as session:
        client.backup(session, tree_of(2, 2))
    [again] = repository.snapshots()
    assert again.sequence == 1 and again.forgotten_ns is None
    later = replace(repository.ports, now_ns=lambda: again.receipt.time_ns - 60 * 10**9)
    slow = LocalRepository(repository.location, repository.config, later)
    assert forget(slow, [again.name], force=True) == [marker_name(again.client_id, 1, again.receipt.time_ns)]
    assert repository.snapshots()[0].forgotten_ns is not None, "a clock that is a little behind forgets all the same"


def test_a_number_that_a_damaged_file_holds_is_free_after_a_repair(repository: LocalRepository) -> None:
    client = backup(repository, tree_of(1, 2))
    [info] = repository.snapshots()
    flip(Path(repository.location) / "snapshots" / info.name, 120)
    repository.rebuild()
    with repository.session(client.certificate) as session, pytest.raises(SnapshotDamage):
        client.backup(session, tree_of(1, 2))
    with repository.ports.locks.exclusive(0):
        done = repair(repository)
    assert len(done.files) == 1
    with repository.session(client.certificate) as session:
        client.backup(session, tree_of(1, 2))
    assert [i.sequence for i in repository.snapshots()] == [1] and not check_structure(repository).damage


# --- what others leave in the directories ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"@eaDir", b".DS_Store", b"lost+found", b"#recycle", b".nfs000000001"])
@pytest.mark.parametrize("directory", ["snapshots", "forgotten", "headers", "packs/00"])
def test_what_file_servers_leave_is_nobodys_damage(repository: LocalRepository, directory: str, name: bytes) -> None:
    backup(repository, tree_of(1, 2))
    (Path(repository.location) / directory / name.decode()).mkdir()
    repository.rebuild()
    assert len(repository.snapshots()) == 1 and not check_structure(repository).damage
    compact(repository, CompactOptions(grace_ns=0))


@pytest.mark.parametrize("name", [b"\xff\xfe.snap", b"n" * 200, b"a directory", b"ab" * 32, b"G" * 64, b"new\nline"])
@pytest.mark.parametrize("directory", ["snapshots", "forgotten", "headers"])
def test_a_name_that_may_be_a_damaged_one_of_ours_blocks_deletion(
    repository: LocalRepository, directory: str, name: bytes
) -> None:
    backup(repository, tree_of(1, 2))
    stray = os.fsencode(repository.location) + b"/" + directory.encode() + b"/" + name
    if name == b"a directory":
        os.mkdir(stray)
    else:
        Path(os.fsdecode(stray)).write_bytes(b"?")
    for _ in range(2):
        repository.reconcile()
        assert len(repository.snapshots()) == 1
    assert len(check_structure(repository).damage) == 1
    with pytest.raises(DamageBlocks):
        compact(repository, CompactOptions(grace_ns=0, force=True))
    with repository.ports.locks.exclusive(0):
        repository.rebuild()
        repair(repository)
    if os.path.lexists(stray):
        shutil.rmtree(stray) if os.path.isdir(stray) else os.unlink(stray)
    else:
        for aside in (Path(repository.location) / "quarantine").iterdir():
            aside.unlink()
    repository.reconcile()
    assert not check_structure(repository).damage and not check_structure(repository).repaired
    compact(repository, CompactOptions(grace_ns=0))


# --- an index that lies to single lookups ------------------------------------------------------------------------


def test_rows_that_lookups_do_not_find_stop_a_compaction(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit in an inner node of the index hides rows from lookups, and from nothing else."""
    for seed in (1, 2):
        backup(repository, {**tree_of(1), **{f"g{seed}{i}": bytes([seed, i]) * 30_000 for i in range(3)}})
    forget(repository, [repository.snapshots()[0].name])
    get = lmdb_index._Reader.get
    with repository.ports.index.read() as txn:
        live = sorted(key for key, _ in txn.scan("counts"))

    def blind(self: lmdb_index._Reader, table: str, key: bytes) -> bytes | None:
        return None if table == "counts" and key in hidden else get(self, table, key)

    before = {p.name for p in data_packs(repository)}
    refused = 0
    for object_id_ in live:
        hidden = {object_id_}
        with monkeypatch.context() as patch:
            patch.setattr(lmdb_index._Reader, "get", blind)
            try:
                compact(repository, CompactOptions(grace_ns=10**18, max_waste=0.0, force=True))
            except DamageBlocks:
                refused += 1
        assert {p.name for p in data_packs(repository)} == before
    compact(repository, CompactOptions(grace_ns=0, max_waste=0.0))
    assert not check_structure(repository).damage and not scrub(repository)


def test_breaks_in_a_chain(repository: LocalRepository) -> None:
    client = SmallClient(repository.config.repository_id)
    for number in range(5):
        with repository.session(client.certificate) as session:
            client.backup(session, {"file": b"%d" % number})
    prefix = client.key.client_id.hex()
    index = repository.ports.index

    def findings(change: Callable[[WriteTxn, list[bytes]], None]) -> list[tuple[str, str]]:
        def body(txn: WriteTxn) -> list[tuple[str, str]]:
            change(txn, [key for key, _ in txn.scan("snapshots")])
            return [(finding.what.removeprefix(prefix), finding.why) for finding in chain_findings(txn)]

        return what_if(index, body)

    def relink(txn: WriteTxn, keys: list[bytes]) -> None:
        row = rows.decode_snapshot(keys[2], txn.get("snapshots", keys[2]) or b"")
        txn.put("snapshots", keys[2], rows.encode_snapshot(keys[2], replace(row, prev=bytes(32))))

    def lose(*numbers: int) -> Callable[[WriteTxn, list[bytes]], None]:
        return lambda txn, keys: [txn.delete("snapshots", keys[number]) for number in numbers] and None

    assert findings(lose()) == []
    assert findings(relink) == [(f"-{3:016x}", "does not continue the chain")]
    assert findings(lose(1)) == [(f"-{2:016x}", "no header")]
    assert findings(lose(0, 1, 2)) == [(f"-{1:016x}", f"no header, up to {3:016x}")]
    assert findings(lose(4)) == [], "at its end only readers, who have seen it, can tell"
