"""docs/operations.md, as somebody would follow it on the day, on the real program."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from cli_program import Program
from damaged_repository import contents, flip_at

from packnback.ids import KIB


class Person:
    """One machine with its keys, a tree, and a repository with a snapshot for each of the tree's directories."""

    def __init__(self, top: Path) -> None:
        self.run = Program(top / "home")
        self.repo, self.tree = top / "repo", top / "tree"
        self.run.environment["PACKNBACK_REPO"] = str(self.repo)
        self.run("init")
        self.snapshots = [self.grow(name) for name in ("one", "two", "three")]

    def grow(self, name: str) -> str:
        """Another directory, in packs of its own, because each backup makes its own."""
        (self.tree / name).mkdir(parents=True)
        (self.tree / name / "large").write_bytes(random.Random(name).randbytes(700 * KIB))
        return self.backup()

    def backup(self) -> str:
        done = self.run("--json", "backup", self.tree).json
        return str(done["snapshot"])

    def data_pack(self, number: int) -> Path:
        """The data pack of the n-th backup."""
        packs = [p for p in self.repo.glob("packs/*/*.pack") if p.stat().st_size > 500 * KIB]
        return sorted(packs, key=lambda p: p.stat().st_mtime_ns)[number]

    def restores(self, snapshot: str, to: Path) -> dict[str, bytes]:
        self.run("restore", snapshot, "--to", to)
        return contents(to / str(self.tree).lstrip("/"))


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


def test_a_lost_data_pack(person: Person, tmp_path: Path) -> None:
    run, (one, two, three) = person.run, person.snapshots
    person.data_pack(1).unlink()
    found = run("--json", "check", code=4).json["damage"]
    assert {f["kind"] for f in found} == {"object"}
    assert {s for f in found for s in f["affects"]} == {two, three}, "the first one does not need it"
    assert person.restores(one, tmp_path / "one")["one/large"] == contents(person.tree)["one/large"]
    document = run("--json", "restore", three, "--to", tmp_path / "three", code=4).json
    assert [e["path"] for e in document["errors"]] == [f"{person.tree}/two/large"]

    run("forget", one, code=1)  # it is the only one that is whole
    run("forget", one, "--force")
    assert run("--json", "compact", "--grace", "0s", code=4).json["error"]["kind"] == "damage-blocks"
    run("recover", one)
    person.backup()
    assert run("--json", "check", "--read-data").json["damage"] == [], "the same chunks came again: all is whole"
    for number, snapshot in enumerate((one, two, three)):
        assert len(person.restores(snapshot, tmp_path / f"healed{number}")) == number + 1
    run("forget", one)
    run("compact", "--grace", "0s")


