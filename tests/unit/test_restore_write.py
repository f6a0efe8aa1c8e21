"""Restoring: contents, metadata, policies, and what damage does (and does not) take away."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace
from snapshot_builder import OWNER, Client, directory, other, tree_of

from packnback import errors
from packnback.format.entry import FILE, Entry, Extent
from packnback.ids import Kind
from packnback.restore import locate
from packnback.restore.objects import ObjectReader
from packnback.restore.options import Overwrite, RestoreOptions
from packnback.restore.report import RestoreResult, Trouble
from packnback.restore.restore import restore
from packnback.restore.snapshot import open_snapshot

IS_ROOT = os.geteuid() == 0
OWN = {"uid": os.geteuid(), "gid": os.getegid()}


def bring_back(client: Client, tree: dict[bytes, list[Entry]], to: Path, **options: object) -> RestoreResult:
    info = client.commit(client.listing(tree))
    with ObjectReader(client.repository, OWNER) as reader:
        return restore(reader, open_snapshot(reader, info), str(to), RestoreOptions(**options))  # type: ignore[arg-type]


def told(result: RestoreResult) -> dict[bytes, Trouble]:
    return {problem.path: problem.kind for problem in result.problems}


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "to"


def test_contents_modes_and_times(client: Client, to: Path) -> None:
    rng = random.Random(1)
    files = {
        b"home/u/empty": b"",
        b"home/u/small": b"hello",
        b"home/u/pieces": rng.randbytes(300_000),
        b"home/u/deep/er/x": b"x" * 5000,
        b"home/u/n\xc3\xa4me \xff": b"not UTF-8",
    }
    rows = [
        (
            path.rpartition(b"/")[0],
            client.file(path.rpartition(b"/")[2], c, pieces=5 if len(c) > 9999 else 1, mode=0o640, **OWN),
        )
        for path, c in files.items()
    ]
    result = bring_back(client, tree_of(rows), to)
    assert (result.problems, result.files, result.bytes_restored) == ([], 5, sum(map(len, files.values())))
    for path, content in files.items():
        where = os.fsencode(to) + b"/" + path
        assert Path(os.fsdecode(where)).read_bytes() == content
        found = os.lstat(where)
        assert stat.S_IMODE(found.st_mode) == 0o640
        assert found.st_mtime_ns == 1_600_000_000_123_456_789
    found = (to / "home/u/deep").lstat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o755, 1_500_000_000_000_000_000)
    assert not [name for _, _, names in os.walk(to) for name in names if name.startswith(".packnback")]


def test_every_object_is_fetched_once(client: Client, to: Path) -> None:
    bundle = client.data(b"".join(b"%03d" % i for i in range(200)))
    entries = [
        Entry(
            b"f%03d" % i,
            FILE,
            0o600,
            0,
            0,
            0,
            3,
            extents=(Extent(bundle, 3 * i, 3),),
            check=client.check(b"%03d" % i),
        )
        for i in range(200)
    ]
    result = bring_back(client, {b"": entries}, to)
    assert not [p for p in result.problems if p.kind != Trouble.ATTRIBUTE]
    assert client.repository.fetched.count(bundle) == 1
    assert (to / "f123").read_bytes() == b"123"


def test_windows_smaller_than_one_file(client: Client, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "PIECES_LIMIT", 3)
    content = random.Random(2).randbytes(20_000)
    tree = tree_of([(b"a", client.file(b"big", content, pieces=20, **OWN)), (b"b", client.file(b"f", b"1", **OWN))])
    assert not bring_back(client, tree, to).problems
    assert (to / "a/big").read_bytes() == content


def test_holes_stay_holes(client: Client, to: Path) -> None:
    extents = (Extent(None, 0, 1 << 20), Extent(client.data(b"middle"), 0, 6), Extent(None, 0, 1 << 20))
    content = bytes(1 << 20) + b"middle" + bytes(1 << 20)
    sparse = Entry(
        b"sparse", FILE, 0o600, size=len(content), mtime_ns=5, extents=extents, check=client.check(content), **OWN
    )
    empty = Entry(b"void", FILE, 0o600, size=1 << 20, mtime_ns=5, extents=(Extent(None, 0, 1 << 20),), **OWN)
    assert not bring_back(client, {b"": [sparse, empty]}, to).problems
    assert (to / "sparse").read_bytes() == content
    assert (to / "sparse").stat().st_blocks * 512 < 1 << 20
    assert (to / "void").stat().st_size == 1 << 20


def test_special_files(client: Client, to: Path) -> None:
    entries = [
        other(b"fifo", ord("p"), mode=0o620, **OWN),
        other(b"link", ord("l"), target=b"/some/where \xff", **OWN),
        other(b"socket", ord("s"), **OWN),
    ]
    result = bring_back(client, {b"": entries}, to)
    assert told(result) == {b"socket": Trouble.NOTE}
    assert not result.incomplete
    assert os.readlink(os.fsencode(to / "link")) == b"/some/where \xff"
    assert (to / "link").lstat().st_mtime_ns == 1_400_000_000_000_000_000
    assert stat.S_ISFIFO((to / "fifo").lstat().st_mode)
    assert stat.S_IMODE((to / "fifo").lstat().st_mode) == 0o620


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
def test_owners_set_id_bits_and_devices(client: Client, to: Path) -> None:
    entries = [
        other(b"null", ord("c"), rdev=os.makedev(1, 3), mode=0o666, uid=7, gid=8),
        client.file(b"suid", b"#!", mode=0o4755, uid=1234, gid=2345),
        other(b"symlink", ord("l"), target=b"suid", uid=77, gid=78),
    ]
    tree = {b"": [directory(b"d", uid=5, gid=6, mode=0o2750)], b"d": entries}
    assert not bring_back(client, tree, to).problems
    found = (to / "d/suid").lstat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 2345, 0o4755)
    found = (to / "d").lstat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (5, 6, 0o2750)
    found = (to / "d/null").lstat()
    assert (found.st_uid, found.st_rdev, stat.S_IMODE(found.st_mode)) == (7, os.makedev(1, 3), 0o666)
    assert (to / "d/symlink").lstat().st_uid == 77


def test_without_owners_set_id_bits_are_not_given_to_the_wrong_one(client: Client, to: Path) -> None:
    entry = client.file(b"suid", b"#!", mode=0o6755, uid=os.geteuid() + 1, gid=0)
    assert not bring_back(client, {b"": [entry]}, to, owners=False).problems
    found = (to / "suid").lstat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.geteuid(), 0o755)


def test_extended_attributes(client: Client, to: Path) -> None:
    to.mkdir()
    try:
        os.setxattr(to, b"user.probe", b"1")
    except OSError:
        pytest.skip("no extended attributes here")
    entries = [
        client.file(b"f", b"1", mode=0o400, xattrs={b"user.a": b"\0value"}, **OWN),
        directory(b"d", xattrs={b"user.b": b"2"}, **OWN),
    ]
    assert not bring_back(client, {b"": sorted(entries, key=lambda e: e.name), b"d": []}, to).problems
    assert os.getxattr(to / "f", b"user.a") == b"\0value"
    assert os.getxattr(to / "d", b"user.b") == b"2"


def test_hard_links(client: Client, to: Path) -> None:
    first = client.file(b"1", b"shared", link_key=b"key", **OWN)
    again = Entry(
        b"2",
        FILE,
        0o644,
        size=6,
        mtime_ns=first.mtime_ns,
        extents=first.extents,
        check=first.check,
        link_key=b"key",
        **OWN,
    )
    liar = client.file(b"3", b"other!", link_key=b"key", **OWN)
    tree = tree_of([(b"a", first), (b"a/b", again), (b"c", liar)])
    assert not bring_back(client, tree, to).problems
    assert (to / "a/1").stat().st_ino == (to / "a/b/2").stat().st_ino
    assert (to / "c/3").read_bytes() == b"other!"
    assert (to / "c/3").stat().st_nlink == 1
    result = bring_back(client, tree, to, overwrite=Overwrite.ALWAYS)
    assert not result.problems
    assert (to / "a/1").stat().st_ino == (to / "a/b/2").stat().st_ino


@pytest.mark.parametrize("pieces", [1, 3])
def test_hard_links_stay_together_when_their_rights_changed(client: Client, to: Path, pieces: int) -> None:
    same = {"pieces": pieces, "link_key": b"key", **OWN}
    names = [client.file(name, b"the same words", **same) for name in (b"1", b"2", b"3")]  # type: ignore[arg-type]
    bring_back(client, {b"": names}, to)
    for entry in names:
        entry.mode = 0o400
    result = bring_back(client, {b"": names}, to, overwrite=Overwrite.CHANGED)
    assert not result.problems
    found = [(to / name).stat() for name in "123"]
    assert len({status.st_ino for status in found}) == 1
    assert found[0].st_mode & 0o777 == 0o400
    assert bring_back(client, {b"": names}, to, overwrite=Overwrite.CHANGED).unchanged == 3


def test_a_size_is_not_set_before_the_data(client: Client, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut leaves zeros that have the size and the time of what was to come."""
    real, sizes = os.ftruncate, []

    def ftruncate(fd: int, length: int) -> None:
        sizes.append((os.fstat(fd).st_size, length))
        real(fd, length)

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    bring_back(client, {b"": [client.file(b"f", b"x" * 3000, pieces=3, **OWN)]}, to)
    assert sizes == [(3000, 3000)]


