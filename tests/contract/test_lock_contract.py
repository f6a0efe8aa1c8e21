"""What every implementation of the locks does, and what flock adds: processes, lost files, names of holders."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest
from simlocks import SimLocks
from steps import PowerCut, Steps

from packnback.errors import Locked, StorageFailed
from packnback.store import lock as lock_module
from packnback.store.lock import FileLocks, Locks

LONG_S = 60.0
"""Long enough to never run out in a test that passes."""


class LocksContract(ABC):
    @pytest.fixture
    @abstractmethod
    def locks(self, tmp_path: Path) -> Locks: ...

    def test_sessions_share(self, locks: Locks) -> None:
        with locks.shared(0) as first, locks.shared(0) as second, locks.shared(0, reading=True) as third:
            assert first.locked
            assert second.locked
            assert third.locked

    def test_compaction_excludes_everybody(self, locks: Locks) -> None:
        with locks.exclusive(0) as held:
            assert held.locked
            held.confirm()
            for attempt in (locks.shared, locks.exclusive, lambda wait: locks.shared(wait, reading=True)):
                with pytest.raises(Locked):
                    attempt(0)

    def test_a_session_excludes_compaction(self, locks: Locks) -> None:
        with locks.shared(0):
            with pytest.raises(Locked):
                locks.exclusive(0)
            locks.shared(0).release()  # compaction has given up, and left the gate open

    def test_what_was_released_can_be_taken(self, locks: Locks) -> None:
        held = locks.exclusive(0)
        held.release()
        held.release()
        assert not held.locked
        with pytest.raises(StorageFailed):
            held.confirm()
        with locks.shared(0):
            pass
        with locks.exclusive(0):
            pass

    def test_an_error_inside_releases(self, locks: Locks) -> None:
        with contextlib.suppress(KeyError), locks.exclusive(0):
            raise KeyError
        locks.exclusive(0).release()

    def test_waiting_ends_with_the_wait(self, locks: Locks) -> None:
        with locks.shared(0), pytest.raises(Locked) as caught:
            locks.exclusive(0.05)
        assert caught.value.waited_s >= 0.05

    def test_compaction_gets_what_it_waited_for(self, locks: Locks) -> None:
        session = locks.shared(0)
        compacting = threading.Event()

        def compact() -> None:
            with locks.exclusive(LONG_S):
                compacting.set()

        thread = threading.Thread(target=compact)
        thread.start()
        assert not compacting.wait(0.05)
        session.release()
        thread.join(LONG_S)
        assert compacting.is_set()

    def test_new_sessions_wait_behind_a_waiting_compaction(self, locks: Locks) -> None:
        """Otherwise a stream of overlapping sessions would keep it out for ever."""
        session = locks.shared(0)
        order: list[str] = []

        def compact() -> None:
            with locks.exclusive(LONG_S):
                order.append("compaction")

        def next_session() -> None:
            with locks.shared(LONG_S):
                order.append("session")

        compaction = threading.Thread(target=compact)
        compaction.start()
        deadline = time.monotonic() + 10
        while True:  # until it waits, and the gate is closed
            try:
                locks.shared(0).release()
            except Locked:
                break
            if time.monotonic() > deadline:
                session.release()
                compaction.join(LONG_S)
                pytest.fail("sessions overtake a waiting compaction")
        late = threading.Thread(target=next_session)
        late.start()
        late.join(0.05)
        assert order == []
        session.release()
        compaction.join(LONG_S)
        late.join(LONG_S)
        assert order == ["compaction", "session"]

    def test_never_both(self, locks: Locks) -> None:
        """Threads that take turns; each checks that what it sees is what its lock promises."""
        inside: list[str] = []
        wrong: list[list[str]] = []

        def run(kind: str) -> None:
            for _ in range(15):
                with locks.exclusive(LONG_S) if kind == "exclusive" else locks.shared(LONG_S):
                    inside.append(kind)
                    seen = list(inside)
                    if "exclusive" in seen and len(seen) > 1:
                        wrong.append(seen)
                    inside.remove(kind)

        threads = [threading.Thread(target=run, args=(k,)) for k in ("shared", "exclusive", "shared", "exclusive")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
        assert wrong == []
        assert not any(thread.is_alive() for thread in threads)


class TestFileLocks(LocksContract):
    @pytest.fixture
    def locks(self, tmp_path: Path) -> Locks:
        return FileLocks(tmp_path)


class TestSimLocks(LocksContract):
    @pytest.fixture
    def locks(self, tmp_path: Path) -> Locks:
        return SimLocks()


def test_no_lock_is_given_on_a_dead_machine() -> None:
    steps = Steps(crash_at=1)
    with pytest.raises(PowerCut):
        steps.step("the last one")
    for attempt in (SimLocks(steps).shared, SimLocks(steps).exclusive):
        with pytest.raises(PowerCut):
            attempt(0)


HOLDER = """
import sys
from packnback.store.lock import FileLocks
held = getattr(FileLocks(sys.argv[1]), sys.argv[2])(0)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_process(root: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its standard input ends."""
    command = [sys.executable, "-c", HOLDER, str(root), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_processes_share_and_exclude(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path)
    with another_process(tmp_path, "shared"):
        locks.shared(0).release()
        with pytest.raises(Locked):
            locks.exclusive(0)
    with another_process(tmp_path, "exclusive"), pytest.raises(Locked):
        locks.shared(0)


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    with another_process(tmp_path, "exclusive") as process:
        process.kill()
        process.wait(LONG_S)
        FileLocks(tmp_path).exclusive(LONG_S).release()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="no /proc/locks here")
def test_the_holder_is_named(tmp_path: Path) -> None:
    with another_process(tmp_path, "exclusive") as process:
        with pytest.raises(Locked) as caught:
            FileLocks(tmp_path).shared(0)
        assert caught.value.path == str(tmp_path / "lock")
        assert caught.value.holder.startswith(f"pid {process.pid}: {sys.executable} -c")


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    held = FileLocks(tmp_path).exclusive(0)
    resume_read, resume_write = os.pipe()
    child = os.fork()
    if child == 0:  # it has copies of all descriptors
        os.close(resume_write)
        os.read(resume_read, 1)
        os._exit(0)
    try:
        held.release()
        FileLocks(tmp_path).exclusive(0).release()
    finally:
        os.close(resume_write)
        os.waitpid(child, 0)
        os.close(resume_read)


PROC_LOCKS = """\
1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF
2: FLOCK  ADVISORY  WRITE 12 00:2a:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF
3: FLOCK  ADVISORY  READ  14 fe:00:78 0 EOF
4: FLOCK  ADVISORY  READ  15 fe:00:77 0 EOF
"""


@pytest.mark.parametrize(
    ("device", "inode", "pid"),
    [((0xFE, 0), 77, 15), ((0x00, 0x2A), 77, 12), ((1, 1), 77, 12), ((0xFE, 0), 78, 14), ((0xFE, 0), 79, None)],
)
def test_the_holder_is_found_by_inode_then_device(device: tuple[int, int], inode: int, pid: int | None) -> None:
    stat = os.stat_result((0o100600, inode, os.makedev(*device), 1, 0, 0, 0, 0, 0, 0))
    assert lock_module._pid_of_holder(PROC_LOCKS, stat) == pid


def test_lost_lock_files_are_made_again(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path)
    for mode in (locks.shared, locks.exclusive):
        with mode(0):
            pass
        assert sorted(os.listdir(tmp_path)) == ["gate", "lock"]
        (tmp_path / "lock").unlink()
        (tmp_path / "gate").unlink()


def test_a_lock_file_that_is_replaced_while_we_lock_it_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = lock_module._try_flock
    replaced = []

    def replace_then_lock(fd: int, path: str, mode: int) -> bool:
        if path.endswith("lock") and not replaced:
            os.unlink(path)
            replaced.append(path)
        return flock(fd, path, mode)

    monkeypatch.setattr(lock_module, "_try_flock", replace_then_lock)
    with FileLocks(tmp_path).exclusive(0) as held:
        assert replaced
        held.confirm()
        with pytest.raises(Locked):
            FileLocks(tmp_path).exclusive(0)


def test_a_lock_file_that_is_replaced_under_its_holder_is_noticed(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path)
    with locks.exclusive(0) as held:
        (tmp_path / "lock").unlink()
        with pytest.raises(StorageFailed):
            held.confirm()
        (tmp_path / "lock").touch()
        with pytest.raises(StorageFailed):
            held.confirm()


def test_waiting_backs_off_and_does_not_oversleep(tmp_path: Path) -> None:
    now = [100.0]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    locks = FileLocks(tmp_path, sleep=sleep, monotonic=lambda: now[0])
    with locks.shared(0), pytest.raises(Locked) as caught:
        locks.exclusive(3.0)
    assert pauses[:3] == [0.005, 0.01, 0.02]
    assert max(pauses) == 0.5
    assert sum(pauses) == pytest.approx(3.0)
    assert caught.value.waited_s == pytest.approx(3.0)


def test_a_repository_that_cannot_be_written_is_read_without_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def read_only(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system", path)
        return real_open(path, flags, mode)

    (tmp_path / "empty").mkdir()
    FileLocks(tmp_path).shared(0).release()
    monkeypatch.setattr("os.open", read_only)
    for refused in (FileLocks(tmp_path).shared, FileLocks(tmp_path).exclusive):
        with pytest.raises(StorageFailed):
            refused(0)
    with FileLocks(tmp_path).shared(0, reading=True) as held:  # the files are there: flock needs no more
        assert held.locked
    with FileLocks(tmp_path / "empty").shared(0, reading=True) as held:
        assert not held.locked
        held.confirm()


def test_who_waits_is_told_that_and_nothing_about_the_machine(tmp_path: Path) -> None:
    """Clients on other machines are told as well, whose business neither paths nor processes are."""
    now, notes = [0.0], list[str]()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    locks = FileLocks(tmp_path, sleep=sleep, monotonic=lambda: now[0], note=notes.append)
    with locks.exclusive(0):
        with pytest.raises(Locked):
            locks.shared(1)
        assert notes == []
        with pytest.raises(Locked) as told:
            locks.shared(30)
    assert str(os.getpid()) in told.value.holder
    [note] = notes
    assert str(tmp_path) not in note and "pid" not in note
