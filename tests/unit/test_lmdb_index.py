"""What LMDB leaves to its callers: damaged files, replaced files, full disks, forks, other processes."""

from __future__ import annotations

import errno
import os
import random
import resource
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from packnback import errors, lmdb_files
from packnback.store.index import TABLES, WriteTxn
from packnback.store.lmdb_index import MAP_SIZE, LmdbIndex, destroy, probe

BALLAST = 1 << 20


def put(key: bytes, value: bytes) -> Callable[[WriteTxn], None]:
    return lambda txn: txn.put("meta", key, value)


def fill(rows: int, value_bytes: int = 2000) -> Callable[[WriteTxn], None]:
    return lambda txn: txn.put_many("objects", ((b"%08d" % n, bytes(value_bytes)) for n in range(rows)))


def value(index: LmdbIndex, key: bytes) -> bytes | None:
    with index.read() as txn:
        return txn.get("meta", key)


def open_index(directory: Path, *, map_size: int = MAP_SIZE, ballast_bytes: int = 0) -> LmdbIndex:
    return LmdbIndex.open(str(directory), map_size=map_size, ballast_bytes=ballast_bytes)


def in_another_process(code: str, *arguments: object) -> str:
    """Run `code` in a fresh interpreter; its standard output."""
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.strip()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def filled(directory: Path) -> Path:
    """A closed index with rows in two tables, and with free pages."""
    index = open_index(directory)
    index.write(fill(500))
    index.write(lambda txn: [txn.delete("objects", b"%08d" % n) for n in range(100, 200)])
    index.write(put(b"k", b"v"))
    index.close()
    return directory


class TestPersistence:
    def test_rows_outlive_the_handle(self, filled: Path) -> None:
        index = open_index(filled)
        assert value(index, b"k") == b"v"
        with index.read() as txn:
            assert txn.count("objects") == 400
        index.close()

    def test_another_process_reads_and_writes_it_meanwhile(self, filled: Path) -> None:
        index = open_index(filled)
        code = """
            import sys
            from packnback.store.lmdb_index import LmdbIndex
            index = LmdbIndex.open(sys.argv[1], ballast_bytes=0)
            print(index.write(lambda txn: (txn.get("meta", b"k"), txn.put("meta", b"k", b"w"))[0]))
        """
        assert in_another_process(code, filled) == "b'v'"
        assert value(index, b"k") == b"w"
        index.close()

    def test_files_are_private(self, filled: Path) -> None:
        open_index(filled, ballast_bytes=BALLAST).close()
        assert filled.stat().st_mode & 0o777 == 0o700
        assert {name: (filled / name).stat().st_mode & 0o777 for name in os.listdir(filled)} == dict.fromkeys(
            ["data.mdb", "lock.mdb", "ballast"], 0o600
        )

    def test_a_missing_parent_directory_is_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(errors.StorageFailed):
            open_index(tmp_path / "absent" / "index")

    def test_the_lock_file_has_no_holes(self, filled: Path) -> None:
        """LMDB writes to it through a map: on a full disk a hole would be SIGBUS."""
        found = (filled / "lock.mdb").stat()
        assert found.st_size == lmdb_files.LOCK_FILE_BYTES
        assert found.st_blocks * 512 >= found.st_size