def test_names_whose_content_was_stored_twice_are_linked(client: Client, to: Path) -> None:
    """As happens when one of them was known from an earlier backup; what is recorded of the content tells."""
    one = client.file(b"1", b"the same words", link_key=b"key", **OWN)
    two = client.file(b"2", b"the same words", pieces=2, link_key=b"key", **OWN)
    assert not bring_back(client, {b"": [one, two]}, to).problems
    assert (to / "1").stat().st_ino == (to / "2").stat().st_ino


@pytest.mark.parametrize("differs", [{"mode": 0o600}, {"mtime_ns": 1}, {"xattrs": {b"user.x": b"1"}}])
def test_names_of_which_something_else_is_recorded_are_no_links(
    client: Client, to: Path, differs: dict[str, object]
) -> None:
    """Keys come from inode numbers, which some file systems give to another file after each mount."""
    one = client.file(b"1", b"content", link_key=b"key", **OWN)
    two = replace(client.file(b"2", b"content", link_key=b"key", **OWN), **differs)
    bring_back(client, {b"": [one, two]}, to)
    assert (to / "1").stat().st_nlink == (to / "2").stat().st_nlink == 1
    assert (to / "1").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("content", [b"", b"words", b"\0" * (3 << 20) + b"end", b"x" * (2 << 20) + b"\0" * (1 << 20)])
