"""Compaction in two steps on a real file system and real LMDB: two machines, each with an index of its own."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace
from smallclient import OWNER, SmallClient

from packnback.errors import DamageBlocks, DiskFull, ObjectMissing, Refused
from packnback.gc import forget as forget_module
from packnback.gc.compact import compact
from packnback.gc.compaction import Compacted, CompactOptions
from packnback.gc.condemn import CONDEMNED_NS
from packnback.gc.forget import forget, recover
from packnback.gc.maintenance import CheckOptions, LocalMaintenance
from packnback.store import leases, packer
from packnback.store.leases import BEAT_S, STALE_S
from packnback.store.lmdb_index import LmdbIndex
from packnback.store.local import create_local, open_local
from packnback.store.lock import FileLocks
from packnback.store.repository import LocalRepository
from packnback.store.sizes import stats

NOW = CompactOptions(grace_ns=0, max_waste=0.0)
HOLDER = "ab" * 16


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packer, "PACK_TARGET", 30_000)


@dataclass
class Shared:
    """A directory, machines that have mounted it, and the one clock that they go by."""

    path: Path
    ahead_ns: int = 0
    machines: dict[str, LocalRepository] = field(default_factory=dict)
    monotonic_s: float = 0.0
    ticking: list[leases.Lease] = field(default_factory=list)

    def machine(self, name: str) -> LocalRepository:
        """A machine with an index, locks and nothing else of its own."""
        if name not in self.machines:
            here = open_local(str(self.path / "repo"))
            index = LmdbIndex.open(str(self.path / f"index of {name}"), ballast_bytes=0)
            here.ports.index.close()
            own = self.path / f"locks of {name}"
            own.mkdir()
            real_ns = here.ports.now_ns
            ports = replace(
                here.ports,
                index=index,
                locks=FileLocks(own),
                fenced=False,
                now_ns=lambda: real_ns() + self.ahead_ns,
                sleep=self.sleep,
                monotonic=lambda: self.monotonic_s,
            )
            self.machines[name] = LocalRepository(here.location, here.config, ports)
        return self.machines[name]

    def sleep(self, seconds: float) -> None:
        before, self.monotonic_s = self.monotonic_s, self.monotonic_s + seconds
        if before // BEAT_S != self.monotonic_s // BEAT_S:
            for lease in self.ticking:
                lease.tick()

    def age(self, ns: int, *, ours: bool = True, servers: bool = True) -> None:
        """Time passes, by our clocks and by the file server's."""
        if ours:
            self.ahead_ns += ns
        if servers:
            for path in (*self.files("condemned"), *self.files("leases")):
                seen = path.stat()
                os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns - ns))

    def files(self, directory: str) -> list[Path]:
        return sorted(path for path in (self.path / "repo" / directory).rglob("*") if path.is_file())


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    create_local(str(tmp_path / "repo"), OWNER.bundle.raw).close()
    made = Shared(tmp_path)
    yield made
    for repository in made.machines.values():
        repository.close()


def tree(first: int, last: int) -> dict[str, bytes]:
    return {f"f{i:02}": random.Random(i).randbytes(9_000) for i in range(first, last)}


def back_up(repository: LocalRepository, files: dict[str, bytes], name: str = "web1") -> int:
    """The bytes of packs and snapshots that it took."""
    client = SmallClient(repository.config.repository_id, name, group="web")
    with repository.session(client.certificate) as session:
        client.backup(session, files)
        return session.bytes_published


def half_forgotten(shared: Shared) -> LocalRepository:
    """Two backups, of which the first is forgotten: a third of its files are those of the second, too."""
    one = shared.machine("one")
    back_up(one, tree(0, 12))
    back_up(one, {**tree(0, 4), **tree(20, 24)})
    forget(one, [one.snapshots()[0].name])
    return one


def assert_all_there(repository: LocalRepository) -> None:
    report = LocalMaintenance(repository).check(CheckOptions(read_data=True)).report
    assert not report.damage and not report.repaired


