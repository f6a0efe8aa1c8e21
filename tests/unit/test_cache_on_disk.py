"""The cache against a real repository: compaction, restore, checkpoints."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from cached_client import KEY, OWNER, settle
from msgspec.structs import replace

from packnback.backup import disguise
from packnback.backup import save as save_module
from packnback.backup.pipeline import Pipeline
from packnback.backup.save import SaveOptions, SaveResult, save
from packnback.events import Counters, Watch
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.forget import forget
from packnback.ids import KIB, MIB
from packnback.mounts import filesystem_type
from packnback.restore.objects import ObjectReader
from packnback.restore.options import RestoreOptions
from packnback.restore.restore import restore
from packnback.restore.snapshot import open_snapshot
from packnback.store.interface import SnapshotInfo
from packnback.store.local import create_local
from packnback.store.repository import LocalRepository


class Machine:
    """A machine, its repository on a disk, and its cache."""

    def __init__(self, base: Path, repository: LocalRepository) -> None:
        self.base = base
        self.repository = repository
        self.source = base / "source"
        self.source.mkdir()
        self.counters = Counters()
        self.options = SaveOptions(
            paths=[os.fsencode(self.source)],
            state_directory=os.fsencode(base / "state"),
            cache_directory=os.fsencode(base / "cache"),
        )

    def save(self, **changed: object) -> SaveResult:
        self.counters = Counters()
        return save(self.repository, KEY, replace(self.options, **changed), Watch(self.counters))  # type: ignore[arg-type]

    def newest(self) -> SnapshotInfo:
        return max(self.repository.snapshots(), key=lambda info: info.sequence)

    def restored(self, info: SnapshotInfo) -> Path:
        to = self.base / f"restored-{info.sequence}"
        with self.repository.reading(), ObjectReader(self.repository, OWNER) as reader:
            result = restore(reader, open_snapshot(reader, info), str(to), RestoreOptions())
        assert result.problems == []
        return to / str(self.source)[1:]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    repository = create_local(str(tmp_path / "repository"), OWNER.bundle.raw)
    yield Machine(tmp_path, repository)
    repository.close()


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def fill(source: Path) -> None:
    draw = random.Random(1)
    for d in range(4):
        (source / f"dir{d}").mkdir()
        for f in range(6):
            (source / f"dir{d}" / f"file{f}").write_bytes(draw.randbytes(20_000))
    (source / "image").write_bytes(draw.randbytes(3 * MIB))
    settle()


def change(source: Path, number: int) -> None:
    draw = random.Random(number)
    (source / "dir1" / f"file{number % 6}").write_bytes(draw.randbytes(10_000))
    with open(source / "image", "r+b") as file:
        file.seek(draw.randrange(3 * MIB - 5000))
        file.write(draw.randbytes(5000))
    settle()


@pytest.mark.parametrize("synced", [False, True], ids=["page still dirty", "page synced"])
def test_a_change_through_a_mapping_is_noticed(machine: Machine, synced: bool) -> None:
    """The second write to a page that is dirty sets no ctime."""
    if filesystem_type(machine.source) == "tmpfs":
        pytest.skip("tmpfs never tells of changes through a mapping")
    path = machine.source / "mapped"
    path.write_bytes(bytes(8192))
    os.sync()
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        mapped[:4] = b"1111"
        ctime_ns = path.stat().st_ctime_ns
        settle()
        if synced:
            os.sync()
        machine.save()
        assert path.stat().st_ctime_ns == ctime_ns
        mapped[:4] = b"2222"
        settle()
        machine.save()
        assert contents(machine.restored(machine.newest()))["mapped"][:4] == b"2222"
    settle()
    machine.save()
    assert contents(machine.restored(machine.newest()))["mapped"][:4] == b"2222"
    machine.save()
    assert machine.counters.files_opened == 0


def test_a_cache_that_has_not_heard_of_a_compaction(machine: Machine) -> None:
    fill(machine.source)
    machine.save()
    kept = contents(machine.source)
    for name in ("dir0", "dir1"):
        shutil.rmtree(machine.source / name)
    (machine.source / "image").write_bytes(b"small now")
    settle()
    shutil.copytree(machine.base / "cache", machine.base / "old cache")
    machine.save()
    forget(machine.repository, [machine.repository.snapshots()[0].name])
    dropped = compact(machine.repository, CompactOptions(grace_ns=0, force=True)).objects_dropped
    assert dropped
    shutil.rmtree(machine.base / "cache")
    shutil.move(machine.base / "old cache", machine.base / "cache")
    for path, content in kept.items():
        (machine.source / path).parent.mkdir(exist_ok=True)
        (machine.source / path).write_bytes(content)
    settle()
    machine.save()
    assert contents(machine.restored(machine.newest())) == kept


def test_every_one_of_many_generations_restores(machine: Machine) -> None:
    fill(machine.source)
    trees = []
    for number in range(6):
        machine.save()
        trees.append(contents(machine.source))
        change(machine.source, number)
    for info, tree in zip(machine.repository.snapshots(), trees, strict=True):
        assert contents(machine.restored(info)) == tree


def interrupt_at(monkeypatch: pytest.MonkeyPatch, machine: Machine, name: bytes, times: int) -> None:
    """Checkpoints whenever they can be; Ctrl-C when a file of that name is opened for the `times`-th time."""
    monkeypatch.setattr(save_module, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(disguise, "BATCH_IDS", 1)
    real, opened = os.open, list[bytes]()
    pipelines: list[Pipeline] = []

    class Watched(Pipeline):
        def __enter__(self) -> Self:
            pipelines.append(self)
            return super().__enter__()

    def interrupt(path: object, *args: object, **named: object) -> int:
        if isinstance(path, bytes) and named.get("dir_fd") is not None:  # a file that is backed up
            while opened and not pipelines[0].objects_new:
                time.sleep(0.001)
            opened.append(path)
            if opened.count(name) == times:
                raise KeyboardInterrupt
        return real(path, *args, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(save_module, "Pipeline", Watched)
        patch.setattr(os, "open", interrupt)
        with pytest.raises(KeyboardInterrupt):
            machine.save()


def test_an_interrupted_backup_goes_on_where_it_was(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(machine.source)
    interrupt_at(monkeypatch, machine, b"file4", 3)
    partial = machine.newest()
    assert partial.partial
    assert not compact(machine.repository, CompactOptions(grace_ns=0)).released, "a checkpoint protects what is there"
    result = machine.save()
    assert 0 < machine.counters.files_opened < result.files
    assert result.files_unchanged == result.files - machine.counters.files_opened
    assert contents(machine.restored(machine.newest())) == contents(machine.source)
    assert not machine.newest().partial


def test_a_directory_of_large_files_has_checkpoints_in_its_middle(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(2)
    for i in range(6):
        (machine.source / f"film{i}").write_bytes(draw.randbytes(2 * MIB))
        (machine.source / f"film{i}.txt").write_bytes(draw.randbytes(500))
    settle()
    interrupt_at(monkeypatch, machine, b"film4", 1)
    whole = contents(machine.source)
    partial = machine.newest()
    assert partial.partial
    saved = contents(machine.restored(partial))
    assert {"film0", "film0.txt", "film1"} <= saved.keys() < whole.keys()
    assert all(whole[name] == content for name, content in saved.items())
    machine.save()
    assert machine.counters.files_opened == 12 - len(saved)
    assert contents(machine.restored(machine.newest())) == whole
    machine.save()
    assert machine.counters.files_opened == 0


def test_deltas_cost_what_changed_and_are_verified(machine: Machine) -> None:
    fill(machine.source)
    machine.save()
    change(machine.source, 1)
    result = machine.save()
    assert machine.counters.files_opened == 2
    assert result.bytes_stored < 150 * KIB
    assert contents(machine.restored(machine.newest())) == contents(machine.source)
