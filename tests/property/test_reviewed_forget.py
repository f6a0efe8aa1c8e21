"""Forgetting beside others who forget: together they must not do what each of them alone would refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from smallclient import OWNER, SmallClient

from packnback.errors import Refused
from packnback.gc.forget import forget, recover
from packnback.store.local import create_local
from packnback.store.repository import LocalRepository


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


def back_up(repository: LocalRepository, *trees: dict[str, bytes]) -> list[str]:
    client = SmallClient(repository.config.repository_id)
    for tree in trees:
        with repository.session(client.certificate) as session:
            client.backup(session, tree)
    return [info.name for info in repository.snapshots()]


class Slow:
    """Blobs, or an index, before whose first write somebody else does something."""

    def __init__(self, real: Any, happen: Any) -> None:
        self._real = real
        self._happen = happen

    def __getattr__(self, name: str) -> Any:
        if name in ("write", "publish", "delete") and self._happen is not None:
            happen, self._happen = self._happen, None
            happen()
        return getattr(self._real, name)


def test_two_who_forget_at_the_same_time_do_not_empty_a_client(repository: LocalRepository) -> None:
    first, second = back_up(repository, {"a": b"1"}, {"a": b"2"})
    ports = replace(repository.ports, index=Slow(repository.ports.index, lambda: forget(repository, [first])))
    slow = LocalRepository(repository.location, repository.config, ports)
    with pytest.raises(Refused):
        forget(slow, [second])
    assert [info.forgotten_ns is None for info in repository.snapshots()] == [False, True]


def test_two_who_recover_at_the_same_time(repository: LocalRepository) -> None:
    first, _ = back_up(repository, {"a": b"1"}, {"a": b"2"})
    forget(repository, [first])
    ports = replace(repository.ports, blobs=Slow(repository.ports.blobs, lambda: recover(repository, [first])))
    slow = LocalRepository(repository.location, repository.config, ports)
    assert recover(slow, [first]) == [first]
    assert [info.forgotten_ns for info in repository.snapshots()] == [None, None]


def test_a_damaged_snapshot_does_not_stand_in_for_the_last_good_one(
    repository: LocalRepository, tmp_path: Path
) -> None:
    before = set((tmp_path / "repo" / "packs").rglob("*.pack"))
    back_up(repository, {"a": b"1"})
    packs = set((tmp_path / "repo" / "packs").rglob("*.pack")) - before
    hurt, good = back_up(repository, {"b": b"2"})
    for pack in packs:
        pack.unlink()
    repository.reconcile()
    assert [info.complete for info in repository.snapshots()] == [False, True]
    with pytest.raises(Refused):
        forget(repository, [good])
    assert forget(repository, [hurt])
    with pytest.raises(Refused):
        forget(repository, [good])
    assert forget(repository, [good], force=True)