def test_the_space_comes_back_a_day_later(shared: Shared) -> None:
    one = half_forgotten(shared)
    before = shared.files("packs")
    foreseen = compact(one, replace(NOW, dry_run=True))
    assert shared.files("packs") == before and not shared.files("condemned") and not shared.files("leases")
    first = compact(one, NOW)
    assert first.released and not first.packs_deleted and not first.bytes_freed and first.bytes_written
    assert first.condemned == foreseen.condemned > 0 and first.packs_rewritten == foreseen.packs_rewritten
    assert first.bytes_condemned == foreseen.bytes_condemned == stats(one).bytes_condemned
    assert first.due_ns is not None and first.due_ns > one.ports.now_ns()
    assert set(before) < set(shared.files("packs"))
    assert compact(one, NOW) == replace(
        Compacted(bytes_total=first.bytes_total, bytes_live=first.bytes_live),
        condemned=first.condemned, bytes_condemned=first.bytes_condemned, due_ns=first.due_ns,
    )  # fmt: skip
    assert_all_there(one)
    shared.age(CONDEMNED_NS)
    two = shared.machine("two")
    foreseen = compact(two, replace(NOW, dry_run=True))
    second = compact(two, NOW)
    assert second.packs_deleted == foreseen.packs_deleted == first.condemned and not second.condemned
    assert second.bytes_freed == foreseen.bytes_freed == first.bytes_condemned
    assert second.objects_dropped == foreseen.objects_dropped > 0
    assert second.bytes_total - second.bytes_live == 0 and second.due_ns is None
    assert len(shared.files("condemned")) == 1 and not shared.files("leases") and not shared.files("tmp")
    shared.age(CONDEMNED_NS)
    compact(one, NOW)
    assert not shared.files("condemned")
    for machine in (one, two):
        assert_all_there(machine)


@pytest.mark.parametrize(("ours", "servers"), [(True, False), (False, True)])
def test_one_clock_that_is_a_day_ahead_deletes_nothing(shared: Shared, ours: bool, servers: bool) -> None:
    one = half_forgotten(shared)
    condemned = compact(one, NOW).condemned
    shared.age(2 * CONDEMNED_NS, ours=ours, servers=servers)
    again = compact(shared.machine("two"), NOW)
    assert again.condemned == condemned and not again.packs_deleted
    if servers:  # by force, that of the server decides
        assert compact(one, replace(NOW, force=True)).packs_deleted == condemned


def test_what_stands_only_in_condemned_packs_is_stored_again_and_read_meanwhile(shared: Shared) -> None:
    one = half_forgotten(shared)
    compact(one, NOW)
    two = shared.machine("two")
    client = SmallClient(two.config.repository_id, "web2", group="web")
    objects, _ = client.objects(tree(0, 12))
    with two.session(client.certificate) as session:
        known = session.has([o.id for o in objects])
        assert sum(known) == 5  # the data of four files, and the page of just these
        assert not [f for f in two.fetch([o.id for o in objects]) if f.problem]
    assert back_up(two, tree(0, 12), "web2") > 8 * 9_000
    shared.age(CONDEMNED_NS)
    compact(one, NOW)
    assert_all_there(two)
    assert all(info.complete for info in two.snapshots())


@pytest.mark.parametrize("fenced", [False, True], ids=["on another machine", "where the disk is"])
def test_a_session_from_before_copies_what_it_was_told_is_stored(shared: Shared, fenced: bool) -> None:
    one = half_forgotten(shared)
    two = shared.machine("two")
    two.ports = replace(two.ports, fenced=fenced)
    client = SmallClient(two.config.repository_id, "web2", group="web")
    with two.session(client.certificate) as session:
        root = client.store(session, tree(0, 12))
        assert session.bytes_published == 0
        compact(one, NOW)
        session.commit(client.snapshot(root, session.head()))
        assert session.bytes_published > 8 * 9_000
    shared.age(CONDEMNED_NS)
    compact(one, NOW)
    assert_all_there(two)
    assert all(info.complete for info in two.snapshots())


