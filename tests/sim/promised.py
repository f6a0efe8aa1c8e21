"""What a scenario was promised: the model that a repository is held to after a crash.

A scenario says here what it is about to do, does it, and says what was acknowledged. Between the two, both
outcomes are allowed; afterwards only one is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rehearsed import RehearsedClient
from smallclient import Sealed

from packnback.gc import forget as gc_forget
from packnback.store.interface import Committed
from packnback.store.repository import LocalRepository

Files = dict[str, bytes]


@dataclass
class Promises:
    """See the module's docstring. Snapshots go by their file names."""

    trees: dict[bytes, dict[bytes, Sealed]] = field(default_factory=dict)
    """Root → every object under it: of all backups that were begun."""
    records: dict[bytes, set[bytes]] = field(default_factory=dict)
    """Object → its record, as each client that has it would seal it."""
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    """Snapshot → its root."""
    ids: dict[str, bytes] = field(default_factory=dict)
    """Snapshot → its id, which is the hash of its header."""
    forgotten: dict[str, bool] = field(default_factory=dict)
    """Snapshot → whether it is forgotten; those being changed right now are not in here."""
    releasing: set[str] = field(default_factory=set)
    """Snapshots that a compaction may release, whether it was acknowledged or not."""
    released: set[str] = field(default_factory=set)
    """Snapshots whose release was acknowledged: they never come back."""
    deleting: bool = False
    """Whether packs may be deleted: an older index may then name packs that are gone."""
    lost: set[bytes] = field(default_factory=set)
    """Objects that damage has taken."""
    put_aside: dict[str, bytes] = field(default_factory=dict)
    """Damaged packs, by name, that may be moved to quarantine, never deleted."""
    repaired: bool = False
    """Whether a repair was acknowledged: the damaged packs are not in ``packs/`` any more."""
    one_writer_counts: bool = True
    """Whether all writers share an index. Two machines that each stamp their own receipts may draw one number."""
    may_lack: bool = False
    """Whether a writer was stopped for longer than packs stay condemned. What he published, and nobody acknowledged,
    may lack something then."""
    stands: bool = True
    """Whether nothing that was acknowledged relies on condemned packs alone. (Two compactions at once may condemn
    each other's copies, and an old listing may not show a list.)"""
    initialised: bool = True
    """Whether ``init`` was acknowledged."""

    def copy(self) -> Promises:
        """A copy that can be changed on its own."""
        return replace(
            self,
            trees=dict(self.trees),
            records={object_id: set(records) for object_id, records in self.records.items()},
            acknowledged=dict(self.acknowledged),
            ids=dict(self.ids),
            forgotten=dict(self.forgotten),
            releasing=set(self.releasing),
            released=set(self.released),
            lost=set(self.lost),
            put_aside=dict(self.put_aside),
        )

    def expect(self, client: RehearsedClient, files: Files) -> bytes:
        """A backup of these files is begun; its root."""
        root = client.objects(files)[1].id
        self.trees[root] = client.tree(files)
        for sealed in self.trees[root].values():
            self.records.setdefault(sealed.id, set()).add(sealed.record)
        return root

    def acknowledge(self, done: Committed, root: bytes) -> None:
        """A backup was acknowledged."""
        self.acknowledged[done.name] = root
        self.ids[done.name] = done.id

    def backup(self, repository: LocalRepository, client: RehearsedClient, files: Files, *, flags: int = 0) -> str:
        """A whole backup, in a session of its own; the snapshot's name."""
        root = self.expect(client, files)
        with repository.session(client.certificate, wait_s=0) as session:
            done = client.backup(session, files, flags=flags)
        self.acknowledge(done, root)
        return done.name

    def forget(self, repository: LocalRepository, names: Iterable[str]) -> None:
        """`packnback.gc.forget.forget`, under the lock."""
        names = list(names)
        for name in names:
            self.forgotten.pop(name, None)
        with repository.reading(wait_s=0):
            gc_forget.forget(repository, names, force=True)
        self.forgotten.update(dict.fromkeys(names, True))

    def recover(self, repository: LocalRepository, names: Iterable[str]) -> None:
        """`packnback.gc.forget.recover`, under the lock."""
        names = list(names)
        for name in names:
            self.forgotten.pop(name, None)
        with repository.reading(wait_s=0):
            gc_forget.recover(repository, names)
        self.forgotten.update(dict.fromkeys(names, False))

    def holds(self, name: str) -> bool:
        """Whether a snapshot that is there must be whole."""
        return name in self.acknowledged or not self.may_lack

    @property
    def protected(self) -> dict[str, bytes]:
        """Acknowledged snapshots that must be there: all that no compaction may have released."""
        return {name: root for name, root in self.acknowledged.items() if name not in self.releasing}