def test_where_links_cannot_be_made_each_name_has_a_file(
    client: Client, to: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [client.file(name, content, pieces=3, link_key=b"key", **OWN) for name in (b"1", b"2")]
    to.mkdir()
    (to / "2").write_text("in the way")
    real = os.link

    def link(source: bytes, target: bytes, **rest: int) -> None:
        if source == b"1":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", link)
    result = bring_back(client, {b"": names}, to, overwrite=Overwrite.ALWAYS)
    assert told(result) == {b"2": Trouble.NOTE}
    assert (to / "1").read_bytes() == (to / "2").read_bytes() == content
    assert (to / "2").stat().st_mtime_ns == names[1].mtime_ns
    assert sorted(os.listdir(to)) == ["1", "2"]


@pytest.mark.parametrize("pieces", [1, 3])
def test_what_stands_in_the_place_of_a_lost_file_does_not_get_its_other_names(
    client: Client, to: Path, pieces: int
) -> None:
    first = client.file(b"1", b"backed up", pieces=pieces, link_key=b"key", **OWN)
    second = client.file(b"2", b"backed up", pieces=pieces, link_key=b"key", **OWN)
    client.repository.flip(next(iter(first.ids())))
    to.mkdir()
    (to / "1").write_text("something else")
    result = bring_back(client, {b"": [first, second]}, to, overwrite=Overwrite.ALWAYS)
    assert told(result)[b"1"] == Trouble.DAMAGE
    assert told(result)[b"2"] == Trouble.FAILED
    assert (to / "1").read_text() == "something else"
    assert not (to / "2").exists()
    assert result.others == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_privileges_go_only_to_whom_they_were_recorded_for(client: Client, to: Path) -> None:
    """2³²−1 is nobody's id: to chown(2) it means to change nothing."""
    capable = bytes.fromhex("0100000200200000000000000000000000000000")
    for number, owner in enumerate([(2**32 - 1, 0), (0, 2**32 - 1), (1234, 5678)]):
        made = client.file(b"f", b"program", mode=0o6755, uid=owner[0], gid=owner[1])
        made.xattrs = {b"security.capability": capable}
        where = to / str(number)
        bring_back(client, {b"": [made]}, where, owners=number != 2)
        status = (where / "f").stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, 0o755)
        assert "security.capability" not in os.listxattr(where / "f")