def test_what_was_found_rotten_stops_deletion_until_it_is_mended(person: Person, tmp_path: Path) -> None:
    """A policy would go on keeping, of the snapshots of a day, the one that cannot be restored any more."""
    run, (one, two, three) = person.run, person.snapshots
    pack = person.data_pack(0)
    pack.chmod(0o600)
    pack.write_bytes(flip_at(pack.read_bytes(), pack.stat().st_size // 2))
    assert run("--json", "check").json["damage"] == [], "nobody has read it"
    found = run("--json", "check", "--read-data", code=4).json["damage"]
    assert one in found[0]["affects"]
    assert run("--json", "check", code=4).json["damage"] == found, "what is known to be bad is read each time"
    refused = run("--json", "prune", "--keep-daily", "7", "--grace", "0s", code=4).json["error"]
    assert refused["kind"] == "damage-blocks" and pack.name.removesuffix(".pack") in refused["detail"]
    assert len(run("--json", "list", "--all").json) == 3
    run("recover", two, three)
    run("check", "--repair", code=4)  # what was in the record is lost
    last = person.backup()  # until it is stored again
    assert run("--json", "check", "--read-data").json["damage"] == []
    run("prune", "--keep-newest", "1", "--grace", "0s")
    assert person.restores(last, tmp_path / "out") == contents(person.tree)


def test_what_is_lost_for_good_can_be_given_up(person: Person, tmp_path: Path) -> None:
    run, (_, two, three) = person.run, person.snapshots
    person.data_pack(1).unlink()
    shutil.rmtree(person.tree / "two")
    last = person.backup()
    assert run("check", code=4).code == 4
    run("forget", two, three)
    run("compact", "--grace", "0s")
    assert run("--json", "check", "--read-data").json["damage"] == []
    assert person.restores(last, tmp_path / "out") == contents(person.tree)


def test_a_damaged_newest_snapshot(person: Person, tmp_path: Path) -> None:
    run = person.run
    newest = max((person.repo / "snapshots").iterdir())
    newest.write_bytes(flip_at(newest.read_bytes(), 1000))
    shutil.rmtree(person.repo / "index")
    assert run("--json", "backup", person.tree, code=1).json["error"]["kind"] == "chain-alarm"
    document = run("--json", "check", "--repair", code=0).json
    [aside] = document["repaired"]["files_quarantined"]
    run("accept-rollback", "--reason", "the disk was replaced")
    again = person.backup()
    assert person.restores(again, tmp_path / "out") == contents(person.tree)
    assert run("list").code == 0
    blocked = run("compact", "--grace", "0s", code=4)
    assert aside in blocked.err and "--force" in blocked.err
    (person.repo / aside).unlink()
    run("compact", "--grace", "0s")
    assert run("--json", "check", "--read-data").json["damage"] == []


def test_a_damaged_snapshot_file_hides_no_other(person: Person, tmp_path: Path) -> None:
    run, (one, two, three) = person.run, person.snapshots
    file = next(p for p in (person.repo / "snapshots").iterdir() if p.name.endswith(f"-{2:016x}.snap"))
    file.write_bytes(flip_at(file.read_bytes(), 3000))  # the index goes on believing that it is whole
    listed = run("--json", "list", code=4).json
    assert [row["files"] is None for row in listed] == [False, True, False]
    found = run("--json", "find", "large", code=4).json
    assert {row["snapshot"] for row in found} == {one, three}
    sizes = run("--json", "stats", code=4).json
    assert sizes["snapshots"] == 3 and sizes["bytes_logical"] is None
    assert [row["id"] for row in run("--json", "verify", code=4).json["snapshots_bad"]] == [two]
    assert person.restores(three, tmp_path / "out") == contents(person.tree)


def test_a_gap_in_a_chain_is_told_until_somebody_has_looked_into_it(person: Person, tmp_path: Path) -> None:
    """Exit code 4 for ever would hide the next damage from everybody's cron jobs."""
    run, (one, two, three) = person.run, person.snapshots
    keyless = Program(tmp_path / "keyless")
    last = person.backup()
    files = {row["id"]: row for row in run("--json", "list").json}
    client = next((person.repo / "snapshots").iterdir()).name.partition("-")[0]

    def lose(snapshot: str) -> None:
        (person.repo / "snapshots" / f"{client}-{files[snapshot]['sequence']:016x}.snap").unlink()
        shutil.rmtree(person.repo / "index")

    lost = (person.repo / "snapshots" / f"{client}-{files[two]['sequence']:016x}.snap").read_bytes()
    lose(two)
    for command in (["list"], ["restore", last, "--to", str(tmp_path / "a")], ["verify"]):
        assert "accept-rollback" in run(*command, code=4).err
    told = keyless("-r", person.repo, "check", code=4)
    assert "accept-rollback" in told.text and "--repair` mends" not in told.text
    [found] = keyless("-r", person.repo, "--json", "check", "--repair", code=4).json["remaining"]
    assert (found["kind"], found["what"], found["why"]) == ("chain", f"{client}-{2:016x}", "no header")

    for somebody in (run, keyless):
        somebody("-r", person.repo, "accept-rollback", "--reason", "a bad sector")
        assert "1 gap" in somebody("-r", person.repo, "check").text
        assert somebody("-r", person.repo, "--json", "check").json["damage"] == []
    run("list")
    run("restore", last, "--to", tmp_path / "b")
    run("verify")

    file = person.repo / "snapshots" / f"{client}-{files[two]['sequence']:016x}.snap"
    file.write_bytes(lost)  # it comes back from a copy, and is gone again
    run("list")
    lose(two)
    assert "accept-rollback" in run("list", code=4).err
    assert "vm is broken: number 2 is missing" in run("accept-rollback", "--reason", "again").text
    assert run("accept-rollback", "--reason", "again").text.count("Accepted: ") == 0

    lose(three)  # the gap grows
    assert "vm is broken: numbers 2 to 3 are missing" in run("list", code=4).err
    [found] = keyless("-r", person.repo, "--json", "check", code=4).json["damage"]
    assert found["why"] == f"no header, up to {3:016x}"
    assert one in {row["id"] for row in run("--json", "list", code=4).json}


def test_a_new_disk(person: Person, tmp_path: Path) -> None:
    run = person.run
    shutil.rmtree(person.repo)
    assert run("--json", "backup", person.tree, code=1).json["error"]["kind"] == "not-a-repository"
    run("init")
    assert run("--json", "backup", person.tree, code=1).json["error"]["kind"] == "wrong-repository"
    run("accept-rollback", "--reason", "new disk")
    assert person.restores(person.backup(), tmp_path / "out") == contents(person.tree)


def test_a_new_machine_with_only_the_owner_key(person: Person, tmp_path: Path) -> None:
    key = tmp_path / "owner.key"
    shutil.copy(person.run.home / ".config" / "packnback" / "owner.key", key)
    elsewhere = Program(tmp_path / "elsewhere")
    moved = tmp_path / "moved"
    shutil.copytree(person.repo, moved, ignore=shutil.ignore_patterns("index", "lock", "gate"))
    assert len(elsewhere("-r", moved, "-k", key, "--json", "list").json) == 3
    elsewhere("-r", moved, "-k", key, "restore", "latest", "--to", tmp_path / "out")
    assert contents(tmp_path / "out" / str(person.tree).lstrip("/")) == contents(person.tree)
    person.run("-r", moved, "backup", person.tree)
    assert person.run("-r", moved, "--json", "check", "--read-data").json["damage"] == []


def test_a_lost_config(person: Person, tmp_path: Path) -> None:
    (person.repo / "config").unlink()
    told = person.run("list", code=4)
    assert "config" in told.err and "init" in told.err
    person.run("init", "--owner", person.run.home / ".config" / "packnback" / "owner.key")
    assert person.restores(person.backup(), tmp_path / "out") == contents(person.tree)
