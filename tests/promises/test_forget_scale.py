"""What forgetting costs in a long history of a large tree: nothing that grows with either, by counters."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from rehearsed import SMALL_FLOOR
from smallclient import OWNER, Sealed, SmallClient

from packnback.crypto.payload import encode_payload
from packnback.crypto.seal import body_length, object_id, seal_body
from packnback.format import record
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.forget import forget, recover
from packnback.ids import Kind, class_of
from packnback.store.check import check_structure
from packnback.store.local import create_local
from packnback.store.repository import LocalRepository

FILES_PER_PAGE = 500
CHANGED = 8
"""Files that change from one snapshot to the next."""


class ThinClient(SmallClient):
    """One object a file, padded to little, so that 100,000 of them fit a test."""

    def seal(self, kind: int, refs: Any, plaintext: bytes, level: int) -> Sealed:
        object_class, joined = class_of(kind), b"".join(refs)
        _, envelope_id, keys = self.envelope(object_class)
        made = object_id(self.key.id_key[object_class], self.key.domain_id, kind, joined, plaintext)
        padded = encode_payload(plaintext, object_class, codec_level=None, floor=SMALL_FLOOR)
        header = record.encode_header(kind, level, len(refs), body_length(padded), made, envelope_id)
        return Sealed(made, record.finish(header, joined, bytes(seal_body(keys, header, joined, padded))), level)


class History:
    """Snapshots of a tree of which a little changes each time."""

    def __init__(self, repository: LocalRepository, files: int) -> None:
        self.repository = repository
        self.client = ThinClient(repository.config.repository_id)
        self.rng = random.Random(4)
        self.pages = [self.fresh(FILES_PER_PAGE) for _ in range(files // FILES_PER_PAGE)]
        self.new = [sealed for page in self.pages for sealed in page]

    def fresh(self, count: int) -> list[Sealed]:
        return [self.client.seal(Kind.DATA, [], self.rng.randbytes(40), 0) for _ in range(count)]

    def change(self) -> None:
        self.new = self.fresh(CHANGED)
        for sealed in self.new:
            self.rng.choice(self.pages)[self.rng.randrange(FILES_PER_PAGE)] = sealed

    def back_up(self) -> None:
        with self.repository.session(self.client.certificate) as session:
            for object_class in (1, 2):
                session.put([self.client.envelope(object_class)[0]])  # type: ignore[call-overload]
            session.put([sealed.record for sealed in self.new])
            pages = []
            for page in self.pages:
                refs = sorted({sealed.id for sealed in page})
                pages.append(self.client.seal(Kind.PAGE, refs, b"page", 1))
            known = session.has([page.id for page in pages])
            session.put([page.record for page, there in zip(pages, known, strict=True) if not there])
            root = self.client.seal(Kind.TABLE, sorted(page.id for page in pages), b"root", 2)
            session.put([root.record])
            session.commit(self.client.snapshot(root.id, session.head()))
        self.change()


class Watched:
    """Blobs that note what is read."""

    def __init__(self, blobs: Any) -> None:
        self._blobs = blobs
        self.read_paths: list[str] = []

    def read(self, name: str, *range_of: Any) -> bytes:
        self.read_paths.append(name)
        return self._blobs.read(name, *range_of)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("files", "snapshots"),
    [(4_000, 30), pytest.param(100_000, 500, marks=pytest.mark.nightly)],
    ids=["4,000 files, 30 snapshots", "100,000 files, 500 snapshots"],
)
def test_forgetting_one_of_many_snapshots(repository: LocalRepository, files: int, snapshots: int) -> None:
    history = History(repository, files)
    for _ in range(snapshots):
        history.back_up()
    blobs = Watched(repository.ports.blobs)
    watched = LocalRepository(repository.location, repository.config, replace(repository.ports, blobs=blobs))
    counters = watched.ports.watch.counters
    options = CompactOptions(grace_ns=0, max_waste=1.0)
    compact(watched, options)  # merges the many small packs
    counters.records_read = counters.objects_marked = 0
    victim = repository.snapshots()[snapshots // 2].name

    def cost(what: str, work: Any) -> list[str]:
        """What is read meanwhile. The time is printed, and is that of the processor: disks differ."""
        blobs.read_paths, before = [], counters.as_dict()
        started = time.process_time()
        work()
        spent = time.process_time() - started
        done = {name: value - before[name] for name, value in counters.as_dict().items() if value != before[name]}
        print(f"{what}: {spent:.3f} s, {len(blobs.read_paths)} reads, {done}")
        assert spent < 1 or what not in ("forget", "recover")
        return list(blobs.read_paths)

    def in_a_session(work: Any) -> Any:
        def run() -> None:
            with watched.reading():
                work()

        return run

    assert cost("forget", in_a_session(lambda: forget(watched, [victim]))) == []
    assert cost("recover", in_a_session(lambda: recover(watched, [victim]))) == []
    forget(watched, [victim])
    read = cost("compact", lambda: compact(watched, options))
    assert read == [f"snapshots/{victim}"], "what goes with one of many makes no pack worth a look"
    assert cost("compact with nothing to do", lambda: compact(watched, options)) == []
    assert counters.records_read == counters.objects_marked == 0
    assert len(repository.snapshots()) == snapshots - 1
    with repository.reading():
        assert not check_structure(repository).damage
