"""The promises of the main job, each tested on the real program and real data."""

from __future__ import annotations

import base64
import os
import stat
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import Program

from packnback.crypto import aead
from packnback.crypto.derive import DK, H
from packnback.crypto.envelope import open_envelope
from packnback.crypto.exchange import mlkem_public, x25519_public
from packnback.crypto.keyfile import read_key
from packnback.crypto.keys import OwnerKey, PutKey
from packnback.crypto.payload import FLOORS, padme
from packnback.crypto.seal import open_body
from packnback.crypto.sign import verify_key
from packnback.errors import FormatDamage
from packnback.format import record as record_format
from packnback.format.record import Record
from packnback.ids import MIB, Kind, ObjectClass, class_of

TREES = [Path(sysconfig.get_path("stdlib")), Path("/usr/share")]


def describe(root: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    """(relative path, everything that a restore must bring back) of all below `root`."""
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            what: tuple[object, ...] = (stat.S_IFMT(status.st_mode), status.st_mtime_ns, status.st_uid, status.st_gid)
            if stat.S_ISLNK(status.st_mode):
                what += (os.readlink(path),)
            else:
                what += (stat.S_IMODE(status.st_mode),)
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    what += (status.st_size, H(file.read()))
            yield os.path.relpath(path, root), what


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    made = Program(tmp_path_factory.mktemp("main"))
    made.run("init")
    return made


@pytest.fixture(scope="module")
def small(program: Program) -> dict[str, bytes]:
    """A small tree in the repository, with names and contents that can be looked for: path → content."""
    root = program.base / "secret-directory-name"
    contents = {f"secret-file-name-{i}": b"SECRET-CONTENT-%d " % i * (i * 300 + 1) for i in range(30)}
    contents["large-secret-name"] = os.urandom(3 * MIB) + b"SECRET-CONTENT-LARGE" * 50_000
    root.mkdir()
    for name, content in contents.items():
        (root / name).write_bytes(content)
    program.run("backup", root)
    return {str(root / name): content for name, content in contents.items()}


def records(program: Program) -> Iterator[Record]:
    for pack in program.repo.glob("packs/*/*.pack"):
        for _, record in record_format.scan(pack.read_bytes()):
            yield record


def test_a_real_tree_comes_back_as_it_was(program: Program) -> None:
    first = program.run("--json", "backup", *TREES).json
    assert first["files"] >= 20_000 and first["errors"] == []
    second = program.run("--json", "backup", *TREES).json
    assert second["bytes_stored"] < 0.01 * first["bytes_stored"]
    target = program.base / "restored"
    program.run("restore", "latest", "--to", target)
    for tree in TREES:
        got, want = dict(describe(target / str(tree).lstrip("/"))), dict(describe(tree))
        wrong = [path for path in want.keys() | got.keys() if want.get(path) != got.get(path)]
        assert not wrong, wrong[:10]


@pytest.mark.parametrize("command", [("restore", "latest", "--to", "x"), ("cat", "latest", "/x"), ("ls", "latest")])
def test_the_put_key_reads_nothing(program: Program, small: dict[str, bytes], command: tuple[str, ...]) -> None:
    done = program.run(*command, "-k", program.put_key, expect=5)
    assert "this key can add backups but not read them" in done.err


def test_nothing_that_stays_on_the_client_opens_an_object(tmp_path: Path) -> None:
    """Try every 32 bytes of every file that the client keeps as every key that could open something (I9).

    Its client is a small one of its own, so that its cache can be searched whole. The same search, let loose on the
    owner key, finds it, and it finds the key of a session that somebody wrote down: so it does find keys.
    """
    program = Program(tmp_path)
    program.run("init")
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / f"small{number}").write_bytes(b"content %d " % number * 100)
    (tree / "large").write_bytes(os.urandom(MIB))
    program.run("backup", tree)
    (tree / "large").write_bytes((tree / "large").read_bytes() + b"changed")
    program.run("backup", tree)

    owner = read_key(str(program.owner_key))
    put_key = read_key(str(program.put_key))
    assert isinstance(owner, OwnerKey) and isinstance(put_key, PutKey)
    left_behind = [p for p in program.home.rglob("*") if p.is_file() and p != program.owner_key]
    kept = {path.relative_to(program.home).parts[0] for path in left_behind}
    assert kept == {"config", "cache", "state"} and program.put_key in left_behind
    assert any(path.name == "data.mdb" and path.stat().st_size for path in left_behind)
    found = list(records(program))
    envelopes = {r.envelope_id: bytes(r.body) for r in found if r.kind == Kind.ENVELOPE}
    samples = [next(r for r in found if class_of(r.kind) == c and r.kind != Kind.ENVELOPE) for c in ObjectClass]

    def opens(path: Path) -> bool:
        return any(_opens(material, samples, envelopes, owner) for material in _bytes_of(path))

    assert not [path for path in left_behind if opens(path)]
    assert opens(program.owner_key)
    for sample in samples:
        written_down = open_envelope(envelopes[sample.envelope_id], owner).object_key
        (tmp_path / "note").write_bytes(b"the key is: " + written_down + b".")
        assert opens(tmp_path / "note")


