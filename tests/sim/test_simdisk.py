"""The simulated disk itself: does a power cut leave behind what it may, all of it, and nothing else?"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simdisk import SimDisk
from steps import PowerCut, Steps

from packnback.errors import Poisoned

SEED = 20


def states(disk: SimDisk, limit: int = 4096) -> list[dict[str, bytes]]:
    return [state.files() for state in disk.possible_states(limit, random.Random(SEED))]


def name_safe_file(disk: SimDisk, path: str, safe: bytes, unsafe: bytes) -> None:
    file = disk.create(path)
    file.append([safe])
    file.sync()
    file.append([unsafe])
    disk.sync_dir(path.rpartition("/")[0])


def test_everything_synced_is_one_state() -> None:
    disk = SimDisk()
    disk.make_dir("d")
    disk.sync_dir("")
    name_safe_file(disk, "d/a", b"safe", b"")
    assert states(disk) == [{"d/a": b"safe"}]
    assert disk.count_states(10) == 1


def test_unsynced_bytes_are_kept_lost_cut_zeroed_or_garbage() -> None:
    disk = SimDisk()
    name_safe_file(disk, "a", b"safe", b"unsafe")
    found = [state["a"] for state in states(disk)]
    assert len(found) == disk.count_states(10) == 5
    assert all(content.startswith(b"safe") for content in found)
    tails = [content[4:] for content in found]
    assert tails[:3] == [b"unsafe", b"", bytes(6)]
    assert len(tails[3]) == 6
    assert tails[3] not in (b"unsafe", bytes(6))
    assert 0 < len(tails[4]) < 6
    assert b"unsafe".startswith(tails[4])


def test_a_single_unsynced_byte_cannot_be_cut() -> None:
    disk = SimDisk()
    name_safe_file(disk, "a", b"", b"x")
    assert disk.count_states(10) == 4


@given(st.integers(0, 6))
def test_k_arrivals_have_2_to_the_k_outcomes(k: int) -> None:
    disk = SimDisk()
    for n in range(k):
        disk.create(f"f{n}").close()
    found = states(disk)
    assert len(found) == disk.count_states(1000) == 2**k
    assert len({frozenset(state) for state in found}) == 2**k


def test_departures_may_not_have_happened() -> None:
    disk = SimDisk()
    name_safe_file(disk, "a", b"1", b"")
    disk.unlink("a")
    assert disk.files() == {}
    assert states(disk) == [{"a": b"1"}, {}]
    disk.sync_dir("")
    assert states(disk) == [{}]


def test_a_move_is_two_edits() -> None:
    disk = SimDisk()
    disk.make_dir("d")
    disk.sync_dir("")
    name_safe_file(disk, "a", b"1", b"")
    disk.move("a", "d/b")
    found = states(disk)
    assert len(found) == 4
    for expected in ({"a": b"1"}, {"d/b": b"1"}, {"a": b"1", "d/b": b"1"}, {}):
        assert expected in found
    disk.sync_dir("d")
    assert sorted(states(disk), key=len) == [{"d/b": b"1"}, {"a": b"1", "d/b": b"1"}]


def test_a_synced_name_does_not_make_its_bytes_safe_nor_the_other_way_round() -> None:
    disk = SimDisk()
    disk.create("a").append([b"xx"])
    disk.sync_dir("")
    assert {"a": b""} in states(disk)
    assert {} not in states(disk)
    disk = SimDisk()
    file = disk.create("a")
    file.append([b"xx"])
    file.sync()
    assert states(disk) == [{}, {"a": b"xx"}]


def test_one_name_has_one_of_the_values_that_it_had() -> None:
    disk = SimDisk()
    name_safe_file(disk, "a", b"old", b"")
    disk.unlink("a")
    file = disk.create("a")
    file.append([b"new"])
    file.sync()
    assert states(disk) == [{"a": b"old"}, {}, {"a": b"new"}]


def test_what_is_in_a_lost_directory_is_lost() -> None:
    disk = SimDisk()
    disk.make_dir("d")
    name_safe_file(disk, "d/a", b"1", b"")
    assert states(disk) == [{}, {"d/a": b"1"}]


def test_two_names_of_a_file_have_the_same_bytes_and_stay_one_file() -> None:
    disk = SimDisk()
    name_safe_file(disk, "a", b"s", b"unsafe")
    disk.move("a", "b")
    both = [state for state in disk.possible_states(100, random.Random(SEED)) if len(state.list("")) == 2]
    assert len(both) == 5
    for state in both:
        assert state.read("a") == state.read("b")
        state.move("a", "b")  # a hard link that finds itself
        assert state.list("") == ["b"]


def test_more_states_than_the_limit_are_drawn_extremes_first() -> None:
    disk = SimDisk()
    name_safe_file(disk, "old", b"1", b"")
    disk.unlink("old")
    for n in range(20):
        disk.create(f"f{n:02}").append([b"data"])
    found = states(disk, limit=50)
    assert len(found) == 50
    assert found[0] == disk.files()
    assert found[1] == {"old": b"1"}
    assert len({tuple(state.items()) for state in found}) > 40


def test_a_state_is_a_disk_of_its_own() -> None:
    disk = SimDisk()
    disk.create("a").append([b"xx"])
    for state in disk.possible_states(100, random.Random(SEED)):
        name_safe_file(state, "b", b"1", b"")
        assert state.count_states(10) == 1
    assert list(disk.files()) == ["a"]


@pytest.mark.parametrize(
    ("crash_at", "after"),
    [
        (1, {"a": b""}),
        (2, {"a": b"12"}),
        (3, {"a": b"1234"}),
        (4, {"a": b"1234", "b": b"1234"}),
        (5, {}),
        (None, {}),
    ],
)
def test_the_operation_at_the_cut_is_half_applied(crash_at: int | None, after: dict[str, bytes]) -> None:
    disk = SimDisk(Steps(crash_at))
    try:
        file = disk.create("a")
        file.append([b"1234"])
        file.sync()
        disk.move("a", "b")
        disk.unlink("b")
    except PowerCut:
        assert crash_at is not None
    else:
        assert crash_at is None
    assert disk.files() == after


def test_nothing_runs_on_a_dead_machine() -> None:
    disk = SimDisk(Steps())
    file = disk.create("a")
    disk.steps.crash_at = 2
    with pytest.raises(PowerCut):
        disk.make_dir("d")
    for operation in (disk.create, disk.read, disk.size, disk.list, disk.unlink, disk.make_dir, disk.sync_dir):
        with pytest.raises(PowerCut):
            operation("a")
    for dead in (lambda: disk.move("a", "b"), lambda: file.append([b"x"]), file.sync):
        with pytest.raises(PowerCut):
            dead()
    file.close()
    assert disk.files() == {"a": b""}


def test_a_killed_process_leaves_what_it_did_still_unsynced() -> None:
    disk = SimDisk(Steps(crash_at=3))
    disk.create("a").append([b"xx"])
    with pytest.raises(PowerCut):
        disk.sync_dir("")
    disk.steps = Steps()
    assert disk.read("a") == b"xx"
    assert {} in states(disk)


def test_dropped_syncs_do_nothing_and_say_nothing() -> None:
    disk = SimDisk()
    disk.drop_sync = lambda path: path == "a"
    disk.drop_dir_sync = lambda path: path == ""
    file = disk.create("a")
    file.append([b"x"])
    file.sync()
    assert disk.count_states(100) == 1 + 4
    disk.sync_dir("")
    assert disk.count_states(100) == 1 + 4
    disk.drop_dir_sync = lambda path: False
    disk.sync_dir("")
    assert disk.count_states(100) == 4


def test_after_a_failed_sync_the_next_one_lies() -> None:
    disk = SimDisk()
    disk.fail_sync = lambda path: True
    disk.fail_dir_sync = lambda path: True
    file = disk.create("a")
    file.append([b"x"])
    for fails in (file.sync, lambda: disk.sync_dir("")):
        with pytest.raises(OSError, match="Input/output"):
            fails()
    with pytest.raises(Poisoned):
        file.sync()
    disk.fail_dir_sync = lambda path: False
    disk.sync_dir("")
    assert {} in states(disk)


def test_a_full_disk_takes_what_fits() -> None:
    disk = SimDisk(space_left=5)
    file = disk.create("a")
    file.append([b"123"])
    with pytest.raises(OSError, match="No space"):
        file.append([b"4567"])
    with pytest.raises(Poisoned):
        file.append([b""])
    assert disk.read("a") == b"12345"
    disk.unlink("a")
    assert disk.space_left == 5


def test_plant_is_safe_at_once() -> None:
    disk = SimDisk()
    name_safe_file(disk, "a", b"1", b"")
    disk.plant("a", b"2")
    assert states(disk) == [{"a": b"2"}]
