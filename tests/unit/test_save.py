"""Saving, end to end into a repository in memory: what is read back with the owner key is what was on disk."""

from __future__ import annotations

import os
import random
import socket
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from memory_repository import MemoryRepository, SavedTree, TreeReader
from msgspec.structs import replace

from packnback.backup import disguise, listing_cuts, store_tree, walk
from packnback.backup import save as save_module
from packnback.backup.exclude import Excludes
from packnback.backup.reuse import Nothing, Visit
from packnback.backup.save import SaveOptions, SaveResult, save
from packnback.backup.state import Verdict
from packnback.backup.stream_source import CommandSource, DescriptorSource
from packnback.backup.tree import Block
from packnback.backup.walk import Part, WalkOptions
from packnback.crypto.certificate import parse_certificate
from packnback.crypto.keys import OwnerKey
from packnback.crypto.sign import verify_snapshot
from packnback.errors import ChainAlarm, CommandFailed, NothingToBackUp, StaleSequence, UsageError, WrongOwner
from packnback.events import Watch
from packnback.format import metadata, record
from packnback.format.entry import (
    BLOCK,
    CHAR,
    DIRECTORY,
    FIFO,
    FILE,
    INLINE_EXTENTS,
    SOCKET,
    SYMLINK,
    Entry,
)
from packnback.format.snapshot import PARTIAL, STATE_LOST, SnapshotFile
from packnback.ids import KIB, MIB, Kind

OWNER = OwnerKey(bytes(range(32)))
KEY = OWNER.put_key("laptop")