def test_whoever_is_at_work_keeps_packs_that_he_may_need(shared: Shared) -> None:
    one = half_forgotten(shared)
    two = shared.machine("two")
    client = SmallClient(two.config.repository_id, "web2", group="web")
    with two.session(client.certificate) as session:
        root = client.store(session, tree(0, 12))
        condemned = compact(one, NOW).condemned
        shared.age(CONDEMNED_NS)
        shared.ticking = [lease_of(two)]
        shared.ticking[0].tick()
        held_up = compact(one, NOW)
        assert held_up.held_up_by == ["backup of web2"] and held_up.condemned == condemned
        assert not held_up.packs_deleted and shared.monotonic_s <= 2 * BEAT_S
        assert compact(one, replace(NOW, dry_run=True)).held_up_by == ["backup of web2"]
        session.commit(client.snapshot(root, session.head()))
    shared.ticking = []
    done = compact(one, NOW)
    assert done.packs_deleted == condemned and not done.held_up_by
    assert_all_there(two)


def lease_of(repository: LocalRepository) -> leases.Lease:
    """A second hand on the lease that a session of this process holds."""
    [seen] = leases.others(repository.ports.blobs).values()
    lease = leases.Lease(repository.ports.blobs, seen.holder, seen.what)
    lease._counter = seen.counter + 1
    return lease


def test_a_session_that_knows_the_list_holds_up_nobody(shared: Shared) -> None:
    one = half_forgotten(shared)
    condemned = compact(one, NOW).condemned
    two = shared.machine("two")
    with two.session(SmallClient(two.config.repository_id, "web2", group="web").certificate):
        shared.age(CONDEMNED_NS)
        assert compact(one, NOW).packs_deleted == condemned and shared.monotonic_s == 0


@pytest.mark.parametrize("young", [True, False])
def test_a_dead_holder_is_watched_or_was_dead_for_a_day(shared: Shared, young: bool) -> None:
    one = half_forgotten(shared)
    dead = leases.Lease(one.ports.blobs, HOLDER, "backup of gone")
    if not young:
        dead.tick()
    condemned = compact(one, NOW).condemned
    shared.age(CONDEMNED_NS)
    if young:
        dead.tick()
    assert compact(one, NOW).packs_deleted == condemned
    assert (shared.monotonic_s >= STALE_S) == young and not shared.files("leases")


def test_a_holder_taken_for_dead_loses_his_work_and_nothing_else(shared: Shared) -> None:
    one = half_forgotten(shared)
    two = shared.machine("two")
    client = SmallClient(two.config.repository_id, "web2", group="web")
    with two.session(client.certificate) as session:
        root = client.store(session, tree(0, 12))
        compact(one, NOW)
        shared.age(CONDEMNED_NS)
        assert compact(one, NOW).packs_deleted
        with pytest.raises(ObjectMissing):
            session.commit(client.snapshot(root, session.head()))
    back_up(two, tree(0, 12), "web2")
    assert_all_there(two)


def test_a_snapshot_forgotten_after_the_first_step_is_recovered(shared: Shared) -> None:
    one = half_forgotten(shared)
    compact(one, NOW)
    two = shared.machine("two")
    back_up(two, tree(0, 12), "web2")
    with two.reading():
        name = next(info.name for info in two.snapshots() if info.client == "web2")
        forget(two, [name], force=True)
    shared.age(CONDEMNED_NS)
    compact(one, replace(NOW, grace_ns=7 * CONDEMNED_NS))
    with two.reading():
        assert recover(two, [name]) == [name]
    assert_all_there(two)


def test_the_machine_that_has_the_disk_deletes_condemned_packs_at_once(shared: Shared) -> None:
    condemned = compact(half_forgotten(shared), NOW).condemned
    here = open_local(str(shared.path / "repo"))
    foreseen = compact(here, replace(NOW, dry_run=True))
    done = compact(here, NOW)
    assert done.packs_deleted == foreseen.packs_deleted == condemned and not done.condemned
    assert not shared.files("condemned")
    assert_all_there(here)
    here.close()


def test_a_damaged_list_blocks_deletion_until_it_is_put_aside(shared: Shared) -> None:
    one = half_forgotten(shared)
    compact(one, NOW)
    [path] = shared.files("condemned")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    two = shared.machine("two")
    with pytest.raises(DamageBlocks):
        compact(two, NOW)
    checked = LocalMaintenance(two).check(CheckOptions())
    assert [finding.kind for finding in checked.report.damage] == ["condemned"]
    assert LocalMaintenance(two).check(CheckOptions(repair=True)).remaining == []
    assert not shared.files("condemned") and len(shared.files("quarantine")) == 1
    assert not compact(two, NOW).packs_deleted
    assert len(shared.files("condemned")) == 1
    assert_all_there(two)


