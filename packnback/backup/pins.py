"""What this machine has seen of repositories, so that it notices when they change behind its back.

*Repository pins*: which repository stood at a place. Another one there later is an error, as nobody could tell by
its contents. *Reader pins*: the newest snapshot of each client that a reader has seen. A repository that shows an
older one later was rolled back, and one that shows none hides it. Signatures cannot tell that: every snapshot of
a rolled back repository is genuine. *Accepted gaps*: what is lost of a client's chain for good, and somebody has
looked into; told again and again, it would hide the next one.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

from blake3 import blake3
from msgspec import Struct

from packnback.backup.state_file import StateFile
from packnback.errors import StateDamaged, WrongRepository
from packnback.format import cbor
from packnback.ids import CLIENT_ID_LEN, HASH_LEN, REPOSITORY_ID_LEN
from packnback.store.interface import SnapshotInfo

Seen = Mapping[bytes, tuple[int, bytes]]
"""Client id → (sequence, snapshot id) of the newest snapshot that was seen."""


class ReaderVerdict(Enum):
    """What a client's snapshots mean to a reader who has seen some before."""

    FINE = "fine"
    ROLLED_BACK = "rolled-back"
    """The newest one is older than what was seen, or the chain is another one."""
    HIDDEN = "hidden"
    """There are none any more."""
    PRUNED = "pruned"
    """What was seen was released since, and its header is kept: somebody who may do that has forgotten it."""


class Finding(Struct, frozen=True):
    """A verdict about one client that is not FINE."""

    client_id: bytes
    verdict: ReaderVerdict
    seen_sequence: int
    found_sequence: int
    """0 if there is none."""


def pin_repository(directory: bytes, location: str, owner_id: bytes, repository_id: bytes) -> None:
    """Pin the repository at `location` at first use; raises WrongRepository if it is another one now.

    `directory` is `state_file.state_directory()`.
    """
    file = _place(directory, location, owner_id)
    with file.locked():
        pinned = file.load()
        if pinned is None:
            file.store(_pin(location, repository_id))
            return
    expected = pinned.get("repository") if type(pinned) is dict else None
    if type(expected) is not bytes or len(expected) != REPOSITORY_ID_LEN:
        raise file.damaged("it names no repository")
    if expected != repository_id:
        raise WrongRepository(location, expected.hex(), repository_id.hex())


def repin_repository(directory: bytes, location: str, owner_id: bytes, repository_id: bytes) -> bytes | None:
    """Pin what stands at `location` now, whatever did before: somebody looked into it. The id of another repository
    that was pinned until now; None if there was none, or nobody can tell.
    """
    file = _place(directory, location, owner_id)
    with file.locked():
        before = None
        with suppress(StateDamaged):
            before = file.load()
        file.store(_pin(location, repository_id))
    earlier = before.get("repository") if isinstance(before, dict) else None
    return earlier if isinstance(earlier, bytes) and earlier != repository_id else None


