"""Snapshots by somebody who has a put key and means harm: nothing outside the target is touched (I11).

Each of these listings is properly sealed and signed. Around the target lies a tripwire: a tree whose every byte,
mode and time is compared afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cbor2
import pytest
from snapshot_builder import OWNER, Client, directory, other

from packnback.format.entry import FILE, Entry, Extent, encode_block
from packnback.format.listing import Child, Group, Totals
from packnback.ids import Kind
from packnback.restore import files
from packnback.restore import restore as module
from packnback.restore.objects import ObjectReader
from packnback.restore.options import Overwrite, RestoreOptions
from packnback.restore.report import RestoreResult, Trouble
from packnback.restore.restore import restore
from packnback.restore.snapshot import open_snapshot

OWN = {"uid": os.geteuid(), "gid": os.getegid()}
LINK = ord("l")


def everything(where: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for path in [where, *where.rglob("*")]:
        s = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (s.st_ino, s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_mtime_ns, content)
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory that must be the same afterwards, to the last time stamp."""
    where = tmp_path / "outside"
    (where / "sub").mkdir(parents=True)
    (where / "file").write_text("precious")
    (where / "sub/file").write_text("precious too")
    before = everything(where)
    yield where
    assert everything(where) == before


@pytest.fixture
def to(tmp_path: Path, outside: Path) -> Path:
    where = tmp_path / "to"
    where.mkdir()
    return where


@pytest.fixture
def client() -> Client:
    return Client()


def attack(client: Client, root: bytes, to: Path, **options: object) -> RestoreResult:
    info = client.commit(root)
    with ObjectReader(client.repository, OWNER) as reader:
        return restore(reader, open_snapshot(reader, info), str(to), RestoreOptions(**options))  # type: ignore[arg-type]


def raw_page(client: Client, rows: list[list[object]], refs: list[bytes]) -> bytes:
    """A listing of one page that is encoded without asking the format whether that is allowed."""
    page = client.store(Kind.PAGE, 1, refs, cbor2.dumps([1, rows]))
    return client.table([Child(page, b"", 0, Totals(1, 1, 1))]).id


def raw_block(entry: Entry, *names: bytes) -> bytes:
    """A block whose entries are all like `entry`, under whatever names."""
    _, block = encode_block([entry])
    value = cbor2.loads(block)
    value[0] = list(names)
    value[1] = value[1] * len(names)
    for column in (5, 6, 7, 8, 9):
        value[column] = value[column] * len(names)
    return cbor2.dumps(value)


@pytest.mark.parametrize(
    "names",
    [
        (b"..",), (b".",), (b"",), (b"../outside/file",), (b"/tmp/evil",), (b"a/b",), (b"a\0b",), (b"x" * 256,),
        (b"same", b"same"), (b"b", b"a"),
    ],
)  # fmt: skip
def test_names_that_are_paths_or_come_twice(client: Client, to: Path, names: tuple[bytes, ...]) -> None:
    entry = client.file(b"f", b"evil", **OWN)
    ids = sorted(entry.ids())
    root = raw_page(client, [[b"", 0, [0], raw_block(entry, *names)]], ids)
    result = attack(client, root, to)
    assert [p.kind for p in result.problems] == [Trouble.DAMAGE]
    assert os.listdir(to) == []


@pytest.mark.parametrize("path", [b"..", b"../outside", b"/etc", b"a/../../outside", b"a//b", b"./a", b"a\0", b"a/"])
def test_directories_that_are_elsewhere(client: Client, to: Path, path: bytes) -> None:
    entry = client.file(b"file", b"evil", **OWN)
    ids, block = encode_block([entry])
    _, top = encode_block([directory(b"a", **OWN)])
    root = raw_page(client, [[b"", 0, [], top], [path, 0, [0], block]], ids)
    result = attack(client, root, to)
    assert [p.kind for p in result.problems] == [Trouble.DAMAGE]
    assert os.listdir(to) == []


