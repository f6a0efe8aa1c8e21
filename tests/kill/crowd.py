"""One of several real processes on a repository: ``python crowd.py ROLE NAME REPOSITORY NOTES SECONDS SEED [INDEX]``.

``python crowd.py ROLE NAME REPOSITORY NOTES SECONDS SEED [INDEX]``.

Roles: ``write`` backs up one small tree after the other and notes in NOTES/NAME what was acknowledged; ``read``
opens, reconciles, lists and reads. INDEX is another index than the repository's own, as a second machine would
have it. Whoever meets something that must not be raises, and so exits with 1.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from msgspec.structs import replace
from smallclient import SmallClient

from packnback.format import record
from packnback.store.interface import SnapshotInfo
from packnback.store.lmdb_index import LmdbIndex
from packnback.store.local import open_local
from packnback.store.repository import LocalRepository


def acknowledged(notes: Path) -> set[str]:
    """The names of all snapshots that anybody has noted so far."""
    return {line for path in notes.iterdir() for line in path.read_text().split("\n")[:-1]}


def opened(path: str, index: str | None) -> LocalRepository:
    """The repository, with its own index or another one."""
    repository = open_local(path)
    if index is None:
        return repository
    repository.ports.index.close()
    ports = replace(repository.ports, index=LmdbIndex.open(index))
    return LocalRepository(repository.location, repository.config, ports)


def listed(repository: LocalRepository, notes: Path) -> list[SnapshotInfo]:
    """All snapshots; everything that had been acknowledged before we looked is there, and whole."""
    before = acknowledged(notes)
    with repository.reading():
        infos = repository.snapshots()
    names = {info.name for info in infos}
    if not before <= names:
        raise AssertionError(f"dropped: {sorted(before - names)}")
    incomplete = [info.name for info in infos if not info.complete]
    if incomplete:
        raise AssertionError(f"incomplete: {incomplete}")
    return infos


def write(repository: LocalRepository, client: SmallClient, notes: Path, rng: random.Random) -> None:
    """One backup: some files that everybody has, some of our own."""
    files = {f"file{i}": bytes([i]) * 3000 for i in rng.sample(range(12), 6)}
    files[f"own{rng.randrange(4)}"] = rng.randbytes(500)
    with repository.session(client.certificate) as session:
        done = client.backup(session, files)
    with (notes / client.key.certificate.name).open("a") as file:
        file.write(f"{done.name}\n")
    listed(repository, notes)


def read(repository: LocalRepository, notes: Path, rng: random.Random) -> None:
    """List, and fetch the root and what it refers to of some snapshot."""
    infos = listed(repository, notes)
    if not infos:
        return
    with repository.reading():
        [root] = repository.fetch([rng.choice(infos).root])
        for fetched in (root, *repository.fetch(record.parse(root.record).ref_list)):
            if fetched.problem is not None:
                raise fetched.problem


def main(role: str, name: str, path: str, notes_path: str, seconds: str, seed: str, index: str | None = None) -> None:
    """Work until the time is over, on one handle for a while, then on a new one."""
    rng, notes = random.Random(f"{seed} {name}"), Path(notes_path)
    deadline = time.monotonic() + float(seconds)
    rounds = 0
    client = None
    while time.monotonic() < deadline:
        repository = opened(path, index)
        client = client or SmallClient(repository.config.repository_id, name, group="crowd")
        for _ in range(rng.randrange(1, 6)):
            if role == "write":
                write(repository, client, notes, rng)
            else:
                read(repository, notes, rng)
            rounds += 1
        repository.close()
    print(rounds)


if __name__ == "__main__":
    main(*sys.argv[1:])
