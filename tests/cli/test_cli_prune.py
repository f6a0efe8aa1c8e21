"""``forget``, ``recover``, ``compact``, ``prune``: shapes, reasons, and what is left."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from cli_program import Program, assert_shape

COMPACT_SHAPE = {
    "released": [str], "objects_dropped": int, "packs_rewritten": int, "packs_deleted": int, "bytes_freed": int,
    "bytes_written": int, "bytes_total": int, "bytes_live": int,
}  # fmt: skip
FORGET_SHAPE = [{"id": str, "keep": bool, "reasons": [str]}]


@pytest.fixture(scope="module")
def ids(program: Program, source: Path) -> list[str]:
    """Three snapshots, of which the second holds 2 MB that no other holds."""
    ids = [program("backup", source, "--tag", "n=1", "--json").json["snapshot"]]
    (source / "big").write_bytes(bytes(i * i % 251 for i in range(2 << 20)))
    ids.append(program("backup", source, "--tag", "n=2", "--json").json["snapshot"])
    (source / "big").unlink()
    ids.append(program("backup", source, "--tag", "n=3", "--json").json["snapshot"])
    return ids


def states(program: Program) -> dict[str, str]:
    """Id → state of every snapshot."""
    return {row["id"]: row["state"] for row in program("list", "--all", "--json").json}


def test_dry_runs_change_nothing(program: Program, ids: list[str]) -> None:
    rows = program("forget", "--keep-newest", "1", "--dry-run", "--json").json
    assert_shape(rows, FORGET_SHAPE)
    assert {row["id"]: row["keep"] for row in rows} == {ids[0]: False, ids[1]: False, ids[2]: True}
    assert all(row["reasons"] for row in rows)
    both = program("prune", "--keep-newest", "1", "--grace", "0", "--dry-run", "--json").json
    assert_shape(both, {"forget": FORGET_SHAPE, "compact": COMPACT_SHAPE})
    assert set(states(program).values()) == {"live"}


def test_forget_and_recover(program: Program, ids: list[str]) -> None:
    assert program("forget", ids[1][:8], "--json").json[0]["id"] == ids[1]
    assert states(program)[ids[1]] == "forgotten"
    again = program("forget", ids[1][:8]).text
    assert "already" in again and "Undo" not in again, "nothing was done that could be undone by that"
    assert ids[1] not in [row["id"] for row in program("list", "--json").json]
    assert program("compact", "--json").json["released"] == []
    assert program("recover", ids[1][:8], "--json").json == [{"id": ids[1], "recovered": True}]
    assert states(program)[ids[1]] == "live"


def test_a_prune_that_waits_in_vain_says_what_it_has_forgotten(program: Program, ids: list[str]) -> None:
    with open(Path(program.environment["PACKNBACK_REPO"]) / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as a backup holds it
        told = program("prune", "--keep-newest", "1", "--wait", "0", "--json", code=6).json["error"]
    assert "2 snapshots had been forgotten" in told["hint"] and "recover" in told["hint"]
    program("recover", *ids[:2])
    assert set(states(program).values()) == {"live"}


def test_a_client_keeps_its_last_snapshot(program: Program, ids: list[str]) -> None:
    assert program("forget", *ids, "--json", code=1).json["error"]["kind"] == "refused"
    assert program("forget", "--json", code=2).json["error"]["kind"] == "usage-error"
    assert set(states(program).values()) == {"live"}


def test_forget_by_client_and_tag(program: Program, ids: list[str]) -> None:
    assert "some of: " in program("forget", "--keep-newest", "1", "--client", "nobody", "--dry-run", code=2).err
    rows = program("forget", "--keep-newest", "1", "--tag", "n=2", "--dry-run", "--json").json
    assert [row["id"] for row in rows] == [ids[1]]
    put_key = program.home / ".config/packnback/put.key"
    program("-k", put_key, "forget", "--keep-newest", "1", "--tag", "n=2", "--dry-run", code=5)


def test_compact_gives_back_the_space(program: Program, ids: list[str], source: Path, tmp_path: Path) -> None:
    before = program("stats", "--json").json["bytes_total"]
    program("forget", ids[0], ids[1])
    foreseen = program("compact", "--grace", "0", "--max-waste", "0", "--dry-run", "--json").json
    done = program("compact", "--grace", "0", "--max-waste", "0", "--json").json
    assert_shape(done, COMPACT_SHAPE)
    assert set(done["released"]) == set(foreseen["released"]) == set(ids[:2])
    after = program("stats", "--json").json
    assert after["bytes_total"] < before
    assert after["snapshots"] == 1
    assert list(states(program)) == [ids[2]]
    again = program("compact", "--grace", "0", "--max-waste", "0", "--json").json
    assert (again["released"], again["packs_deleted"], again["bytes_freed"]) == ([], 0, 0)
    assert program("check", "--read-data", "--json").json["damage"] == []
    program("restore", "latest", "--to", tmp_path / "out")
    assert Path(f"{tmp_path}/out{source}/hello.txt").read_bytes() == (source / "hello.txt").read_bytes()


def test_recovering_what_was_never_forgotten_says_so(program: Program, ids: list[str]) -> None:
    assert program("recover", "latest", "--json").json == [{"id": ids[2], "recovered": False}]