@pytest.mark.parametrize("first", ["symlink", "directory"])
def test_one_name_both_a_symlink_and_a_directory(client: Client, to: Path, outside: Path, first: str) -> None:
    link = other(b"a", LINK, target=os.fsencode(outside), **OWN)
    tree = {
        b"": [link],
        b"a": [client.file(b"file", b"evil", **OWN)],
        b"a/sub": [client.file(b"file", b"evil", **OWN)],
    }
    if first == "directory":
        tree[b""] = [directory(b"a", **OWN)]
        tree[b"a"] = [other(b"sub", LINK, target=os.fsencode(outside / "sub"), **OWN)]
    result = attack(client, client.listing(tree), to, overwrite=Overwrite.ALWAYS)
    assert result.damaged
    assert {p.kind for p in result.problems} == {Trouble.DAMAGE}


def test_a_symlink_whose_page_is_lost_is_still_not_followed(client: Client, to: Path, outside: Path) -> None:
    """With the parent's page unreadable, the shape cannot be checked; then the descriptors must hold."""
    (to / "p").mkdir()
    (to / "p/a").symlink_to(outside)
    tree = {b"": [directory(b"p", **OWN)], b"p": [other(b"a", LINK, target=os.fsencode(outside), **OWN)],
            b"p/a": [client.file(b"file", b"evil", **OWN)]}  # fmt: skip
    root = client.listing(tree, per_page=1)
    pages = [wanted for wanted, raw in client.repository.records.items() if raw[5] == Kind.PAGE]
    client.repository.flip(pages[1])
    for overwrite in Overwrite:
        result = attack(client, root, to, overwrite=overwrite, delete=True)
        assert {p.kind for p in result.problems} == {Trouble.DAMAGE, Trouble.REFUSED}


@pytest.mark.parametrize("overwrite", list(Overwrite))
@pytest.mark.parametrize("delete", [False, True])
def test_symlinks_that_stand_in_the_target_already(
    client: Client, to: Path, outside: Path, overwrite: Overwrite, delete: bool
) -> None:
    (to / "dir").symlink_to(outside)
    (to / "real").mkdir()
    (to / "real/file").symlink_to(outside / "file")
    (to / "real/new").symlink_to(outside / "created")
    tree = {
        b"": [directory(b"dir", **OWN), directory(b"real", **OWN)],
        b"dir": [client.file(b"file", b"evil", **OWN), directory(b"sub", **OWN)],
        b"dir/sub": [client.file(b"file", b"evil", **OWN)],
        b"real": [client.file(b"file", b"good", **OWN), client.file(b"new", b"x" * 99, pieces=3, **OWN)],
    }
    result = attack(client, client.listing(tree), to, overwrite=overwrite, delete=delete)
    kinds = {p.path: p.kind for p in result.problems}
    assert kinds.pop(b"dir") == Trouble.REFUSED
    assert (to / "dir").is_symlink()
    if overwrite == Overwrite.NEVER:
        assert kinds == {b"real/file": Trouble.EXISTS, b"real/new": Trouble.EXISTS}
    else:
        assert kinds == {}
        assert (to / "real/file").read_text() == "good"
        assert not (to / "real/file").is_symlink()


def test_symlinks_and_what_hangs_on_them_get_their_own_metadata(client: Client, to: Path, outside: Path) -> None:
    entries = [other(b"l", LINK, target=os.fsencode(outside / "file"), mode=0o7777, **(OWN | {"mtime_ns": 1}))]
    assert not attack(client, client.listing({b"": entries}), to).problems
    assert (to / "l").lstat().st_mtime_ns == 1


def test_hard_links_through_symlinks(client: Client, to: Path, outside: Path) -> None:
    """The second name of a "file" whose first name is where a symlink leads."""
    content = client.file(b"file", b"precious", link_key=b"k", **OWN)
    tree = {b"": [directory(b"a", **OWN), directory(b"z", **OWN)], b"a": [content], b"z": [content]}
    (to / "a").symlink_to(outside)
    result = attack(client, client.listing(tree), to, overwrite=Overwrite.ALWAYS)
    assert {p.path: p.kind for p in result.problems} == {b"a": Trouble.REFUSED}
    assert (to / "z/file").lstat().st_ino != (outside / "file").lstat().st_ino
    assert (to / "z/file").lstat().st_nlink == 1


