"""Random edits of a tree, random faults of the cache and of the repository: every snapshot is what the disk says.

The repository is in memory and reads every snapshot back with all checks; the tree and the cache are on a disk.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cached_client import CachedClient, settle
from hypothesis import given, note, settings
from hypothesis import strategies as st

from packnback.backup.cache import Cache, WriteRows
from packnback.ids import KIB

_BASE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Many small synced transactions: not on a disk, if there is a choice."""
LARGE = 600 * KIB


class Bench(CachedClient):
    """A client, its past, and a source of randomness."""

    def __init__(self, base: Path, seed: int) -> None:
        super().__init__(base)
        self.draw = random.Random(seed)
        for d in range(3):
            (self.source / f"dir{d}").mkdir()
            for f in range(4):
                (self.source / f"dir{d}" / f"file{f}").write_bytes(self.draw.randbytes(self.draw.randrange(3_000)))
        (self.source / "dir0" / "large").write_bytes(self.draw.randbytes(LARGE + self.draw.randrange(LARGE)))

    def files(self, *, large: bool | None = None) -> list[Path]:
        found = sorted(path for path in self.source.rglob("*") if path.is_file())
        return found if large is None else [path for path in found if (path.stat().st_size >= LARGE) == large]

    def directories(self) -> list[Path]:
        return [self.source, *sorted(path for path in self.source.rglob("*") if path.is_dir())]


# --- edits ---------------------------------------------------------------------------------------------------------


def write_file(bench: Bench) -> None:
    path = bench.draw.choice(bench.directories()) / f"file{bench.draw.randrange(8)}"
    if not path.is_dir():
        path.write_bytes(bench.draw.randbytes(bench.draw.choice((0, 1, 500, 20_000))))


def change_unseen_by_size_and_mtime(bench: Bench) -> None:
    for path in bench.files(large=False)[:3]:
        status = path.stat()
        path.write_bytes(bench.draw.randbytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def edit_large(bench: Bench) -> None:
    for path in bench.files(large=True):
        content = bytearray(path.read_bytes())
        for _ in range(bench.draw.randrange(1, 4)):
            at = bench.draw.randrange(len(content))
            kind, patch = bench.draw.randrange(4), bench.draw.randbytes(bench.draw.choice((1, 3_000, 40_000)))
            if kind == 0:
                content[at:at] = patch
            elif kind == 1:
                del content[at : at + len(patch)]
            elif kind == 2:
                content[at : at + len(patch)] = patch
            else:
                content = content[at:] + content[:at]
        path.write_bytes(content)


def copy_file(bench: Bench) -> None:
    files = bench.files()
    if files:
        target = bench.draw.choice(bench.directories()) / f"copy{bench.draw.randrange(3)}"
        shutil.copyfile(bench.draw.choice(files), target) if not target.exists() else None


def link_file(bench: Bench) -> None:
    files = bench.files()
    target = bench.draw.choice(bench.directories()) / f"link{bench.draw.randrange(3)}"
    if files and not target.exists():
        os.link(bench.draw.choice(files), target)


def remove_something(bench: Bench) -> None:
    path = bench.draw.choice([*bench.files(), *bench.directories()[1:], bench.source / "nothing"])
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def rename_directory(bench: Bench) -> None:
    for path in bench.directories()[1:2]:
        path.rename(path.with_name(f"dir{bench.draw.randrange(10, 10_000)}"))


def make_directory(bench: Bench) -> None:
    (bench.draw.choice(bench.directories()) / f"new{bench.draw.randrange(3)}").mkdir(exist_ok=True)


def change_mode(bench: Bench) -> None:
    for path in bench.files()[:2]:
        path.chmod(bench.draw.choice((0o600, 0o644, 0o755)))


# --- faults --------------------------------------------------------------------------------------------------------


def nothing(bench: Bench) -> None:
    """The cache is as it was left."""


def flip_bits(bench: Bench) -> None:
    damaged = []
    for table, key, value in bench.rows():
        if value and key != b"format" and bench.draw.random() < 0.5:
            at = bench.draw.randrange(len(value))
            flipped = bytes([value[at] ^ 1 << bench.draw.randrange(8)])
            damaged.append((table, key, value[:at] + flipped + value[at + 1 :]))
    bench.replace_rows(damaged)


def swap_values(bench: Bench) -> None:
    rows = [row for row in bench.rows() if row[1] != b"format"]
    values = [value for _, _, value in rows]
    bench.draw.shuffle(values)
    bench.replace_rows([(table, key, value) for (table, key, _), value in zip(rows, values, strict=True)])


def lose_rows(bench: Bench) -> None:
    lost = [(table, key) for table, key, _ in bench.rows() if bench.draw.random() < 0.4]

    def delete(txn: WriteRows) -> None:
        for table, key in lost:
            txn.delete(table, key)

    with Cache.open(bench.place) as cache:
        cache.write(delete)


def lose_cache(bench: Bench) -> None:
    shutil.rmtree(bench.base / "cache", ignore_errors=True)


def cut_file(bench: Bench) -> None:
    path = os.path.join(bench.place, b"data.mdb")
    if os.path.exists(path):
        os.truncate(path, bench.draw.randrange(os.path.getsize(path)))


def older_cache(bench: Bench) -> None:
    """The cache of the first run comes back."""
    lose_cache(bench)
    if (bench.base / "cache of old").exists():
        shutil.copytree(bench.base / "cache of old", bench.base / "cache")


def lose_objects(bench: Bench) -> None:
    """As after a compaction that the cache has not heard of: objects go, and whatever needs them."""
    records = bench.repository.opened.records
    bench.repository.opened.snapshots.clear()
    shutil.rmtree(bench.base / "state", ignore_errors=True)
    gone = {object_id for object_id in records if bench.draw.random() < 0.3}
    for object_id, record in list(records.items()):
        if object_id in gone or gone.intersection(record.ref_list):
            gone.add(object_id)
            del records[object_id]


EDITS: list[Callable[[Bench], None]] = [
    write_file,
    change_unseen_by_size_and_mtime,
    edit_large,
    copy_file,
    link_file,
    remove_something,
    rename_directory,
    make_directory,
    change_mode,
]
FAULTS: list[Callable[[Bench], None]] = [
    nothing,
    nothing,
    flip_bits,
    swap_values,
    lose_rows,
    lose_cache,
    cut_file,
    older_cache,
    lose_objects,
]
ROUNDS = st.lists(st.tuples(st.lists(st.sampled_from(EDITS), max_size=4), st.sampled_from(FAULTS)), max_size=4)


@settings(max_examples=max(10, settings.default.max_examples // 3 if settings.default else 10))
@given(st.integers(0, 2**32), ROUNDS)
def test_a_snapshot_is_what_the_disk_says(
    seed: int, rounds: list[tuple[list[Callable[[Bench], None]], Callable[[Bench], None]]]
) -> None:
    with tempfile.TemporaryDirectory(dir=_BASE) as directory:
        bench = Bench(Path(directory), seed)
        settle()
        bench.save()
        bench.check_against_disk()
        shutil.copytree(bench.base / "cache", bench.base / "cache of old")
        for edits, fault in rounds:
            note(f"{[edit.__name__ for edit in edits]}, then {fault.__name__}")
            for edit in edits:
                edit(bench)
            settle()
            fault(bench)
            bench.save()
            bench.check_against_disk()
        settle()
        bench.save()
        bench.check_against_disk()
        bench.notes.notes.clear()
        bench.save()
        assert bench.notes.notes == [], "a cache that failed was thrown away"
        bench.check_against_disk()
