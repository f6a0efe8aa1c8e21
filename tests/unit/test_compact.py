"""Forgetting and compaction on a real repository: what goes, what stays, what is not even read."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from smallclient import OWNER, SmallClient

from packnback.errors import ClockRefused, DamageBlocks, Refused
from packnback.format import rows
from packnback.format.snapshot import PARTIAL
from packnback.gc.compact import compact
from packnback.gc.compaction import Compacted, CompactOptions
from packnback.gc.forget import forget, recover
from packnback.gc.plan import PackUse, make_plan
from packnback.gc.whatif import exclusive_bytes
from packnback.store import packer
from packnback.store.check import check_structure
from packnback.store.index import WriteTxn
from packnback.store.local import create_local
from packnback.store.repository import LocalRepository
from packnback.store.scrub import scrub
from packnback.store.sizes import stats

NOW_GRACE = CompactOptions(grace_ns=0)
DAY = 86_400 * 10**9


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packer, "PACK_TARGET", 200_000)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


def generations(repository: LocalRepository, count: int, seed: int = 1) -> list[dict[str, bytes]]:
    """`count` snapshots of a tree that changes a little each time; the trees."""
    rng = random.Random(seed)
    client = SmallClient(repository.config.repository_id)
    tree = {f"f{i:02}": rng.randbytes(rng.randrange(1, 40_000)) for i in range(24)}
    trees = []
    for _ in range(count):
        for name in rng.sample(sorted(tree), 4):
            tree[name] = rng.randbytes(rng.randrange(1, 40_000))
        with repository.session(client.certificate) as session:
            client.backup(session, tree)
        trees.append(dict(tree))
    return trees


def assert_restorable(repository: LocalRepository, trees: list[dict[str, bytes]]) -> None:
    client = SmallClient(repository.config.repository_id)
    for info, tree in zip(repository.snapshots(), trees, strict=True):
        objects, root = client.objects(tree)
        assert info.root == root.id and info.complete
        fetched = list(repository.fetch([o.id for o in objects] + [root.id]))
        assert not [f for f in fetched if f.problem]


def run(repository: LocalRepository, options: CompactOptions = NOW_GRACE) -> Compacted:
    return compact(repository, options)


def test_forget_most_and_compact(repository: LocalRepository) -> None:
    trees = generations(repository, 12)
    infos = repository.snapshots()
    forget(repository, [i.name for i in infos[:9]])
    before = stats(repository).bytes_total
    foreseen = run(repository, replace(NOW_GRACE, dry_run=True))
    assert stats(repository).bytes_total == before
    done = run(repository)
    assert done.released == foreseen.released == [i.name for i in infos[:9]]
    assert foreseen.packs_deleted >= done.packs_deleted > 0 and foreseen.objects_dropped >= done.objects_dropped > 0
    assert done.bytes_freed == before - stats(repository).bytes_total - sum(i.size for i in infos[:9])
    assert done.bytes_total - done.bytes_live <= 0.10 * done.bytes_total
    assert_restorable(repository, trees[9:])
    report = check_structure(repository)
    assert not report.damage and not report.repaired and not scrub(repository)


def test_second_run_does_nothing_and_reads_no_pack(repository: LocalRepository) -> None:
    generations(repository, 6)
    forget(repository, [i.name for i in repository.snapshots()[:4]])
    run(repository)
    counters = repository.ports.watch.counters
    counters.records_read = counters.footers_read = 0
    again = run(repository)
    assert again.packs_deleted == again.packs_rewritten == again.bytes_written == 0 and not again.released
    assert counters.records_read == counters.footers_read == 0


def test_grace_protects_and_recover_brings_back(repository: LocalRepository) -> None:
    trees = generations(repository, 3)
    names = [i.name for i in repository.snapshots()]
    forget(repository, names[:2])
    assert run(repository, CompactOptions()).released == []
    assert recover(repository, names[:1]) == names[:1]
    assert [i.forgotten_ns is None for i in repository.snapshots()] == [True, False, True]
    assert run(repository).released == names[1:2]
    assert_restorable(repository, [trees[0], trees[2]])


def test_chain_goes_on_over_released_snapshots(repository: LocalRepository) -> None:
    generations(repository, 3)
    forget(repository, [i.name for i in repository.snapshots()], force=True)
    run(repository)
    assert repository.snapshots() == []
    generations(repository, 1, seed=2)
    assert [i.sequence for i in repository.snapshots()] == [4]
    assert repository.snapshots()[0].receipt.counter == 4
    assert not check_structure(repository).damage


def test_a_snapshot_file_that_comes_back_stays_released(repository: LocalRepository, tmp_path: Path) -> None:
    generations(repository, 2)
    [first, _] = repository.snapshots()
    path = tmp_path / "repo" / "snapshots" / first.name
    kept = path.read_bytes()
    forget(repository, [first.name])
    run(repository)
    path.write_bytes(kept)
    repository.reconcile()
    assert [i.sequence for i in repository.snapshots()] == [2]
    run(repository)
    assert not path.exists() and not check_structure(repository).damage


@pytest.mark.parametrize(
    "change",
    [
        lambda row: replace(row, status=rows.RELEASED),
        lambda row: replace(row, flags=row.flags | PARTIAL),
        lambda row: replace(row, flags=row.flags | PARTIAL, receipt=replace(row.receipt, time_ns=0)),
    ],
    ids=["as released", "as partial", "as partial and old"],
)
def test_no_snapshot_goes_on_the_word_of_the_index_alone(
    repository: LocalRepository, change: Callable[[rows.SnapshotRow], rows.SnapshotRow]
) -> None:
    trees = generations(repository, 3)
    name = repository.snapshots()[0].name

    def lie(txn: WriteTxn) -> None:
        key = name.encode()
        row = change(rows.decode_snapshot(key, txn.get("snapshots", key) or b""))
        txn.put("snapshots", key, rows.encode_snapshot(key, row))

    repository.ports.index.write(lie)
    with pytest.raises(DamageBlocks) as caught:
        run(repository)
    assert caught.value.detail == [name]
    assert repository.ports.blobs.list("headers") == []
    repository.rebuild()
    run(repository)
    assert_restorable(repository, trees)


def test_last_snapshot_of_a_client_needs_force(repository: LocalRepository) -> None:
    generations(repository, 1)
    with pytest.raises(Refused):
        forget(repository, [repository.snapshots()[0].name])
    assert forget(repository, [repository.snapshots()[0].name], force=True)


def test_clock_that_leapt_blocks(repository: LocalRepository) -> None:
    generations(repository, 2)
    now = repository.ports.now_ns()
    for off in (-DAY, 61 * DAY):
        later = LocalRepository(
            repository.location, repository.config, replace(repository.ports, now_ns=lambda off=off: now + off)
        )
        with pytest.raises(ClockRefused):
            forget(later, [later.snapshots()[0].name])
        with pytest.raises(ClockRefused):
            run(later)


def test_unreadable_snapshot_file_blocks_deletion(repository: LocalRepository, tmp_path: Path) -> None:
    generations(repository, 3)
    infos = repository.snapshots()
    forget(repository, [infos[0].name])
    victim = tmp_path / "repo" / "snapshots" / infos[1].name
    raw = bytearray(victim.read_bytes())
    raw[150] ^= 1
    victim.write_bytes(raw)
    repository.rebuild()
    before = sorted((tmp_path / "repo" / "packs").rglob("*.pack"))
    for force in (False, True):
        with pytest.raises(DamageBlocks):
            run(repository, replace(NOW_GRACE, force=force))
    assert sorted((tmp_path / "repo" / "packs").rglob("*.pack")) == before


def test_rot_in_a_live_record_is_never_copied(repository: LocalRepository, tmp_path: Path) -> None:
    generations(repository, 6)
    infos = repository.snapshots()
    forget(repository, [i.name for i in infos[:5]])
    packs = sorted((tmp_path / "repo" / "packs").rglob("*.pack"))
    for pack in packs:  # one flipped bit in the first record's body of each
        raw = bytearray(pack.read_bytes())
        raw[1600] ^= 1
        pack.write_bytes(raw)
    done = run(repository)
    assert done.rotten
    left = {p.stem for p in (tmp_path / "repo" / "packs").rglob("*.pack")}
    assert set(done.rotten) <= left


def test_what_a_snapshot_alone_holds(repository: LocalRepository) -> None:
    generations(repository, 3)
    infos = repository.snapshots()
    held = [exclusive_bytes(repository.ports.index, i.name) for i in infos]
    assert all(h > 0 for h in held)
    live = stats(repository).bytes_live
    forget(repository, [infos[0].name])
    done = run(repository, replace(NOW_GRACE, max_waste=1.0))
    assert done.released == [infos[0].name]
    assert live - stats(repository).bytes_live >= held[0]


def use(name: int, size: int, live: int, object_class: int = 1) -> PackUse:
    return PackUse(bytes([name]) * 32, size, object_class, size - 100, live)


def test_plan_drops_dead_packs_and_rewrites_the_worst_first() -> None:
    packs = [use(1, 1000, 0), use(2, 1000, 100), use(3, 1000, 850), use(4, 1000, 900)]
    plan = make_plan(packs, 0.10)
    assert plan.drop == (packs[0].name,) and plan.rewrite == (packs[1].name,)
    assert make_plan(packs[2:], 0.10).empty


def test_plan_merges_many_small_packs_but_never_for_nothing() -> None:
    small = [use(i, 1000, 900) for i in range(1, 17)]
    assert len(make_plan(small, 0.5).rewrite) == 16
    assert make_plan(small[:15], 0.5).empty


def test_what_file_servers_leave_keeps_nobody_from_compacting(repository: LocalRepository, tmp_path: Path) -> None:
    generations(repository, 6)
    for directory in ("snapshots", "forgotten", "headers", "packs/00", "tmp", "quarantine"):
        (tmp_path / "repo" / directory / "@eaDir").mkdir()
        (tmp_path / "repo" / directory / ".nfs0001").write_bytes(b"open elsewhere")
    forget(repository, [i.name for i in repository.snapshots()[:4]])
    assert run(repository).packs_deleted
    assert len(repository.snapshots()) == 2 and not check_structure(repository).damage
