"""The damage matrix: every way of breaking a file × every kind of file in a repository.

Damage of truth is named, with exit 4, and costs exactly what it must; everything else restores byte for byte.
Damage of the index costs nothing, and a lost lock is made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damaged_repository import (
    DAMAGES,
    Cli,
    Damage,
    Found,
    Repo,
    contents,
    damage_body,
    damage_footer,
    delete,
    files_needing,
    flip,
    lost_objects,
    make_tree,
    replace,
    restored,
    write,
)
from smallclient import OWNER

from packnback.ids import ObjectClass
from packnback.store.local import create_local

all_damages = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
PackDamager = Callable[[Damage, Found, Found], bytes | None]
body_and_footer = pytest.mark.parametrize("part", [damage_body, damage_footer], ids=["body", "footer"])


def break_pack(repo: Repo, object_class: ObjectClass, part: PackDamager, damage: Damage) -> set[bytes]:
    """Damage one pack, of those that the newest snapshot's large files need; the objects that are lost by it."""
    packs = repo.packs(object_class)
    needed = {i for path, ids in repo.needs().items() for i in ids if path.endswith(".bin")}
    ends = [(p, {p.footer.records[0].id, p.footer.records[-1].id}) for p in packs]
    victim = next(p for p, ids in ends if object_class == ObjectClass.META or ids <= needed)
    other = next(p for p in packs if p.path != victim.path)
    changed = part(damage, victim, other)
    write(victim.path, changed)
    return lost_objects(victim, changed)


# --- packs -------------------------------------------------------------------------------------------------------


@body_and_footer
@all_damages
def test_data_pack(repo: Repo, cli: Cli, tmp_path: Path, part: PackDamager, damage: Damage) -> None:
    needs = {sequence: repo.needs(sequence) for sequence in (1, 2)}
    lost = break_pack(repo, ObjectClass.DATA, part, damage)
    gone = files_needing(needs[2], lost)
    assert lost and gone

    result = repo.restore(tmp_path / "out")
    there, tree = restored(repo.tree, tmp_path / "out"), contents(repo.tree)
    assert {p for p in tree if p not in there} == gone, "exactly the files that need it are lost"
    assert all(there[path] == tree[path] for path in tree.keys() - gone)
    told = {str(Path("/" + p.path.decode()).relative_to(repo.tree)): p.reason for p in result.problems}
    assert told.keys() == gone and result.damaged
    assert all(any(i.hex() in told[path] for i in needs[2][path] & lost) for path in gone), "the object is named"

    code, document = cli(repo, "check", "--read-data")
    assert code == 4
    affected = {i for finding in document["damage"] for i in finding["affects"]}
    assert affected == {id_of(repo, s) for s in (1, 2) if files_needing(needs[s], lost)}
    assert document["index_rebuilt"] == [], "the index is not to blame"

    code, document = cli(repo, "restore", "latest", "--to", str(tmp_path / "again"))
    assert code == 4 and {e["path"] for e in document["errors"]} == {f"{repo.tree}/{path}" for path in gone}


@body_and_footer
@all_damages
def test_meta_pack(repo: Repo, cli: Cli, tmp_path: Path, part: PackDamager, damage: Damage) -> None:
    lost = break_pack(repo, ObjectClass.META, part, damage)
    assert lost
    result = repo.restore(tmp_path / "out", sequence=1), repo.restore(tmp_path / "out2", sequence=2)
    assert any(r.damaged for r in result)
    for to in ("out", "out2"):
        there, tree = restored(repo.tree, tmp_path / to), contents(repo.tree)
        assert all(tree[path] == content for path, content in there.items() if path != "d0/small0")
    code, document = cli(repo, "check", "--read-data")
    assert code == 4 and document["damage"]
    assert {f["kind"] for f in document["damage"]} <= {"pack", "object", "record"}
    assert any(f["affects"] for f in document["damage"])
    assert document["index_rebuilt"] == []


