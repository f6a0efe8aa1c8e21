"""The real file system where it differs from an ideal one: partial writes, failing syncs, missing features."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from packnback.errors import Poisoned
from packnback.events import Watch
from packnback.store.osfs import OsFileSystem, make_root

Patch = pytest.MonkeyPatch


class Notes:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def begin(self, phase: str, total: int | None, unit: str) -> None: ...

    def advance(self, amount: int) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)


def failing(code: int) -> Callable[..., None]:
    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def put(fs: OsFileSystem, path: str, data: bytes = b"") -> None:
    file = fs.create(path)
    file.append([data])
    file.close()


def test_nobody_else_gets_in(tmp_path: Path) -> None:
    fs = OsFileSystem(tmp_path)
    fs.make_dir("d")
    put(fs, "d/a")
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "d/a").stat().st_mode) == 0o600


def test_partial_writes_are_continued(tmp_path: Path, monkeypatch: Patch) -> None:
    calls: list[int] = []

    def three_bytes(fd: int, buffers: list[memoryview]) -> int:
        calls.append(len(buffers))
        return os.write(fd, b"".join(buffers)[:3])

    monkeypatch.setattr("os.writev", three_bytes)
    fs = OsFileSystem(tmp_path)
    file = fs.create("a")
    file.append([b"01", b"", b"2345", b"6", b"789"])
    assert fs.read("a") == b"0123456789"
    assert calls == [4, 3, 2, 1]


def test_a_write_that_makes_no_headway_is_an_error(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("os.writev", lambda fd, buffers: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        OsFileSystem(tmp_path).create("a").append([b"x"])


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: Patch) -> None:
    pread = os.pread
    fs = OsFileSystem(tmp_path)
    put(fs, "a", b"0123456789")
    monkeypatch.setattr("os.pread", lambda fd, length, offset: pread(fd, min(length, 3), offset))
    assert fs.read("a") == b"0123456789"
    assert fs.read("a", 2, 7) == b"2345678"


@pytest.mark.parametrize("call", ["os.fsync", "os.writev"])
def test_a_failed_handle_stays_failed(tmp_path: Path, monkeypatch: Patch, call: str) -> None:
    file = OsFileSystem(tmp_path).create("a")
    with monkeypatch.context() as patch:
        patch.setattr(call, failing(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            file.append([b"x"])
            file.sync()
    with pytest.raises(Poisoned):
        file.sync()
    with pytest.raises(Poisoned):
        file.append([b"x"])
    file.close()


def test_a_directory_that_cannot_be_synced_is_told_once(tmp_path: Path, monkeypatch: Patch) -> None:
    notes = Notes()
    watch = Watch(progress=notes)
    fs = OsFileSystem(tmp_path, watch)
    for code in (errno.EINVAL, errno.ENOTSUP):
        monkeypatch.setattr("os.fsync", failing(code))
        fs.sync_dir("")
    assert len(notes.notes) == 1
    assert str(tmp_path) not in notes.notes[0], "it is told to clients on other machines, too"
    assert watch.counters.fsyncs == 0


def test_a_directory_sync_that_fails_is_an_error(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("os.fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        OsFileSystem(tmp_path).sync_dir("")


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    fs = OsFileSystem(tmp_path)
    fs.make_dir("d")
    put(fs, "d/secret", b"s")
    (tmp_path / "link").symlink_to("d/secret")
    (tmp_path / "dirlink").symlink_to("d")
    with pytest.raises(OSError, match="symbolic links"):
        fs.read("link")
    with pytest.raises(OSError, match="not a regular file"):
        fs.size("link")
    with pytest.raises(NotADirectoryError):
        fs.list("dirlink")
    with pytest.raises(FileExistsError):
        fs.create("link")
    fs.unlink("link")
    assert fs.read("d/secret") == b"s"


def test_a_fifo_does_not_hang_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        OsFileSystem(tmp_path).read("fifo")


def test_a_link_whose_answer_was_lost_is_completed(tmp_path: Path) -> None:
    fs = OsFileSystem(tmp_path)
    put(fs, "tmp", b"x")
    os.link(tmp_path / "tmp", tmp_path / "final")
    fs.move("tmp", "final")
    assert fs.list("") == ["final"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_without_hard_links_the_old_name_is_durably_gone(tmp_path: Path, monkeypatch: Patch, code: int) -> None:
    synced: list[str] = []
    fs = OsFileSystem(tmp_path)
    fs.make_dir("tmp")
    put(fs, "tmp/a", b"x")
    monkeypatch.setattr("os.link", failing(code))
    monkeypatch.setattr(fs, "sync_dir", synced.append)
    fs.move("tmp/a", "b")
    assert fs.read("b") == b"x"
    assert synced == ["tmp"]


def test_a_link_that_fails_for_another_reason_is_an_error(tmp_path: Path, monkeypatch: Patch) -> None:
    fs = OsFileSystem(tmp_path)
    put(fs, "a")
    monkeypatch.setattr("os.link", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        fs.move("a", "b")
    assert fs.list("") == ["a"]


def test_descriptors_are_not_leaked(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fs = OsFileSystem(tmp_path)
    put(fs, "a", b"x")
    fs.read("a")
    fs.size("a")
    fs.list("")
    fs.sync_dir("")
    fs.move("a", "b")
    fs.unlink("b")
    for fails in (fs.read, fs.list, fs.sync_dir):
        with pytest.raises(FileNotFoundError):
            fails("nothing")
    fs.close()
    fs.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_root_is_made_once(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    make_root(root)
    make_root(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_root(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        make_root(tmp_path / "a" / "b")
