"""What is done to a repository as a whole, without a key: one interface for a directory and for a far machine.

The command line, and a server on behalf of a client elsewhere, look after a repository through `Maintenance`.
Here it is done to a directory; `packnback.remote.client` asks the far side to do it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct, field

from packnback.format import rows
from packnback.gc.compact import compact
from packnback.gc.compaction import Compacted, CompactOptions
from packnback.gc.forget import check_clock, forget, recover
from packnback.gc.whatif import exclusive_bytes
from packnback.store.check import CheckReport, chain_findings, check_structure, file_findings
from packnback.store.damage import Finding, suspects_of
from packnback.store.repair import Repaired, repair
from packnback.store.repository import LocalRepository
from packnback.store.scrub import scrub
from packnback.store.sizes import Stats, stats


class CheckOptions(Struct, frozen=True):
    """What to check. `bad_ids` (with `repair`) are objects that a reader with a key has found wanting."""

    read_data: bool = False
    sample_percent: float = 100.0
    repair: bool = False
    bad_ids: Sequence[bytes] = ()
    wait_s: float = 600.0


class Checked(Struct):
    """What a check found; with a repair, what that did and what is wrong still."""

    report: CheckReport
    names: dict[str, str] = field(default_factory=dict)
    """Snapshot ids (hexadecimal) by the names of their files, which is how findings name them."""
    repaired: Repaired | None = None
    remaining: list[Finding] = field(default_factory=list)
    """Damage that the repair has left."""

    @property
    def standing(self) -> list[Finding]:
        """Damage that stands now."""
        return self.report.damage if self.repaired is None else self.remaining


class Released(Struct, frozen=True):
    """A snapshot that is gone, by retention or by somebody's wish."""

    client_id: bytes
    sequence: int
    id: bytes


class Maintenance(Protocol):
    """See the module's docstring. Whoever uses it holds the lock for reading, but for `compact` and `check`."""

    def clock(self, *, force: bool) -> int:
        """The repository's time in ns. Raises ClockRefused when it cannot be believed, unless `force`."""

    def forget(self, names: Sequence[str], *, force: bool) -> list[str]:
        """See `packnback.gc.forget.forget`."""

    def recover(self, names: Sequence[str]) -> list[str]:
        """See `packnback.gc.forget.recover`."""

    def compact(self, options: CompactOptions) -> Compacted:
        """See `packnback.gc.compact.compact`. The caller holds no lock."""

    def check(self, options: CheckOptions) -> Checked:
        """Compare truth and index, read data, repair. The caller holds no lock."""

    def stats(self) -> Stats:
        """Sizes."""

    def held_alone(self) -> dict[str, int]:
        """For each snapshot, by the name of its file, the bytes that would go with it."""

    def gaps(self) -> list[Finding]:
        """Where history has holes: breaks in the clients' chains, snapshot files that cannot be read."""

    def released(self) -> list[Released]:
        """Every snapshot that was released and whose header is kept."""


class LocalMaintenance:
    """`Maintenance` of a repository in a directory."""

    def __init__(self, repository: LocalRepository) -> None:
        self._repository = repository

    def clock(self, *, force: bool) -> int:
        """See `Maintenance.clock`."""
        return check_clock(self._repository, force)

    def forget(self, names: Sequence[str], *, force: bool) -> list[str]:
        """See `Maintenance.forget`."""
        return forget(self._repository, names, force=force)

    def recover(self, names: Sequence[str]) -> list[str]:
        """See `Maintenance.recover`."""
        return recover(self._repository, names)

    def compact(self, options: CompactOptions) -> Compacted:
        """See `Maintenance.compact`."""
        return compact(self._repository, options)

    def check(self, options: CheckOptions) -> Checked:
        """See `Maintenance.check`. Repairs hold the lock exclusively, after the check has let go of it."""
        repository = self._repository
        with repository.reading(options.wait_s):
            report = check_structure(repository)
            report.damage += scrub(repository, options.sample_percent if options.read_data else 0.0)
            names = {info.name: info.id.hex() for info in repository.snapshots()}
        checked = Checked(report, names)
        if options.repair:
            with repository.ports.locks.exclusive(options.wait_s):
                repository.rebuild()
                checked.repaired = repair(repository, options.bad_ids, suspects_of(report.damage))
                checked.remaining = check_structure(repository).damage
        return checked

    def stats(self) -> Stats:
        """See `Maintenance.stats`."""
        return stats(self._repository)

    def held_alone(self) -> dict[str, int]:
        """See `Maintenance.held_alone`."""
        index = self._repository.ports.index
        return {info.name: exclusive_bytes(index, info.name) for info in self._repository.snapshots()}

    def gaps(self) -> list[Finding]:
        """See `Maintenance.gaps`."""
        with self._repository.read() as txn:
            unreadable = [finding for finding in file_findings(txn) if finding.kind == "snapshot"]
            return unreadable + chain_findings(txn)

    def released(self) -> list[Released]:
        """See `Maintenance.released`."""
        with self._repository.read() as txn:
            kept = [
                (rows.split_released_key(key), rows.decode_released(key, value))
                for key, value in txn.scan("released")
            ]
        return [Released(client_id, sequence, row.id) for (client_id, sequence, _), row in kept]