def test_what_dead_writers_left_in_tmp_goes_with_the_packs(shared: Shared) -> None:
    one = half_forgotten(shared)
    (shared.path / "repo" / "tmp" / "00ff").write_bytes(b"torn")
    compact(one, NOW)
    (shared.path / "repo" / "tmp" / "11ff").write_bytes(b"somebody is writing this")
    shared.age(CONDEMNED_NS)
    compact(one, NOW)
    assert [path.name for path in shared.files("tmp")] == ["11ff"]


def test_quick_readers_write_nothing(shared: Shared) -> None:
    one = half_forgotten(shared)
    with one.reading():
        assert not shared.files("leases")


def test_a_lease_ticks_by_itself_and_is_gone_in_the_end(shared: Shared) -> None:
    blobs = shared.machine("one").ports.blobs
    with leases.held(blobs, HOLDER, "reader", at_once=False, beat_s=0.01):
        seen: dict[str, leases.Seen] = {}
        while not seen or seen[HOLDER].counter < 3:
            assert len(shared.files("leases")) <= 3
            seen = leases.others(blobs)
    assert not shared.files("leases")


def test_the_next_backup_heals_a_tree_of_which_a_page_is_left(shared: Shared) -> None:
    """Its data are in a pack that is still open when the page, which is there, is put again."""
    one = shared.machine("one")
    back_up(one, tree(0, 4))
    for path in shared.files("packs"):
        if path.stat().st_size > 20_000:
            path.unlink()
    with one.reading():
        assert not one.snapshots()[0].complete
    back_up(one, tree(0, 8), "web2")
    assert all(info.complete for info in one.snapshots())


def test_a_full_disk_keeps_nobody_from_deleting_what_is_due(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    one = half_forgotten(shared)
    condemned = compact(one, NOW).condemned
    shared.age(CONDEMNED_NS)
    blobs = one.ports.blobs
    publish, delete = blobs.publish, blobs.delete
    full = [True]

    def on_a_full_disk(name: str, buffers: Sequence[bytes]) -> None:
        if full[0] and any(buffers):
            raise DiskFull(name)
        publish(name, buffers)

    def making_room(name: str) -> None:
        delete(name)
        full[0] = full[0] and not name.startswith("packs/")

    monkeypatch.setattr(blobs, "publish", on_a_full_disk)
    monkeypatch.setattr(blobs, "delete", making_room)
    assert compact(one, NOW).packs_deleted == condemned
    assert len(shared.files("condemned")) == 1 and not shared.files("leases")
    assert_all_there(one)


@pytest.mark.parametrize("marked_both", [False, True])
def test_two_machines_together_do_not_take_a_clients_last_snapshot(
    shared: Shared, monkeypatch: pytest.MonkeyPatch, marked_both: bool
) -> None:
    """Each has an index of its own, so their transactions do not meet: the markers in the directory do."""
    one, two = shared.machine("one"), shared.machine("two")
    for files in (tree(0, 2), tree(2, 4)):
        back_up(one, files)
    two.reconcile()
    first, second = (info.name for info in one.snapshots())
    refused = []

    def attempt(repository: LocalRepository, name: str) -> None:
        try:
            forget(repository, [name])
        except Refused:
            refused.append(name)

    real = forget_module._look_again

    def look_again(repository: LocalRepository, markers: Sequence[str]) -> None:
        if repository is one:  # what the other machine does before we look
            attempt(two, second)
        elif marked_both:  # now both have marked, and nobody has looked
            with suppress(Refused):
                real(one, [path.name for path in shared.files("forgotten") if path.name.startswith(first[:-5])])
                raise AssertionError("nobody is refused")
        real(repository, markers)

    monkeypatch.setattr(forget_module, "_look_again", look_again)
    attempt(one, first)
    assert refused or marked_both
    for repository in (one, two):
        repository.reconcile()
        assert any(info.forgotten_ns is None for info in repository.snapshots())
    assert len(shared.files("forgotten")) <= 1
