"""Adopting many packs by way of sorted rows: the index is the one that adopting them one by one makes."""

from __future__ import annotations

import errno
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from simindex import SimIndex
from smallclient import OWNER, SmallClient

from packnback import sorter as sorter_module
from packnback.errors import StorageFailed
from packnback.format import record
from packnback.format.record import parse
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.forget import forget
from packnback.ids import Kind, ObjectClass
from packnback.store import bulk, layout
from packnback.store.check import check_structure, index_difference
from packnback.store.index import Index, ReadTxn
from packnback.store.local import create_local
from packnback.store.objects import is_complete
from packnback.store.packer import PackedEnvelope, Packer
from packnback.store.reconcile import reconcile
from packnback.store.repository import LocalRepository


@pytest.fixture(autouse=True)
def small_sorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many runs and many lists, however few rows there are."""
    for name, value in {"RUN_ROWS": 5, "LIST_ROWS": 8, "SAMPLED": 2}.items():
        monkeypatch.setattr(sorter_module, name, value)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


def back_up(repository: LocalRepository, client: SmallClient, seed: int, files: int = 12) -> str:
    chance = random.Random(seed)
    with repository.session(client.certificate) as session:
        return client.backup(session, {f"{seed}-{n}": chance.randbytes(9000) for n in range(files)})


Facts = tuple[int, int, list[bytes]]
"""Kind, level and refs."""


def publish_invented(repository: LocalRepository, client: SmallClient, found: dict[bytes, Facts]) -> None:
    object_class = ObjectClass.DATA if next(iter(found.values()))[0] == Kind.DATA else ObjectClass.META
    envelope, envelope_id = client.envelope(object_class)[:2]
    key = client.key
    maker = PackedEnvelope(envelope, parse(envelope).id, key.client_id, key.domain_id, key.epoch, int(object_class))
    builder = Packer(repository.ports.random)
    for object_id, (kind, level, refs) in found.items():
        header = record.encode_header(kind, level, len(refs), 100, object_id, envelope_id)
        raw = record.finish(header, b"".join(refs), bytes(100))
        builder.add(raw, parse(raw), maker)
    built = builder.finish()
    repository.ports.blobs.publish(layout.pack_path(built.name.hex()), built.buffers)


def publish(repository: LocalRepository, client: SmallClient, kind: int, level: int, ids: list[bytes]) -> None:
    """A pack of objects under ids of somebody's choice. Above level 1 they refer to what is absent."""
    found = {object_id: (kind, level, [object_id[:31] + b"?"] if level > 1 else []) for object_id in ids}
    publish_invented(repository, client, found)


