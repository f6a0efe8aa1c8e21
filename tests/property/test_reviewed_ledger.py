"""Packs that no honest session would have written, and histories that are longer than anybody expects."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rehearsed import SMALL_FLOOR, RehearsedClient
from simindex import SimIndex
from smallclient import OWNER, SmallClient
from world import new_world

from packnback.format import record
from packnback.format.record import parse
from packnback.gc import release as release_module
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.forget import forget
from packnback.gc.plan import SMALL, PackUse, make_plan
from packnback.ids import MIB, Kind, ObjectClass
from packnback.store import layout, packer
from packnback.store import reconcile as reconcile_module
from packnback.store.check import check_structure, index_difference
from packnback.store.damage import snapshots_needing
from packnback.store.local import create_local
from packnback.store.packer import PackedEnvelope, Packer
from packnback.store.reconcile import reconcile
from packnback.store.repair import repair
from packnback.store.repository import LocalRepository
from packnback.store.scrub import scrub

NOW = CompactOptions(grace_ns=0, max_waste=0.0)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


def invented(client: SmallClient, kind: int, level: int, object_id: bytes, refs: Sequence[bytes]) -> bytes:
    """A record under an id of somebody's choice: only who holds the key can see that it is not the object's."""
    envelope_id = client.envelope(ObjectClass.META)[1]
    body = bytes(4096)
    header = record.encode_header(kind, level, len(refs), len(body), object_id, envelope_id)
    return record.finish(header, b"".join(refs), body)


def publish(repository: LocalRepository, client: SmallClient, records: Sequence[bytes]) -> str:
    """A meta pack that no session would have taken; its path."""
    envelope = client.envelope(ObjectClass.META)[0]
    key = client.key
    facts = PackedEnvelope(
        envelope, parse(envelope).id, key.client_id, key.domain_id, key.epoch, int(ObjectClass.META)
    )
    builder = Packer(repository.ports.random)
    for raw in records:
        builder.add(raw, parse(raw), facts)
    built = builder.finish()
    path = layout.pack_path(built.name.hex())
    repository.ports.blobs.publish(path, built.buffers)
    return path


def back_up(repository: LocalRepository, *trees: dict[str, bytes]) -> SmallClient:
    client = SmallClient(repository.config.repository_id)
    for tree in trees:
        with repository.session(client.certificate) as session:
            client.backup(session, tree)
    return client


def test_a_ring_of_objects_ends(repository: LocalRepository) -> None:
    client = back_up(repository, {"a": b"a"})
    tag = client.key.domain_id[:8]
    one, two, gone = (tag + bytes([n]) * 24 for n in (1, 2, 3))
    publish(
        repository,
        client,
        [invented(client, Kind.TABLE, 2, one, [two, gone]), invented(client, Kind.TABLE, 2, two, [one])],
    )
    repository.reconcile()
    [info] = repository.snapshots()
    with repository.read() as txn:
        for root in (one, two):
            needed = snapshots_needing(txn, [replace(info, root=root)], {gone})
            assert needed == {gone: (info.name,)}
    assert not check_structure(repository).repaired


# --- contradictions: what wins does not depend on who came first, nor on who was interrupted ------------------------


class Stopped(Exception):
    """The process ends here."""


def contradict(repository: LocalRepository, client: SmallClient, *, level: int) -> str:
    """Publish a pack of two objects, which says of both that they have this level; its path."""
    ids = [client.key.domain_id[:8] + bytes([n]) * 24 for n in (1, 2)]
    refs = [ids[0][:31] + b"x"] if level > 1 else []
    return publish(repository, client, [invented(client, Kind.TABLE, level, i, refs) for i in ids])


def test_an_interrupted_rebuild_in_order_is_finished_by_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack that arrives second has the smaller name, so it is the first one that is in the wrong."""
    client = RehearsedClient("web1", floor=SMALL_FLOOR)
    for seed in range(20):
        world = new_world(str(seed))
        repository = world.repository()
        with repository.session(client.certificate, wait_s=0) as session:
            client.backup(session, {"a": b"a"})
        first = contradict(repository, client, level=1)
        repository.reconcile()
        if contradict(repository, client, level=2) < first:
            break
    else:
        pytest.fail("no seed will do")
    expected = SimIndex()
    reconcile(repository.truth, expected)
    monkeypatch.setattr(reconcile_module, "_BATCH_RECORDS", 1)
    for commits in itertools.count():
        index = SimIndex(state=world.index.history[-1])
        stopped = stop_after(commits, index, partial(reconcile, repository.truth, index))
        reconcile(repository.truth, index)
        assert index_difference(index, expected) is None, f"stopped after {commits} transactions"
        if not stopped:
            break
    assert commits > 2