class TestDamage:
    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
    def test_a_truncated_file_is_refused(self, filled: Path, kept: float) -> None:
        data = filled / "data.mdb"
        os.truncate(data, int(data.stat().st_size * kept))
        with pytest.raises(errors.IndexDamage) as caught:
            open_index(filled)
        assert caught.value.path == str(data)
        assert "bytes" in caught.value.why

    def test_a_file_that_lacks_only_free_pages_is_opened(self, directory: Path) -> None:
        index = open_index(directory)
        index.write(put(b"k", b"v"))
        used = (directory / "data.mdb").stat().st_size
        index.write(fill(200))
        for n in range(3):  # the pages of the rows move to the list of free pages, and the list to the front
            index.write(lambda txn: txn.clear("objects"))
            index.write(put(b"n", bytes([n])))
        index.close()
        os.truncate(directory / "data.mdb", used + (1 << 16))
        facts = lmdb_files.read_data_file(str(directory))
        assert facts is not None
        assert facts.size < facts.expected_size
        assert probe(str(directory)) is None
        index = open_index(directory)
        assert value(index, b"k") == b"v"
        index.close()

    def test_facts_of_the_data_file(self, filled: Path) -> None:
        facts = lmdb_files.read_data_file(str(filled))
        assert facts is not None
        assert facts.page_size == os.sysconf("SC_PAGESIZE")
        assert facts.size == facts.expected_size == (filled / "data.mdb").stat().st_size
        assert facts.map_size == 64 << 30

    @pytest.mark.parametrize("content", [b"x", b"garbage" * 5000, bytes(8192)], ids=["short", "garbage", "zeros"])
    def test_a_file_that_is_not_lmdb_is_refused(self, directory: Path, content: bytes) -> None:
        directory.mkdir()
        (directory / "data.mdb").write_bytes(content)
        with pytest.raises(errors.IndexDamage):
            open_index(directory)
        assert probe(str(directory)) is not None

    @pytest.mark.parametrize("page", [0, 1])
    def test_a_zeroed_meta_page_is_refused(self, filled: Path, page: int) -> None:
        with (filled / "data.mdb").open("r+b") as file:
            file.seek(page * 4096)
            file.write(bytes(4096))
        with pytest.raises(errors.IndexDamage):
            open_index(filled)

    def test_an_empty_file_is_a_new_index(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "data.mdb").touch()
        index = open_index(directory)
        assert value(index, b"k") is None
        index.close()

    def test_the_probe_finds_nothing_in_a_sound_index_and_leaves_nothing_in_it(self, filled: Path) -> None:
        def rows_of(directory: Path) -> dict[str, list[tuple[bytes, bytes]]]:
            index = open_index(directory)
            with index.read() as txn:
                rows = {table: list(txn.scan(table)) for table in TABLES}
            index.close()
            return rows

        before = rows_of(filled)
        assert probe(str(filled)) is None
        assert rows_of(filled) == before

    def test_the_probe_works_while_the_index_is_in_use(self, filled: Path) -> None:
        index = open_index(filled)
        with index.read():
            assert probe(str(filled)) is None
        index.close()

    def test_the_probe_survives_what_the_reader_does_not(self, filled: Path) -> None:
        os.truncate(filled / "data.mdb", 3 * 4096)
        why = probe(str(filled))
        assert why is not None
        assert "SIG" in why

    def test_the_probe_finds_pages_of_zeros(self, filled: Path) -> None:
        size = (filled / "data.mdb").stat().st_size
        with (filled / "data.mdb").open("r+b") as file:
            file.seek(8192)
            file.write(bytes(size - 8192))
        assert probe(str(filled)) is not None

    def test_the_probe_finds_a_damaged_list_of_free_pages(self, filled: Path) -> None:
        """No reader looks at it, the next writer would die of it."""
        data = bytearray((filled / "data.mdb").read_bytes())
        for meta in (0, 4096):
            (root,) = struct.unpack_from("=Q", data, meta + 16 + 24 + 40)  # free list's mdb_db.md_root
            data[root * 4096 : root * 4096 + 4096] = bytes(4096)
        (filled / "data.mdb").write_bytes(data)
        assert probe(str(filled)) is not None

    def test_the_probe_gives_an_answer_whatever_the_bytes(self, filled: Path, tmp_path: Path) -> None:
        sound = (filled / "data.mdb").read_bytes()
        for seed in range(4):
            print("seed", seed)
            rng = random.Random(seed)
            damaged = bytearray(sound)
            for _ in range(40):
                damaged[rng.randrange(8192, len(damaged))] = rng.randrange(256)
            (filled / "data.mdb").write_bytes(damaged)
            answer = probe(str(filled), timeout_s=60)
            assert answer is None or (isinstance(answer, str) and answer)

    def test_a_probe_that_takes_too_long_is_damage(self, filled: Path) -> None:
        assert probe(str(filled), timeout_s=0.001) == "not read within 0.001 s"

    def test_a_destroyed_index_can_be_made_anew(self, filled: Path) -> None:
        os.truncate(filled / "data.mdb", 5000)
        destroy(str(filled))
        destroy(str(filled))
        index = open_index(filled)
        assert value(index, b"k") is None
        index.write(put(b"k", b"new"))
        assert value(index, b"k") == b"new"
        index.close()


