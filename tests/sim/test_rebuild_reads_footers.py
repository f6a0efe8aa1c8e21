"""A lost index costs the footers, never the data: 200 snapshots, 100,000 objects, ``index/`` deleted, then a list."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from smallclient import OWNER, SmallClient

from packnback.events import Watch
from packnback.format import record
from packnback.ids import ID_LEN, Kind, ObjectClass
from packnback.store import layout
from packnback.store.local import create_local, open_local
from packnback.store.packer import PackedEnvelope, Packer
from packnback.store.repository import LocalRepository

SEED = 3
SNAPSHOTS = 200
OBJECTS = 100_000
REFS = 250
"""Data objects under one page."""
_NEVER_OPENED = 48
"""Length of a body that nobody opens."""


def test_listing_without_an_index_reads_footers_and_snapshots_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = OBJECTS
    path = str(tmp_path / "repo")
    repository = create_local(path, OWNER.bundle.raw)
    fill(repository, objects, random.Random(SEED))
    repository.close()
    shutil.rmtree(os.path.join(path, "index"))

    watch = Watch()
    again = open_local(path, watch)
    ranges = ranges_read(again, monkeypatch)
    with again.reading():
        infos = again.snapshots()
        with again.ports.index.read() as txn:
            packs, known = txn.count("packs"), txn.count("objects")
    again.close()
    assert len(infos) == SNAPSHOTS
    assert all(info.complete for info in infos)
    assert known >= objects
    assert watch.counters.packs_listed == packs
    assert watch.counters.records_read == 0
    assert watch.counters.bytes_hashed == 0
    assert watch.counters.footers_read <= 2 * packs  # those of meta packs twice: first it is told which they are
    assert ranges, "the packs were not looked at"
    assert all(offset > 0 for _, offset in ranges), "the records of a pack were read"


def ranges_read(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(pack, offset) of every read from a pack from now on."""
    found = []
    read = repository.ports.blobs.read

    def noted(name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name.startswith(layout.PACKS):
            found.append((name, offset))
        return read(name, offset, length)

    monkeypatch.setattr(repository.ports.blobs, "read", noted)
    return found


def fill(repository: LocalRepository, objects: int, rng: random.Random) -> None:
    """Packs of records with right checksums and random bodies, published directly; then real snapshots of them."""
    client = SmallClient(repository.config.repository_id)
    pages = []
    data, meta = (Filler(repository, client, object_class) for object_class in ObjectClass)
    for _ in range(objects // REFS):
        refs = sorted(data.add(Kind.DATA, [], rng) for _ in range(REFS))
        pages.append(meta.add(Kind.PAGE, refs, rng))
    roots = [meta.add(Kind.TABLE, sorted(rng.sample(pages, min(len(pages), 40))), rng) for _ in range(SNAPSHOTS)]
    data.publish()
    meta.publish()
    with repository.session(client.certificate) as session:
        for root in roots:
            session.commit(client.snapshot(root, session.head()))


class Filler:
    """Fills packs of one class."""

    def __init__(self, repository: LocalRepository, client: SmallClient, object_class: ObjectClass) -> None:
        whole, envelope_id, _ = client.envelope(object_class)
        key = client.key
        self._facts = PackedEnvelope(
            whole, record.parse(whole).id, key.client_id, key.domain_id, key.epoch, object_class
        )
        self._repository = repository
        self._envelope_id = envelope_id
        self._packer = Packer(os.urandom)

    def add(self, kind: Kind, refs: list[bytes], rng: random.Random) -> bytes:
        """A record with a random id of the client's domain and a random body; the id."""
        made = self._facts.domain_id[:8] + rng.randbytes(ID_LEN - 8)
        level = {Kind.DATA: 0, Kind.PAGE: 1, Kind.TABLE: 2}[kind]
        header = record.encode_header(kind, level, len(refs), _NEVER_OPENED, made, self._envelope_id)
        whole = record.finish(header, b"".join(refs), rng.randbytes(_NEVER_OPENED))
        self._packer.add(whole, record.parse(whole), self._facts)
        if self._packer.full:
            self.publish()
        return made

    def publish(self) -> None:
        """The open pack, if there is anything in it."""
        if self._packer:
            built = self._packer.finish()
            self._repository.ports.blobs.publish(layout.pack_path(built.name.hex()), built.buffers)
