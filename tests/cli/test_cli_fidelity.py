"""What comes back of the strangest trees that a file system can hold, by the real program."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_program import Program

IS_ROOT = os.geteuid() == 0
Tree = dict[bytes, dict[str, Any]]


def described(top: Path) -> Tree:
    """Everything below `top` by path, however deep it lies."""
    found: Tree = {}
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _describe(fd, b"", found)
    finally:
        os.close(fd)
    return found


def _describe(directory: int, prefix: bytes, found: Tree) -> None:
    for name in map(os.fsencode, os.listdir(directory)):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        itself = b"/proc/self/fd/%d/%b" % (directory, name)
        what: dict[str, Any] = {
            "mode": status.st_mode,
            "owner": (status.st_uid, status.st_gid),
            "mtime": status.st_mtime_ns,
            "attributes": {
                key: os.getxattr(itself, key, follow_symlinks=False)
                for key in os.listxattr(itself, follow_symlinks=False)
            },
        }
        if stat.S_ISDIR(status.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            _describe(fd, prefix + name + b"/", found)
            os.close(fd)
        else:
            what["names"] = status.st_nlink
        if stat.S_ISLNK(status.st_mode):
            what["target"] = os.readlink(name, dir_fd=directory)
        if stat.S_ISREG(status.st_mode):
            what["content"] = (status.st_size, status.st_blocks, _content(directory, name, status.st_size))
        what["device"] = status.st_rdev
        found[prefix + name] = what


def _content(directory: int, name: bytes, size: int) -> bytes | None:
    if size > 1 << 30:
        return None
    fd = os.open(name, os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(fd, size + 1)
    finally:
        os.close(fd)


def deep_directory(top: Path, depth: int, name: bytes = b"d" * 200) -> int:
    """An open directory so many levels below `top`."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd


def write(directory: int, name: bytes, content: bytes) -> None:
    fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o640, dir_fd=directory)
    os.write(fd, content)
    os.close(fd)


def attributes_work(top: Path) -> bool:
    try:
        os.setxattr(top, "user.packnback", b"1")
    except OSError:
        return False
    os.removexattr(top, "user.packnback")
    return True


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    top = tmp_path / "tree"
    top.mkdir()
    yield top


def round_trip(program: Program, tree: Path, to: Path) -> tuple[Tree, Tree]:
    done = program("backup", tree, "--json")
    assert done.json["errors"] == []
    dry = program("restore", "latest", "--to", to, "--json", "--dry-run").json
    restored = program("restore", "latest", "--to", to, "--json").json
    for count in ("files", "dirs", "others"):
        assert dry[count] == restored[count] == done.json[count], "people compare just these"
    assert dry["bytes"] == restored["bytes"]
    return described(tree), described(to / str(tree).lstrip("/"))


def test_deeper_than_a_path_can_be(program: Program, tree: Path, tmp_path: Path) -> None:
    fd = deep_directory(tree, 25)
    write(fd, b"leaf", b"deep")
    write(fd, b"empty", b"")
    os.symlink(b"leaf", b"link", dir_fd=fd)
    os.link(b"leaf", b"again", src_dir_fd=fd, dst_dir_fd=fd)
    os.mkfifo(b"fifo", dir_fd=fd)
    if attributes_work(tree):
        for name in (b"leaf", b"empty"):
            os.setxattr(b"/proc/self/fd/%d/%b" % (fd, name), "user.x", b"y")
    os.close(fd)
    want, got = round_trip(program, tree, tmp_path / "to")
    assert got == want
    assert len(max(got, key=len)) > 4096
    found = program("find", "leaf", "--snapshot", "latest", "--json").json
    path = found[0]["path"]
    assert program("cat", "latest", path).out == b"deep"
    again = program("backup", tree, "--json").json
    assert (again["files_unchanged"], again["errors"]) == (3, [])