class TestReplacedFiles:
    def test_a_write_goes_to_the_files_at_the_path(self, filled: Path) -> None:
        index = open_index(filled)
        generation = index.generation
        destroy(str(filled))
        index.write(put(b"new", b"1"))
        assert index.generation != generation
        assert [value(index, key) for key in (b"k", b"new")] == [None, b"1"]
        code = """
            import sys
            from packnback.store.lmdb_index import LmdbIndex
            with LmdbIndex.open(sys.argv[1], ballast_bytes=0).read() as txn:
                print(txn.get("meta", b"new"))
        """
        assert in_another_process(code, filled) == "b'1'"
        index.close()

    def test_a_read_notices_too(self, filled: Path) -> None:
        index = open_index(filled)
        generation = index.generation
        destroy(str(filled))
        assert value(index, b"k") is None
        assert index.generation != generation
        index.close()

    def test_files_that_another_process_put_there(self, filled: Path, tmp_path: Path) -> None:
        other = open_index(tmp_path / "other")
        other.write(put(b"k", b"of the other"))
        other.close()
        index = open_index(filled)
        for name in ("data.mdb", "lock.mdb"):
            os.rename(tmp_path / "other" / name, filled / name)
        assert index.write(lambda txn: txn.get("meta", b"k")) == b"of the other"
        index.close()

    def test_the_whole_directory_may_go(self, filled: Path) -> None:
        index = open_index(filled)
        for name in os.listdir(filled):
            (filled / name).unlink()
        filled.rmdir()
        index.write(put(b"k", b"1"))
        assert value(index, b"k") == b"1"
        index.close()

    def test_a_lost_lock_file(self, filled: Path) -> None:
        """The data is the same, but two processes would no longer exclude each other."""
        index = open_index(filled)
        (filled / "lock.mdb").unlink()
        index.write(put(b"k", b"w"))
        assert (filled / "lock.mdb").exists()
        assert value(index, b"k") == b"w"
        index.close()

    def test_a_reader_of_the_old_files_is_not_disturbed(self, filled: Path) -> None:
        index = open_index(filled)
        wrote = threading.Event()

        def write() -> None:
            index.write(put(b"new", b"1"))
            wrote.set()

        writer = threading.Thread(target=write)
        with index.read() as txn:
            destroy(str(filled))
            writer.start()
            assert not wrote.wait(0.2)
            assert txn.get("meta", b"k") == b"v"
            assert len(list(txn.scan("objects"))) == 400
        writer.join(60)
        assert wrote.is_set()
        assert value(index, b"k") is None
        index.close()

    def test_damaged_files_in_its_place_are_told_and_can_be_replaced(self, filled: Path) -> None:
        index = open_index(filled)
        destroy(str(filled))
        (filled / "data.mdb").write_bytes(b"garbage" * 5000)
        for _ in range(2):
            with pytest.raises(errors.IndexDamage):
                index.write(put(b"k", b"1"))
        destroy(str(filled))
        index.write(put(b"k", b"1"))
        assert value(index, b"k") == b"1"
        index.close()


class TestHandles:
    def test_two_handles_see_each_other(self, directory: Path) -> None:
        first, second = open_index(directory), open_index(directory)
        first.write(put(b"k", b"1"))
        assert value(second, b"k") == b"1"
        second.write(put(b"k", b"2"))
        first.close()
        assert value(second, b"k") == b"2"
        second.close()
        third = open_index(directory)
        assert value(third, b"k") == b"2"
        third.close()

    def test_another_name_for_the_same_directory(self, directory: Path, tmp_path: Path) -> None:
        first = open_index(directory)
        (tmp_path / "alias").symlink_to(directory)
        second = open_index(tmp_path / "alias")
        second.write(put(b"k", b"1"))
        assert value(first, b"k") == b"1"
        second.close()
        first.close()

    def test_both_follow_replaced_files(self, filled: Path) -> None:
        first, second = open_index(filled), open_index(filled)
        destroy(str(filled))
        first.write(put(b"k", b"1"))
        third = open_index(filled)
        assert [value(index, b"k") for index in (first, second, third)] == [b"1"] * 3
        for index in (first, second, third):
            index.close()

    def test_closing_waits_for_transactions_of_other_threads(self, filled: Path) -> None:
        index = open_index(filled)
        closer = threading.Thread(target=index.close)
        with index.read() as txn:
            closer.start()
            closer.join(0.2)
            assert closer.is_alive()
            assert txn.get("meta", b"k") == b"v"
        closer.join(60)
        assert not closer.is_alive()

    def test_closing_inside_a_transaction_is_refused(self, filled: Path) -> None:
        index = open_index(filled)
        with index.read() as txn:
            with pytest.raises(RuntimeError):
                index.close()
            assert txn.get("meta", b"k") == b"v"
        assert value(index, b"k") == b"v"
        index.close()
        with pytest.raises(RuntimeError):
            value(index, b"k")

    def test_opening_and_closing_in_many_threads(self, directory: Path) -> None:
        failures: list[BaseException] = []

        def work(n: int) -> None:
            try:
                for _ in range(20):
                    index = open_index(directory)
                    index.write(put(bytes([n + 1]), b"1"))
                    assert value(index, bytes([n + 1])) == b"1"
                    index.close()
            except BaseException as error:  # noqa: BLE001 - it is raised below
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


