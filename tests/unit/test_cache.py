"""The client's cache: what it saves the work of, and that nothing it says can harm."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from cached_client import KEY, CachedClient, settle

from packnback.backup import ahead, remember, signature, spool, walk
from packnback.backup import cache as cache_module
from packnback.backup.cache import BUNDLES, CONTENTS, ROWS, USAGE, Cache, CacheFailed
from packnback.backup.cache_rows import SCOPE_LEN, Rows
from packnback.backup.exclude import Excludes
from packnback.backup.save import SaveResult
from packnback.backup.stream_source import DescriptorSource
from packnback.backup.walk import WalkOptions
from packnback.format.entry import FILE
from packnback.ids import KIB, Kind
from packnback.mounts import filesystem_type

SECOND = 10**9
LATER = 1 << 62


@pytest.fixture
def client(tmp_path: Path) -> CachedClient:
    return CachedClient(tmp_path)


def fill(source: Path, seed: int = 1, directories: int = 6) -> None:
    draw = random.Random(seed)
    for d in range(directories):
        (source / f"dir{d}" / "sub").mkdir(parents=True)
        for f in range(8):
            (source / f"dir{d}" / f"file{f}").write_bytes(draw.randbytes(draw.randrange(1, 9_000)))
        (source / f"dir{d}" / "sub" / "same").write_bytes(b"the same everywhere" * 10)
        (source / f"dir{d}" / "link").symlink_to("file0")
    (source / "empty").write_bytes(b"")
    (source / "large").write_bytes(draw.randbytes(900 * KIB))
    os.link(source / "dir0" / "file1", source / "dir1" / "linked")
    settle()


def save_undisturbed(client: CachedClient) -> SaveResult:
    """A save before which, since the start of the one before it, no directory above the source has changed.

    A snapshot holds those directories' times, too, and others make their files in /tmp.
    """

    def above() -> list[int]:
        return [path.stat().st_mtime_ns for path in client.source.parents]

    for _ in range(1000):
        before = above()
        client.save()
        result = client.save()
        if above() == before:
            return result
    pytest.fail("the directories above the source change all the time")


def test_an_unchanged_tree_is_neither_opened_nor_hashed(client: CachedClient) -> None:
    fill(client.source)
    first = client.save()
    assert first.files_unchanged == 0
    again = save_undisturbed(client)
    assert client.counters.files_opened == 0
    assert again.objects_new == 0
    pages = sum(len(r.body) for r in client.repository.opened.records.values() if r.kind != Kind.DATA)
    assert client.counters.bytes_hashed <= pages
    assert again.files_unchanged == again.files == first.files
    assert (again.dirs, again.bytes, again.errors) == (first.dirs, first.bytes, [])
    *_, one, two = sorted(client.repository.opened.snapshots.values(), key=lambda s: s.header.sequence)
    assert one.header.root == two.header.root
    client.check_against_disk()
    assert client.notes.notes == []


def test_of_a_changed_directory_only_the_changed_file_is_opened(client: CachedClient) -> None:
    fill(client.source)
    client.save()
    (client.source / "dir3" / "file2").write_bytes(b"changed")
    settle()
    again = client.save()
    assert client.counters.files_opened == 1
    assert again.files_unchanged == again.files - 1
    client.check_against_disk()
    client.save()
    assert client.counters.files_opened == 0


@pytest.mark.parametrize("change", ["chmod", "touch", "replace", "xattr", "rename"])
def test_every_change_is_seen(client: CachedClient, change: str) -> None:
    fill(client.source)
    client.save()
    path = client.source / "dir2" / "file5"
    status = path.stat()
    match change:
        case "chmod":
            path.chmod(0o601)
        case "touch":
            os.utime(path, ns=(1, 10**18))
        case "replace":
            content = bytes(reversed(path.read_bytes()))
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "xattr":
            try:
                os.setxattr(path, "user.note", b"hello")
            except OSError:
                pytest.skip("no extended attributes here")
        case "rename":
            other = client.source / "dir2" / "file6"
            other.write_bytes(bytes(reversed(path.read_bytes())))
            os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
            other.rename(path)
    settle()
    client.save()
    assert client.counters.files_opened == 1
    client.check_against_disk()
    if change == "xattr":
        assert client.entry("dir2/file5").xattrs == {b"user.note": b"hello"}


def test_entries_that_come_and_go(client: CachedClient) -> None:
    fill(client.source)
    client.save()
    shutil.rmtree(client.source / "dir1")
    (client.source / "dir2" / "file0").unlink()
    (client.source / "dir0" / "new").mkdir()
    (client.source / "dir0" / "new" / "file").write_bytes(b"new")
    (client.source / "dir5").rename(client.source / "dir9")
    settle()
    client.save()
    client.check_against_disk()
    paths = [key for table, key, _ in client.rows() if table == ROWS]
    assert not any(b"\0dir1" in path or b"\0dir5" in path for path in paths), "rows of what is gone"
    client.save()
    assert client.counters.files_opened == 0
    client.check_against_disk()


def test_moved_files_are_read_but_not_stored_again(client: CachedClient) -> None:
    fill(client.source)
    first = client.save()
    (client.source / "dir0").rename(client.source / "moved")
    settle()
    kinds_before = len(client.repository.opened.records)
    client.save()
    new = list(client.repository.opened.records.values())[kinds_before:]
    assert Kind.DATA not in [record.kind for record in new]
    assert client.counters.files_opened > 0
    assert first.objects_new > 0
    client.check_against_disk()


def test_racy_files_are_read_again(client: CachedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(client.source)
    monkeypatch.setattr(signature, "_COARSE_MARGIN_NS", 3600 * 10**9)
    client.save()
    again = client.save()
    assert again.files_unchanged == 0
    assert client.counters.files_opened > 0
    monkeypatch.undo()
    client.save()
    assert client.save().files_unchanged == again.files


def test_a_change_within_the_tick_of_the_clock_is_not_missed(
    client: CachedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file looks the same before and after: nothing but its content tells."""
    fill(client.source)
    path = client.source / "dir2" / "racy"
    path.write_bytes(b"before")
    found = path.stat()
    settled = signature.FileSystem.settled
    with monkeypatch.context() as patch:

        def young(
            self: signature.FileSystem, children: list[tuple[bytes, os.stat_result]], device: int, now_ns: int
        ) -> dict[bytes, bytes]:
            return settled(self, [child for child in children if child[0] != b"racy"], device, now_ns)

        patch.setattr(signature.FileSystem, "settled", young)
        client.save()
    path.write_bytes(b"after!")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    same = {found.st_ino: found}
    facts, stamp = signature._FACTS, signature.stamp
    monkeypatch.setattr(signature, "_FACTS", lambda s: facts(same.get(s.st_ino, s)))
    monkeypatch.setattr(remember, "stamp", lambda s, file_system: stamp(same.get(s.st_ino, s), file_system))
    client.save()
    assert client.counters.files_opened == 1
    client.check_against_disk()