def test_deeper_than_a_listing_can_tell(program: Program, tree: Path, tmp_path: Path) -> None:
    fd = deep_directory(tree, 270, b"d" * 250)
    write(fd, b"leaf", b"too deep")
    os.close(fd)
    write(fd := os.open(tree, os.O_RDONLY), b"shallow", b"there")
    os.close(fd)
    done = program("backup", tree, "--json", code=3)
    (error,) = done.json["errors"]
    assert error["reason"].startswith("the path is too long")
    program("verify", "latest")
    program("restore", "latest", "--to", tmp_path / "to")
    assert (tmp_path / "to" / str(tree).lstrip("/") / "shallow").read_bytes() == b"there"


def test_strange_names_types_and_times(program: Program, tree: Path, tmp_path: Path) -> None:
    top = os.open(tree, os.O_RDONLY)
    for name in (b"n" * 255, b"\xff\xfe\n\x1b[31m", b" ", b"-rf", b"\\", b"*", "é".encode(), b"e\xcc\x81"):
        write(top, name, name)
    os.close(top)
    (tree / "hard1").write_bytes(b"one file")
    (tree / "sub").mkdir()
    os.link(tree / "hard1", tree / "sub" / "hard2")
    (tree / "ln1").symlink_to("nowhere")
    os.link(tree / "ln1", tree / "sub" / "ln2", follow_symlinks=False)
    os.mkfifo(tree / "fifo", 0o600)
    os.link(tree / "fifo", tree / "sub" / "fifo2")
    for name, time_ns in (("old", -5_000_000_000_123), ("future", 4_000_000_000_000_000_001)):
        (tree / name).write_bytes(b"x")
        os.utime(tree / name, ns=(0, time_ns))
    os.utime(tree / "ln1", ns=(1, 1_234_567_890_123_456_789), follow_symlinks=False)
    with open(tree / "sparse", "wb") as file:
        file.truncate(1 << 36)
        file.seek(1 << 35)
        file.write(b"middle")
    for mode in (0o000, 0o444, 0o4755, 0o2755, 0o1777):
        (tree / f"d{mode:o}").mkdir()
        (tree / f"f{mode:o}").write_bytes(b"mode")
        os.chmod(tree / f"f{mode:o}", mode)
        os.chmod(tree / f"d{mode:o}", mode)
    if not IS_ROOT:
        os.chmod(tree / "f0", 0o400)
        os.chmod(tree / "d0", 0o500)
    want, got = round_trip(program, tree, tmp_path / "to")
    assert got == want


def test_a_socket_is_not_missed(
    program: Program, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        program("backup", tree)
    done = program("restore", "latest", "--to", tmp_path / "to", "--json").json
    assert [(e["kind"], e["path"].rpartition("/")[2]) for e in done["errors"]] == [("note", "socket")]


@pytest.mark.skipif(not IS_ROOT, reason="only root makes devices and gives files away")
def test_devices_owners_and_capabilities(program: Program, tree: Path, tmp_path: Path) -> None:
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.mknod(tree / "loop", 0o60640, os.makedev(7, 5))
    for name, mode in (("suid", 0o6755), ("plain", 0o644), ("none", 0o000)):
        (tree / name).write_bytes(b"x")
        os.chown(tree / name, 1234, 5678)
        os.chmod(tree / name, mode)
    (tree / "link").symlink_to("plain")
    os.lchown(tree / "link", 7, 8)
    (tree / "shared").mkdir()
    os.chown(tree / "shared", 1, 2)
    os.chmod(tree / "shared", 0o3775)
    if attributes_work(tree):
        capability = bytes.fromhex("0100000200200000000000000000000000000000")
        os.setxattr(tree / "plain", "security.capability", capability)
        os.setxattr(tree / "shared", "trusted.t", b"\0\xff")
        os.setxattr(tree / "link", "trusted.l", b"on the link", follow_symlinks=False)
    want, got = round_trip(program, tree, tmp_path / "to")
    assert got == want