def test_a_directory_is_swapped_for_a_symlink_while_we_write(
    client: Client, to: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who can write in the target exchanges a directory between its making and its files."""
    tree = {b"": [directory(b"d%03d" % i, **OWN) for i in range(100)]}
    tree |= {b"d%03d" % i: [client.file(b"file", b"evil %d" % i, **OWN)] for i in range(100)}
    carry_out = module._Restorer._flush

    def flush(self: object) -> None:
        if (to / "d007").is_dir() and not (to / "d007").is_symlink():
            (to / "d007").rename(to / "moved")
            (to / "d007").symlink_to(outside)
        carry_out(self)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Restorer, "_flush", flush)
    result = attack(client, client.listing(tree), to, overwrite=Overwrite.ALWAYS)
    assert {p.path: p.kind for p in result.problems} == {b"d007/file": Trouble.REFUSED, b"d007": Trouble.REFUSED}
    assert result.files == 99


def test_a_half_written_file_is_swapped_for_a_hard_link(
    client: Client, to: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who can write in the target links a file from elsewhere to the name under which we go on writing."""
    monkeypatch.setattr(files, "OPEN_FILES_LIMIT", 1)
    close = files.FileWriter._close
    links: list[Path] = []

    def close_and_swap(self: files.FileWriter, task: files.FileTask) -> None:
        close(self, task)
        if task.temporary and not task.settled:
            link = to / os.fsdecode(task.temporary)
            link.unlink()
            link.hardlink_to(outside / "file")
            links.append(link)

    monkeypatch.setattr(files.FileWriter, "_close", close_and_swap)
    entries = [client.file(b"f%d" % i, b"%d" % i * 9000, pieces=6, mode=0o4777, **OWN) for i in range(4)]
    result = attack(client, client.listing({b"": entries}), to)
    assert links
    for link in links:
        link.unlink()
    assert {p.kind for p in result.problems} - {Trouble.NOTE} == {Trouble.REFUSED}


def test_deleting_does_not_follow_symlinks(client: Client, to: Path, outside: Path) -> None:
    (to / "d/x").mkdir(parents=True)
    (to / "d/x/link").symlink_to(outside)
    (to / "d/link").symlink_to(outside)
    result = attack(client, client.listing({b"": [directory(b"d", **OWN)], b"d": []}), to, delete=True)
    assert (result.deleted, result.problems) == (2, [])
    assert os.listdir(to / "d") == []


def test_sizes_that_promise_more_than_there_is(client: Client, to: Path) -> None:
    """A huge hole costs no disk, and an extent beyond its object is damage, not a crash."""
    tiny = client.data(b"tiny")
    entries = [
        Entry(b"big", FILE, 0o600, mtime_ns=0, size=1 << 40, extents=(Extent(None, 0, 1 << 40),), **OWN),
        Entry(b"far", FILE, 0o600, mtime_ns=0, size=1 << 30, extents=(Extent(tiny, 0, 1 << 30),), **OWN),
        Entry(b"huge", FILE, 0o600, mtime_ns=0, size=(1 << 62), extents=(Extent(None, 0, 1 << 62),), **OWN),
    ]
    result = attack(client, client.listing({b"": entries}), to)
    kinds = {p.path: p.kind for p in result.problems}
    assert kinds.pop(b"far") == Trouble.DAMAGE
    assert set(kinds) <= {b"big", b"huge"}  # whatever the file system thinks of such sizes
    assert set(kinds.values()) <= {Trouble.FAILED}
    assert sum(p.lstat().st_blocks for p in to.iterdir()) < 1000


def test_times_owners_and_devices_out_of_range(client: Client, to: Path) -> None:
    entries = [
        client.file(b"a", b"1", mtime_ns=-(1 << 62), mode=0o600, uid=OWN["uid"], gid=OWN["gid"]),
        client.file(b"b", b"1", mtime_ns=(1 << 62), mode=0o7777, uid=(1 << 32) - 1, gid=(1 << 32) - 1),
        other(b"c", ord("b"), rdev=(1 << 62), **OWN),
        other(b"l", LINK, target=b"x" * 4096, **OWN),
    ]
    result = attack(client, client.listing({b"": entries}), to)
    assert {p.kind for p in result.problems} <= {Trouble.ATTRIBUTE, Trouble.FAILED}
    assert (to / "a").exists()


def test_a_group_for_the_target_itself_changes_nothing_but_its_contents(client: Client, to: Path) -> None:
    to.chmod(0o751)
    ids, block = encode_block([])
    root = raw_page(client, [[b"", 0, [], block]], [])
    assert isinstance(Group(b"", 0, ids, block), Group)
    assert not attack(client, root, to).problems
    assert to.stat().st_mode & 0o7777 == 0o751
