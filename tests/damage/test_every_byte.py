"""Every byte of a pack matters: whichever flips, `check --read-data` tells, and so does every reader that needs it.

All bytes of a small pack of each class are tried, with one flipped bit each (every bit in the nightly run). The
packs are the real client's; the disk underneath flips the bit on its way out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from damaged_repository import PUT, Found, Repo, flip_at, lost_objects
from smallclient import OWNER

from packnback.events import Watch
from packnback.ids import ObjectClass
from packnback.restore.objects import ObjectReader
from packnback.store.blobs import BlobStore
from packnback.store.fetch import Fetcher
from packnback.store.fs import Buffer
from packnback.store.index import Index
from packnback.store.interface import Fetched
from packnback.store.local import create_local
from packnback.store.scrub import scrub_pack
from packnback.store.truth import Truth


class OneFile:
    """A blob store of which one blob has other bytes; everything else is that of `inner`."""

    def __init__(self, inner: BlobStore, name: str, data: bytes) -> None:
        self._inner = inner
        self._name = name
        self.data = data

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name != self._name:
            return self._inner.read(name, offset, length)
        return self.data[offset : None if length is None else offset + length]

    def size(self, name: str) -> int:
        return len(self.data) if name == self._name else self._inner.size(name)

    def exists(self, name: str) -> bool:
        return self._inner.exists(name)

    def list(self, directory: str) -> list[str]:
        return self._inner.list(directory)

    def publish(self, name: str, buffers: Sequence[Buffer]) -> None:
        raise AssertionError("nothing is written")

    def delete(self, name: str) -> None:
        raise AssertionError("nothing is deleted")

    def barrier(self) -> None: ...

    def settle(self, directory: str) -> None: ...

    def sweep_tmp(self) -> int:
        return 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """One data pack and one meta pack with several records each, of some 20 KB."""
    home = tmp_path_factory.mktemp("tiny")
    (home / "tree" / "sub").mkdir(parents=True)
    for name in ("one", "sub/two"):
        (home / "tree" / name).write_bytes(name.encode() * 40)
    repo = Repo(home, home / "tree")
    create_local(str(repo.path), OWNER.bundle.raw).close()
    repo.backup()
    return repo


def flips(pack: Found, nightly: bool, stride: int) -> list[tuple[int, int]]:
    """(offset, bit) to be flipped."""
    rng = random.Random(len(pack.data))
    bits = range(8) if nightly else [None]
    return [
        (at, rng.randrange(8) if bit is None else bit) for at in range(0, len(pack.data), stride) for bit in bits
    ]


@pytest.mark.parametrize("object_class", ObjectClass, ids=lambda c: c.name.lower())
def test_scrub_finds_every_flipped_byte(tiny: Repo, object_class: ObjectClass, pytestconfig: pytest.Config) -> None:
    [pack] = tiny.packs(object_class)
    with tiny.opened() as repository:
        name = str(pack.path.relative_to(tiny.path))
        disk = OneFile(repository.ports.blobs, name, pack.data)
        truth = Truth(disk, repository.config.repository_id, repository.config.owner_bundle, Watch())
        assert scrub_pack(truth, pack.name).good
        tried = flips(pack, bool(pytestconfig.getoption("--nightly")), stride=1)
        assert len(tried) >= len(pack.data)
        for at, bit in tried:
            disk.data = flip_at(pack.data, at, bit)
            found = scrub_pack(truth, pack.name)
            assert not found.good, f"byte {at}, bit {bit}"
            lost = lost_objects(pack, disk.data)
            assert found.problem or found.bad.keys() == lost, f"byte {at}, bit {bit}: blames the wrong objects"


@pytest.mark.parametrize("object_class", ObjectClass, ids=lambda c: c.name.lower())
def test_readers_notice_every_flipped_byte_that_they_need(
    tiny: Repo, object_class: ObjectClass, pytestconfig: pytest.Config
) -> None:
    [pack] = tiny.packs(object_class)
    ids = [row.id for row in pack.footer.records]
    with tiny.opened() as repository, ObjectReader(repository, OWNER, workers=1) as reader:
        disk = OneFile(repository.ports.blobs, str(pack.path.relative_to(tiny.path)), pack.data)
        whole = {i: reader.open_fetched(f).plaintext for i, f in fetched(disk, repository.ports.index, ids).items()}
        for at, bit in flips(pack, bool(pytestconfig.getoption("--nightly")), stride=3):
            disk.data = flip_at(pack.data, at, bit)
            lost = lost_objects(pack, disk.data)
            for object_id, found in fetched(disk, repository.ports.index, ids).items():
                if object_id in lost:
                    assert found.problem is not None, f"byte {at}, bit {bit}"
                    assert object_id.hex() in str(found.problem), "the object is named"
                else:
                    opened = reader.open_fetched(found)
                    assert opened.problem is None and opened.plaintext == whole[object_id], f"byte {at}, bit {bit}"


def fetched(disk: OneFile, index: Index, ids: Sequence[bytes]) -> dict[bytes, Fetched]:
    return {f.id: f for f in Fetcher(disk, index, Watch()).fetch(ids)}


def test_no_byte_of_a_pack_is_outside(tiny: Repo) -> None:
    """What makes the above hold for every pack: records, footer and trailer tile the file."""
    for pack in tiny.packs():
        spans = sorted((r.offset, r.length) for r in (*pack.footer.records, *pack.footer.envelopes))
        at = 5
        for offset, length in spans:
            assert offset == at
            at += length
        assert at == pack.trailer.footer_offset
        assert PUT.domain_id[:8] == pack.footer.records[0].id[:8]


@pytest.mark.parametrize("at", [3, 700, -1, -20, -60])
def test_restore_tells_of_a_flipped_byte(tiny: Repo, tmp_path: Path, at: int) -> None:
    repo = tiny.copy(tmp_path / "copy")
    [pack] = repo.packs(ObjectClass.DATA)
    at %= len(pack.data)
    pack.path.write_bytes(flip_at(pack.data, at))
    result = repo.restore(tmp_path / "out")
    lost = lost_objects(pack, pack.path.read_bytes())
    assert {p.path for p in result.problems} == {str(repo.tree / f).lstrip("/").encode() for f in ("one", "sub/two")}
    assert all(any(i.hex() in p.reason for i in lost) for p in result.problems)