def test_one_file_that_never_holds_still_does_not_cost_its_neighbours(
    client: CachedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client.source)
    log = client.source / "dir0" / "file0"
    read, readv = os.read, os.readv

    def append(fd: int) -> None:
        if os.fstat(fd).st_ino == log.stat().st_ino:
            with open(log, "ab") as file:
                file.write(b"one more line")

    def reading(fd: int, count: int) -> bytes:
        data = read(fd, count)
        append(fd)
        return data

    def reading_into(fd: int, buffers: Sequence[memoryview]) -> int:
        count = readv(fd, buffers)
        append(fd)
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", reading)
        patch.setattr(os, "readv", reading_into)
        assert client.save().unsteady
    settle()
    client.save()
    assert client.counters.files_opened == 1
    client.check_against_disk()


def test_an_unreadable_file_is_reported_every_time(client: CachedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(client.source)
    real = os.open

    def refuse(path: object, *args: object, **named: object) -> int:
        if path == b"file3" and os.readlink(f"/proc/self/fd/{named['dir_fd']}").endswith("dir4"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert [path for path, _ in client.save().errors] == [os.fsencode(client.source / "dir4/file3")]
        again = client.save()
        assert [path for path, _ in again.errors] == [os.fsencode(client.source / "dir4/file3")]
        assert again.files_unchanged == again.files
    result = client.save()
    assert client.counters.files_opened == 1
    assert not result.errors
    client.check_against_disk()


def test_a_huge_directory_in_parts(client: CachedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "PART_MIN", 10)
    monkeypatch.setattr(walk, "PART_LIMIT", 40)
    for i in range(300):
        (client.source / f"file{i:04}").write_bytes(b"%d" % i)
    settle()
    client.save()
    client.save()
    assert client.counters.files_opened == 0
    (client.source / "file0123").write_bytes(b"changed")
    settle()
    client.save()
    assert client.counters.files_opened == 1
    client.check_against_disk()


def test_windows_much_smaller_than_the_tree(client: CachedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "WINDOW_ROWS", 3)
    monkeypatch.setattr(ahead, "KNOWN_LIMIT", 4)
    fill(client.source, directories=20)
    client.save()
    client.save()
    assert client.counters.files_opened == 0
    shutil.rmtree(client.source / "dir11")
    shutil.rmtree(client.source / "dir12")
    settle()
    result = client.save()
    assert client.counters.files_opened == 0
    assert result.files_unchanged == result.files
    client.check_against_disk()


def test_very_long_paths(client: CachedClient) -> None:
    deep = client.source
    for i in range(6):
        deep = deep / (f"{i}" * 150)
        deep.mkdir()
        (deep / "file").write_bytes(b"%d" % i)
    settle()
    client.save()
    client.save()
    assert client.counters.files_opened == 0
    client.check_against_disk()


def test_other_options_and_other_roots_do_not_disturb_each_other(client: CachedClient) -> None:
    fill(client.source)
    client.save()
    client.save(walk=WalkOptions(excludes=Excludes([b"file3"])))
    client.save(paths=[os.fsencode(client.source / "dir4"), os.fsencode(client.source / "large")])
    assert client.counters.files_opened == 0, "the same options below other roots"
    client.save(walk=WalkOptions(excludes=Excludes([b"file3"])))
    assert client.counters.files_opened == 0
    client.save()
    assert client.counters.files_opened == 0
    client.check_against_disk()


def test_parts_with_hard_links_are_not_written_again(client: CachedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their files are looked at one by one; when nothing has changed, there is nothing new to remember."""
    fill(client.source)
    client.save()
    written: list[bytes] = []
    real = spool.Spool.part

    def note(to: spool.Spool, key: bytes, value: bytes, more: dict[bytes, tuple[int, int]]) -> None:
        written.append(key)
        real(to, key, value, more)

    monkeypatch.setattr(spool.Spool, "part", note)
    saves = len(written)
    real_save = client.save

    def save() -> SaveResult:
        nonlocal saves
        saves = len(written)
        return real_save()

    monkeypatch.setattr(client, "save", save)
    result = save_undisturbed(client)
    assert len(written) == saves
    assert result.files_unchanged == result.files
    client.check_against_disk()
    (client.source / "dir0" / "new").write_bytes(b"new")
    settle()
    save()
    assert saves < len(written) <= saves + 4
    client.check_against_disk()


def test_hard_links_stay_together_when_the_device_changes_its_number(
    client: CachedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client.source)
    client.save()
    (client.source / "dir1" / "another").write_bytes(b"x")
    settle()
    real_fstat, real_stat = os.fstat, os.stat

    class Moved:
        def __init__(self, status: os.stat_result) -> None:
            self._status = status

        def __getattr__(self, name: str) -> int:
            value: int = getattr(self._status, name)
            return value + 7 if name == "st_dev" else value

    monkeypatch.setattr(os, "fstat", lambda *a, **k: Moved(real_fstat(*a, **k)))
    monkeypatch.setattr(os, "stat", lambda *a, **k: Moved(real_stat(*a, **k)))
    client.save()
    monkeypatch.undo()
    entries = client.below(client.tree())
    assert entries[b"dir0/file1"].link_key == entries[b"dir1/linked"].link_key != b""


# --- a cache that lies ---------------------------------------------------------------------------------------------


def test_objects_that_the_repository_lost_are_stored_again(client: CachedClient) -> None:
    fill(client.source)
    client.save()
    records = client.repository.opened.records
    data = [object_id for object_id, record in records.items() if record.kind == Kind.DATA]
    gone = set(data[::2])
    for object_id, record in list(records.items()):
        if object_id in gone or any(ref not in records or ref in gone for ref in record.ref_list):
            gone.add(object_id)
            del records[object_id]
    client.save()
    assert gone.intersection(records)
    client.check_against_disk()
    client.save()
    assert client.counters.files_opened == 0


def test_a_repository_that_was_rolled_back(client: CachedClient) -> None:
    fill(client.source)
    client.save()
    opened = client.repository.opened
    before = (dict(opened.records), dict(opened.envelopes), dict(opened.snapshots))
    (client.source / "dir0" / "file0").write_bytes(b"new content")
    (client.source / "dir0" / "file9").write_bytes(b"more new content")
    settle()
    client.save()
    opened.records, opened.envelopes, opened.snapshots = before
    client.save(state_directory=os.fsencode(client.base / "new state"))
    assert client.counters.files_opened == 2
    client.check_against_disk()


def test_a_cache_of_another_repository(client: CachedClient, tmp_path: Path) -> None:
    fill(client.source)
    client.save()
    old = client.place
    client.repository.config = type(client.repository.config)(bytes(16), client.repository.config.owner_bundle)
    client.repository.location = "/elsewhere"
    client.repository.opened.records.clear()
    client.repository.opened.snapshots.clear()
    assert client.place != old
    shutil.copytree(os.fsdecode(old), os.fsdecode(client.place))
    client.save()
    assert client.counters.files_opened > 0
    client.check_against_disk()


def test_rows_are_believed_only_where_they_were_written(client: CachedClient) -> None:
    fill(client.source)
    client.save()
    rows = [row for row in client.rows() if row[0] == ROWS]
    client.replace_rows([(table, key, rows[i - 1][2]) for i, (table, key, _) in enumerate(rows)])
    result = client.save()
    assert result.files_unchanged == 0
    client.check_against_disk()


def test_flipped_bits_in_rows(client: CachedClient) -> None:
    fill(client.source)
    client.save()
    draw = random.Random(5)
    damaged = []
    for table, key, value in client.rows():
        if value and key != b"format":
            at = draw.randrange(len(value))
            damaged.append((table, key, value[:at] + bytes([value[at] ^ 1 << draw.randrange(8)]) + value[at + 1 :]))
    client.replace_rows(damaged)
    client.save()
    assert client.counters.files_opened > 0
    client.check_against_disk()
    client.save()
    assert client.counters.files_opened == 0
    assert client.notes.notes == []


@pytest.mark.parametrize("length", [0, 100, 5000, 3 * 4096])
def test_a_file_that_was_cut_is_thrown_away(client: CachedClient, length: int) -> None:
    fill(client.source)
    client.save()
    os.truncate(os.path.join(client.place, b"data.mdb"), length)
    client.save()
    client.check_against_disk()
    client.save()
    assert client.counters.files_opened == 0


def test_a_damaged_file_that_a_process_died_over_is_thrown_away(client: CachedClient) -> None:
    fill(client.source)
    client.save()
    path = os.path.join(client.place, b"data.mdb")
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(2 * 4096)
        file.write(b"\xa5" * (size - 2 * 4096))
    with open(os.path.join(client.place, b"opened.0"), "wb"):
        pass
    client.save()
    client.check_against_disk()
    client.save()
    assert client.counters.files_opened == 0


def test_a_cache_that_cannot_be_used_is_no_reason_to_stop(client: CachedClient) -> None:
    fill(client.source)
    client.base.joinpath("cache").write_bytes(b"in the way")
    client.save()
    client.check_against_disk()
    assert len(client.notes.notes) == 1


def test_a_cache_that_fails_on_the_way(client: CachedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(client.source)
    client.save()
    (client.source / "dir3" / "file3").write_bytes(b"changed")
    settle()
    real, calls = Cache.reading, []

    def failing(self: Cache) -> object:
        calls.append(1)
        if len(calls) > 2:
            raise CacheFailed("the disk is on fire")
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "reading", failing)
        client.save()
    assert client.notes.notes == ["the cache cannot be used: the disk is on fire"]
    client.check_against_disk()


def test_nothing_is_remembered_of_a_run_that_stored_nothing_durable(
    client: CachedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client.source)

    def crash() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client.repository.opened, "flush", crash)
        with pytest.raises(KeyboardInterrupt):
            client.save()
    assert [row for row in client.rows() if row[1] != b"format"] == []


def test_without_a_cache_nothing_is_written(client: CachedClient) -> None:
    fill(client.source)
    client.save(cache_directory=None)
    assert not (client.base / "cache").exists()


def test_a_stream_is_saved_with_a_cache(client: CachedClient, tmp_path: Path) -> None:
    path = tmp_path / "stream"
    content = random.Random(3).randbytes(3_000_000)
    for changed in (content, content[:1_000_000] + b"inserted" + content[1_000_000:]):
        path.write_bytes(changed)
        with open(path, "rb") as file:
            client.save(paths=[], stream=DescriptorSource(b"dump.sql", file.fileno()))
        assert client.tree().contents[b"dump.sql"] == changed
    assert len(client.tree().entries[b"dump.sql"].check) == 8


# --- liveness and bounds --------------------------------------------------------------------------------------------


def test_a_bundle_that_is_hardly_used_is_stored_anew(client: CachedClient) -> None:
    draw = random.Random(2)
    for i in range(40):
        (client.source / f"d{i:02}").mkdir()
        (client.source / f"d{i:02}" / "file").write_bytes(draw.randbytes(9_000))
    settle()
    client.save()
    bundles = {e.extents[0].id for e in client.below(client.tree()).values() if e.type == FILE}
    for i in range(40):
        if i % 4:
            shutil.rmtree(client.source / f"d{i:02}")
    settle()
    client.save()
    assert client.counters.files_opened == 0, "what the run itself made sparse is seen by the next one"
    client.save()
    assert client.counters.files_opened == 10
    now = {e.extents[0].id for e in client.below(client.tree()).values() if e.type == FILE}
    assert not now & bundles
    client.save()
    assert client.counters.files_opened == 0
    client.check_against_disk()


def test_usage_equals_a_recount(client: CachedClient) -> None:
    fill(client.source)
    client.save()
    for i in range(4):
        (client.source / f"dir{i}" / "file1").write_bytes(b"%d" % i * 100)
        shutil.rmtree(client.source / f"dir{i}" / "sub")
        settle()
        client.save()
    rows = Rows(KEY, client.repository.config.repository_id)
    counted: dict[bytes, int] = {}
    usage = {}
    for table, key, value in client.rows():
        if table == ROWS:
            part = rows.read_part(key, value)
            assert part is not None
            for bundle, used in part.uses.items():
                counted[key[:SCOPE_LEN] + bundle] = counted.get(key[:SCOPE_LEN] + bundle, 0) + used
        elif table == USAGE:
            found = rows.read_usage(key, value)
            assert found is not None
            assert found[1] > 0, "the size of a bundle is known"
            usage[key] = found[0]
    assert usage == counted


def test_contents_are_bounded(client: CachedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "CONTENTS_LIMIT", 50)
    monkeypatch.setattr(spool, "BUNDLES_LIMIT", 3)
    for run in range(4):
        for i in range(40):
            (client.source / f"file{i}").write_bytes(b"%d %d" % (run, i))
        settle()
        client.save()
        tables = [table for table, _, _ in client.rows()]
        assert tables.count(CONTENTS) <= 50
        assert tables.count(BUNDLES) <= 3
    client.check_against_disk()


@pytest.mark.parametrize(
    ("file_system", "age_ns", "settled"),
    [
        (signature.FileSystem(True, True, True, LATER), SECOND - 1, True),
        (signature.FileSystem(True, True, True, LATER), 0, False),
        (signature.FileSystem(True, True, True, 0), 3600 * SECOND, False),  # could not be synced
        (signature.FileSystem(True, True, True, LATER), -5 * SECOND - 1, False),
        (signature.FileSystem(True, True, True, LATER), SECOND, False),  # whole seconds: ext4 with small inodes
        (signature.FileSystem(True, True, True, LATER), 10 * SECOND, True),
        (signature.FileSystem(True, False, True, LATER), SECOND - 1, False),
        (signature.FileSystem(True, False, True, LATER), 10 * SECOND - 1, True),
        (signature.FileSystem(False, False, False, LATER), 60 * SECOND, False),
        (signature.FileSystem(False, False, False, LATER), 3600 * SECOND, True),
    ],
)
def test_granularity_of_file_systems(file_system: signature.FileSystem, age_ns: int, settled: bool) -> None:
    now_ns = 1_700_000_000 * SECOND
    status = SimpleNamespace(st_ctime_ns=now_ns - age_ns, st_ino=7, st_dev=1)
    found = file_system.settled([(b"file", status)], 1, now_ns)  # type: ignore[list-item]
    assert bool(found) == settled
    elsewhere = file_system.settled([(b"file", status)], 2, now_ns)  # type: ignore[list-item]
    assert not elsewhere, "of another device nothing is known"


def test_images_that_were_made_alike_are_told_apart_by_their_ids() -> None:
    """The same inodes, sizes and times, mounted in one place one after the other."""
    one, other = (signature.FileSystem(True, True, True, LATER, own_id) for own_id in (1 << 63, 5))
    status = SimpleNamespace(st_ctime_ns=SECOND + 1, st_ino=7, st_dev=1)
    stamps = {signature.stamp(status, file_system) for file_system in (one, other)}  # type: ignore[arg-type]
    assert len(stamps) == 2
    assert {fs.settled([(b"f", status)], 1, LATER)[b"f"] for fs in (one, other)} == stamps  # type: ignore[list-item]
    part = SimpleNamespace(children=[], implicit=set())
    signatures = signature.Signatures(bytes(32))
    assert signatures.of_part(part, one) != signatures.of_part(part, other)  # type: ignore[arg-type]


def test_the_id_of_a_file_system_that_has_one(tmp_path: Path) -> None:
    found = signature._judge(str(tmp_path))
    has_own = filesystem_type(tmp_path) in ("ext2", "ext3", "ext4")
    assert found.id == (os.statvfs(tmp_path).f_fsid & 0xFFFF_FFFF_FFFF_FFFF if has_own else 0)


@pytest.mark.parametrize("later", ["zdir", "adir"])
@pytest.mark.parametrize("size", [3000, 3 << 20])
def test_all_names_of_a_file_get_one_content(client: CachedClient, later: str, size: int) -> None:
    """Of a file that was known by one name, when the other one had not been asked for."""
    fill(client.source)
    path = client.source / "dir1" / "many"
    (client.source / later).mkdir()
    content = bytearray(random.Random(1).randbytes(size))
    path.write_bytes(content)
    os.link(path, client.source / later / "name")
    settle()
    only = [os.fsencode(client.source / "dir1")]
    client.save(paths=only)
    content[100:200] = bytes(100)
    path.write_bytes(content)
    settle()
    client.save(paths=only)  # a large one is put together from old pieces now
    for _ in range(2):
        client.save()
        entries = client.below(client.tree())
        names = [entries[b"dir1/many"], entries[f"{later}/name".encode()]]
        assert names[0].link_key == names[1].link_key != b""
        assert [*names[0].extents] == [*names[1].extents]
        client.check_against_disk()
    assert client.save().files_unchanged == client.save().files


def test_who_is_interrupted_while_a_suspicious_cache_is_read_leaves_it_suspicious(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes long for a large one, and that is when people press Ctrl-C."""
    directory = os.fsencode(tmp_path / "cache")
    cache_module.Cache.open(directory).close()
    (tmp_path / "cache" / "opened.1999999999").touch()  # no process has that number

    def interrupted(path: str) -> bool:
        raise KeyboardInterrupt

    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_survives_reading", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache_module.Cache.open(directory)
    monkeypatch.setattr(cache_module, "_survives_reading", lambda path: asked.append(path) or True)
    cache_module.Cache.open(directory).close()
    assert asked
    cache_module.Cache.open(directory).close()
    assert len(asked) == 1, "its mark went when it was found sound"


def test_a_cache_directory_without_room_costs_the_cache_alone(
    client: CachedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    (client.source / "file").write_bytes(b"content")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    result = client.save()
    assert result.published is not None and result.files == 1
    assert any("No space left" in note for note in client.notes.notes)