@pytest.mark.parametrize("object_class", ObjectClass, ids=lambda c: c.name.lower())
@body_and_footer
@all_damages
def test_repair_and_the_next_backup_heal(
    repo: Repo, cli: Cli, tmp_path: Path, object_class: ObjectClass, part: PackDamager, damage: Damage
) -> None:
    victim_count, bytes_before = len(repo.packs()), repo.backup().bytes_stored
    break_pack(repo, object_class, part, damage)
    broken = contents(repo.path / "packs").values()
    code, document = cli(repo, "check", "--read-data", "--repair")
    quarantined = contents(repo.path / "quarantine")
    assert len(quarantined) == (damage is not delete or part is damage_footer)
    assert set(quarantined.values()) <= set(broken), "put aside as it was"
    assert len(document["repaired"]["packs_quarantined"]) == len(quarantined)
    assert (code == 4) == bool(document["remaining"])

    again = repo.backup()
    if document["remaining"] and object_class == ObjectClass.DATA:
        assert again.bytes_stored > bytes_before, "what is missing was uploaded again, by itself"
    assert not repo.restore(tmp_path / "out").incomplete
    assert restored(repo.tree, tmp_path / "out") == contents(repo.tree)
    code, document = cli(repo, "check", "--read-data")
    newest = id_of(repo, again.published.sequence if again.published else 0)
    assert not any(newest in finding["affects"] for finding in document["damage"])
    assert {f["kind"] for f in document["damage"]} <= {"object"} and victim_count


# --- snapshots -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index_lost", [False, True], ids=["index", "no index"])
@all_damages
def test_older_snapshot(repo: Repo, cli: Cli, tmp_path: Path, damage: Damage, index_lost: bool) -> None:
    first, second = repo.snapshots()
    write(first, damage(first.read_bytes(), second.read_bytes()))
    if index_lost:
        shutil.rmtree(repo.path / "index")
    assert not repo.restore(tmp_path / "out").incomplete
    assert restored(repo.tree, tmp_path / "out") == contents(repo.tree)
    code, document = cli(repo, "check")
    assert code == 4
    named = {f["kind"] for f in document["damage"] if first.stem in f["what"]}
    assert named == ({"chain"} if damage is delete else {"chain", "snapshot"}), "the file and its place in the chain"
    code, _ = cli(repo, "restore", "latest", "--to", str(tmp_path / "again"))
    assert code == 4, "what can be restored is, and the hole in the chain is told"
    assert restored(repo.tree, tmp_path / "again") == contents(repo.tree)


@pytest.mark.parametrize("damage", [d for d in DAMAGES if d is not delete], ids=lambda damage: damage.__name__)
def test_newest_snapshot_is_damage_and_not_absence(repo: Repo, cli: Cli, tmp_path: Path, damage: Damage) -> None:
    """Nobody is given an older snapshot as the latest without a word, and its client can go on in the end."""
    first, second = repo.snapshots()
    write(second, damage(second.read_bytes(), first.read_bytes()))
    shutil.rmtree(repo.path / "index")
    for command in (("restore", "latest", "--to", str(tmp_path / "out")), ("list",), ("verify",), ("check",)):
        assert cli(repo, *command)[0] == 4, command
    code, document = cli(repo, "compact", "--grace", "0s")
    assert code == 4 and document["error"]["kind"] == "damage-blocks"

    code, document = cli(repo, "check", "--repair")
    [aside] = document["repaired"]["files_quarantined"]
    assert not second.exists() and (repo.path / aside).exists()
    code, document = cli(repo, "compact", "--grace", "0s")
    assert code == 4 and aside in document["error"]["detail"], "giving it up is for a person to decide"
    shutil.rmtree(repo.home / "state")  # as accept-rollback would: the client goes on from what is there
    again = repo.backup()
    assert again.published is not None and again.published.sequence == 2
    assert not repo.restore(tmp_path / "healed").incomplete
    (repo.path / aside).unlink()
    assert cli(repo, "compact", "--grace", "0s")[0] == 0
    assert cli(repo, "check", "--read-data")[0] == 0


# --- config, index, lock -----------------------------------------------------------------------------------------


@all_damages
def test_config(repo: Repo, cli: Cli, tmp_path: Path, damage: Damage) -> None:
    create_local(str(tmp_path / "another"), OWNER.bundle.raw).close()
    config = repo.path / "config"
    write(config, damage(config.read_bytes(), (tmp_path / "another" / "config").read_bytes()))
    code, document = cli(repo, "check")
    assert code == 4
    if damage is replace:
        found = [f for f in document["damage"] if f["kind"] == "snapshot"]
        assert len(found) == len(list((repo.path / "snapshots").iterdir()))
        assert all("another repository" in f["why"] for f in found)
    else:
        assert document["error"]["kind"] == "config-damage"
    config.unlink(missing_ok=True)
    owner = tmp_path / "home" / ".config" / "packnback" / "owner.key"
    assert cli(repo, "init", "--owner", str(owner))[0] == 0
    assert not repo.restore(tmp_path / "out").incomplete
    assert restored(repo.tree, tmp_path / "out") == contents(repo.tree)
    assert cli(repo, "check", "--read-data")[0] == 0


