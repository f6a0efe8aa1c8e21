"""What the blob store does on any file system, and what it makes of a file system's failures."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from simdisk import SimDisk
from steps import PowerCut, Steps

from packnback.errors import AlreadyExists, BlobMissing, DiskFull, PacknbackError, Poisoned, StorageFailed
from packnback.events import Watch
from packnback.store.blobs import BlobStore, FileBlobStore, storage_error
from packnback.store.fs import FileSystem
from packnback.store.layout import make_layout
from packnback.store.osfs import OsFileSystem


class BlobStoreContract(ABC):
    @pytest.fixture
    def watch(self) -> Watch:
        return Watch()

    @pytest.fixture
    @abstractmethod
    def fs(self, tmp_path: Path, watch: Watch) -> Iterator[FileSystem]:
        """A file system with the layout on it."""

    @pytest.fixture
    def blobs(self, fs: FileSystem) -> BlobStore:
        return FileBlobStore(fs)

    def test_publish_and_read(self, blobs: BlobStore, fs: FileSystem) -> None:
        blobs.publish("packs/ab/x.pack", [b"01234", memoryview(b"56789")])
        assert blobs.read("packs/ab/x.pack") == b"0123456789"
        assert blobs.read("packs/ab/x.pack", 3, 4) == b"3456"
        assert blobs.read("packs/ab/x.pack", 8, 4) == b"89"
        assert blobs.size("packs/ab/x.pack") == 10
        assert blobs.list("packs/ab") == ["x.pack"]
        assert fs.list("tmp") == []

    def test_an_empty_blob_in_the_root(self, blobs: BlobStore) -> None:
        blobs.publish("config", [])
        assert blobs.read("config") == b""
        assert blobs.size("config") == 0
        assert "config" in blobs.list("")

    def test_publish_never_replaces(self, blobs: BlobStore, fs: FileSystem) -> None:
        blobs.publish("snapshots/s", [b"first"])
        with pytest.raises(AlreadyExists) as caught:
            blobs.publish("snapshots/s", [b"second"])
        assert caught.value.path == "snapshots/s"
        assert blobs.read("snapshots/s") == b"first"
        assert fs.list("tmp") == []

    def test_a_publication_syncs_the_file_and_its_directory(self, blobs: BlobStore, watch: Watch) -> None:
        before = watch.counters.fsyncs
        blobs.publish("snapshots/s", [b"x"])
        assert watch.counters.fsyncs - before == 2

    def test_publish_makes_no_directories(self, blobs: BlobStore, fs: FileSystem) -> None:
        with pytest.raises(StorageFailed) as caught:
            blobs.publish("nowhere/x", [b"x"])
        assert caught.value.operation == "publish"
        assert fs.list("tmp") == []

    def test_what_is_missing(self, blobs: BlobStore) -> None:
        for operation in (blobs.read, blobs.size, blobs.delete):
            with pytest.raises(BlobMissing) as caught:
                operation("snapshots/s")
            assert caught.value.name == "snapshots/s"

    def test_a_missing_directory_is_not_an_empty_one(self, blobs: BlobStore) -> None:
        with pytest.raises(StorageFailed):
            blobs.list("nowhere")
        with pytest.raises(StorageFailed):
            blobs.settle("nowhere")

    def test_exists(self, blobs: BlobStore) -> None:
        blobs.publish("snapshots/s", [b"x"])
        assert blobs.exists("snapshots/s")
        assert not blobs.exists("snapshots/t")
        with pytest.raises(StorageFailed):  # neither yes nor no
            blobs.exists("snapshots/s/below")

    def test_list_is_sorted(self, blobs: BlobStore) -> None:
        for name in ("c", "a", "b"):
            blobs.publish(f"headers/{name}", [b"x"])
        assert blobs.list("headers") == ["a", "b", "c"]
        assert blobs.list("forgotten") == []

    def test_delete_and_publish_again(self, blobs: BlobStore) -> None:
        blobs.publish("snapshots/s", [b"1"])
        blobs.delete("snapshots/s")
        assert not blobs.exists("snapshots/s")
        blobs.publish("snapshots/s", [b"2"])
        assert blobs.read("snapshots/s") == b"2"

    def test_a_barrier_syncs_each_directory_once(self, blobs: BlobStore, watch: Watch) -> None:
        for name in ("snapshots/a", "snapshots/b", "forgotten/c"):
            blobs.publish(name, [b"x"])
        before = watch.counters.fsyncs
        for name in ("snapshots/a", "snapshots/b", "forgotten/c"):
            blobs.delete(name)
        assert watch.counters.fsyncs == before
        blobs.barrier()
        assert watch.counters.fsyncs == before + 2
        blobs.barrier()
        assert watch.counters.fsyncs == before + 2

    def test_a_barrier_covers_what_somebody_else_deleted_first(self, blobs: BlobStore, watch: Watch) -> None:
        with pytest.raises(BlobMissing):
            blobs.delete("snapshots/a")
        before = watch.counters.fsyncs
        blobs.barrier()
        assert watch.counters.fsyncs == before + 1

    def test_sweep(self, blobs: BlobStore, fs: FileSystem) -> None:
        for name in ("tmp/a", "tmp/b"):
            fs.create(name).close()
        blobs.publish("snapshots/s", [b"x"])
        assert blobs.sweep_tmp() == 2
        assert blobs.sweep_tmp() == 0
        assert fs.list("tmp") == []
        assert blobs.read("snapshots/s") == b"x"

    def test_one_of_many_publishers_wins(self, blobs: BlobStore, fs: FileSystem) -> None:
        def publish(n: int) -> int | None:
            try:
                blobs.publish("snapshots/s", [bytes([n]) * 1000])
            except AlreadyExists:
                return None
            return n

        with ThreadPoolExecutor(8) as pool:
            winners = [n for n in pool.map(publish, range(40)) if n is not None]
        assert len(winners) == 1
        assert blobs.read("snapshots/s") == bytes(winners) * 1000
        assert fs.list("tmp") == []


class TestOnOsFileSystem(BlobStoreContract):
    @pytest.fixture
    def fs(self, tmp_path: Path, watch: Watch) -> Iterator[FileSystem]:
        fs = OsFileSystem(tmp_path, watch)
        make_layout(fs)
        yield fs
        fs.close()

    def test_a_directory_in_tmp_keeps_nobody_from_sweeping(self, blobs: BlobStore, tmp_path: Path) -> None:
        (tmp_path / "tmp" / "aa").mkdir()
        (tmp_path / "tmp" / "bb").write_bytes(b"unpublished")
        assert blobs.sweep_tmp() == 1
        assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["aa"]


class TestOnSimDisk(BlobStoreContract):
    @pytest.fixture
    def fs(self, tmp_path: Path, watch: Watch) -> Iterator[FileSystem]:
        fs = SimDisk(watch=watch)
        make_layout(fs)
        yield fs


@pytest.fixture
def disk() -> SimDisk:
    disk = SimDisk()
    make_layout(disk)
    return disk


def test_a_full_disk_is_told_and_gets_its_space_back(disk: SimDisk) -> None:
    blobs = FileBlobStore(disk)
    disk.space_left = 100
    with pytest.raises(DiskFull) as caught:
        blobs.publish("snapshots/s", [bytes(60), bytes(60)])
    assert caught.value.path == "snapshots/s"
    assert disk.files() == {}
    assert disk.space_left == 100
    blobs.publish("snapshots/s", [bytes(100)])
    assert disk.space_left == 0


def test_a_failed_file_sync_publishes_nothing_and_a_retry_writes_a_new_file(disk: SimDisk) -> None:
    blobs = FileBlobStore(disk)
    failures = iter([True, False])
    synced: list[str] = []

    def fail(path: str) -> bool:
        synced.append(path)
        return next(failures)

    disk.fail_sync = fail
    with pytest.raises(StorageFailed) as caught:
        blobs.publish("snapshots/s", [b"x"])
    assert caught.value.reason == os.strerror(errno.EIO)
    assert disk.files() == {}
    blobs.publish("snapshots/s", [b"x"])
    assert len(set(synced)) == 2


def test_a_failed_directory_sync_poisons_the_directory_and_no_other(disk: SimDisk) -> None:
    blobs = FileBlobStore(disk)
    blobs.publish("snapshots/a", [b"x"])
    disk.fail_dir_sync = lambda path: path == "snapshots"
    with pytest.raises(StorageFailed):
        blobs.publish("snapshots/b", [b"x"])
    disk.fail_dir_sync = lambda path: False  # as Linux has it: the next sync claims success
    for needs_sync in (lambda: blobs.publish("snapshots/c", [b"x"]), lambda: blobs.settle("snapshots")):
        with pytest.raises(Poisoned):
            needs_sync()
    assert not blobs.exists("snapshots/c")
    assert blobs.read("snapshots/a") == b"x"
    blobs.publish("headers/h", [b"x"])


def test_a_failed_barrier_cannot_be_repeated_with_success(disk: SimDisk) -> None:
    blobs = FileBlobStore(disk)
    for name in ("forgotten/a", "snapshots/a"):
        blobs.publish(name, [b"x"])
        blobs.delete(name)
    disk.fail_dir_sync = lambda path: path == "forgotten"
    with pytest.raises(StorageFailed):
        blobs.barrier()
    disk.fail_dir_sync = lambda path: False
    with pytest.raises(Poisoned):
        blobs.barrier()


def test_a_failure_to_clean_up_does_not_hide_the_first_error(disk: SimDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlink(path: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    disk.space_left = 0
    monkeypatch.setattr(disk, "unlink", unlink)
    with pytest.raises(DiskFull) as caught:
        FileBlobStore(disk).publish("snapshots/s", [b"x"])
    cause = caught.value.__cause__
    assert cause is not None
    assert "the next compaction sweeps it" in cause.__notes__[0]


def test_the_loser_of_a_name_knows_that_the_winner_is_durable(disk: SimDisk) -> None:
    """A writer killed between move and sync leaves a name that a power cut may still take."""
    disk.create("snapshots/s").close()
    assert disk.count_states(100) == 2
    with pytest.raises(AlreadyExists):
        FileBlobStore(disk, tmp_name=lambda: "t").publish("snapshots/s", [])
    disk.sync_dir("tmp")
    assert disk.count_states(100) == 1


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_publication_leaves_nothing_behind(
    disk: SimDisk, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    create = disk.create

    def interrupted(path: str) -> object:
        file = create(path)

        def sync() -> None:
            raise interrupt

        file.sync = sync  # type: ignore[method-assign]
        return file

    monkeypatch.setattr(disk, "create", interrupted)
    with pytest.raises(interrupt):
        FileBlobStore(disk).publish("snapshots/s", [b"x"])
    assert disk.files() == {}


def test_a_dead_machine_cleans_nothing_up(disk: SimDisk) -> None:
    disk.steps = Steps(crash_at=2)
    with pytest.raises(PowerCut):
        FileBlobStore(disk).publish("snapshots/s", [b"xx"])
    assert list(disk.files().values()) == [b"x"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EFBIG, DiskFull),
        (errno.EIO, StorageFailed),
        (errno.EACCES, StorageFailed),
        (errno.ESTALE, StorageFailed),
    ],
)
def test_what_the_system_says_in_our_words(code: int, expected: Callable[..., PacknbackError]) -> None:
    error = storage_error("publish", "a", OSError(code, os.strerror(code), "a"))
    assert type(error) is expected