def both_ways(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> tuple[SimIndex, SimIndex]:
    """An index that was made by sorting, and one that was not. The sorted one's body ran more than once."""
    monkeypatch.setattr(bulk, "MANY_PACKS", 1)
    by_sorting = SimIndex(run_twice=True)
    reconcile(repository.truth, by_sorting)
    step_by_step = SimIndex(run_twice=True)
    reconcile(repository.truth, step_by_step, alone=True)
    assert index_difference(by_sorting, step_by_step) is None
    monkeypatch.setattr(bulk, "MANY_PACKS", 1 << 30)
    one_by_one = SimIndex()
    reconcile(repository.truth, one_by_one)
    return by_sorting, one_by_one


def ids_of(index: Index) -> list[bytes]:
    with index.read() as txn:
        return [key for key, _ in txn.scan("objects")]


def test_the_same_index(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("web1", 1), ("web2", 2), ("web1", 3)):
        back_up(repository, SmallClient(repository.config.repository_id, name), seed)
    adopted = spy_on_sorting(monkeypatch)
    by_sorting, one_by_one = both_ways(repository, monkeypatch)
    assert adopted == [True, True]
    assert index_difference(by_sorting, one_by_one) is None
    assert index_difference(repository.ports.index, by_sorting) is None
    assert len(ids_of(by_sorting)) > 36


def spy_on_sorting(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    results: list[bool] = []
    adopt = bulk.SortedPacks.adopt

    def spied(self: bulk.SortedPacks, ledger: bulk.Ledger) -> bool:
        results.append(adopt(self, ledger))
        return results[-1]

    monkeypatch.setattr(bulk.SortedPacks, "adopt", spied)
    return results


def test_copies_of_data_and_of_what_has_refs(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies in three packs, of which the one with the smallest name counts."""
    client = SmallClient(repository.config.repository_id)
    back_up(repository, client, 1)
    ids = [client.key.domain_id[:8] + random.Random(n).randbytes(24) for n in range(20)]
    tables = [object_id[:31] + b"t" for object_id in ids[:3]]
    for some in (ids, ids[::2], ids[5:]):
        publish(repository, client, Kind.DATA, 0, some)
    for some in (tables, tables[:2], tables[1:]):
        publish(repository, client, Kind.TABLE, 1, some)
    by_sorting, one_by_one = both_ways(repository, monkeypatch)
    assert index_difference(by_sorting, one_by_one) is None
    with by_sorting.read() as txn:
        assert txn.count("more") == (20 + 10 + 15 - 20) + (3 + 2 + 2 - 3)
        assert all(is_complete(txn, table) for table in tables)


def test_what_contradicts_itself_is_put_in_order(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = SmallClient(repository.config.repository_id)
    back_up(repository, client, 1)
    ids = [client.key.domain_id[:8] + bytes([n]) * 24 for n in range(4)]
    publish(repository, client, Kind.TABLE, 1, ids)
    publish(repository, client, Kind.TABLE, 2, ids)
    publish(repository, client, Kind.DATA, 0, ids)
    by_sorting, one_by_one = both_ways(repository, monkeypatch)
    assert index_difference(by_sorting, one_by_one) is None
    repository.reconcile()
    assert index_difference(repository.ports.index, by_sorting) is None


def test_what_is_missing_or_damaged(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever pack is gone, or cannot be parsed: the same objects are complete, and the same ones wait."""
    client = SmallClient(repository.config.repository_id)
    for seed in (1, 2):
        back_up(repository, client, seed)
    packs = sorted(Path(repository.location).glob("packs/*/*.pack"))
    assert len(packs) >= 4
    incomplete = 0
    for path in packs:
        raw = path.read_bytes()
        for damaged in (None, raw[:-1], raw[:-9] + b"\xff" * 9):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            by_sorting, one_by_one = both_ways(repository, monkeypatch)
            assert index_difference(by_sorting, one_by_one) is None
            with by_sorting.read() as txn:
                incomplete += txn.count("incomplete")
            path.write_bytes(raw)
    assert incomplete


def test_after_forgetting_and_compacting(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    client = SmallClient(repository.config.repository_id)
    names = [back_up(repository, client, seed) for seed in (1, 2, 3)]
    forget(repository, [names[0]])
    assert index_difference(*both_ways(repository, monkeypatch)) is None
    compact(repository, CompactOptions(grace_ns=0, max_waste=0.0))
    by_sorting, one_by_one = both_ways(repository, monkeypatch)
    assert index_difference(by_sorting, one_by_one) is None
    assert index_difference(repository.ports.index, by_sorting) is None


def test_somebody_else_was_faster(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has filled the index while we were reading footers: nothing is adopted twice."""
    back_up(repository, SmallClient(repository.config.repository_id), 1)
    index = SimIndex()
    monkeypatch.setattr(bulk, "MANY_PACKS", 1)
    read = bulk.SortedPacks._read

    def slow(self: bulk.SortedPacks, names: list[bytes]) -> None:
        read(self, names)
        monkeypatch.setattr(bulk.SortedPacks, "_read", read)
        reconcile(repository.truth, index)

    monkeypatch.setattr(bulk.SortedPacks, "_read", slow)
    adopted = spy_on_sorting(monkeypatch)
    reconcile(repository.truth, index)
    assert adopted == [True, False]
    assert index_difference(repository.ports.index, index) is None


def test_an_index_that_knows_packs_is_left_to_the_other_way(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = SmallClient(repository.config.repository_id)
    monkeypatch.setattr(bulk, "MANY_PACKS", 1)
    index = SimIndex()
    back_up(repository, client, 1)
    reconcile(repository.truth, index)
    adopted = spy_on_sorting(monkeypatch)
    back_up(repository, client, 2)
    reconcile(repository.truth, index)
    assert adopted == []
    assert index_difference(repository.ports.index, index) is None


def test_nobody_sees_objects_before_they_are_judged(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `has` says of a committed state is true: an object is complete only with all it needs."""
    back_up(repository, SmallClient(repository.config.repository_id), 1)
    data = [path for path in Path(repository.location).glob("packs/*/*.pack") if b"PNBR\x01\x01" in path.read_bytes()]
    data[0].unlink()
    by_sorting, _ = both_ways(repository, monkeypatch)
    assert len(by_sorting.history) > 2
    seen = 0
    for state in by_sorting.history:
        with SimIndex(state=state).read() as txn:
            for object_id, _ in txn.scan("refs"):
                seen += 1
                assert is_complete(txn, object_id) == needs_nothing(txn, object_id)
    assert seen


def needs_nothing(txn: ReadTxn, object_id: bytes) -> bool:
    stored = txn.get("refs", object_id)
    refs = [] if stored is None else [stored[i : i + 32] for i in range(0, len(stored) - 4, 32)]
    return all(txn.get("objects", ref) is not None and needs_nothing(txn, ref) for ref in refs)


def test_no_room_for_temporary_files_is_said(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    back_up(repository, SmallClient(repository.config.repository_id), 1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(bulk, "MANY_PACKS", 1)
    index = SimIndex()
    with pytest.raises(StorageFailed) as caught:
        reconcile(repository.truth, index)
    assert caught.value.facts()["path"] == tempfile.gettempdir()
    assert ids_of(index) == []


def test_no_directory_for_temporary_files_is_said(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(repository, SmallClient(repository.config.repository_id), 1)

    def refuse() -> str:
        raise FileNotFoundError(errno.ENOENT, "no usable temporary directory")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", refuse)
    monkeypatch.setenv("TMPDIR", "/full")
    monkeypatch.setattr(bulk, "MANY_PACKS", 1)
    with pytest.raises(StorageFailed) as caught:
        reconcile(repository.truth, SimIndex())
    assert caught.value.facts()["path"] == "/full"
    with pytest.raises(StorageFailed) as caught:
        check_structure(repository)
    assert caught.value.facts()["path"] == "/full"


def test_an_index_that_has_lost_its_packs_is_thrown_away(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects without packs: there is nothing to put rows behind, and what stands there is damage."""
    back_up(repository, SmallClient(repository.config.repository_id), 1)
    index = repository.ports.index
    monkeypatch.setattr(bulk, "MANY_PACKS", 1)
    index.write(lambda txn: txn.clear("pack_names"))
    for lost in (["pack_names"], ["pack_names", "packs"]):
        index.write(lambda txn, lost=lost: [txn.clear(table) for table in lost])
        with repository.reading():
            pass
        fresh = SimIndex()
        reconcile(repository.truth, fresh)
        assert index_difference(index, fresh) is None


@pytest.mark.parametrize("seed", range(24))
def test_whatever_packs_there_are(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Invented packs of a few ids each: copies, contradictions, rings, lies about levels, what is missing."""
    chance = random.Random(seed)
    client = SmallClient(repository.config.repository_id)
    back_up(repository, client, seed, files=2)
    ids = [client.key.domain_id[:8] + bytes([n]) * 24 for n in range(12)]
    # Half of the rounds without contradictions: they would always be put in order, pack by pack, in the end.
    fixed = {object_id: invented_facts(chance, ids) for object_id in ids} if seed % 2 else {}
    for _ in range(chance.randint(2, 6)):
        facts = {i: fixed.get(i) or invented_facts(chance, ids) for i in chance.sample(ids, chance.randint(1, 8))}
        for is_data in (True, False):
            some = {i: f for i, f in facts.items() if (f[0] == Kind.DATA) == is_data}
            if some:
                publish_invented(repository, client, some)
    by_sorting, one_by_one = both_ways(repository, monkeypatch)
    assert index_difference(by_sorting, one_by_one) is None
    repository.reconcile()
    assert index_difference(repository.ports.index, by_sorting) is None


def invented_facts(chance: random.Random, ids: list[bytes]) -> Facts:
    kind = chance.choice([Kind.DATA, Kind.DATA, Kind.EXTENTS, Kind.PAGE, Kind.TABLE])
    if kind == Kind.DATA:
        return kind, 0, []
    refs = sorted(chance.sample(ids, chance.randint(0, 3)))
    return kind, chance.randint(1, 3) if refs else 1, refs


@pytest.mark.parametrize(
    ("bad", "complete"),
    [
        ((Kind.PAGE, 1, ["data"]), True),
        ((Kind.PAGE, 2, ["data", "extents"]), True),
        ((Kind.TABLE, 1, ["data"]), False),
        ((Kind.TABLE, 2, ["extents"]), False),
        ((Kind.PAGE, 2, ["data"]), False),
        ((Kind.PAGE, 1, ["extents"]), False),
        ((Kind.PAGE, 1, ["data", "gone"]), False),
        ((Kind.TABLE, 2, ["itself"]), False),
    ],
)
def test_one_bad_object_in_a_whole_repository(
    repository: LocalRepository,
    monkeypatch: pytest.MonkeyPatch,
    bad: tuple[int, int, list[str]],
    complete: bool,
) -> None:
    client = SmallClient(repository.config.repository_id)
    back_up(repository, client, 1)
    names = {name: client.key.domain_id[:8] + bytes([n]) * 24 for n, name in enumerate(["data", "extents", "gone"])}
    names["itself"] = client.key.domain_id[:8] + b"!" * 24
    publish(repository, client, Kind.DATA, 0, [names["data"]])
    kind, level, refs = bad
    publish_invented(
        repository,
        client,
        {
            names["extents"]: (Kind.EXTENTS, 1, [names["data"]]),
            names["itself"]: (kind, level, sorted(names[ref] for ref in refs)),
        },
    )
    by_sorting, one_by_one = both_ways(repository, monkeypatch)
    assert index_difference(by_sorting, one_by_one) is None
    with by_sorting.read() as txn:
        assert is_complete(txn, names["itself"]) is complete
        assert txn.count("incomplete") == (not complete)


def test_what_waits_for_what_is_gone_whatever_its_level(repository: LocalRepository) -> None:
    """An object may claim a level that stands before that of what it needs. Once the data of both has gone, it is
    known what each waits for, as from the footers.
    """
    client = SmallClient(repository.config.repository_id)
    back_up(repository, client, 1)
    data, first, second = (client.key.domain_id[:8] + bytes([n]) * 24 for n in (9, 1, 2))
    before = set(Path(repository.location).glob("packs/*/*.pack"))
    publish_invented(repository, client, {data: (Kind.DATA, 0, [])})
    (pack,) = set(Path(repository.location).glob("packs/*/*.pack")) - before
    publish_invented(repository, client, {first: (Kind.EXTENTS, 1, [second]), second: (Kind.EXTENTS, 1, [data])})
    repository.reconcile()
    pack.unlink()
    repository.reconcile()
    fresh = SimIndex()
    reconcile(repository.truth, fresh)
    assert index_difference(repository.ports.index, fresh) is None
    with fresh.read() as txn:
        assert [key for key, _ in txn.scan("waiting")] == [second + first, data + second]