def test_delete_says_what_is_too_deep_for_it(client: Client, to: Path) -> None:
    top = to / "known" / "too-deep"
    top.mkdir(parents=True)
    deep = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    result = bring_back(
        client, {b"": [directory(b"known")], b"known": []}, to, overwrite=Overwrite.ALWAYS, delete=True
    )
    subprocess.run(["rm", "-rf", top], check=True)
    assert told(result) == {b"known/too-deep": Trouble.FAILED}


def test_selected_paths_keep_their_full_path_and_the_metadata_above(client: Client, to: Path) -> None:
    tree = tree_of([
        (b"home/u", client.file(b"a", b"1", **OWN)), (b"home/u/x", client.file(b"b", b"2", **OWN)),
        (b"home/u/x/y", client.file(b"c", b"3", **OWN)), (b"home/v", client.file(b"d", b"4", **OWN)),
    ])  # fmt: skip
    paths = [b"/home/u/x/", b"home/u/x/y", b"/home/u/a"]
    result = bring_back(client, tree, to, paths=paths)
    assert not result.problems
    assert sorted(str(p.relative_to(to)) for p in to.rglob("*") if p.is_file()) == [
        "home/u/a", "home/u/x/b", "home/u/x/y/c"
    ]  # fmt: skip
    assert (to / "home/u").stat().st_mtime_ns == 1_500_000_000_000_000_000
    with pytest.raises(errors.PathUnknown):
        bring_back(client, tree, to, paths=[b"home/nobody"])


def test_never_keeps_what_is_there(client: Client, to: Path) -> None:
    (to / "d").mkdir(parents=True)
    (to / "d/f").write_text("mine")
    tree = tree_of([(b"d", client.file(b"f", b"theirs", **OWN)), (b"d", client.file(b"g", b"new", **OWN))])
    result = bring_back(client, tree, to)
    assert told(result) == {b"d/f": Trouble.EXISTS}
    assert result.incomplete
    assert not result.damaged
    assert (to / "d/f").read_text() == "mine"
    assert (to / "d/g").read_text() == "new"


def test_changed_replaces_what_differs_and_reads_nothing_else(client: Client, to: Path) -> None:
    tree = tree_of([(b"d", client.file(b"f%d" % i, b"content %d" % i, **OWN)) for i in range(5)])
    assert not bring_back(client, tree, to).problems
    (to / "d/f3").write_text("changed ")
    (to / "d/f4").unlink()
    (to / "d/f4").symlink_to("f0")
    client.repository.fetched.clear()
    result = bring_back(client, tree, to, overwrite=Overwrite.CHANGED)
    assert (result.problems, result.unchanged, result.files) == ([], 3, 2)
    assert [(to / f"d/f{i}").read_text() for i in range(5)] == [f"content {i}" for i in range(5)]
    data = [wanted for wanted in client.repository.fetched if client.repository.records[wanted][5] == Kind.DATA]
    assert len(data) == 2
    assert not (to / "d/f4").is_symlink()


def test_changed_puts_right_what_only_looks_the_same(client: Client, to: Path) -> None:
    """Mode, attributes and links: after a restore with other options, or of what another tool has brought."""
    plain = client.file(b"a", b"plain", **OWN)
    plain.mode, plain.xattrs = 0o640, {b"user.comment": b"text"}
    names = [client.file(name, b"linked", **OWN) for name in (b"b", b"c")]
    for name in names:
        name.link_key = b"k" * 16
    tree = {b"": [plain, *names]}
    told_at_first = told(bring_back(client, tree, to))
    (to / "a").chmod(0o4777)
    (to / "c").unlink()
    shutil.copy2(to / "b", to / "c")
    if not told_at_first:
        os.removexattr(to / "a", "user.comment")
    client.repository.fetched.clear()
    result = bring_back(client, tree, to, overwrite=Overwrite.CHANGED)
    assert told(result) == told_at_first
    assert (to / "a").stat().st_mode & 0o7777 == 0o640
    assert (to / "b").samefile(to / "c")
    if not told_at_first:
        assert os.getxattr(to / "a", "user.comment") == b"text"
    again = bring_back(client, tree, to, overwrite=Overwrite.CHANGED)
    assert (told(again), again.unchanged, again.others) == (told_at_first, 3, 0)


