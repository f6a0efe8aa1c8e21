"""A directory, a fifo or a link under a name of ours: damage of that one name, left for a person to look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from smallclient import OWNER, SmallClient

from packnback.errors import DamageBlocks
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.maintenance import CheckOptions, LocalMaintenance
from packnback.store.local import create_local, open_local
from packnback.store.repository import LocalRepository

FILES = {f"file{i}": bytes([i]) * (1000 * i) for i in range(1, 9)}
WHERE = {
    "snapshot": f"snapshots/{'a' * 32}-{1:016x}.snap",
    "header batch": f"headers/{'a' * 64}",
    "condemned list": f"condemned/{'a' * 64}",
    "pack": f"packs/ab/ab{'0' * 62}.pack",
}
KINDS: dict[str, Callable[[Path], None]] = {
    "directory": lambda path: path.mkdir(),
    "fifo": os.mkfifo,
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to a file": lambda path: path.symlink_to("/etc/passwd"),
}


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    back_up(opened, b"1")
    yield opened
    opened.close()


def back_up(repository: LocalRepository, text: bytes) -> None:
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        client.backup(session, FILES | {"more": text})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("index", ["kept", "lost"])
def test_everything_else_goes_on(repository: LocalRepository, where: str, kind: str, index: str) -> None:
    path = Path(repository.location, WHERE[where])
    KINDS[kind](path)
    if index == "lost":
        repository.rebuild()
    with repository.reading():
        [info] = repository.snapshots()
        assert info.complete
        assert [fetched.problem for fetched in repository.fetch([info.root])] == [None]
    back_up(repository, b"2")
    with pytest.raises(DamageBlocks):
        compact(repository, CompactOptions(grace_ns=0))
    for repair in (False, True):
        report = LocalMaintenance(repository).check(CheckOptions(repair=repair)).report
        assert path.name[:64] in str(report.damage)
    assert os.path.lexists(path)
    (path.rmdir if kind == "directory" else path.unlink)()
    compact(repository, CompactOptions(grace_ns=0))
    assert LocalMaintenance(repository).check(CheckOptions(read_data=True)).report.damage == []
    again = open_local(repository.location)
    with again.reading():
        assert len(again.snapshots()) == 2
    again.close()
