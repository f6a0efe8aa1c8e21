"""Two backups by one key on one machine: the second begins while the first is about to publish."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memory_repository import MemoryRepository
from memory_session import MemorySession
from smallclient import OWNER

from packnback.backup.save import SaveOptions, save
from packnback.store.interface import Head


class Beside(MemoryRepository):
    """Somebody else has a turn right after the head was told for the first time."""

    other: Callable[[], None] | None = None

    @contextmanager
    def session(self, certificate: bytes) -> Iterator[MemorySession]:
        head = self.opened.head

        def then_the_other() -> Head | None:
            found = head()
            other, self.other = self.other, None
            if other is not None:
                other()
            return found

        self.opened.head = then_the_other  # type: ignore[method-assign]
        try:
            yield self.opened
        finally:
            self.opened.head = head  # type: ignore[method-assign]


def test_a_backup_that_begins_while_another_publishes_raises_no_alarm(tmp_path: Path) -> None:
    """Between the head and the memory that it is compared with, nobody may publish and remember."""
    key = OWNER.put_key("web1", 1, None)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(b"content")
    options = SaveOptions(paths=(os.fsencode(tmp_path / "data"),), state_directory=os.fsencode(tmp_path / "state"))
    repository, elsewhere = Beside(OWNER), MemoryRepository(OWNER)
    elsewhere.opened = repository.opened
    save(repository, key, options)
    waited = []

    def another_backup() -> None:
        [path] = (tmp_path / "state").glob(f"*/{key.client_id.hex()}.lock")
        with open(path, "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited.append(True)  # it has to, so its turn comes later
                return
        save(elsewhere, key, options)

    repository.other = another_backup
    assert save(repository, key, options).published is not None
    assert waited