def test_what_has_a_name_elsewhere_is_not_put_right_but_replaced(client: Client, to: Path, tmp_path: Path) -> None:
    """A link to a file outside that happens to look like ours: its mode is nobody's to change from here."""
    entry = client.file(b"a", b"text", **OWN)
    entry.mode = 0o600
    outside = tmp_path / "outside"
    outside.write_bytes(b"TEXT")
    outside.chmod(0o644)
    os.utime(outside, ns=(entry.mtime_ns, entry.mtime_ns))
    to.mkdir(exist_ok=True)
    os.link(outside, to / "a")
    assert bring_back(client, {b"": [entry]}, to, overwrite=Overwrite.CHANGED).problems == []
    assert (outside.read_bytes(), outside.stat().st_mode & 0o777, outside.stat().st_nlink) == (b"TEXT", 0o644, 1)
    assert ((to / "a").read_bytes(), (to / "a").stat().st_mode & 0o777) == (b"text", 0o600)


def test_always_replaces_but_no_file_takes_the_place_of_a_directory(client: Client, to: Path) -> None:
    (to / "d").mkdir(parents=True)
    (to / "f").mkdir()
    (to / "g").write_text("a file where a directory belongs")
    tree = tree_of([(b"", client.file(b"f", b"file", **OWN)), (b"g", client.file(b"h", b"below", **OWN))])
    result = bring_back(client, tree, to, overwrite=Overwrite.ALWAYS)
    assert told(result) == {b"f": Trouble.REFUSED}
    assert (to / "g/h").read_text() == "below"


def test_delete_removes_what_the_snapshot_does_not_have(client: Client, to: Path) -> None:
    (to / "d/junk/deeper").mkdir(parents=True)
    (to / "d/junk/deeper/file").write_text("1")
    (to / "d/link").symlink_to("/")
    (to / "beside").write_text("not in a restored directory")
    tree = tree_of([(b"d", client.file(b"f", b"1", **OWN)), (b"d/e", client.file(b"g", b"2", **OWN))])
    dry = bring_back(client, tree, to, delete=True, dry_run=True)
    assert (dry.deleted, told(dry)) == (2, {b"d/junk": Trouble.NOTE, b"d/link": Trouble.NOTE})
    assert (to / "d/junk/deeper/file").exists()
    result = bring_back(client, tree, to, delete=True)
    assert (result.deleted, result.problems) == (2, [])
    assert sorted(os.listdir(to / "d")) == ["e", "f"]
    assert (to / "beside").exists()


def test_delete_spares_directories_of_which_something_is_lost(client: Client, to: Path) -> None:
    tree: dict[object, list[Entry]] = {b"": [directory(b"d", **OWN)]}
    tree[b"d", 0] = [client.file(b"a", b"1", **OWN)]
    tree[b"d", 1] = [client.file(b"b", b"2", **OWN)]
    root = client.listing(tree, per_page=1)  # type: ignore[arg-type]
    pages = [wanted for wanted, raw in client.repository.records.items() if raw[5] == Kind.PAGE]
    (to / "d").mkdir(parents=True)
    (to / "d/b").write_text("this is in the snapshot")
    client.repository.flip(pages[2])
    info = client.commit(root)
    with ObjectReader(client.repository, OWNER) as reader:
        result = restore(reader, open_snapshot(reader, info), str(to), RestoreOptions(delete=True))
    assert result.damaged
    assert (to / "d/b").exists()
    assert (to / "d/a").exists()


def test_delete_spares_directories_above_a_root(client: Client, to: Path) -> None:
    (to / "home").mkdir(parents=True)
    (to / "home/other").write_text("somebody else's")
    tree = {b"": [directory(b"home", implicit=True, **OWN)], b"home": [directory(b"u", **OWN)], b"home/u": []}
    result = bring_back(client, tree, to, delete=True)
    assert not result.problems
    assert (to / "home/other").exists()


def test_a_dry_run_writes_nothing(client: Client, to: Path) -> None:
    tree = tree_of([(b"d", client.file(b"f", b"123", **OWN)), (b"d", other(b"p", ord("p")))])
    result = bring_back(client, tree, to, dry_run=True)
    assert (result.files, result.bytes_restored, result.directories, result.others) == (1, 3, 1, 1)
    assert not to.exists()
    (to / "d").mkdir(parents=True)
    (to / "d/f").write_text("there")
    result = bring_back(client, tree, to, dry_run=True)
    assert told(result) == {b"d/f": Trouble.EXISTS}
    assert os.listdir(to / "d") == ["f"]