class Bench:
    """A repository, a client, and something to save."""

    def __init__(self, base: Path) -> None:
        self.source = base / "source"
        self.source.mkdir()
        self.state = base / "state"
        self.repository = MemoryRepository(OWNER)
        self.session = self.repository.opened
        self.watch = Watch()

    def save(self, *paths: bytes, **options: object) -> SaveResult:
        given: dict[str, object] = {"paths": paths or (os.fsencode(self.source),), **options}
        given.setdefault("state_directory", os.fsencode(self.state))
        return save(self.repository, KEY, SaveOptions(**given), self.watch)  # type: ignore[arg-type]

    @property
    def snapshots(self) -> list[SnapshotFile]:
        return sorted(self.session.snapshots.values(), key=lambda s: s.header.sequence)

    def tree(self, root: bytes | None = None) -> SavedTree:
        """The newest snapshot's tree."""
        root = root or self.snapshots[-1].header.root
        return TreeReader(self.session, OWNER, KEY).tree(root)

    def below(self, tree: SavedTree) -> dict[bytes, Entry]:
        """Entries in the source, by path relative to it."""
        prefix = os.fsencode(self.source)[1:] + b"/"
        return {path[len(prefix) :]: e for path, e in tree.entries.items() if path.startswith(prefix)}

    def content(self, tree: SavedTree, name: str) -> bytes:
        return tree.contents[os.fsencode(self.source)[1:] + b"/" + os.fsencode(name)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def fill(source: Path, seed: int = 1) -> None:
    """A tree with small, large, equal, empty and sparse files."""
    draw = random.Random(seed)
    for d in range(8):
        (source / f"dir{d}" / "sub").mkdir(parents=True)
        for f in range(12):
            (source / f"dir{d}" / f"file{f}").write_bytes(draw.randbytes(draw.randrange(1, 30_000)))
        (source / f"dir{d}" / "sub" / "same").write_bytes(b"the same everywhere" * 10)
    (source / "empty").write_bytes(b"")
    (source / "large").write_bytes(draw.randbytes(5 * MIB + 77))
    (source / "text").write_bytes(b"".join(b"line %d\n" % i for i in range(200_000)))


def check_against_disk(bench: Bench, tree: SavedTree) -> None:
    found = bench.below(tree)
    prefix = os.fsencode(bench.source)
    seen = {}
    for base, directories, files in os.walk(prefix):
        for name in (*directories, *files):
            path = os.path.join(base, name)
            seen[path[len(prefix) + 1 :]] = os.lstat(path)
    assert found.keys() == seen.keys()
    for path, entry in found.items():
        status = seen[path]
        assert (entry.mode, entry.uid, entry.gid) == (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        assert entry.mtime_ns == status.st_mtime_ns
        assert (entry.type == DIRECTORY) == stat.S_ISDIR(status.st_mode)
        if entry.type == FILE:
            assert entry.size == status.st_size
            with open(os.path.join(prefix, path), "rb") as file:
                assert bench.content(tree, os.fsdecode(path)) == file.read(), path


def test_what_is_saved_reads_back_as_it_was(bench: Bench) -> None:
    fill(bench.source)
    result = bench.save()
    tree = bench.tree()
    check_against_disk(bench, tree)
    assert result.errors == []
    assert result.files == 8 * 13 + 3
    above = len(os.fsencode(bench.source).split(b"/")) - 1
    assert result.dirs == 16 + above
    assert result.bytes == sum(len(content) for content in tree.contents.values())
    assert result.files_unchanged == 0
    assert result.objects_new == len(bench.session.records)
    assert result.bytes_stored == bench.session.bytes_published
    assert result.seconds > 0
    assert {"walk", "hash", "compress", "seal", "publish"} <= set(result.timings)
    implicit = [path for path, entry in tree.entries.items() if entry.implicit]
    assert len(implicit) == above - 1
    assert set(bench.session.records) <= bench.session.durable


def test_the_snapshot_is_signed_and_says_what_it_holds(bench: Bench) -> None:
    fill(bench.source)
    result = bench.save(tags={"set": "home", "a": "b"}, host="desk")
    (snapshot,) = bench.snapshots
    header = snapshot.header
    certificate = parse_certificate(snapshot.certificate)
    certificate.verify(OWNER.bundle)
    verify_snapshot(certificate.verify_key, snapshot.header_bytes, snapshot.signature)
    assert (header.sequence, header.prev, header.flags) == (1, bytes(32), 0)
    assert header.repository_id == bench.repository.config.repository_id
    assert result.published is not None
    assert result.published.id == snapshot.id
    envelope = record.parse(snapshot.envelope_record)
    sealed = record.parse(snapshot.metadata_record)
    bench.session.envelopes.setdefault(envelope.envelope_id, bytes(envelope.body))
    reader = TreeReader(bench.session, OWNER, KEY)
    binding, found = metadata.decode(reader._objects.open(sealed))
    assert binding == (KEY.client_id, 1, bytes(32), header.root)
    assert sealed.level == bench.session.records[header.root].level + 1
    assert (found.host, found.tags, found.paths) == (
        "desk",
        {"a": "b", "set": "home"},
        (os.fsencode(bench.source),),
    )
    assert (found.files, found.directories, found.bytes) == (result.files, result.dirs, result.bytes)
    assert found.unreadable == 0
    assert found.users[os.getuid()]
    assert found.started_ns <= header.time_ns


def test_saving_again_stores_almost_nothing(bench: Bench) -> None:
    fill(bench.source)
    first = bench.save()
    again = bench.save()
    # The bundle that was open at the end starts with random bytes, and so the pages that point there differ.
    kinds = [r.kind for r in list(bench.session.records.values())[first.objects_new :]]
    assert again.objects_new == len(kinds)
    assert kinds.count(Kind.DATA) <= 1
    assert len(kinds) <= 4
    assert [s.header.prev for s in bench.snapshots] == [bytes(32), bench.snapshots[0].id]
    check_against_disk(bench, bench.tree())


def test_a_change_in_one_directory_makes_one_page(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_cuts, "PAGE_TARGET", 4 * KIB)
    for d in range(80):
        path = bench.source / f"directory-{d:03}"
        path.mkdir()
        for f in range(20):
            (path / f"file {f:03}").write_bytes(b"")
    bench.save()
    known = set(bench.session.records)
    (bench.source / "directory-040" / "new").write_bytes(b"")
    bench.save()
    new = [bench.session.records[i].kind for i in set(bench.session.records) - known]
    assert sum(r.kind == Kind.PAGE for r in bench.session.records.values()) > 8
    # The directory's own time changed, which its parent's page tells; and a group that grows over a power of two may,
    # as the key will have it, end its page there.
    assert new.count(Kind.TABLE) == 1
    assert 1 <= new.count(Kind.PAGE) == len(new) - 1 <= 3


def test_every_type_of_file(bench: Bench) -> None:
    source = bench.source
    os.mkfifo(source / "fifo", 0o640)
    (source / "link").symlink_to("to/nowhere")
    (source / "setuid").write_bytes(b"x")
    (source / "setuid").chmod(0o4711)
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(source)
        listener.bind("socket")
        os.chdir(here)
    expected = {b"fifo": FIFO, b"link": SYMLINK, b"setuid": FILE, b"socket": SOCKET}
    if os.geteuid() == 0:
        try:
            os.mknod(source / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
            os.mknod(source / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 300))
            expected |= {b"null": CHAR, b"disk": BLOCK}
        except PermissionError:
            pass
    result = bench.save()
    found = bench.below(bench.tree())
    assert {name: entry.type for name, entry in found.items()} == expected
    assert found[b"link"].target == b"to/nowhere"
    assert found[b"setuid"].mode == 0o4711
    if b"null" in found:
        assert found[b"null"].rdev == os.makedev(1, 3)
    assert result.errors == []
    assert result.files == 1


@pytest.mark.parametrize("year", [1, 1677, 2262, 2300, 9999])
def test_a_time_beyond_the_format_does_not_cost_the_directory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    """Whoever may write into a directory may set any time there; file systems differ in what they keep of it."""
    (bench.source / "innocent").write_text("kept")
    (bench.source / "odd").write_text("kept, too")
    far_ns = (year - 1970) * 31_556_952 * 10**9
    genuine = store_tree._entry
    seen = []

    def entry(name: bytes, kind: int, status: os.stat_result, *attributes: Any) -> Entry:
        if name == b"odd":
            seen.append(name)
            status = SimpleNamespace(  # type: ignore[assignment]
                st_mode=status.st_mode, st_uid=status.st_uid, st_gid=status.st_gid, st_mtime_ns=far_ns
            )
        return genuine(name, kind, status, *attributes)

    monkeypatch.setattr(store_tree, "_entry", entry)
    assert bench.save().errors == []
    assert seen == [b"odd"]
    tree = bench.tree()
    assert bench.content(tree, "innocent") == b"kept"
    assert bench.content(tree, "odd") == b"kept, too"
    assert bench.below(tree)[b"odd"].mtime_ns == min(max(far_ns, -(1 << 63)), (1 << 63) - 1)


@pytest.mark.parametrize("target", [b"", b"x" * 4097])
def test_a_link_to_no_possible_name_does_not_cost_the_directory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, target: bytes
) -> None:
    (bench.source / "innocent").write_text("kept")
    (bench.source / "link").symlink_to("innocent")
    monkeypatch.setattr(os, "readlink", lambda *_, **__: target)
    result = bench.save()
    assert result.errors == [
        (os.fsencode(bench.source / "link"), f"is a symbolic link to a name of {len(target)} bytes")
    ]
    assert bench.below(bench.tree()).keys() == {b"innocent"}


def test_a_file_of_no_known_type_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.source / "innocent").write_text("kept")
    os.mkfifo(bench.source / "odd")
    monkeypatch.delitem(store_tree.TYPE_OF, stat.S_IFIFO)
    result = bench.save()
    assert [path for path, _ in result.errors] == [os.fsencode(bench.source / "odd")]
    assert bench.below(bench.tree()).keys() == {b"innocent"}


