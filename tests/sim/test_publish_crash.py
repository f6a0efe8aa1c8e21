"""Power cuts at every step of publishing, making the layout and deleting, and a look at every disk that may be
found afterwards. Then the same with one sync taken away: the sweep must notice, or it proves nothing.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import pytest
from simdisk import SimDisk
from steps import PowerCut, Steps

from packnback.errors import AlreadyExists
from packnback.store.blobs import FileBlobStore
from packnback.store.layout import DIRECTORIES, PACK_DIRECTORIES, make_layout

SEED = 7
LIMIT = 100
FINAL = "packs/ab/x.pack"
CONTENT = b"all of it"


class Lost(Exception):
    """What was acknowledged is not there, or what is there is not whole."""


def fresh_disk() -> SimDisk:
    disk = SimDisk()
    make_layout(disk)
    return disk


def names() -> Callable[[], str]:
    numbers = iter(range(1000))
    return lambda: f"{next(numbers):04}"


def crashes(
    make: Callable[[], SimDisk], run: Callable[[SimDisk, list[str]], None]
) -> Iterator[tuple[SimDisk, list[str]]]:
    """Runs `run` with a power cut at step 1, 2, … until it gets through; yields every disk that may be found
    then, and what had been acknowledged (appended to the list) by that time."""
    rng = random.Random(SEED)
    crash_at = 0
    while True:
        crash_at += 1
        disk = make()
        disk.steps = Steps(crash_at)
        acknowledged: list[str] = []
        with contextlib.suppress(PowerCut):
            run(disk, acknowledged)
        for state in disk.possible_states(LIMIT, rng):
            yield state, acknowledged
        if not disk.steps.crashed:
            assert crash_at > 1, "nothing was run"
            return


def publish_twice(disk: SimDisk, acknowledged: list[str]) -> None:
    blobs = FileBlobStore(disk, tmp_name=names())
    blobs.publish(FINAL, [CONTENT[:3], CONTENT[3:]])
    acknowledged.append(FINAL)
    try:
        blobs.publish(FINAL, [b"another"])
    except AlreadyExists:
        acknowledged.append("refused")
    blobs.publish("snapshots/s", [CONTENT])
    acknowledged.append("snapshots/s")


def check_published(make: Callable[[], SimDisk]) -> int:
    """Returns the number of states seen; raises `Lost`."""
    seen = 0
    for state, acknowledged in crashes(make, publish_twice):
        seen += 1
        found = {path: data for path, data in state.files().items() if not path.startswith("tmp/")}
        if any(data != CONTENT for data in found.values()):
            raise Lost(f"torn (seed {SEED}): {found}")
        for path in acknowledged:
            if path != "refused" and path not in found:
                raise Lost(f"gone (seed {SEED}): {path}")
        FileBlobStore(state).sweep_tmp()
        if state.files() != found:
            raise Lost(f"the sweep changed more than tmp (seed {SEED})")
    return seen


def test_a_publication_is_whole_or_absent_and_durable_once_acknowledged() -> None:
    assert check_published(fresh_disk) > 50


def without_file_sync() -> SimDisk:
    disk = fresh_disk()
    disk.drop_sync = lambda path: True
    return disk


def without_dir_sync() -> SimDisk:
    disk = fresh_disk()
    disk.drop_dir_sync = lambda path: path == "packs/ab"
    return disk


def without_layout_sync() -> SimDisk:
    disk = SimDisk()
    disk.drop_dir_sync = lambda path: path == "packs"
    make_layout(disk)
    return disk


@pytest.mark.parametrize("make", [without_file_sync, without_dir_sync, without_layout_sync])
def test_the_sweep_notices_a_missing_sync(make: Callable[[], SimDisk]) -> None:
    with pytest.raises(Lost):
        check_published(make)


def test_a_killed_publisher_needs_settling() -> None:
    """Killed between the move and the sync of the directory: the next process sees the blob, adopts it, and only
    `settle` keeps a power cut from taking it away again."""
    for settle in (False, True):
        disk = fresh_disk()
        disk.steps = Steps(crash_at=5)  # create, append, sync, move | sync_dir
        with pytest.raises(PowerCut):
            FileBlobStore(disk, tmp_name=names()).publish(FINAL, [CONTENT])
        assert disk.steps.log[-1] == "sync_dir packs/ab"
        disk.steps = Steps()
        blobs = FileBlobStore(disk)
        assert blobs.read(FINAL) == CONTENT
        if settle:
            blobs.settle("packs/ab")
        kept = [FINAL in state.files() for state in disk.possible_states(LIMIT, random.Random(SEED))]
        assert all(kept) is settle


def delete_both(disk: SimDisk, acknowledged: list[str]) -> None:
    blobs = FileBlobStore(disk)
    blobs.delete(FINAL)
    blobs.delete("snapshots/s")
    blobs.barrier()
    acknowledged.append("gone")


def published_disk() -> SimDisk:
    disk = fresh_disk()
    publish_twice(disk, [])
    return disk


def test_a_deletion_may_be_undone_until_the_barrier_and_never_after() -> None:
    seen = set()
    for state, acknowledged in crashes(published_disk, delete_both):
        found = {path: data for path, data in state.files().items() if not path.startswith("tmp/")}
        assert all(data == CONTENT for data in found.values())
        if acknowledged:
            assert found == {}
        seen.add((bool(acknowledged), *sorted(found)))
    assert (False, FINAL) in seen
    assert (False, "snapshots/s") in seen  # in no order
    assert (False,) in seen


def test_an_interrupted_layout_is_completed_by_running_it_again() -> None:
    rng = random.Random(SEED)
    for crash_at in (1, 2, 9, 10, 150, 263, 264, 265, 266, 267):
        disk = SimDisk(Steps(crash_at))
        try:
            make_layout(disk)
        except PowerCut:
            pass
        else:
            assert crash_at == 267
            assert disk.count_states(10) == 1
        for state in disk.possible_states(8, rng):
            make_layout(state)
            assert state.list("") == sorted(DIRECTORIES)
            assert [f"packs/{name}" for name in state.list("packs")] == list(PACK_DIRECTORIES)