def test_a_damaged_object_takes_exactly_the_files_that_need_it(client: Client, to: Path) -> None:
    shared = client.data(b"AAAABBBB")
    small = [
        Entry(name, FILE, 0o600, mtime_ns=1, size=4, extents=(Extent(shared, at, 4),), **OWN)
        for name, at in ((b"a", 0), (b"b", 4))
    ]
    large = Entry(
        b"large",
        FILE,
        0o600,
        mtime_ns=1,
        size=12,
        extents=(Extent(client.data(b"saved..."), 0, 8), Extent(shared, 0, 4)),
        **OWN,
    )
    good = [client.file(b"good%d" % i, b"%d" % i, **OWN) for i in range(10)]
    client.repository.flip(shared)
    result = bring_back(client, {b"": sorted([*small, *good, large], key=lambda e: e.name)}, to)
    assert told(result) == dict.fromkeys((b"a", b"b", b"large"), Trouble.DAMAGE)
    assert result.damaged
    assert result.files == 10
    assert sorted(os.listdir(to)) == [*(f"good{i}" for i in range(10)), "large.damaged"]
    assert (to / "large.damaged").read_bytes() == b"saved..." + bytes(4)


def test_what_a_killed_restore_has_left_behind_is_told(client: Client, to: Path) -> None:
    tree = tree_of([(b"d", client.file(b"f", b"text", **OWN))])
    assert not bring_back(client, tree, to).problems
    for name in ("d/.packnback-0123456789abcdef", ".packnback-fedcba9876543210", "d/.packnback-mine"):
        (to / name).write_bytes(b"half of it")
        os.utime(to / name, ns=(1, 1))
    result = bring_back(client, tree, to, overwrite=Overwrite.CHANGED)
    left = [b".packnback-fedcba9876543210", b"d/.packnback-0123456789abcdef"]
    assert told(result) == dict.fromkeys(left, Trouble.NOTE)
    assert not result.incomplete
    assert all(os.path.exists(to / os.fsdecode(name)) for name in left)


def test_what_is_left_of_a_file_takes_the_place_of_nothing(client: Client, to: Path) -> None:
    lost = client.data(b"lost")
    torn = Entry(b"db", FILE, 0o600, mtime_ns=1, size=12, **OWN)
    torn.extents = (Extent(client.data(b"saved..."), 0, 8), Extent(lost, 0, 4))
    client.repository.flip(lost)
    to.mkdir(exist_ok=True)
    (to / "db.damaged").write_bytes(b"somebody's own")
    for overwrite in (Overwrite.ALWAYS, Overwrite.CHANGED, Overwrite.NEVER):
        result = bring_back(client, {b"": [torn]}, to, overwrite=overwrite)
        assert told(result) == {b"db": Trouble.DAMAGE}
    assert (to / "db.damaged").read_bytes() == b"somebody's own"
    assert sorted(os.listdir(to)) == ["db.damaged", "db.damaged.1", "db.damaged.2", "db.damaged.3"]
    assert (to / "db.damaged.3").read_bytes() == b"saved..." + bytes(4)
    bring_back(client, {b"": [torn]}, to, overwrite=Overwrite.ALWAYS, delete=True)
    assert len(os.listdir(to)) == 5, "they may be all that there is of it"


def test_content_put_together_wrongly_is_loud(client: Client, to: Path) -> None:
    one = client.file(b"one", b"right", **OWN)
    one.extents = (Extent(client.data(b"wrong"), 0, 5),)
    many = client.file(b"many", b"0123456789", pieces=2, **OWN)
    many.extents = (many.extents[1], many.extents[0])
    result = bring_back(client, {b"": [many, one]}, to)
    assert told(result) == {b"many": Trouble.DAMAGE, b"one": Trouble.DAMAGE}
    assert sorted(os.listdir(to)) == ["many.damaged", "one.damaged"]


def test_a_damaged_page_loses_its_directories_and_nothing_else(client: Client, to: Path) -> None:
    tree = tree_of([(b"d%02d" % i, client.file(b"f", b"%d" % i, **OWN)) for i in range(20)])
    root = client.listing(tree)
    pages = [wanted for wanted, raw in client.repository.records.items() if raw[5] == Kind.PAGE]
    client.repository.flip(pages[4])
    info = client.commit(root)
    with ObjectReader(client.repository, OWNER) as reader:
        result = restore(reader, open_snapshot(reader, info), str(to))
    assert result.damaged
    assert [p.kind for p in result.problems] == [Trouble.DAMAGE]
    assert result.files == 18