def test_config_of_nothing_that_tells_is_not_invented(repo: Repo, cli: Cli, tmp_path: Path) -> None:
    owner = str(tmp_path / "home" / ".config" / "packnback" / "owner.key")
    (repo.path / "config").unlink()
    for snapshot in repo.snapshots():
        write(snapshot, flip(snapshot.read_bytes(), b""))
    assert cli(repo, "init", "--owner", owner)[0] == 4
    for snapshot in repo.snapshots():
        snapshot.unlink()
    code, document = cli(repo, "init", "--owner", owner)
    assert code == 4 and document["error"]["kind"] == "config-damage" and not (repo.path / "config").exists()


@pytest.mark.parametrize("file", ["data.mdb", "lock.mdb"])
@all_damages
def test_index(repo: Repo, cli: Cli, tmp_path: Path, damage: Damage, file: str) -> None:
    make_tree(tmp_path / "other tree", seed=3)
    other = Repo(tmp_path / "other", tmp_path / "other tree")
    other.home.mkdir()
    create_local(str(other.path), OWNER.bundle.raw).close()
    other.backup()
    assert cli(repo, "list")[0] == 0  # makes the lock file, which copies are without
    victim = repo.path / "index" / file
    write(victim, damage(victim.read_bytes(), (other.path / "index" / file).read_bytes()))
    code, document = cli(repo, "list")
    assert (code, len(document)) == (0, 2), document
    assert not repo.restore(tmp_path / "out").incomplete
    assert restored(repo.tree, tmp_path / "out") == contents(repo.tree)
    code, document = cli(repo, "check", "--read-data")
    assert code == 0 and document["damage"] == []
    repo.backup()
    assert cli(repo, "check")[1]["index_rebuilt"] == []


@pytest.mark.parametrize("file", ["lock", "gate"])
@all_damages
def test_lock(repo: Repo, cli: Cli, damage: Damage, file: str) -> None:
    victim = repo.path / file
    victim.write_bytes(b"not empty")
    write(victim, damage(victim.read_bytes(), b"something else"))
    repo.backup()
    assert victim.exists()
    assert cli(repo, "check", "--read-data")[0] == 0


# --- what stands nearby -------------------------------------------------------------------------------------------


def test_damage_blocks_deletion_and_force_never_deletes_what_cannot_be_read(repo: Repo, cli: Cli) -> None:
    break_pack(repo, ObjectClass.META, damage_footer, flip)
    first = id_of(repo, 1)
    assert cli(repo, "check")[0] == 4
    # Which pack was broken is chance: if the second snapshot needs it, the first is the last good one.
    assert cli(repo, "forget", "--force", first)[0] == 0
    before = contents(repo.path / "packs")
    for force in ((), ("--force",)):
        code, document = cli(repo, "compact", "--grace", "0s", *force)
        assert code == 4 and document["error"]["kind"] == "damage-blocks"
    assert contents(repo.path / "packs") == before


def test_damage_that_the_index_has_not_seen_blocks_deletion_too(repo: Repo, cli: Cli) -> None:
    assert cli(repo, "forget", id_of(repo, 1))[0] == 0
    break_pack(repo, ObjectClass.META, damage_footer, flip)
    before = contents(repo.path / "packs")
    code, document = cli(repo, "compact", "--grace", "0s", "--max-waste", "0")
    assert code == 4 and document["error"]["kind"] == "damage-blocks"
    assert contents(repo.path / "packs") == before


def test_release_of_a_snapshot_in_whose_place_another_stands(repo: Repo, cli: Cli, tmp_path: Path) -> None:
    """Keeping the header of what stands there now would release the other snapshot, and drop its data."""
    first, second = repo.snapshots()
    assert cli(repo, "forget", id_of(repo, 1))[0] == 0
    write(first, second.read_bytes())
    code, document = cli(repo, "compact", "--grace", "0s")
    assert code == 4 and document["error"]["kind"] == "snapshot-damage"
    assert not list((repo.path / "headers").iterdir()) and second.exists()
    assert not repo.restore(tmp_path / "out", sequence=2).incomplete


def id_of(repo: Repo, sequence: int) -> str:
    with repo.opened() as repository:
        return next(i.id.hex() for i in repository.snapshots() if i.sequence == sequence)