class TestGrowth:
    def test_the_map_grows_and_the_body_runs_again(self, directory: Path) -> None:
        index = open_index(directory, map_size=1 << 17)
        runs: list[int] = []

        def body(txn: WriteTxn) -> int:
            runs.append(txn.count("objects"))
            fill(500)(txn)
            return txn.count("objects")

        assert index.write(body) == 500
        assert len(runs) > 2
        assert set(runs) == {0}
        index.close()

    def test_growing_waits_for_readers_of_other_threads(self, directory: Path) -> None:
        index = open_index(directory, map_size=1 << 17)
        index.write(put(b"k", b"v"))
        writer = threading.Thread(target=lambda: index.write(fill(500)))
        with index.read() as txn:
            writer.start()
            writer.join(0.2)
            assert txn.get("meta", b"k") == b"v"
            assert txn.count("objects") == 0
        writer.join(60)
        with index.read() as txn:
            assert txn.count("objects") == 500
        index.close()

    def test_readers_and_growing_writers_in_many_threads(self, directory: Path) -> None:
        index = open_index(directory, map_size=1 << 17)
        stop = threading.Event()
        seen: list[int] = []

        def read() -> None:
            while not stop.is_set():
                with index.read() as txn:
                    seen.append(txn.count("objects") - len(list(txn.scan("objects"))))

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            for rows in (50, 100, 200, 400, 800):
                index.write(fill(rows))
        finally:
            stop.set()
            for reader in readers:
                reader.join()
        assert seen
        assert set(seen) == {0}
        index.close()

    @pytest.mark.parametrize("write", [False, True])
    def test_another_process_grew_it(self, directory: Path, write: bool) -> None:
        index = open_index(directory, map_size=1 << 17)
        index.write(put(b"k", b"v"))
        code = """
            import sys
            from packnback.store.lmdb_index import LmdbIndex
            index = LmdbIndex.open(sys.argv[1], map_size=1 << 17, ballast_bytes=0)
            index.write(lambda txn: txn.put_many("objects", ((b"%08d" % n, bytes(2000)) for n in range(500))))
        """
        in_another_process(code, directory)
        if write:
            assert index.write(lambda txn: (txn.delete("objects", b"00000000"), txn.count("objects"))) == (True, 499)
        else:
            with index.read() as txn:
                assert txn.count("objects") == 500
        index.close()

    def test_little_address_space(self, directory: Path) -> None:
        """64 GiB are asked for, less is taken, and it works; the want of more is told."""
        code = """
            import resource, sys
            from packnback import errors
            from packnback.store.lmdb_index import LmdbIndex
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            index = LmdbIndex.open(sys.argv[1], ballast_bytes=0)
            index.write(lambda txn: txn.put("meta", b"k", b"v"))
            index.close()
            index = LmdbIndex.open(sys.argv[1], ballast_bytes=0)
            with index.read() as txn:
                print(txn.get("meta", b"k"))
        """
        assert in_another_process(code, directory) == "b'v'"

    def test_no_address_space_to_grow_into(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        index = open_index(directory, map_size=1 << 18)
        index.write(put(b"k", b"v"))
        really_open = lmdb.open

        def open_small(path: str, map_size: int, **options: Any) -> lmdb.Environment:
            if map_size > 1 << 19:
                raise lmdb.MemoryError(path, errno.ENOMEM)
            return really_open(path, map_size=map_size, **options)

        monkeypatch.setattr(lmdb, "open", open_small)
        for _ in range(2):
            with pytest.raises(errors.StorageFailed) as caught:
                index.write(fill(1000))
            assert caught.value.operation == "map"
            assert value(index, b"k") == b"v"
        monkeypatch.undo()
        index.write(fill(1000))
        index.close()


class TestFork:
    def test_a_child_may_not_use_it(self, filled: Path) -> None:
        index = open_index(filled)
        attempts: list[Callable[[], object]] = [
            lambda: value(index, b"k"),
            lambda: index.write(put(b"k", b"child")),
            lambda: open_index(filled),
        ]
        child = os.fork()
        if child == 0:
            refused = 0
            for attempt in attempts:
                try:
                    attempt()
                except RuntimeError:
                    refused += 1
            index.close()
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == len(attempts)
        assert value(index, b"k") == b"v"
        index.write(put(b"k", b"parent"))
        assert value(index, b"k") == b"parent"
        index.close()

    def test_a_child_may_open_another_one(self, filled: Path, tmp_path: Path) -> None:
        index = open_index(filled)
        child = os.fork()
        if child == 0:
            other = open_index(tmp_path / "other")
            other.write(put(b"k", b"child"))
            os._exit(7 if value(other, b"k") == b"child" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        index.close()


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """A full disk for those who are not root: no file may be longer than the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    target = tmp_path / "disk"
    target.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(target)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield target
    subprocess.run(["umount", "-l", str(target)], check=True)


class TestFullDisk:
    def test_a_limit_is_told_as_a_full_disk_and_passes(
        self, directory: Path, file_size_limit: Callable[[int], None]
    ) -> None:
        index = open_index(directory)
        index.write(put(b"k", b"v"))
        file_size_limit(1 << 19)
        for _ in range(2):
            with pytest.raises(errors.DiskFull):
                index.write(fill(1000))
            assert value(index, b"k") == b"v"
        file_size_limit(resource.RLIM_INFINITY)
        index.write(fill(1000))
        with index.read() as txn:
            assert txn.count("objects") == 1000
        assert sorted(os.listdir(directory)) == ["ballast", "data.mdb", "lock.mdb"]
        index.close()

    def test_the_ballast_lets_small_things_be_done(self, small_disk: Path) -> None:
        index = open_index(small_disk / "index", ballast_bytes=1 << 19)
        index.write(put(b"k", b"v"))
        (small_disk / "filler").write_bytes(bytes(_free(small_disk)))
        for _ in range(2):
            with pytest.raises(errors.DiskFull):
                index.write(fill(100))
        index.release_ballast()
        assert _free(small_disk) >= 1 << 19
        index.write(fill(100))
        assert index.restore_ballast() is False
        assert not (small_disk / "index" / "ballast").exists()
        with index.read() as txn:
            assert (txn.count("objects"), txn.get("meta", b"k")) == (100, b"v")
        (small_disk / "filler").unlink()
        assert index.restore_ballast() is True
        assert (small_disk / "index" / "ballast").stat().st_blocks * 512 >= 1 << 19
        index.close()

    def test_making_an_index_on_a_full_disk(self, small_disk: Path) -> None:
        (small_disk / "index").mkdir()
        (small_disk / "filler").write_bytes(bytes(_free(small_disk)))
        with pytest.raises(errors.DiskFull):
            open_index(small_disk / "index")
        (small_disk / "filler").unlink()
        index = open_index(small_disk / "index")
        index.write(put(b"k", b"v"))
        index.close()

    def test_an_index_without_room_for_ballast_opens(self, small_disk: Path) -> None:
        index = open_index(small_disk / "index", ballast_bytes=64 << 20)
        index.write(put(b"k", b"v"))
        assert not (small_disk / "index" / "ballast").exists()
        index.close()


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


class TestFailedWrites:
    def test_a_write_that_failed_for_another_reason_poisons(
        self, filled: Path, file_size_limit: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """LMDB says EIO and there is room: the disk is dying, and what the kernel keeps of it is unknown."""
        index = open_index(filled)
        monkeypatch.setattr(lmdb_files, "has_room", lambda directory: True)
        file_size_limit(1 << 19)
        with pytest.raises(errors.StorageFailed) as caught:
            index.write(fill(5000))
        assert os.strerror(errno.EIO) in caught.value.reason
        file_size_limit(resource.RLIM_INFINITY)
        with pytest.raises(errors.Poisoned):
            index.write(put(b"k", b"w"))
        with pytest.raises(errors.Poisoned):
            value(index, b"k")
        index.close()
        index = open_index(filled)
        assert value(index, b"k") == b"v"
        index.close()
