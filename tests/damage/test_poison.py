"""Poison: with a stolen put key, garbage is stored under an id that the honest client will want.

No check without a key can see it: kind, level, refs, envelope and checksum are in order. Only who decrypts can.
"""

from __future__ import annotations

from pathlib import Path

from damaged_repository import PUT, Cli, Repo, contents, files_needing, restored
from smallclient import OWNER, SmallClient

from packnback.crypto.payload import encode_payload
from packnback.crypto.seal import body_length, seal_body
from packnback.format import record
from packnback.ids import Kind, ObjectClass
from packnback.store.local import create_local


def poison(client: SmallClient, wanted: bytes) -> list[bytes]:
    """An envelope, and a record under `wanted` that decrypts to something else."""
    envelope, envelope_id, keys = client.envelope(ObjectClass.DATA)
    padded = encode_payload(b"something else", ObjectClass.DATA, codec_level=None)
    header = record.encode_header(Kind.DATA, 0, 0, body_length(padded), wanted, envelope_id)
    return [envelope, record.finish(header, b"", bytes(seal_body(keys, header, b"", padded)))]


def test_verify_names_it_and_repair_makes_room_for_the_truth(original: Repo, cli: Cli, tmp_path: Path) -> None:
    # What the client's large files become is known to whoever has its key: the same in every repository.
    wanted = next(iter(original.needs()["d3/large.bin"]))
    repo = Repo(tmp_path / "poisoned", original.tree)
    repo.home.mkdir()
    created = create_local(str(repo.path), OWNER.bundle.raw)
    thief = SmallClient(created.config.repository_id, "web1")
    assert thief.key.client_id == PUT.client_id
    with created.session(thief.certificate) as session:
        session.put(poison(thief, wanted))
        session.flush()
    created.close()
    repo.backup()
    gone = files_needing(repo.needs(), {wanted})
    assert gone == {"d3/large.bin"}

    assert cli(repo, "check", "--read-data")[0] == 0, "nothing that a machine without a key could see"
    bad = tmp_path / "bad.txt"
    code, document = cli(repo, "verify", "--bad", str(bad))
    assert code == 4 and [b["id"] for b in document["bad"]] == [wanted.hex()]
    assert {a["path"] for a in document["affected"]} == {f"{repo.tree}/d3/large.bin"}
    assert bad.read_text().split() == [wanted.hex()]
    result = repo.restore(tmp_path / "out")
    assert [p.path.decode() for p in result.problems] == [str(repo.tree / "d3/large.bin").lstrip("/")]

    code, document = cli(repo, "check", "--repair", "--bad", str(bad))
    assert code == 4 and document["repaired"]["objects_lost"] == [wanted.hex()]
    assert [f["what"] for f in document["remaining"]] == [wanted.hex()] and document["remaining"][0]["affects"]
    repo.backup()
    assert cli(repo, "check", "--read-data")[0] == 0
    assert cli(repo, "verify", "--bad", str(bad))[0] == 0 and bad.read_text() == ""
    for sequence in (1, 2):
        assert not repo.restore(tmp_path / f"healed{sequence}", sequence).incomplete
        assert restored(repo.tree, tmp_path / f"healed{sequence}") == contents(repo.tree)


def test_a_list_of_bad_ids_is_read_with_care(repo: Repo, cli: Cli, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_text("# nothing\n\n" + "ab" * 32 + "  an id that nobody knows\n")
    assert cli(repo, "check", "--repair", "--bad", str(bad))[0] == 0
    bad.write_text("ab" * 31 + "\n")
    code, document = cli(repo, "check", "--repair", "--bad", str(bad))
    assert code == 2 and document["error"]["kind"] == "usage-error" and "line 1" in document["error"]["message"]
    assert cli(repo, "check", "--bad", str(bad))[0] == 2, "--bad goes with --repair"
    assert cli(repo, "check", "--repair", "--bad", str(tmp_path / "missing"))[0] == 1