def _place(directory: bytes, location: str, owner_id: bytes) -> StateFile:
    place = blake3(owner_id + location.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return StateFile(posixpath.join(directory, b"places", place.encode()), b"p")


def _pin(location: str, repository_id: bytes) -> dict[str, str | bytes]:
    return {"location": location.encode("utf-8", "replace").decode(), "repository": repository_id}


def newest(snapshots: Iterable[SnapshotInfo]) -> dict[bytes, tuple[int, bytes]]:
    """The newest snapshot of each client, to be remembered."""
    found: dict[bytes, tuple[int, bytes]] = {}
    for snapshot in snapshots:
        if snapshot.sequence > found.get(snapshot.client_id, (0, b""))[0]:
            found[snapshot.client_id] = (snapshot.sequence, snapshot.id)
    return found


def compare(
    seen: Seen, snapshots: Iterable[SnapshotInfo], released: Collection[tuple[bytes, int, bytes]] = ()
) -> list[Finding]:
    """What is remarkable in `snapshots` to a reader who remembers `seen`; all of it alarming, but for PRUNED.

    A snapshot that was seen may have been released since; then the one after it, if it is still there, has to
    continue from it. If it was the newest, its header among those `released` (client id, sequence, snapshot id)
    tells pruning from rolling back; that the pruning was authorised, nothing can prove.
    """
    by_client: dict[bytes, list[SnapshotInfo]] = {}
    for snapshot in snapshots:
        by_client.setdefault(snapshot.client_id, []).append(snapshot)
    findings = []
    for client_id, (sequence, snapshot_id) in sorted(seen.items()):
        chain = by_client.get(client_id, [])
        last = max((snapshot.sequence for snapshot in chain), default=0)
        if last < sequence and (client_id, sequence, snapshot_id) in released:
            findings.append(Finding(client_id, ReaderVerdict.PRUNED, sequence, last))
        elif not chain:
            findings.append(Finding(client_id, ReaderVerdict.HIDDEN, sequence, 0))
        elif last < sequence or any(_contradicts(snapshot, sequence, snapshot_id) for snapshot in chain):
            findings.append(Finding(client_id, ReaderVerdict.ROLLED_BACK, sequence, last))
    return findings


def _contradicts(snapshot: SnapshotInfo, sequence: int, snapshot_id: bytes) -> bool:
    if snapshot.sequence == sequence:
        return snapshot.id != snapshot_id
    return snapshot.sequence == sequence + 1 and snapshot.prev != snapshot_id


class ReaderPins:
    """The newest snapshots that were seen in one repository, on disk."""

    def __init__(self, directory: bytes, repository_id: bytes) -> None:
        """`directory` is `state_file.state_directory()`."""
        self._file = StateFile(posixpath.join(directory, repository_id.hex().encode(), b"seen"), b"r")

    def load(self) -> Seen:
        """What was seen; empty at first. Raises StateDamaged."""
        value = self._file.load()
        if value is None:
            return {}
        if type(value) is not dict or not all(_is_row(key, row) for key, row in value.items()):
            raise self._file.damaged("it does not say what it should")
        return {client_id: (row[0], row[1]) for client_id, row in value.items()}

    def store(self, seen: Seen) -> None:
        """Remember `seen` besides what other readers on this machine saw, whichever is newer."""
        with self._file.locked():
            merged = dict(self.load())
            for client_id, link in seen.items():
                if link[0] > merged.get(client_id, (0, b""))[0]:
                    merged[client_id] = link
            self._file.store({client_id: list(merged[client_id]) for client_id in sorted(merged)})

    def replace(self, seen: Seen) -> None:
        """Remember `seen` and nothing else: somebody looked into an alarm and accepts what is there."""
        with self._file.locked():
            self._file.store({client_id: list(seen[client_id]) for client_id in sorted(seen)})


Gap = tuple[str, str]
"""Where a chain of snapshots is broken, and how, as `Maintenance.gaps` and `check` tell it."""


class AcceptedGaps:
    """The gaps of one repository that somebody has looked into, on disk."""

    def __init__(self, directory: bytes, repository_id: bytes) -> None:
        """`directory` is `state_file.state_directory()`."""
        self._file = StateFile(posixpath.join(directory, repository_id.hex().encode(), b"gaps"), b"g")

    def load(self) -> frozenset[Gap]:
        """Those that were accepted; none at first. Raises StateDamaged."""
        return frozenset((where, how) for where, how in self._load()["gaps"])

    def replace(self, gaps: Collection[Gap], reason: str, now_ns: int) -> None:
        """Remember that these were accepted, and no others, and why. A gap that has grown is another one."""
        with self._file.locked():
            said = [*self._load()["reasons"], [now_ns, reason.encode("utf-8", "replace").decode()]]
            self._file.store({"gaps": [list(gap) for gap in sorted(gaps)], "reasons": said})

    def strike(self, mended: Collection[Gap]) -> None:
        """Forget that these were accepted: they are no gaps any more, and would be new ones if they came back."""
        with self._file.locked():
            known = self._load()
            left = sorted({(where, how) for where, how in known["gaps"]}.difference(mended))
            self._file.store({"gaps": [list(gap) for gap in left], "reasons": known["reasons"]})

    def _load(self) -> dict[str, list[Any]]:
        value = self._file.load()
        if value is None:
            return {"gaps": [], "reasons": []}
        if (
            type(value) is not dict
            or value.keys() != {"gaps", "reasons"}
            or not _are_rows(value["gaps"], str, str)
            or not _are_rows(value["reasons"], int, str)
        ):
            raise self._file.damaged("it does not say what it should")
        return value


def _are_rows(value: object, *types: type) -> bool:
    return type(value) is list and all(type(row) is list and [*map(type, row)] == [*types] for row in value)


def _is_row(client_id: object, row: object) -> bool:
    return (
        type(client_id) is bytes
        and len(client_id) == CLIENT_ID_LEN
        and type(row) is list
        and len(row) == 2
        and cbor.is_uint(row[0])
        and type(row[1]) is bytes
        and len(row[1]) == HASH_LEN
    )
