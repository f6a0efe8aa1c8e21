"""Deliberate faults in the order of writes: each turns off one sync or turns round two steps.

A crash test that cannot fail is worth nothing. Each of these faults must make a sweep fail; the list is repeated
in docs/crash-model.md, with the faults that are harmless, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from invariants import check_running, demand
from scenarios import BY_NAME, WEB2, files, same_backup
from simdisk import never
from sweep import Sweep
from visits import READS, StaleFs
from world import World, copy_of

from packnback.format import snapshot
from packnback.format.snapshot import SnapshotFile
from packnback.gc import exclusive
from packnback.gc.exclusive import Run
from packnback.gc.rewrite import Rewriting
from packnback.ids import ObjectClass
from packnback.store import commit_rules, layout, reconcile, repository
from packnback.store.blobs import FileBlobStore
from packnback.store.fs import Buffer
from packnback.store.index import Index
from packnback.store.ledger import Ledger
from packnback.store.session import LocalSession
from packnback.store.truth import Names, Truth

Patch = pytest.MonkeyPatch
Proof = Callable[[], object]
"""Runs the sweep that must fail."""


def postponed(blobs: Any) -> list[Any]:
    """What a fault does later than it should. It dies with the process, so it stands at the process's handle."""
    late: list[Any] = vars(blobs).setdefault("postponed", [])
    return late


@dataclass(frozen=True, slots=True)
class Mutation:
    """A fault, and the sweep that has to notice it."""

    name: str
    apply: Callable[[Patch], None]
    proof: Proof
    breaks: str
    """How the message begins, of what is noticed: a fault must be caught for what it is."""


# --- syncs ------------------------------------------------------------------------------------------------------


def no_sync_of_bytes(prefix: str) -> Callable[[Patch], None]:
    """The bytes of blobs whose names begin so are not synced before they are published."""

    def apply(patch: Patch) -> None:
        publish = FileBlobStore.publish

        def faulty(self: FileBlobStore, name: str, buffers: Sequence[Buffer]) -> None:
            disk: Any = self._fs
            disk.drop_sync = (lambda path: True) if name.startswith(prefix) else never
            publish(self, name, buffers)

        patch.setattr(FileBlobStore, "publish", faulty)

    return apply


def no_sync_of_name(prefix: str) -> Callable[[Patch], None]:
    """The directory of blobs whose names begin so is not synced after they were published."""

    def apply(patch: Patch) -> None:
        publish = FileBlobStore.publish

        def faulty(self: FileBlobStore, name: str, buffers: Sequence[Buffer]) -> None:
            disk: Any = self._fs
            disk.drop_dir_sync = (lambda path: True) if name.startswith(prefix) else never
            publish(self, name, buffers)
            disk.drop_dir_sync = never

        patch.setattr(FileBlobStore, "publish", faulty)

    return apply


def no_sync_in_layout(path: str) -> Callable[[Patch], None]:
    """Making the directories ends without a sync of this one."""

    def apply(patch: Patch) -> None:
        make_layout = layout.make_layout

        def faulty(disk: Any) -> None:
            disk.drop_dir_sync = lambda synced: synced == path
            make_layout(disk)
            disk.drop_dir_sync = never

        patch.setattr("world.make_layout", faulty)

    return apply


def no_barrier(patch: Patch) -> None:
    patch.setattr(FileBlobStore, "barrier", lambda self: None)


def no_settle(patch: Patch) -> None:
    patch.setattr(FileBlobStore, "settle", lambda self, directory: None)


# --- init ---------------------------------------------------------------------------------------------------------


def config_before_layout(patch: Patch) -> None:
    """The config is published first, then the directories are made."""

    def faulty(self: World) -> repository.LocalRepository:
        drawn = iter((self_id,))
        self.disk.make_dir("tmp")
        repository.create(self.blobs(), bundle, lambda length: next(drawn))
        layout.make_layout(self.disk)
        return self.repository()

    from world import CONFIG

    self_id, bundle = CONFIG.repository_id, CONFIG.owner_bundle
    patch.setattr(World, "init", faulty)


# --- a session ------------------------------------------------------------------------------------------------------