def _bytes_of(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what they decode to where they are a key file."""
    raw = path.read_bytes()
    yield raw
    if raw.startswith(b"packnback "):
        yield base64.b64decode(b"".join(raw.splitlines()[1:]))


def _opens(material: bytes, samples: list[Record], envelopes: dict[bytes, bytes], owner: OwnerKey) -> bool:
    publics = {owner.bundle.receivers[c].x25519 for c in ObjectClass}
    kems = {owner.bundle.receivers[c].mlkem for c in ObjectClass}
    tried = set()
    for at in range(len(material) - 31):
        key, pair = material[at : at + 32], material[at : at + 64]
        if at % 4 == 0 and len(pair) == 64 and pair not in tried and mlkem_public(pair) in kems:
            return True
        tried.add(pair)
        if key in tried:  # pages of a database are mostly zeros
            continue
        tried.add(key)
        if x25519_public(key) in publics:
            return True
        if verify_key(DK("owner certify ed25519", key)) == owner.bundle.certify_key:
            return True
        for sample in samples:
            committed = envelopes[sample.envelope_id][:-32]
            if _opens_body(key, sample) or _opens_body(DK("object key", key + H(committed)), sample):
                return True
            if aead.decrypt(key, bytes(24), committed[:92], committed[-48:]) is not None:
                return True
    return False


def _opens_body(key: bytes, sample: Record) -> bool:
    try:
        open_body(key, sample.header, sample.refs, sample.body)
    except FormatDamage:
        return False
    return True


def test_the_repository_learns_no_name_and_no_content(program: Program, small: dict[str, bytes]) -> None:
    needles = {b"secret-directory-name", b"secret-file-name", b"large-secret-name", b"SECRET-CONTENT"}
    needles |= {content[:64] for content in small.values() if len(content) >= 64}
    for path in program.repo.rglob("*"):
        assert not any(needle in str(path).encode() for needle in needles)
        raw = path.read_bytes() if path.is_file() else b""
        assert not [needle for needle in needles if needle in raw], path
    snapshots = b"".join(p.read_bytes() for p in program.repo.glob("snapshots/*"))
    assert snapshots and os.uname().nodename.encode() * 2 not in snapshots


def test_every_body_has_a_length_that_tells_little(program: Program, small: dict[str, bytes]) -> None:
    seen = 0
    for record in records(program):
        if record.kind == Kind.ENVELOPE:
            continue
        length, floor = len(record.body) - 40, FLOORS[class_of(record.kind)]
        assert length == floor or (length > floor and padme(length) == length)
        seen += 1
    assert seen > 5


@pytest.mark.parametrize(
    "megabytes", [100, 700, pytest.param(2048, marks=pytest.mark.nightly)], ids=lambda m: f"{m} MB"
)
def test_memory_does_not_grow_with_the_size_of_a_file(tmp_path: Path, megabytes: int) -> None:
    program = Program(tmp_path)
    program.run("init")
    source = tmp_path / "random.bin"
    with source.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(MIB))
    done = program.run("--json", "backup", source)
    assert done.json["bytes_stored"] > megabytes * MIB
    print(f"{megabytes} MB: peak {done.peak_rss / MIB:.0f} MiB")
    assert done.peak_rss < 250 * MIB
    source.unlink()
