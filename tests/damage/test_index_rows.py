"""One row of the index is not what was written: a bit of its key or value is another one, or one of them is shorter.

Whatever the row, nobody is told of an internal error: the index is noticed to be damaged, if not by what is tried
then by `check`, thrown away and made anew, and nothing is lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from smallclient import OWNER, SmallClient
from test_bulk import publish

from packnback.errors import IndexDamage
from packnback.format import rows
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.condemned_lists import publish_list
from packnback.gc.forget import forget, recover
from packnback.gc.maintenance import CheckOptions, LocalMaintenance
from packnback.ids import Kind
from packnback.store.check import index_difference
from packnback.store.index import WriteTxn
from packnback.store.local import create_local, open_local
from packnback.store.reconcile import reconcile
from packnback.store.repository import LocalRepository

FILES = {f"file{i}": bytes([i]) * (1000 * i) for i in range(1, 9)}
Row = tuple[bytes, bytes]


def flipped(random: Random, data: bytes, mask: int = 0) -> bytes:
    changed = bytearray(data)
    changed[random.randrange(len(data))] ^= mask or 1 << random.randrange(8)
    return bytes(changed)


CHANGES: dict[str, Callable[[Random, bytes, bytes], Row]] = {
    "a bit of the key": lambda random, key, value: (flipped(random, key), value),
    "the highest bit of a byte of the key": lambda random, key, value: (flipped(random, key, 0x80), value),
    "a shorter key": lambda random, key, value: (key[:-1] or b"?", value),
    "a longer key": lambda random, key, value: (key + b"?", value),
    "a bit of the value": lambda random, key, value: (key, flipped(random, value)),
    "a shorter value": lambda random, key, value: (key, value[:-1]),
    "no value": lambda random, key, value: (key, b""),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Live, forgotten and released snapshots of two clients, copies, an object without what it needs, a damaged file,
    a condemned pack: rows in every table.
    """
    root = tmp_path_factory.mktemp("index") / "repo"
    repository = create_local(str(root), OWNER.bundle.raw)
    clients = [SmallClient(repository.config.repository_id, name) for name in ("web1", "web2")]
    for turn in range(4):
        for client in clients:
            back_up(repository, client, turn)
    infos = repository.snapshots()
    forget(repository, [info.name for info in infos[:2]], force=True)
    compact(repository, CompactOptions(grace_ns=0, force=True))
    forget(repository, [infos[2].name], force=True)
    tag = clients[0].key.domain_id[:8]
    for _ in range(2):
        publish(repository, clients[0], Kind.DATA, 0, [tag + bytes([n]) * 24 for n in range(3)])
    publish(repository, clients[0], Kind.TABLE, 2, [tag + b"\xee" * 24])
    publish(repository, clients[0], Kind.DATA, 0, [tag + b"condemned, and not needed"[:24]])
    newest = max((root / "packs").rglob("*.pack"), key=lambda path: path.stat().st_mtime_ns)
    name = infos[3].name.replace("0000000000000002", "00000000000000ff")
    (root / "snapshots" / name).write_bytes(b"no snapshot")
    with repository.reading():
        publish_list(repository, [bytes.fromhex(newest.stem)])
    with repository.reading(), repository.read() as txn:
        assert {table for table in rows.TABLES if not txn.count(table)} == set()
    repository.close()
    return root


def back_up(repository: LocalRepository, client: SmallClient, turn: int) -> None:
    with repository.session(client.certificate) as session:
        client.backup(session, FILES | {f"new{turn}": bytes([turn]) * 700})


def used(root: Path) -> None:
    """Everything that looks into the index, and what changes it."""
    repository = open_local(str(root))
    try:
        with repository.reading():
            infos = repository.snapshots()
            if not all(info.complete for info in infos):
                raise IndexDamage("objects", "an object whose row is another's is told to be missing")
            found = {f.id: f.problem for f in repository.fetch([info.root for info in infos])}
            assert set(found.values()) == {None}
        maintenance = LocalMaintenance(repository)
        with repository.reading():
            maintenance.stats()
            maintenance.held_alone()
            maintenance.gaps()
            maintenance.released()
        back_up(repository, SmallClient(repository.config.repository_id, "web2"), 99)
        with repository.reading():
            forgotten = [info.name for info in repository.snapshots() if info.forgotten_ns is not None]
            recover(repository, forgotten)
            forget(repository, forgotten, force=True)
    finally:
        repository.close()


def checked(root: Path) -> None:
    repository = open_local(str(root))
    try:
        LocalMaintenance(repository).check(CheckOptions())
        with repository.ports.scratch_index() as fresh:
            reconcile(repository.truth, fresh)
            assert index_difference(repository.ports.index, fresh) is None
    finally:
        repository.close()


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("table", rows.TABLES)
def test_a_row_that_is_not_what_was_written(pristine: Path, tmp_path: Path, table: str, how: str) -> None:
    seed = f"{table}, {how}"
    random = Random(seed)
    print("seed", seed)

    def change(txn: WriteTxn) -> None:
        key, value = random.choice(list(txn.scan(table)))
        txn.delete(table, key)
        txn.put(table, *CHANGES[how](random, key, value))

    for attempt in range(3):
        root = tmp_path / f"repo{attempt}"
        shutil.copytree(pristine, root)
        repository = open_local(str(root))
        repository.ports.index.write(change)
        repository.close()
        try:
            used(root)
        except IndexDamage:
            checked(root)
            used(root)
        checked(root)
