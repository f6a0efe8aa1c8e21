"""A clock that was wrong once, and numbers that somebody made up: neither may be the end of a repository."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from smallclient import OWNER, SmallClient

from packnback.errors import ClockRefused
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.forget import forget
from packnback.store.check import check_structure
from packnback.store.interface import Head
from packnback.store.local import create_local
from packnback.store.repository import LocalRepository

YEAR = 365 * 86_400 * 10**9


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


def back_up(repository: LocalRepository, name: str, content: bytes) -> None:
    client = SmallClient(repository.config.repository_id, name)
    with repository.session(client.certificate) as session:
        client.backup(session, {"file": content})


def test_a_receipt_from_the_future_can_be_given_up(repository: LocalRepository) -> None:
    """A laptop whose clock stood in 2099 backed up once; everybody else goes on after its snapshot is given up."""
    back_up(repository, "honest", b"1")
    ahead = repository.ports.now_ns() + 70 * YEAR
    back_up(
        LocalRepository(repository.location, repository.config, replace(repository.ports, now_ns=lambda: ahead)),
        "laptop",
        b"2",
    )
    with pytest.raises(ClockRefused):
        back_up(repository, "honest", b"3")
    last = repository.snapshots()[-1]
    forget(repository, [last.name], force=True)
    kept = compact(repository, CompactOptions(force=True))
    assert not kept.released, "the grace period holds, whatever the clock said"
    assert compact(repository, CompactOptions(force=True, grace_ns=0)).released == [last.name]
    back_up(repository, "honest", b"3")
    back_up(repository, "laptop", b"4")
    infos = repository.snapshots()
    assert [i.receipt.counter for i in infos] == [1, 3, 4] and infos[-1].sequence == 2
    assert all(i.receipt.time_ns < ahead for i in infos)
    compact(repository, CompactOptions(grace_ns=0))
    assert not check_structure(repository).damage


def test_a_number_that_leaps_is_one_gap(repository: LocalRepository, tmp_path: Path) -> None:
    """Whoever holds a put key can sign any number; a file of it, put into the directory, must not hang a check."""
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        done = client.backup(session, {"file": b"content"})
        root = client.objects({"file": b"content"})[1].id
        leap = client.snapshot(root, Head((1 << 62) - 1, done.id, 0, 1))
    stored = (tmp_path / "repo" / "snapshots" / done.name).read_bytes()
    name = f"{client.key.client_id.hex()}-{1 << 62:016x}.snap"
    (tmp_path / "repo" / "snapshots" / name).write_bytes(leap + stored[-48:])
    with repository.reading():
        [gap] = check_structure(repository).damage
    assert gap.kind == "chain" and gap.why.endswith(f"{(1 << 62) - 1:016x}")