def test_names_that_are_not_utf8_do_not_stop_a_backup_at_its_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.source / "file").write_text("kept")
    monkeypatch.setattr(save_module.pwd, "getpwuid", lambda _: SimpleNamespace(pw_name="j\udcf6rg"))
    assert bench.save(host="h\udcff", tags={"k": "v\udcfe"}).published is not None
    assert bench.content(bench.tree(), "file") == b"kept"


def test_extended_attributes(bench: Bench) -> None:
    names = {"file": b"content", "empty": b"", "large": bytes(600 * KIB)}
    for name, content in names.items():
        (bench.source / name).write_bytes(content)
    (bench.source / "dir").mkdir()
    try:
        for name in (*names, "dir"):
            os.setxattr(bench.source / name, "user.origin", name.encode())
    except OSError:
        pytest.skip("no extended attributes here")
    bench.save()
    found = bench.below(bench.tree())
    for name in (*names, "dir"):
        assert found[name.encode()].xattrs == {b"user.origin": name.encode()}


def test_hard_links_share_a_key_and_are_read_once(bench: Bench) -> None:
    (bench.source / "one").write_bytes(b"shared" * 1000)
    (bench.source / "alone").write_bytes(b"alone")
    (bench.source / "sub").mkdir()
    for name in ("two", "sub/three"):
        os.link(bench.source / "one", bench.source / name)
    bench.save()
    found = bench.below(bench.tree())
    assert len(found[b"one"].link_key) == 8
    assert found[b"one"].link_key == found[b"two"].link_key == found[b"sub/three"].link_key
    assert found[b"one"].extents == found[b"two"].extents == found[b"sub/three"].extents
    assert found[b"alone"].link_key == b""
    assert bench.watch.counters.files_opened == 2