def row_before_pack(patch: Patch) -> None:
    """The index names a pack before it is published."""

    def faulty(self: LocalSession, object_class: ObjectClass) -> None:
        packer = self._packers[object_class]
        if not packer:
            return
        built = packer.finish()

        def adopt(txn: Any) -> None:
            ledger = Ledger(txn)
            ledger.adopt_packs([built.found])
            ledger.settle()

        self._index.write(adopt)
        self._truth.blobs.publish(layout.pack_path(built.name.hex()), built.buffers)
        self._open[object_class].clear()

    patch.setattr(LocalSession, "_publish", faulty)


def meta_before_data(patch: Patch) -> None:
    """A meta pack is published before the data packs that it needs."""
    publish = LocalSession._publish

    def faulty(self: LocalSession, object_class: ObjectClass) -> None:
        if object_class == ObjectClass.DATA and self._packers[ObjectClass.META]:
            publish(self, ObjectClass.META)
        publish(self, object_class)

    patch.setattr(LocalSession, "_publish", faulty)


def snapshot_before_flush(patch: Patch) -> None:
    """The snapshot file is published before the last packs are."""
    commit = LocalSession.commit

    def faulty(self: LocalSession, snapshot_bytes: bytes) -> Any:
        file = snapshot.decode_file(snapshot_bytes, receipt=False)
        with self._index.read() as txn:
            receipt = commit_rules.stamp(txn, self._now_ns(), self.bytes_published, self_stamped=True)
        parts = (file.header, file.header_bytes, file.signature, file.certificate, file.envelope_record)
        name = snapshot.snapshot_name(file.header.client_id, file.header.sequence)
        data = snapshot.encode_file(SnapshotFile(*parts, file.metadata_record, receipt))
        self._truth.blobs.publish(f"{layout.SNAPSHOTS}/{name}", [data])
        return commit(self, snapshot_bytes)

    patch.setattr(LocalSession, "commit", faulty)


def root_not_looked_at(patch: Patch) -> None:
    """A snapshot is published although its root is not complete."""
    patch.setattr(commit_rules, "is_complete", lambda txn, object_id: True)


# --- reconcile ----------------------------------------------------------------------------------------------------


def packs_listed_first(patch: Patch) -> None:
    """Packs are listed before the snapshots, so a snapshot may be seen whose packs are not."""
    listed_names = reconcile.listed_names

    class PacksFirst:
        def __init__(self, blobs: Any) -> None:
            self._blobs = blobs
            self._packs = {path: blobs.list(path) for path in layout.PACK_DIRECTORIES}

        def list(self, directory: str) -> Any:
            return self._packs.get(directory) or ([] if directory in self._packs else self._blobs.list(directory))

    def faulty(truth: Truth) -> Names:
        first: Any = PacksFirst(truth.blobs)
        return listed_names(Truth(first, truth.repository_id, truth.owner_bundle, truth.watch))

    patch.setattr(reconcile, "listed_names", faulty)


def no_confirmation(patch: Patch) -> None:
    """A name that was not listed is removed without a look whether its file is really gone."""
    remove = reconcile._remove

    class NothingExists:
        def exists(self, name: str) -> bool:
            return False

    def faulty(truth: Truth, txn: Any, ledger: Any, gone: Names) -> int:
        nothing: Any = NothingExists()
        return remove(Truth(nothing, truth.repository_id, truth.owner_bundle, truth.watch), txn, ledger, gone)

    patch.setattr(reconcile, "_remove", faulty)


def names_read_after_listing(patch: Patch) -> None:
    """What the index knows is read after the listing, and what was not listed is not looked for."""
    no_confirmation(patch)
    original = reconcile.reconcile

    def faulty(truth: Truth, index: Index) -> Any:
        listed = reconcile.listed_names(truth)
        with patch.context() as inner:
            inner.setattr(reconcile, "listed_names", lambda truth: listed)
            return original(truth, index)

    patch.setattr(repository, "reconcile", faulty)


def no_recount(patch: Patch) -> None:
    """After damage has taken a pack, counts and completeness are left as they were."""
    patch.setattr(Ledger, "recount", lambda self: None)


