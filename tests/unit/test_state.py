"""What a client remembers: verdicts, crashes between the steps, damage, and what readers have seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from packnback.backup import state_file
from packnback.backup.pins import (
    AcceptedGaps,
    ReaderPins,
    ReaderVerdict,
    compare,
    newest,
    pin_repository,
)
from packnback.backup.state import START, Chain, ClientState, Verdict, check, judge
from packnback.backup.state_file import StateFile, state_directory
from packnback.errors import ChainAlarm, StateDamaged, StateUnusable, WrongRepository
from packnback.format.snapshot import Receipt
from packnback.store.interface import Head, SnapshotInfo

REPOSITORY, CLIENT = bytes(16), bytes(range(16))
A, B, C, D = (bytes([i]) * 32 for i in range(1, 5))


def head(sequence: int, snapshot: bytes) -> Head:
    return Head(sequence, snapshot, 1, 1)


@pytest.fixture
def directory(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "state")


def opened(directory: bytes) -> Chain:
    """A chain whose directory has been made, as it has once the lock was taken."""
    chain = Chain(directory, REPOSITORY, CLIENT)
    with chain.locked():
        return chain


@pytest.mark.parametrize(
    ("found", "state", "verdict"),
    [
        (None, None, Verdict.GO_ON),
        (head(7, A), None, Verdict.REINSTALLED),
        (None, ClientState(), Verdict.GO_ON),
        (None, ClientState(intents=((1, A),)), Verdict.GO_ON),
        (head(1, A), ClientState(intents=((1, A),)), Verdict.ADOPT),
        (head(1, B), ClientState(intents=((1, A),)), Verdict.IN_USE_ELSEWHERE),
        (head(5, A), ClientState((5, A)), Verdict.GO_ON),
        (head(6, B), ClientState((5, A), ((6, B),)), Verdict.ADOPT),
        (head(6, B), ClientState((5, A), ((6, C), (6, B))), Verdict.ADOPT),
        (head(6, D), ClientState((5, A), ((6, C), (6, B))), Verdict.IN_USE_ELSEWHERE),
        (head(5, A), ClientState((5, A), ((6, B),)), Verdict.GO_ON),
        (head(4, A), ClientState((5, A)), Verdict.ROLLBACK),
        (None, ClientState((5, A)), Verdict.ROLLBACK),
        (head(6, B), ClientState((5, A)), Verdict.IN_USE_ELSEWHERE),
        (head(5, B), ClientState((5, A)), Verdict.FORK),
        # What was acknowledged was taken back, for an earlier attempt at the same number that had no answer.
        (head(5, B), ClientState((5, A), ((5, B), (5, A))), Verdict.FORK),
        (head(4, B), ClientState((5, A), ((4, B),)), Verdict.ROLLBACK),
        # A machine restored from an image: it knows less than the repository, but for its last attempt.
        (head(9, A), ClientState((5, A), ((6, B),)), Verdict.IN_USE_ELSEWHERE),
    ],
)
def test_verdicts(found: Head | None, state: ClientState | None, verdict: Verdict) -> None:
    assert judge(found, state) is verdict
    if not verdict.alarming:
        assert check(found, state, "laptop") is verdict
        return
    with pytest.raises(ChainAlarm) as caught:
        check(found, state, "laptop")
    assert caught.value.state == verdict.value
    assert caught.value.client == "laptop"
    assert caught.value.known_sequence == (state.head[0] if state else 0)
    assert caught.value.found_sequence == (found.sequence if found else 0)


LINKS = st.tuples(st.integers(1, 4), st.sampled_from([A, B, C]))


@given(st.none() | LINKS, st.just(START) | LINKS, st.lists(LINKS, max_size=3))
def test_an_own_intent_alarms_only_if_it_takes_something_back_and_a_stranger_always(
    found: tuple[int, bytes] | None, known: tuple[int, bytes], intents: list[tuple[int, bytes]]
) -> None:
    state = ClientState(known, tuple(intents))
    verdict = judge(Head(*found, 1, 1) if found else None, state)
    link = found or START
    assert verdict.alarming == (link != known and (link not in intents or link[0] <= known[0]))


def test_a_crash_at_any_step_is_no_alarm(directory: bytes) -> None:
    """Publish, acknowledge, and look again after a crash behind each step."""
    published: Head | None = None
    crashes = ["intent", "publish", "acknowledge", "publish", "intent", "acknowledge"]
    for sequence, crash_after in enumerate(crashes, 1):
        chain = opened(directory)
        check(published, chain.load(), "laptop")
        number = (published.sequence if published else 0) + 1
        link = (number, bytes([sequence]) * 32)
        chain.intend(published, link)
        if crash_after == "intent":
            continue
        published = Head(*link, 1, 1)
        if crash_after == "publish":
            continue
        chain.acknowledge(link)
    state = Chain(directory, REPOSITORY, CLIENT).load()
    assert check(published, state, "laptop") is Verdict.GO_ON
    assert published is not None
    assert published.sequence == 4


def test_intents_are_kept_until_their_number_is_acknowledged(directory: bytes) -> None:
    chain = opened(directory)
    chain.intend(None, (1, A))
    chain.intend(None, (1, B))
    for either in (A, B):
        assert judge(head(1, either), chain.load()) is Verdict.ADOPT
    chain.acknowledge((1, B))
    assert judge(head(1, A), chain.load()) is Verdict.FORK
    chain.intend(head(1, B), (2, C))
    chain.acknowledge((2, C))
    assert judge(head(1, A), chain.load()) is Verdict.ROLLBACK
    assert chain.load() == ClientState((2, C))


@pytest.mark.parametrize("image", ["before the intent", "after the intent"])
@pytest.mark.parametrize("first", ["the machine", "its clone"])
def test_of_two_clones_the_second_to_publish_is_told(tmp_path: Path, image: str, first: str) -> None:
    """Cloned, or restored from an image, at any point of a run: whoever comes second stops, and nothing is lost."""
    machine = opened(os.fsencode(tmp_path / "machine"))
    machine.intend(None, (1, A))
    machine.acknowledge((1, A))
    if image == "after the intent":
        machine.intend(head(1, A), (2, B))
    shutil.copytree(tmp_path / "machine", tmp_path / "clone")
    clone = opened(os.fsencode(tmp_path / "clone"))
    early, late = (machine, clone) if first == "the machine" else (clone, machine)
    early.intend(head(1, A), (2, C))
    early.acknowledge((2, C))
    assert check(head(2, C), early.load(), "laptop") is Verdict.GO_ON
    with pytest.raises(ChainAlarm, match="in-use-elsewhere"):
        check(head(2, C), late.load(), "laptop")
    assert late.accept(head(2, C), "a clone", 1) is Verdict.IN_USE_ELSEWHERE
    late.intend(head(2, C), (3, D))
    late.acknowledge((3, D))
    with pytest.raises(ChainAlarm, match="in-use-elsewhere"):
        check(head(3, D), early.load(), "laptop")


def test_accepting_without_memory_still_says_that_it_was_lost(directory: bytes) -> None:
    chain = opened(directory)
    assert chain.accept(head(9, A), "reinstalled", 1) is Verdict.REINSTALLED
    state = chain.load()
    assert state is not None
    assert state.lost
    chain.intend(head(9, A), (10, B))
    assert chain.load() == replace(state, intents=((10, B),))
    chain.acknowledge((10, B))
    assert chain.load() == replace(state, head=(10, B), lost=False)


def test_a_user_without_a_home_gets_an_error_and_no_directory_named_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["nobody"])
    with pytest.raises(StateUnusable):
        state_directory()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_directory() == os.fsencode(tmp_path / "packnback")


def test_that_the_past_was_forgotten_is_remembered_until_it_was_told(directory: bytes) -> None:
    chain = opened(directory)
    chain.intend(head(9, A), (10, B))
    state = chain.load()
    assert state == ClientState((9, A), ((10, B),), lost=True)
    chain.intend(head(9, A), (10, C))
    assert chain.load() == replace(state, intents=((10, B), (10, C)))
    chain.acknowledge((10, C))
    assert chain.load() == ClientState((10, C))


def test_accepting_an_alarm_goes_on_and_keeps_the_reason(directory: bytes) -> None:
    chain = opened(directory)
    chain.intend(None, (1, A))
    chain.acknowledge((1, A))
    assert chain.accept(None, "restored the NAS", 123) is Verdict.ROLLBACK
    state = chain.load()
    assert state == ClientState(START, (), False, ((123, "rollback", "restored the NAS"),))
    assert check(None, state, "laptop") is Verdict.GO_ON
    chain.intend(None, (1, B))
    assert chain.load() == replace(state, intents=((1, B),))


def test_a_reason_that_is_no_text_is_kept_as_far_as_it_is(directory: bytes) -> None:
    """An argument on the command line may be any bytes; Python hands on those that are not UTF-8 as surrogates."""
    chain = opened(directory)
    assert chain.accept(head(3, A), "restored the \udcff disk", 123) is Verdict.REINSTALLED
    state = chain.load()
    assert state is not None
    assert state.accepted == ((123, "reinstalled", "restored the ? disk"),)


@pytest.mark.parametrize("time", [float("inf"), float("nan"), None, b"", []])
def test_a_state_that_says_something_else_is_damaged(directory: bytes, time: object) -> None:
    chain = opened(directory)
    chain._file.store({"head": [0, bytes(32)], "intents": [], "lost": False, "accepted": [[time, "", ""]]})
    with pytest.raises(StateDamaged):
        chain.load()


def test_a_directory_that_cannot_be_synced_stops_no_backup() -> None:
    """As on some network file systems; /proc is a real one that refuses in the same way."""
    proc = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(OSError, match="Invalid"):
        os.fsync(proc)
    os.close(proc)
    state_file._sync_directory(b"/proc/self")


def test_the_file_is_private_and_survives_a_leftover(directory: bytes) -> None:
    chain = opened(directory)
    chain.intend(None, (1, A))
    path = directory + b"/" + REPOSITORY.hex().encode() + b"/" + CLIENT.hex().encode()
    assert os.stat(path).st_mode & 0o777 == 0o600
    with open(path + b".new", "wb") as leftover:
        leftover.write(b"half a st")
    chain.acknowledge((1, A))
    assert chain.load() == ClientState((1, A))


def test_every_damaged_byte_is_noticed(directory: bytes) -> None:
    chain = opened(directory)
    chain.intend(head(3, A), (4, B))
    path = directory + b"/" + REPOSITORY.hex().encode() + b"/" + CLIENT.hex().encode()
    with open(path, "rb") as file:
        good = file.read()
    for at in range(len(good)):
        for bad in (good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], good[:at]):
            with open(path, "wb") as file:
                file.write(bad)
            with pytest.raises(StateDamaged) as caught:
                chain.load()
            assert caught.value.path == os.fsdecode(path)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    chain = Chain(os.fsencode(tmp_path / "file"), REPOSITORY, CLIENT)
    with pytest.raises(StateUnusable), chain.locked():
        pass


def test_two_processes_take_turns(directory: bytes, tmp_path: Path) -> None:
    """A second process that wants the lock does not get it while this one holds it."""
    program = (
        "import sys, os; from packnback.backup.state import Chain\n"
        "chain = Chain(os.fsencode(sys.argv[1]), bytes(16), bytes(range(16)))\n"
        "print('waits', flush=True)\n"
        "with chain.locked(): print('state', chain.load().head[0], flush=True)\n"
    )
    chain = Chain(directory, REPOSITORY, CLIENT)
    with chain.locked():
        other = subprocess.Popen(
            [sys.executable, "-c", program, os.fsdecode(directory)], stdout=subprocess.PIPE, text=True
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "waits\n"
        chain.intend(None, (1, A))
        chain.acknowledge((1, A))
    rest, _ = other.communicate(timeout=60)
    assert rest == "state 1\n"


def test_the_directory_follows_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert state_directory() == b"/somewhere/packnback"
    monkeypatch.setenv("HOME", "/home/u")
    for useless in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", useless)
        assert state_directory() == b"/home/u/.local/state/packnback"


# --- pins ------------------------------------------------------------------------------------------------------


def test_another_repository_at_the_same_place_is_refused(directory: bytes) -> None:
    pin_repository(directory, "/mnt/nas", A, b"1" * 16)
    pin_repository(directory, "/mnt/nas", A, b"1" * 16)
    pin_repository(directory, "/mnt/nas", B, b"2" * 16)
    pin_repository(directory, "/mnt/other", A, b"3" * 16)
    with pytest.raises(WrongRepository) as caught:
        pin_repository(directory, "/mnt/nas", A, b"2" * 16)
    assert caught.value.expected == (b"1" * 16).hex()
    assert caught.value.found == (b"2" * 16).hex()


def info(client: bytes, sequence: int, snapshot: bytes, prev: bytes) -> SnapshotInfo:
    return SnapshotInfo(
        name="", id=snapshot, client_id=client, client="", domain_id=bytes(16), epoch=1, sequence=sequence,
        prev=prev, root=bytes(32), time_ns=1, receipt=Receipt(1, 1, 1), partial=False, forgotten_ns=None,
        complete=True, size=1,
    )  # fmt: skip


X, Y = b"x" * 16, b"y" * 16


@pytest.mark.parametrize(
    ("snapshots", "verdict", "found"),
    [
        ([info(X, 3, C, B)], None, 0),
        ([info(X, 2, B, A), info(X, 3, C, B), info(X, 4, D, C)], None, 0),
        ([info(X, 4, D, C)], None, 0),
        ([info(X, 9, D, A)], None, 0),
        ([info(X, 2, B, A)], ReaderVerdict.ROLLED_BACK, 2),
        ([info(X, 3, D, B)], ReaderVerdict.ROLLED_BACK, 3),
        ([info(X, 4, D, A)], ReaderVerdict.ROLLED_BACK, 4),
        ([info(Y, 9, D, A)], ReaderVerdict.HIDDEN, 0),
        ([], ReaderVerdict.HIDDEN, 0),
    ],
)
def test_what_a_reader_concludes(snapshots: list[SnapshotInfo], verdict: ReaderVerdict | None, found: int) -> None:
    findings = compare({X: (3, C)}, snapshots)
    if verdict is None:
        assert findings == []
    else:
        (finding,) = findings
        assert (finding.client_id, finding.verdict) == (X, verdict)
        assert (finding.seen_sequence, finding.found_sequence) == (3, found)


def test_readers_remember_the_newest(directory: bytes) -> None:
    pins = ReaderPins(directory, REPOSITORY)
    assert pins.load() == {}
    pins.store(newest([info(X, 3, C, B), info(X, 2, B, A), info(Y, 1, A, bytes(32))]))
    assert pins.load() == {X: (3, C), Y: (1, A)}
    pins.store({X: (2, B), Y: (2, B)})
    assert pins.load() == {X: (3, C), Y: (2, B)}
    pins.replace({X: (2, B)})
    assert pins.load() == {X: (2, B)}


def test_accepted_gaps_are_remembered_with_their_reasons(directory: bytes) -> None:
    gaps = AcceptedGaps(directory, REPOSITORY)
    assert gaps.load() == frozenset()
    gaps.replace({("x-2", "no header"), ("x-7", "no header")}, "a bad sector", 1)
    gaps.replace({("x-2", "no header, up to 3")}, "another \udcff", 2)
    assert gaps.load() == {("x-2", "no header, up to 3")}
    stored = StateFile(directory + b"/" + REPOSITORY.hex().encode() + b"/gaps", b"g").load()
    assert stored["reasons"] == [[1, "a bad sector"], [2, "another ?"]]


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"gaps": []},
        {"gaps": [["x"]], "reasons": []},
        {"gaps": [["x", 1]], "reasons": []},
        {"gaps": [], "reasons": [["1", "x"]]},
        {"gaps": [], "reasons": 1},
    ],
)
def test_accepted_gaps_that_say_something_else(directory: bytes, value: object) -> None:
    file = StateFile(directory + b"/" + REPOSITORY.hex().encode() + b"/gaps", b"g")
    with file.locked():
        file.store(value)
    with pytest.raises(StateDamaged):
        AcceptedGaps(directory, REPOSITORY).load()