def test_a_sparse_file_that_is_cut_off_while_its_data_is_looked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As log rotation does it. What is there then is taken, as of any other file that changes while it is read."""
    path = bench.source / "log"
    with path.open("wb") as file:
        for number in range(8):
            file.seek(number * MIB)
            file.write(b"d" * 65536)
        file.truncate(8 * MIB)
    real, asked = os.lseek, 0

    def lseek(fd: int, offset: int, whence: int) -> int:
        nonlocal asked
        found = real(fd, offset, whence)
        asked += whence == os.SEEK_DATA
        if whence == os.SEEK_DATA and asked == 4:
            os.truncate(path, MIB)
        return found

    monkeypatch.setattr("packnback.backup.runs.os.lseek", lseek)
    result = bench.save()
    assert asked >= 4
    assert result.errors == [] and result.files == 1


def test_holes_stay_holes(bench: Bench) -> None:
    draw = random.Random(3)
    islands = {3 * MIB: draw.randbytes(700_000), 9 * MIB: draw.randbytes(5000), 30 * MIB: draw.randbytes(1)}
    with open(bench.source / "sparse", "wb") as file:
        for offset, data in islands.items():
            file.seek(offset)
            file.write(data)
        file.truncate(64 * MIB)
    with open(bench.source / "nothing", "wb") as file:
        file.truncate(10 * MIB)
    if os.stat(bench.source / "sparse").st_blocks * 512 > 4 * MIB:
        pytest.skip("the file system keeps no holes")
    bench.save()
    tree = bench.tree()
    check_against_disk(bench, tree)
    found = bench.below(tree)
    stored = sum(e.length for e in found[b"sparse"].extents if e.id is not None)
    assert stored < 3 * MIB
    assert [(e.id, e.length) for e in found[b"nothing"].extents] == [(None, 10 * MIB)]


def test_a_file_of_many_islands_uses_extent_objects(bench: Bench) -> None:
    count = INLINE_EXTENTS * 3
    with open(bench.source / "islands", "wb") as file:
        for i in range(count):
            file.seek(i * 64 * KIB)
            file.write(b"island %d" % i)
        file.truncate(count * 64 * KIB)
    if os.stat(bench.source / "islands").st_blocks * 512 > count * 32 * KIB:
        pytest.skip("the file system keeps no holes")
    bench.save()
    tree = bench.tree()
    check_against_disk(bench, tree)
    (entry,) = bench.below(tree).values()
    assert entry.far_depth == 1
    kinds = [r.kind for r in bench.session.records.values()]
    assert kinds.count(Kind.DATA) <= 6, "islands are cut together"
    assert kinds.count(Kind.EXTENTS) >= 1
    assert bench.session.records[bench.snapshots[-1].header.root].level == 3


class Meddler:
    """Calls something when a file is opened for reading, and restores what it replaced."""

    def __init__(self, patch: pytest.MonkeyPatch, name: bytes, meddle: Callable[[], None]) -> None:
        real = os.open

        def opening(path: object, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if path != name:
                return real(path, flags, mode, dir_fd=dir_fd)  # type: ignore[arg-type]
            if self.before:
                meddle()
            fd = real(path, flags, mode, dir_fd=dir_fd)
            if not self.before:
                self.fds.append(fd)
            return fd

        self.before = True
        self.fds: list[int] = []
        patch.setattr(os, "open", opening)


def replacing(target: Path, size: int, times: int) -> Callable[[], None]:
    """Writes the file as careful programs do: under another name, which is then moved over it."""
    numbers = iter(range(times))
    held: list[object] = []
    """Whoever still has the old file open, so that its inode is not given to the next one."""

    def replace() -> None:
        number = next(numbers, None)
        if number is not None:
            held.append(open(target, "rb"))  # noqa: SIM115  for as long as the test goes on
            new = target.parent.parent / "new"
            new.write_bytes(b"%d" % (number % 10) * size)
            new.chmod(0o640)
            new.rename(target)

    return replace


@pytest.mark.parametrize("size", [7, 600_000])
def test_a_file_that_is_replaced_is_in_the_snapshot(bench: Bench, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    target = bench.source / "target"
    target.write_bytes(b"mine" * 100)
    Meddler(monkeypatch, b"target", replacing(target, size, 3))
    result = bench.save()
    assert (result.errors, result.unsteady) == ([], [os.fsencode(target)])
    entry = bench.below(bench.tree())[b"target"]
    assert (entry.size, entry.mode) == (size, 0o640)
    assert bench.content(bench.tree(), "target") == b"2" * size


def test_a_file_that_is_replaced_again_and_again_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    target, other = bench.source / "target", bench.source / "other"
    target.write_bytes(b"mine")
    other.write_bytes(b"somebody else's")
    Meddler(monkeypatch, b"target", replacing(target, 7, 1000))
    result = bench.save()
    assert result.errors == [(os.fsencode(target), "was replaced by another file during the backup")]
    assert set(bench.below(bench.tree())) == {b"other"}


def test_a_file_replaced_by_a_fifo_or_link_does_not_hold_the_backup_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = bench.source / "victim"
    for name, replacement in (("fifo", os.mkfifo), ("link", lambda path: os.symlink("victim", path))):
        victim.write_bytes(b"secret")
        target = bench.source / name
        target.write_bytes(b"mine")

        def meddle(target: Path = target, make: Callable[[Path], None] = replacement) -> None:
            target.unlink()
            make(target)

        with monkeypatch.context() as patch:
            Meddler(patch, name.encode(), meddle)
            result = bench.save()
        assert [path for path, _ in result.errors] == [os.fsencode(target)]
        assert name.encode() not in bench.below(bench.tree())


def test_a_vanished_file_is_no_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    target = bench.source / "target"
    target.write_bytes(b"mine")
    Meddler(monkeypatch, b"target", target.unlink)
    result = bench.save()
    assert result.errors == []
    assert result.files == 0


@pytest.mark.parametrize("change", ["grow", "shrink", "empty"])
def test_a_small_file_that_changes_before_it_is_read_is_stored_as_it_is_then(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    target = bench.source / "target"
    content = random.Random(5).randbytes(1000)
    target.write_bytes(content)
    changed = {"grow": content * 2, "shrink": content[:300], "empty": b""}[change]
    Meddler(monkeypatch, b"target", lambda: target.write_bytes(changed))
    result = bench.save()
    assert result.errors == []
    assert result.unsteady == [os.fsencode(target)]
    assert bench.content(bench.tree(), "target") == changed


@pytest.mark.parametrize("change", ["grow", "shrink", "empty"])
def test_a_file_that_changes_is_stored_as_it_was_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    target = bench.source / "target"
    size = 700_000
    content = random.Random(5).randbytes(size)
    target.write_bytes(content)
    real = os.fstat
    seen = []

    def changing(fd: int) -> os.stat_result:
        status = real(fd)
        if status.st_ino == target.stat().st_ino and not seen:
            seen.append(status)
            if change == "grow":
                with open(target, "ab") as file:
                    file.write(b"more" * 1000)
            else:
                os.truncate(target, size // 3 if change == "shrink" else 0)
        return status

    monkeypatch.setattr(os, "fstat", changing)
    result = bench.save()
    monkeypatch.undo()
    assert seen
    assert result.errors == []
    assert result.unsteady == [os.fsencode(target)]
    expected = {"grow": content, "shrink": content[: size // 3], "empty": b""}[change]
    assert bench.content(bench.tree(), "target") == expected


def test_a_file_that_cannot_be_read_to_its_end_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bench.source)
    real = os.preadv

    def failing(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset >= 3 * MIB:
            raise OSError(5, "Input/output error")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    result = bench.save()
    assert result.errors == [(os.fsencode(bench.source / "large"), "Input/output error")]
    assert result.published is not None
    tree = bench.tree()
    assert b"large" not in bench.below(tree)
    (bench.source / "large").unlink()
    found = bench.below(tree)
    for name in ("text", "dir3/file3"):
        assert bench.content(tree, name) == (bench.source / name).read_bytes()
    assert len(found) == 16 + 8 * 13 + 2


def test_missing_roots(bench: Bench) -> None:
    fill(bench.source)
    gone = os.fsencode(bench.source / "gone")
    with pytest.raises(NothingToBackUp):
        bench.save(gone)
    assert not bench.session.snapshots
    result = bench.save(gone, os.fsencode(bench.source / "dir1"))
    assert [path for path, _ in result.errors] == [gone]
    assert result.files == 13


def test_a_repository_among_the_files_is_left_out(bench: Bench) -> None:
    (bench.source / "file").write_text("kept")
    inside = bench.source / "sub" / "repository"
    (inside / "packs").mkdir(parents=True)
    (inside / "packs" / "pack").write_text("not kept")
    bench.repository.location = str(inside)
    result = bench.save()
    assert result.errors == []
    assert bench.below(bench.tree()).keys() == {b"file", b"sub", b"sub/repository"}
    (bench.source / "link").symlink_to(inside)
    for path in (inside, inside / "packs", bench.source / "link" / "packs"):
        with pytest.raises(UsageError):
            bench.save(os.fsencode(path))
    assert len(bench.snapshots) == 1


def test_excludes_and_a_dry_run(bench: Bench) -> None:
    fill(bench.source)
    chosen = WalkOptions(Excludes([b"dir[0-3]", b"large"]))
    counted = bench.save(walk=chosen, dry_run=True)
    assert counted.published is None
    assert not bench.session.records
    assert not bench.state.exists()
    result = bench.save(walk=chosen)
    assert (counted.files, counted.dirs, counted.bytes) == (result.files, result.dirs, result.bytes)
    assert result.files == 4 * 13 + 2


def test_a_huge_directory_is_split_into_groups(bench: Bench) -> None:
    for i in range(3000):
        os.mknod(bench.source / f"{i:05}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "PART_MIN", 100)
        patch.setattr(walk, "PART_LIMIT", 400)
        bench.save()
    tree = bench.tree()
    groups = [group for group in tree.groups if group.path == os.fsencode(bench.source)[1:]]
    assert [group.part for group in groups] == list(range(len(groups)))
    assert len(groups) >= 8
    assert len(bench.below(tree)) == 3000


# --- streams -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 512 * KIB - 1, 512 * KIB, 3 * MIB + 5])
def test_a_stream_is_one_file(bench: Bench, size: int) -> None:
    content = random.Random(size).randbytes(size)
    (bench.source / "data").write_bytes(content)
    with open(bench.source / "data", "rb") as file:
        result = bench.save(stream=DescriptorSource(b"dump.sql", file.fileno()), paths=())
    tree = bench.tree()
    assert tree.contents == {b"dump.sql": content}
    entry = tree.entries[b"dump.sql"]
    assert (entry.mode, entry.uid, entry.size) == (0o600, os.getuid(), size)
    assert (result.files, result.dirs, result.bytes) == (1, 0, size)
    if 0 < size < 512 * KIB:
        assert entry.check, "small streams are bundled"
    if 0 < size < 256 * KIB:
        assert entry.extents[0].offset == 16, "behind a random prefix"


def test_a_command_counts_only_if_it_succeeds(bench: Bench) -> None:
    with CommandSource(b"out", ["sh", "-c", "echo one; sleep 0.1; echo two"]) as source:
        bench.save(stream=source, paths=())
    assert bench.tree().contents == {b"out": b"one\ntwo\n"}
    with CommandSource(b"out", ["sh", "-c", "echo half; exit 3"]) as source, pytest.raises(CommandFailed) as caught:
        bench.save(stream=source, paths=())
    assert (caught.value.command, caught.value.status) == ("sh -c 'echo half; exit 3'", 3)
    assert len(bench.snapshots) == 1
    with CommandSource(b"out", ["/no/such/command"]) as source, pytest.raises(CommandFailed) as caught:
        bench.save(stream=source, paths=())
    assert caught.value.status == 127


def test_a_command_is_not_started_for_a_backup_that_cannot_be_made(bench: Bench, tmp_path: Path) -> None:
    bench.repository.config = replace(bench.repository.config, owner_bundle=OwnerKey(bytes(32)).bundle.raw)
    with CommandSource(b"out", ["touch", str(tmp_path / "started")]) as source, pytest.raises(WrongOwner):
        bench.save(stream=source, paths=())
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0", b"x" * 256])
def test_bad_names_of_streams(name: bytes) -> None:
    with pytest.raises(UsageError):
        DescriptorSource(name, 0)


# --- the chain -------------------------------------------------------------------------------------------------


def test_another_owner_is_refused_before_anything_happens(bench: Bench) -> None:
    fill(bench.source)
    stranger = OwnerKey(bytes(32)).put_key("laptop")
    with pytest.raises(WrongOwner):
        save(bench.repository, stranger, SaveOptions(paths=[os.fsencode(bench.source)]))
    assert not bench.session.records


def test_alarms_come_before_anything_is_stored(bench: Bench) -> None:
    fill(bench.source)
    bench.save()
    bench.session.snapshots.clear()
    count = len(bench.session.records)
    (bench.source / "new").write_bytes(b"new")
    with pytest.raises(ChainAlarm) as caught:
        bench.save()
    assert caught.value.state == "rollback"
    assert len(bench.session.records) == count


def test_a_client_without_memory_says_so_in_its_next_snapshot(bench: Bench, tmp_path: Path) -> None:
    fill(bench.source)
    first = bench.save()
    assert first.published is not None
    result = bench.save(state_directory=os.fsencode(tmp_path / "fresh"))
    assert result.published is not None
    assert result.published.found is Verdict.REINSTALLED
    assert result.published.continued is not None
    assert result.published.continued.id == first.published.id
    bench.save(state_directory=os.fsencode(tmp_path / "fresh"))
    assert [s.header.flags for s in bench.snapshots] == [0, STATE_LOST, 0]
    with pytest.raises(ChainAlarm) as caught:
        bench.save()
    assert caught.value.state == "in-use-elsewhere"


def test_a_crash_between_publication_and_acknowledgement(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bench.source)
    real = bench.session.commit

    def crash(snapshot: bytes) -> None:
        real(snapshot)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench.session, "commit", crash)
        with pytest.raises(KeyboardInterrupt):
            bench.save()
    result = bench.save()
    assert result.published is not None
    assert result.published.found is Verdict.ADOPT
    assert [s.header.sequence for s in bench.snapshots] == [1, 2]


def test_a_number_that_was_taken_is_tried_again_a_few_times(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bench.source)
    real, refused = bench.session.commit, []

    def stale(snapshot: bytes) -> object:
        if len(refused) < 2:
            refused.append(snapshot)
            raise StaleSequence(1, 1)
        return real(snapshot)

    with monkeypatch.context() as patch:
        patch.setattr(bench.session, "commit", stale)
        bench.save()
    assert [s.header.sequence for s in bench.snapshots] == [1]

    def always(snapshot: bytes) -> object:
        raise StaleSequence(2, 2)

    monkeypatch.setattr(bench.session, "commit", always)
    with pytest.raises(StaleSequence):
        bench.save()


def test_checkpoints_protect_what_is_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bench.source)
    monkeypatch.setattr(save_module, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(disguise, "BATCH_IDS", 1)
    result = bench.save()
    assert result.checkpoints >= 3
    partial = bench.snapshots[:-1]
    assert [s.header.flags for s in partial] == [PARTIAL] * result.checkpoints
    assert bench.snapshots[-1].header.flags == 0
    sizes = []
    for snapshot in partial:
        tree = bench.tree(snapshot.header.root)
        sizes.append(len(tree.entries))
        for path, content in tree.contents.items():
            with open(b"/" + path, "rb") as file:
                assert content == file.read()
    assert sizes == sorted(sizes)
    check_against_disk(bench, bench.tree())


# --- the seam of the cache ---------------------------------------------------------------------------------------


class Memory(Nothing):
    """Remembers whole parts by their path, and single files; takes no notice of change."""

    def __init__(self) -> None:
        self.parts: dict[bytes, tuple[Sequence[Block], int]] = {}
        self.files: dict[tuple[bytes, bytes], Entry] = {}

    def visit(self, part: Part) -> Visit:
        return _Visit(self, part.path)


class _Visit(Nothing):
    some_known = True

    def __init__(self, memory: Memory, path: bytes) -> None:
        self._memory = memory
        self._path = path
        self.blocks, self.directories = memory.parts.get(path, (None, 0))

    def file(self, name: bytes, status: os.stat_result) -> Entry | None:
        return self._memory.files.get((self._path, name))

    def stored(
        self, blocks: Sequence[Block], entries: Sequence[Entry], *, doubtful: Collection[bytes], whole: bool
    ) -> None:
        if whole and not doubtful:
            self._memory.parts[self._path] = blocks, sum(entry.type == DIRECTORY for entry in entries)


@pytest.fixture
def memory() -> Iterator[Memory]:
    yield Memory()


def test_what_is_known_is_neither_opened_nor_stored(bench: Bench, memory: Memory) -> None:
    fill(bench.source)
    options = SaveOptions(paths=[os.fsencode(bench.source)], state_directory=os.fsencode(bench.state))
    first = save(bench.repository, KEY, options, bench.watch, memory)
    assert len(memory.parts) == 16 + len(os.fsencode(bench.source).split(b"/"))
    opened = bench.watch.counters.files_opened
    again = save(bench.repository, KEY, options, bench.watch, memory)
    assert bench.watch.counters.files_opened == opened
    assert again.objects_new == 0
    assert again.files_unchanged == again.files == first.files
    assert (again.dirs, again.bytes) == (first.dirs, first.bytes)
    assert [s.header.root for s in bench.snapshots] == [bench.snapshots[0].header.root] * 2
    path = os.fsencode(bench.source / "dir3")[1:]
    memory.files[path, b"file3"] = bench.below(bench.tree())[b"dir3/file3"]
    del memory.parts[path]
    third = save(bench.repository, KEY, options, bench.watch, memory)
    assert bench.watch.counters.files_opened == opened + 11
    assert third.files_unchanged == first.files - 11
    check_against_disk(bench, bench.tree())


def test_what_was_not_read_in_full_is_not_remembered(
    bench: Bench, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench.source)
    (bench.source / "dir1/bad").write_bytes(b"x")
    (bench.source / "dir2/gone").write_bytes(b"x")
    real = os.open

    def failing(path: object, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == b"bad":
            raise OSError(5, "Input/output error")
        if path == b"gone":
            raise FileNotFoundError(2, "No such file or directory")
        return real(path, flags, mode, dir_fd=dir_fd)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", failing)
    options = SaveOptions(paths=[os.fsencode(bench.source)], state_directory=os.fsencode(bench.state))
    save(bench.repository, KEY, options, bench.watch, memory)
    remembered = {os.path.basename(path) for path in memory.parts}
    assert {b"dir1", b"dir2"}.isdisjoint(remembered)
    assert {b"dir0", b"dir3"} <= remembered
