"""check and verify as people and scripts run them: another process, exit codes, the documented shapes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_program import Program, assert_shape
from damaged_repository import Repo, flip_at
from smallclient import OWNER

from packnback.crypto.keyfile import write_key
from packnback.ids import ObjectClass

FINDING = {"kind": str, "what": str, "why": str, "affects": [str]}
CHECK = {"packs": int, "objects": int, "snapshots": int, "damage": [FINDING], "index_rebuilt": [str]}
REPAIRED = {
    "packs_quarantined": [str], "objects_saved": int, "objects_lost": [str], "files_quarantined": [str],
}  # fmt: skip
VERIFY = {
    "snapshots": int, "objects": int, "bytes": int, "bad": [{"id": str, "reason": str}],
    "snapshots_bad": [{"id": str, "reason": str}],
    "affected": [{"snapshot": str, "path": str, "reason": str}],
}  # fmt: skip


@pytest.fixture
def program(repo: Repo, tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path / "person")
    program.environment["PACKNBACK_REPO"] = str(repo.path)
    yield program


def with_owner_key(program: Program) -> None:
    configuration = program.home / ".config" / "packnback"
    configuration.mkdir(parents=True)
    write_key(str(configuration / "owner.key"), OWNER)


def test_a_whole_repository(repo: Repo, program: Program) -> None:
    for options in ((), ("--read-data",), ("--read-data", "--sample", "30%"), ("--repair",)):
        document = program("--json", "check", *options).json
        assert_shape(document, CHECK)
        assert document["damage"] == document["index_rebuilt"] == []
        assert document["packs"] == len(repo.packs()) and document["snapshots"] == 2
    assert "No damage found" in program("check").text
    assert program("-q", "check").text == ""


def test_a_damaged_pack_from_finding_to_repair(repo: Repo, program: Program, tmp_path: Path) -> None:
    victim = repo.packs(ObjectClass.DATA)[0]
    victim.path.write_bytes(flip_at(victim.data, 2000))
    assert program("--json", "check").json["damage"] == [], "the structure is sound: only reading tells"
    document = program("--json", "check", "--read-data", code=4).json
    assert_shape(document, CHECK)
    [finding] = document["damage"]
    ids = {row["id"] for row in program("--json", "list").json}
    assert finding["kind"] == "record" and victim.path.stem in finding["what"]
    assert set(finding["affects"]) <= ids and finding["affects"]
    told = program("check", "--read-data", code=4).text
    assert "damaged record" in told and "--repair" in told and finding["affects"][0][:12] in told

    with_owner_key(program)
    document = program("--json", "verify", code=4).json
    assert_shape(document, VERIFY)
    assert document["affected"] and document["bad"]
    said = program("verify", code=4).text
    assert "verified" in said
    affected = finding["affects"][0]
    said += program("restore", affected, "--to", tmp_path / "out", code=4).err
    said += program("--json", "restore", affected, "--to", tmp_path / "again", code=4).text
    assert " is damaged" in said and "ObjectDamage(" not in said

    document = program("--json", "check", "--read-data", "--repair", code=4).json
    assert_shape(document["repaired"], REPAIRED)
    assert document["repaired"]["packs_quarantined"] == [victim.path.stem]
    assert_shape(document["remaining"], [FINDING])
    assert (repo.path / "quarantine" / victim.path.name).read_bytes() == flip_at(victim.data, 2000)


def test_a_lost_pack_is_told_in_few_lines(repo: Repo, program: Program, tmp_path: Path) -> None:
    """Every object of it is missing, and snapshots need each of them."""
    write_key(str(tmp_path / "put.key"), OWNER.put_key("large"))
    (tmp_path / "large").write_bytes(random.Random(1).randbytes(48 << 20))
    program("-k", tmp_path / "put.key", "backup", tmp_path / "large")
    for pack in repo.packs(ObjectClass.DATA):
        pack.path.unlink()
    found = program("--json", "check", code=4).json["damage"]
    missing = [f for f in found if f["kind"] == "object"]
    assert len(missing) > 20
    told = program("check", code=4).text
    assert told.count("damaged object") == 20
    assert f"In all: {len(missing)} objects" in told and "3 snapshots affected" in told
    everything = program("-v", "check", code=4).text
    assert everything.count("damaged object") == len(missing)

    with_owner_key(program)
    document = program("--json", "verify", code=4).json
    told = program("verify", code=4).text
    digits = {each["id"][16:28] for each in document["bad"]}
    assert digits == {f["what"][16:28] for f in missing}
    assert sum(f"object {each} is missing" in told for each in digits) == 20
    assert f"{len(document['bad'])} objects" in told and f"and {len(digits) - 20} objects more" in told
    assert all(affected["path"] in told for affected in document["affected"])
    told = program("-v", "verify", code=4).text
    assert all(f"object {each} is missing" in told for each in digits)


def test_a_prune_that_damage_stops_forgets_nothing(repo: Repo, program: Program) -> None:
    """Else the next good moment would find what had already been given up on the day of the damage."""
    victim = repo.packs(ObjectClass.DATA)[0]
    victim.path.write_bytes(flip_at(victim.data, 2000))
    program("check", "--read-data", code=4)
    before = program("--json", "list", "--all").json
    assert [row["state"] for row in before] == ["live", "live"]
    error = program("--json", "prune", "--keep-newest", "1", code=4).json["error"]
    assert error["kind"] == "damage-blocks"
    assert program("--json", "list", "--all").json == before


def test_a_list_of_bad_ids_ends_in_no_all_clear(repo: Repo, program: Program, tmp_path: Path) -> None:
    document = program("--json", "check", "--read-data").json
    assert document["damage"] == []
    victim = repo.packs(ObjectClass.DATA)[0]
    (tmp_path / "bad").write_text(f"{victim.footer.records[0].id.hex()}\n")
    told = program("check", "--repair", "--bad", tmp_path / "bad", code=4).text
    assert "What is wrong still" in told and "next backup" in told and "forget ID" in told
    assert "No damage found" not in told


def test_a_stray_file_is_for_people_to_look_at(repo: Repo, program: Program) -> None:
    (repo.path / "packs" / "00" / "notes.txt").write_text("not mine")
    told = program("check", code=4).text
    assert "stray file packs/00/notes.txt" in told and "by hand" not in told and "--repair" not in told
    told = program("check", "--repair", code=4).text
    assert "then delete them" in told
    assert (repo.path / "packs" / "00" / "notes.txt").exists()


def test_samples_find_it_in_the_end_and_go_on_telling(repo: Repo, program: Program) -> None:
    victim = repo.packs(ObjectClass.DATA)[-1]
    victim.path.write_bytes(flip_at(victim.data, 2000))
    codes = []
    for _ in range(4):
        process = program.start(["--json", "check", "--read-data", "--sample", "34"])
        process.communicate()
        codes.append(process.returncode)
    found = codes.index(4)
    assert found < 3, "three nights"
    assert codes == [0] * found + [4] * (4 - found)


def test_an_index_that_kills_its_reader_is_thrown_away(repo: Repo, program: Program) -> None:
    """check looks at the index in a process of its own first."""
    data = repo.path / "index" / "data.mdb"
    raw = data.read_bytes()
    data.write_bytes(raw[:8192] + bytes(len(raw) - 8192))
    document = program("--json", "check").json
    assert document["damage"] == [] and document["index_rebuilt"]
    assert program("--json", "check").json["index_rebuilt"] == []


def test_a_copy_without_its_empty_directories(repo: Repo, program: Program) -> None:
    empty = [path for path in repo.path.rglob("*") if path.is_dir() and not any(path.iterdir())]
    assert len(empty) > 200
    for path in empty:
        path.rmdir()
    assert "check --repair" in program("check", code=1).err
    assert "that the repository lacked" in program("check", "--repair").err
    assert all(path.is_dir() for path in empty)
    assert program("--json", "check", "--read-data").json["damage"] == []


def test_a_disk_that_is_not_mounted_is_not_made_up_for(repo: Repo, program: Program) -> None:
    (repo.path / "packs").rename(repo.path.parent / "unmounted")
    (repo.path / "packs").mkdir()
    for arguments in (["check"], ["check", "--repair"]):
        assert "mounted" in program(*arguments, code=1).err
    assert list((repo.path / "packs").iterdir()) == []


def test_what_is_wrong_with_the_command(repo: Repo, program: Program, tmp_path: Path) -> None:
    assert program("check", "--bad", "file", code=2).err
    assert program("check", "--sample", "much", code=2).err
    assert program("-r", tmp_path / "nowhere", "check", code=1).err
    assert program("verify", code=5).err, "no key"
    shutil.rmtree(repo.path / "packs" / "00")
    assert program("check", code=1).err, "an unmounted disk is no damage, and no empty repository"