def test_an_unreadable_root_restores_nothing_and_says_so(client: Client, to: Path) -> None:
    root = client.listing(tree_of([(b"d", client.file(b"f", b"1"))]))
    info = client.commit(root)
    del client.repository.records[root]
    with ObjectReader(client.repository, OWNER) as reader:
        result = restore(reader, open_snapshot(reader, info), str(to))
    assert result.damaged
    with ObjectReader(client.repository, OWNER) as reader:
        result = restore(reader, open_snapshot(reader, info), str(to), RestoreOptions(paths=[b"d/f"]))
    assert result.damaged


def test_a_list_key_restores_nothing(client: Client, to: Path) -> None:
    info = client.commit(client.listing({b"": []}))
    with ObjectReader(client.repository, OWNER.list_key()) as reader:
        snapshot = open_snapshot(reader, info)
        with pytest.raises(errors.KeyCannot):
            restore(reader, snapshot, str(to))
    assert not to.exists()


def test_directories_deeper_than_any_path_may_be_long(client: Client, to: Path) -> None:
    path = b"/".join([b"n" * 100] * 90)  # 9 KiB of path
    assert not bring_back(client, tree_of([(path, client.file(b"f", b"1", **OWN))]), to).problems
    where = os.open(to, os.O_RDONLY)
    for name in path.split(b"/"):
        below = os.open(name, os.O_RDONLY, dir_fd=where)
        os.close(where)
        where = below
    assert os.listdir(where) == ["f"]
    os.close(where)


