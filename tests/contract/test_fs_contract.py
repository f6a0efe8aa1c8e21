"""What every implementation of the file-system port does. An untested simulator is a liar."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simdisk import SimDisk

from packnback.events import Watch
from packnback.store.fs import Buffer, FileSystem, check_path, parent_of
from packnback.store.layout import DIRECTORIES, PACK_DIRECTORIES, make_layout
from packnback.store.osfs import OsFileSystem


def put(fs: FileSystem, path: str, *buffers: Buffer) -> None:
    file = fs.create(path)
    file.append(buffers)
    file.sync()
    file.close()


class FileSystemContract(ABC):
    @pytest.fixture
    def watch(self) -> Watch:
        return Watch()

    @pytest.fixture
    @abstractmethod
    def fs(self, tmp_path: Path, watch: Watch) -> Iterator[FileSystem]: ...

    def test_what_was_appended_is_read(self, fs: FileSystem) -> None:
        file = fs.create("a")
        assert fs.read("a") == b""
        file.append([b"one", bytearray(b"two"), memoryview(b"three"), b""])
        assert fs.read("a") == b"onetwothree"
        file.append([])
        file.append([b"four"])
        file.sync()
        file.close()
        file.close()
        assert fs.read("a") == b"onetwothreefour"
        assert fs.size("a") == 15

    def test_buffers_of_wide_items_are_taken_as_bytes(self, fs: FileSystem) -> None:
        put(fs, "a", memoryview(bytes(range(16))).cast("I"), b"x")
        assert fs.read("a") == bytes(range(16)) + b"x"

    def test_more_buffers_than_one_call_takes(self, fs: FileSystem) -> None:
        buffers = [bytes([n % 251]) * (n % 7) for n in range(5000)]
        put(fs, "a", *buffers)
        assert fs.read("a") == b"".join(buffers)

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [
            (0, None, b"0123456789"),
            (4, None, b"456789"),
            (4, 3, b"456"),
            (8, 100, b"89"),
            (8, 1 << 62, b"89"),
            (10, 1, b""),
            (999, 5, b""),
            (3, 0, b""),
        ],
    )
    def test_ranges_end_where_the_file_ends(
        self, fs: FileSystem, offset: int, length: int | None, expected: bytes
    ) -> None:
        put(fs, "a", b"0123456789")
        assert fs.read("a", offset, length) == expected

    @pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1)])
    def test_negative_ranges_are_refused(self, fs: FileSystem, offset: int, length: int | None) -> None:
        put(fs, "a", b"x")
        with pytest.raises(ValueError, match="negative"):
            fs.read("a", offset, length)

    def test_create_is_exclusive(self, fs: FileSystem) -> None:
        put(fs, "a", b"first")
        fs.make_dir("d")
        for taken in ("a", "d"):
            with pytest.raises(FileExistsError):
                fs.create(taken)
            with pytest.raises(FileExistsError):
                fs.make_dir(taken)
        assert fs.read("a") == b"first"

    def test_move(self, fs: FileSystem) -> None:
        fs.make_dir("d")
        fs.make_dir("e")
        put(fs, "d/a", b"x")
        fs.move("d/a", "e/b")
        assert (fs.list("d"), fs.list("e"), fs.read("e/b")) == ([], ["b"], b"x")

    def test_a_move_is_no_modification(self, fs: FileSystem) -> None:
        put(fs, "a", b"1")
        written_ns = fs.modified_ns("a")
        fs.move("a", "b")
        assert fs.modified_ns("b") == written_ns
        put(fs, "a", b"2")
        assert fs.modified_ns("a") >= written_ns
        with pytest.raises(FileNotFoundError):
            fs.modified_ns("nothing")

    def test_move_never_replaces(self, fs: FileSystem) -> None:
        put(fs, "a", b"1")
        put(fs, "b", b"2")
        fs.make_dir("d")
        for taken in ("b", "d", "a"):
            with pytest.raises(FileExistsError):
                fs.move("a", taken)
        assert (fs.read("a"), fs.read("b"), sorted(fs.list(""))) == (b"1", b"2", ["a", "b", "d"])

    def test_what_is_missing_is_missing(self, fs: FileSystem) -> None:
        fs.make_dir("d")
        for path in ("nothing", "d/nothing", "nowhere/nothing"):
            with pytest.raises(FileNotFoundError):
                fs.read(path)
            with pytest.raises(FileNotFoundError):
                fs.size(path)
            with pytest.raises(FileNotFoundError):
                fs.unlink(path)
            with pytest.raises(FileNotFoundError):
                fs.list(path)
            with pytest.raises(FileNotFoundError):
                fs.sync_dir(path)
            with pytest.raises(FileNotFoundError):
                fs.move(path, "target")
        put(fs, "a")
        for fails in (lambda: fs.create("nowhere/b"), lambda: fs.make_dir("nowhere/b")):
            with pytest.raises(FileNotFoundError):
                fails()
        with pytest.raises(FileNotFoundError):
            fs.move("a", "nowhere/b")
        assert sorted(fs.list("")) == ["a", "d"]

    def test_files_and_directories_are_not_mixed_up(self, fs: FileSystem) -> None:
        fs.make_dir("d")
        put(fs, "a", b"x")
        for on_directory in (fs.read, fs.size, fs.unlink):
            with pytest.raises(IsADirectoryError):
                on_directory("d")
        with pytest.raises(IsADirectoryError):
            fs.move("d", "e")
        for on_file in (fs.list, fs.sync_dir):
            with pytest.raises(NotADirectoryError):
                on_file("a")
        with pytest.raises(NotADirectoryError):
            fs.read("a/b")

    def test_unlink_then_the_name_is_free(self, fs: FileSystem) -> None:
        put(fs, "a", b"1")
        fs.unlink("a")
        assert fs.list("") == []
        put(fs, "a", b"2")
        assert fs.read("a") == b"2"

    def test_an_unlinked_file_can_still_be_written(self, fs: FileSystem) -> None:
        file = fs.create("a")
        fs.unlink("a")
        file.append([b"x"])
        file.sync()
        file.close()
        assert fs.list("") == []

    def test_syncs_are_counted(self, fs: FileSystem, watch: Watch) -> None:
        fs.make_dir("d")
        file = fs.create("d/a")
        file.append([b"x"])
        assert watch.counters.fsyncs == 0
        file.sync()
        fs.sync_dir("d")
        fs.sync_dir("")
        file.close()
        assert watch.counters.fsyncs == 3

    @pytest.mark.parametrize("path", ["/a", "a/", "a//b", "../a", "a/../b", ".", "a/.", "a\0b"])
    def test_illegal_paths(self, fs: FileSystem, path: str) -> None:
        for operation in (fs.create, fs.read, fs.size, fs.list, fs.unlink, fs.make_dir, fs.sync_dir):
            with pytest.raises(ValueError, match="illegal"):
                operation(path)
        put(fs, "x")
        with pytest.raises(ValueError, match="illegal"):
            fs.move("x", path)

    def test_one_of_many_creators_wins(self, fs: FileSystem) -> None:
        def create(n: int) -> int:
            try:
                put(fs, "a", bytes([n]))
            except FileExistsError:
                return 0
            return 1

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(create, range(32))) == 1

    def test_the_layout_can_be_made_again(self, fs: FileSystem) -> None:
        fs.make_dir("packs")
        fs.make_dir("packs/07")
        make_layout(fs)
        make_layout(fs)
        assert sorted(fs.list("")) == sorted(DIRECTORIES)
        assert len(fs.list("packs")) == 256
        assert all(fs.list(directory) == [] for directory in PACK_DIRECTORIES)

    def test_the_layout_refuses_a_file_in_its_way(self, fs: FileSystem) -> None:
        put(fs, "snapshots")
        with pytest.raises(NotADirectoryError):
            make_layout(fs)


class TestOsFileSystem(FileSystemContract):
    @pytest.fixture
    def fs(self, tmp_path: Path, watch: Watch) -> Iterator[FileSystem]:
        fs = OsFileSystem(tmp_path, watch)
        yield fs
        fs.close()


class TestOsFileSystemWithoutHardLinks(TestOsFileSystem):
    """FAT and some SMB servers: the same contract by way of renameat2."""

    @pytest.fixture
    def fs(self, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileSystem]:
        def link(*arguments: object, **keywords: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr("os.link", link)
        fs = OsFileSystem(tmp_path, watch)
        yield fs
        fs.close()


class TestSimDisk(FileSystemContract):
    @pytest.fixture
    def fs(self, tmp_path: Path, watch: Watch) -> Iterator[FileSystem]:
        yield SimDisk(watch=watch)


@given(st.lists(st.sampled_from(["a", "b", "ab", "..c"]), min_size=1, max_size=4))
def test_legal_paths(parts: list[str]) -> None:
    path = "/".join(parts)
    assert check_path(path) == path
    assert parent_of(path) == "/".join(parts[:-1])