def stale_listing() -> None:
    """A process whose listings are those of an earlier time; then the power goes."""
    world, promises = BY_NAME["second backup"].prepare()
    earlier = copy_of(world.disk)
    promises.backup(world.repository(), WEB2, files(0, 12))
    with world.repository(fs=StaleFs(world.disk, earlier)).reading(wait_s=0):
        pass
    with world.index.read() as txn:
        demand(len(list(txn.scan("snapshots"))) == 2, "reconcile", "a stale listing has removed a row")
    check_running(world, promises)


# --- repair, release, compaction ---------------------------------------------------------------------------------


def batch_after_deletion(patch: Patch) -> None:
    """The headers are kept only after their snapshots have been deleted."""
    publish, barrier = FileBlobStore.publish, FileBlobStore.barrier

    def faulty_publish(self: FileBlobStore, name: str, buffers: Sequence[Buffer]) -> None:
        if name.startswith(layout.HEADERS):
            postponed(self).append((name, buffers))
        else:
            publish(self, name, buffers)

    def faulty_barrier(self: FileBlobStore) -> None:
        barrier(self)
        while postponed(self):
            publish(self, *postponed(self).pop())

    patch.setattr(FileBlobStore, "publish", faulty_publish)
    patch.setattr(FileBlobStore, "barrier", faulty_barrier)


def deleted_before_copied(patch: Patch) -> None:
    """Old packs are deleted before the new ones are published."""
    publish, delete = Rewriting._publish, Run.delete
    patch.setattr(Rewriting, "_publish", lambda self, object_class: None)
    patch.setattr(Rewriting, "is_superfluous", lambda self, name: True)

    def faulty(self: Any) -> None:
        self._rewriting.copied.update(self._plan.rewrite)
        delete(self)
        for object_class in ObjectClass:
            publish(self._rewriting, object_class)

    patch.setattr(Run, "delete", faulty)


def packs_before_release(patch: Patch) -> None:
    """Packs are dropped as if the forgotten snapshots had gone, before these are released."""
    release, delete = exclusive.release, Run.delete

    def faulty(repo: Any, infos: Sequence[Any]) -> None:
        postponed(repo.ports.blobs).append((repo, infos))
        names = [info.name for info in infos]
        repo.ports.index.write(lambda txn: exclusive.drop_snapshots(txn, names))

    def late(self: Any) -> None:
        delete(self)
        while postponed(self._repository.ports.blobs):
            release(*postponed(self._repository.ports.blobs).pop())

    patch.setattr(exclusive, "release", faulty)
    patch.setattr(exclusive, "confirm_counts", lambda repo: None)
    patch.setattr(Run, "_confirm_alone", lambda self: None)  # it sees that a snapshot is there which should not be
    patch.setattr(Run, "delete", late)


def deleted_before_quarantined(patch: Patch) -> None:
    """A damaged pack is taken away before its copy stands in quarantine."""
    publish, delete = FileBlobStore.publish, FileBlobStore.delete

    def faulty_publish(self: FileBlobStore, name: str, buffers: Sequence[Buffer]) -> None:
        if name.startswith(layout.QUARANTINE):
            postponed(self).append((name, buffers))
        else:
            publish(self, name, buffers)

    def faulty_delete(self: FileBlobStore, name: str) -> None:
        delete(self, name)
        while postponed(self):
            publish(self, *postponed(self).pop())

    patch.setattr(FileBlobStore, "publish", faulty_publish)
    patch.setattr(FileBlobStore, "delete", faulty_delete)


def salvaged_after_deletion(patch: Patch) -> None:
    """The good records of a damaged pack are saved after it has been taken away."""
    import packnback.store.repair as repair_module

    salvage_publish, delete = repair_module._publish, FileBlobStore.delete
    patch.setattr(repair_module, "_publish", lambda repo, packer: postponed(repo.ports.blobs).append((repo, packer)))

    def faulty(self: FileBlobStore, name: str) -> None:
        delete(self, name)
        while postponed(self):
            salvage_publish(*postponed(self).pop())

    patch.setattr(FileBlobStore, "delete", faulty)


# --- the list ----------------------------------------------------------------------------------------------------