def test_no_descriptor_is_left_open(client: Client, to: Path) -> None:
    tree = tree_of([(b"d%d" % i, client.file(b"f", b"x%d" % i * 50, pieces=3, **OWN)) for i in range(200)])
    before = len(os.listdir("/proc/self/fd"))
    assert not bring_back(client, tree, to).problems
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_clients_of_a_group_share_objects(to: Path) -> None:
    first = Client(name="alice", group="family")
    entry = first.file(b"f", b"shared", **OWN)
    second = Client(first.repository, "bob", group="family")
    assert not bring_back(second, {b"": [entry]}, to).problems
    assert (to / "f").read_bytes() == b"shared"


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("overwrite", [Overwrite.NEVER, Overwrite.ALWAYS])
def test_a_full_disk_ends_it_and_leaves_no_half_file(
    client: Client, to: Path, monkeypatch: pytest.MonkeyPatch, pieces: int, overwrite: Overwrite
) -> None:
    def pwrite(fd: int, content: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    to.mkdir()
    if overwrite == Overwrite.ALWAYS:
        (to / "f").write_text("there before")
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(errors.DiskFull):
        bring_back(client, {b"": [client.file(b"f", b"123456", pieces=pieces, **OWN)]}, to, overwrite=overwrite)
    assert os.listdir(to) == ([] if overwrite == Overwrite.NEVER else ["f"])


@pytest.mark.parametrize("pieces", [1, 3])
def test_an_interrupted_restore_leaves_no_half_file(
    client: Client, to: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    write = os.pwrite

    def pwrite(fd: int, content: bytes, offset: int) -> int:
        write(fd, content[:1], offset)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(KeyboardInterrupt):
        bring_back(client, {b"": [client.file(b"f", b"123456", pieces=pieces, **OWN)]}, to)
    assert os.listdir(to) == []


def test_interrupted_while_it_makes_a_temporary_file(
    client: Client, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.open

    def opened(path: str | bytes, flags: int, *rest: int, **more: int | None) -> int:
        fd = make(path, flags, *rest, **more)
        if isinstance(path, bytes) and path.startswith(b".packnback-"):
            os.close(fd)
            raise KeyboardInterrupt  # the signal came before open could return
        return fd

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(KeyboardInterrupt):
        bring_back(client, {b"": [client.file(b"f", b"123456", pieces=3, **OWN)]}, to)
    assert os.listdir(to) == []


def test_one_file_that_cannot_be_written_stops_no_other(
    client: Client, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def pwrite(fd: int, content: bytes, offset: int) -> int:
        if bytes(content) == b"bad":
            raise OSError(errno.EIO, "Input/output error")
        return write(fd, content, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    entries = [client.file(name, name, **OWN) for name in (b"bad", b"good")]
    result = bring_back(client, {b"": entries}, to)
    assert told(result) == {b"bad": Trouble.FAILED}
    assert not result.damaged
    assert os.listdir(to) == ["good"]


ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def acl(*extra: tuple[int, int, int]) -> bytes:
    """The attribute of an access control list, as acl(5) and the kernel have it: (tag, permissions, id)."""
    anybody = (1 << 32) - 1
    rows = sorted([(1, 7, anybody), (4, 5, anybody), (0x10, 7, anybody), (0x20, 0, anybody), *extra])
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_default_acl_of_the_target_lets_nobody_in(client: Client, to: Path, recorded: bool) -> None:
    (to / "old").mkdir(parents=True)
    wanted = acl((2, 6, 54321))
    try:
        for place in (to, to / "old"):
            os.setxattr(place, DEFAULT, acl((2, 7, 12345)))
    except OSError:
        pytest.skip("no access control lists on this file system")
    xattrs = {ACCESS.encode(): wanted} if recorded else {}
    more = {"mode": 0o770, "xattrs": xattrs, **OWN}
    tree = {
        b"": [client.file(b"f", b"x", **more), directory(b"new", **more), directory(b"old", **more)],
        b"new": [other(b"fifo", ord("p"), **more), client.file(b"pieces", b"x" * 99, pieces=3, **more)],
        b"old": [client.file(b"f", b"x", **more)],
    }
    assert not bring_back(client, tree, to, overwrite=Overwrite.ALWAYS).problems
    for name in ("f", "new", "old", "new/pieces", "new/fifo", "old/f"):
        found = {n: os.getxattr(to / name, n) for n in os.listxattr(to / name) if n in (ACCESS, DEFAULT)}
        assert found == ({ACCESS: wanted} if recorded else {}), name
        assert stat.S_IMODE((to / name).stat().st_mode) == 0o770


@pytest.mark.parametrize("interrupted", [False, True])
def test_nothing_temporary_is_left_of_what_cannot_be_replaced(
    client: Client, to: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    def rename(*arguments: object, **more: object) -> None:
        if interrupted:
            raise KeyboardInterrupt
        raise PermissionError(errno.EPERM, "Operation not permitted")

    to.mkdir()
    names = [b"l", b"f", b"hard"]
    for name in names:
        (to / os.fsdecode(name)).write_text("there before")
    monkeypatch.setattr(os, "rename", rename)
    file = client.file(b"f", b"x", link_key=b"k", **OWN)
    tree = {b"": [file, replace(file, name=b"hard"), other(b"l", ord("l"), target=b"t", **OWN)]}
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            bring_back(client, tree, to, overwrite=Overwrite.ALWAYS)
    else:
        result = bring_back(client, tree, to, overwrite=Overwrite.ALWAYS)
        assert told(result) == dict.fromkeys(names, Trouble.FAILED)
    assert sorted(os.listdir(os.fsencode(to))) == sorted(names)
    assert {(to / os.fsdecode(name)).read_text() for name in names} == {"there before"}


def test_a_file_system_without_modes_still_gets_times(
    client: Client, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chmod(at: int | bytes, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", chmod)
    result = bring_back(client, {b"": [client.file(b"f", b"x", **OWN)]}, to)
    assert told(result) == {b"f": Trouble.ATTRIBUTE}
    assert (to / "f").stat().st_mtime_ns == 1_600_000_000_123_456_789


def test_names_of_one_symlink_or_fifo_are_linked_again(client: Client, to: Path) -> None:
    link = other(b"l1", ord("l"), target=b"t", link_key=b"l", **OWN)
    fifo = other(b"p1", ord("p"), link_key=b"p", **OWN)
    liar = other(b"p3", ord("p"), link_key=b"l", **OWN)
    tree = {b"": [link, replace(link, name=b"l2"), fifo, replace(fifo, name=b"p2"), liar]}
    result = bring_back(client, tree, to)
    assert (result.problems, result.others) == ([], 5)
    inodes = {name: (to / name).lstat().st_ino for name in ("l1", "l2", "p1", "p2", "p3")}
    assert inodes["l1"] == inodes["l2"]
    assert inodes["p1"] == inodes["p2"]
    assert inodes["p3"] not in (inodes["l1"], inodes["p1"])


def test_each_name_of_a_special_file_that_cannot_be_made_is_told(client: Client, to: Path) -> None:
    to.mkdir()
    (to / "l1").mkdir()
    link = other(b"l1", ord("l"), target=b"t", link_key=b"l", **OWN)
    result = bring_back(client, {b"": [link, replace(link, name=b"l2")]}, to, overwrite=Overwrite.ALWAYS)
    assert told(result) == {b"l1": Trouble.REFUSED}
    assert os.readlink(to / "l2") == "t"