def stop_after(commits: int, index: SimIndex, work: Callable[[], object]) -> bool:
    """Do the work until so many transactions are through; whether it was stopped."""
    write = index.write

    def counted(body: Callable[..., object]) -> object:
        nonlocal commits
        if not commits:
            raise Stopped
        commits -= 1
        return write(body)

    index.write = counted  # type: ignore[method-assign, assignment]
    try:
        work()
    except Stopped:
        return True
    finally:
        del index.write
    return False


def test_nobody_sees_the_index_empty_while_it_is_put_in_order() -> None:
    world = new_world()
    client = RehearsedClient("web1", floor=SMALL_FLOOR)
    repository = world.repository()
    with repository.session(client.certificate, wait_s=0) as session:
        client.backup(session, {"a": b"a"})
    before = len(world.index.history)
    for level in (1, 2):
        contradict(repository, client, level=level)
    assert repository.reconcile().adopted_packs == 2
    assert len(repository.damaged_files()) == 1
    assert len(world.index.history) > before
    assert all(state["snapshots"].rows for state in world.index.history[before:])


# --- long histories -------------------------------------------------------------------------------------------------


def test_many_headers_are_kept_in_several_batches(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_module, "BATCH_LIMIT", 3)
    back_up(repository, *({"a": bytes([n])} for n in range(8)))
    forget(repository, [info.name for info in repository.snapshots()[:7]])
    assert len(compact(repository, NOW).released) == 7
    assert len(list((Path(repository.location) / "headers").iterdir())) == 3
    assert not check_structure(repository).damage
    back_up(repository, {"a": b"after"})
    assert [info.sequence for info in repository.snapshots()] == [8, 9]


def test_a_marker_that_a_release_left_behind_goes(repository: LocalRepository) -> None:
    back_up(repository, {"a": b"1"}, {"a": b"2"})
    [marker] = forget(repository, [repository.snapshots()[0].name])
    compact(repository, NOW)
    path = Path(repository.location) / "forgotten" / marker
    assert not path.exists()
    path.touch()  # the power cut took back that it was deleted
    compact(repository, NOW)
    assert not path.exists() and len(repository.snapshots()) == 1


# --- plans ----------------------------------------------------------------------------------------------------------

FRAMING = 2000
SIZES = st.one_of(st.integers(1, SMALL), st.integers(SMALL, 32 * MIB))
USES = st.tuples(SIZES, st.floats(0, 1), st.sampled_from(ObjectClass))


def carried_out(packs: Sequence[PackUse], max_waste: float) -> list[PackUse]:
    """The packs after a compaction, as the packer makes them."""
    plan = make_plan(packs, max_waste)
    after = [p for p in packs if p.name not in (*plan.drop, *plan.rewrite)]
    for object_class in ObjectClass:
        rest = sum(p.live_bytes for p in packs if p.name in plan.rewrite and p.object_class == object_class)
        while rest > 0:
            live = min(rest, packer.PACK_TARGET)
            name = f"made {len(after)} {object_class}".encode()
            after.append(PackUse(name, live + FRAMING // 2, object_class, live, live))
            rest -= live
    return after


@given(st.lists(USES, max_size=60), st.sampled_from([0.0, 0.1, 0.3]))
def test_a_second_compaction_has_nothing_to_do(drawn: list[tuple[int, float, int]], max_waste: float) -> None:
    packs = [
        PackUse(bytes([n]), size + FRAMING, object_class, size, int(size * share))
        for n, (size, share, object_class) in enumerate(drawn)
    ]
    after = carried_out(packs, max_waste)
    assert sum(p.dead_bytes for p in after) <= max_waste * sum(p.size for p in after)
    assert make_plan(after, max_waste).empty


def test_what_is_rewritten_counts_among_the_small_packs_that_are_merged() -> None:
    small = [PackUse(bytes([n]), MIB + FRAMING, ObjectClass.DATA, MIB, MIB) for n in range(15)]
    wasteful = PackUse(b"large", 32 * MIB + FRAMING, ObjectClass.DATA, 32 * MIB, MIB)
    assert make_plan(carried_out([*small, wasteful], 0.1), 0.1).empty
    assert make_plan(small, 0.1).empty


# --- quarantine -----------------------------------------------------------------------------------------------------


def test_a_pack_that_was_brought_back_and_rots_again_is_put_aside_beside_the_first(
    repository: LocalRepository,
) -> None:
    rng = random.Random(3)
    back_up(repository, {f"f{n}": rng.randbytes(30_000) for n in range(3)})
    root = Path(repository.location)
    pack = max(root.glob("packs/*/*.pack"), key=lambda path: path.stat().st_size)
    whole = pack.read_bytes()
    spoilt = []
    for at in (5_000, 40_000):
        data = bytearray(whole)
        data[at] ^= 1
        pack.write_bytes(data)
        spoilt.append(bytes(data))
        repository.rebuild()
        assert scrub(repository)
        repair(repository, suspects=[bytes.fromhex(pack.stem)])
        assert not pack.exists()
    aside = {path.read_bytes() for path in (root / "quarantine").iterdir()}
    assert aside == set(spoilt)