def sweeping(*names: str) -> Proof:
    """Crash sweeps over these scenarios."""

    def proof() -> None:
        for name in names:
            Sweep(BY_NAME[name]).run()

    return proof


def visiting(*, one_index: bool) -> Proof:
    """A backup between any two operations of a reconcile."""
    visits = replace(READS, one_index=one_index)
    return visits.run


def killing() -> None:
    """A killed process, then another, then the power cut."""

    Sweep(BY_NAME["first backup"]).run_killed(same_backup)


MUTATIONS = (
    Mutation(
        "config: bytes not synced",
        no_sync_of_bytes("config"),
        sweeping("init"),
        "the machine does not come up: ConfigDamage",
    ),
    Mutation("config: name not synced", no_sync_of_name("config"), sweeping("init"), "I1: the repository is gone"),
    Mutation("config published before the directories", config_before_layout, sweeping("init"), "init"),
    Mutation("init: packs/ not synced", no_sync_in_layout("packs"), sweeping("init"), "init"),
    Mutation(
        "init: root not synced",
        no_sync_in_layout(""),
        sweeping("init"),
        "the machine does not come up: FileNotFoundError",
    ),
    Mutation("pack: bytes not synced", no_sync_of_bytes("packs/"), sweeping("first backup"), "I2: packs/"),
    Mutation("pack: name not synced", no_sync_of_name("packs/"), sweeping("first backup"), "I4"),
    Mutation(
        "snapshot: bytes not synced", no_sync_of_bytes("snapshots/"), sweeping("first backup"), "I2: snapshots/"
    ),
    Mutation("snapshot: name not synced", no_sync_of_name("snapshots/"), sweeping("first backup"), "I1"),
    Mutation("index row before its pack", row_before_pack, sweeping("first backup"), "I4"),
    Mutation("meta pack before data pack", meta_before_data, sweeping("first backup"), "order"),
    Mutation("snapshot before the last packs", snapshot_before_flush, sweeping("first backup"), "I1/I6"),
    Mutation("snapshot whose root is not complete", root_not_looked_at, sweeping("commit without objects"), "I3"),
    Mutation("reconcile: adopted names not synced", no_settle, killing, "I1/I6"),
    Mutation("reconcile: packs listed before snapshots", packs_listed_first, visiting(one_index=False), "I3"),
    Mutation("reconcile: removal not confirmed", no_confirmation, stale_listing, "reconcile"),
    Mutation(
        "reconcile: known names read after the listing",
        names_read_after_listing,
        visiting(one_index=True),
        "reconcile",
    ),
    Mutation("reconcile: no recount after a loss", no_recount, sweeping("commit without objects"), "I5"),
    Mutation("marker: name not synced", no_sync_of_name("forgotten/"), sweeping("forget"), "forget"),
    Mutation("recover: no barrier after deleting markers", no_barrier, sweeping("recover"), "forget"),
    Mutation("quarantine: bytes not synced", no_sync_of_bytes("quarantine/"), sweeping("repair"), "quarantine"),
    Mutation("quarantine: name not synced", no_sync_of_name("quarantine/"), sweeping("repair"), "quarantine"),
    Mutation("repair: no barrier after deleting a pack", no_barrier, sweeping("repair"), "quarantine"),
    Mutation(
        "repair: pack deleted before its copy is in quarantine",
        deleted_before_quarantined,
        sweeping("repair"),
        "quarantine",
    ),
    Mutation(
        "repair: records saved after their pack is deleted", salvaged_after_deletion, sweeping("repair"), "I1/I6"
    ),
    Mutation("header batch: bytes not synced", no_sync_of_bytes("headers/"), sweeping("compact"), "I2: headers/"),
    Mutation("header batch: name not synced", no_sync_of_name("headers/"), sweeping("compact"), "chain"),
    Mutation("header batch after deleting the snapshots", batch_after_deletion, sweeping("compact"), "chain"),
    Mutation("packs deleted before their snapshots are released", packs_before_release, sweeping("compact"), "I1/I6"),
    Mutation("packs deleted before their records are copied", deleted_before_copied, sweeping("compact"), "I1/I6"),
)
