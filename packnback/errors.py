"""The error tree. Every error carries facts, never sentences: the command line alone turns a class into
words and an exit code, and scripts get the facts as JSON. One root class, one branch per exit code.

Checks on stored or received data raise one of these; they never ``assert``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


class PacknbackError(Exception):
    """Root of all expected errors. Subclasses are dataclasses whose fields are the facts."""

    def facts(self) -> dict[str, Any]:
        """The facts by name, in the order in which they are declared; absent ones are left out."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in found.items() if value is not None}

    def __str__(self) -> str:
        shown = (f"{n}={v.hex() if isinstance(v, bytes) else v!r}" for n, v in self.facts().items())
        return f"{type(self).__name__}({', '.join(shown)})"


# --- exit 1: it failed, nothing is damaged -------------------------------------------------------------


class Failed(PacknbackError):
    """The operation could not be done; nothing was lost."""


@dataclass(eq=False)
class NotARepository(Failed):
    path: str


@dataclass(eq=False)
class AlreadyExists(Failed):
    path: str


@dataclass(eq=False)
class UnsupportedVersion(Failed):
    """Written by a newer packnback. Not damage: nothing may be deleted or rewritten because of it."""

    what: str
    found: int
    supported: int


@dataclass(eq=False)
class WrongRepository(Failed):
    """The repository at this place is not the one that was pinned at first use."""

    location: str
    expected: str
    found: str


@dataclass(eq=False)
class DiskFull(Failed):
    path: str


@dataclass(eq=False)
class StorageFailed(Failed):
    """An operating-system error on the repository's file system (not damage of what is stored)."""

    operation: str
    path: str
    reason: str


@dataclass(eq=False)
class Unreadable(StorageFailed):
    """The disk does not give back bytes that it has (a bad sector, a failed checksum of the file system): what
    was stored there is lost as long as this lasts, everything else can still be read.
    """


@dataclass(eq=False)
class BlobMissing(Failed):
    """The storage positively has no blob of this name. What that means is for the caller to say."""

    name: str


@dataclass(eq=False)
class Poisoned(Failed):
    """A sync failed earlier on this handle; nothing that is written through it can be trusted any more."""

    path: str


@dataclass(eq=False)
class SnapshotUnknown(Failed):
    wanted: str


@dataclass(eq=False)
class SnapshotAmbiguous(Failed):
    wanted: str
    candidates: list[str]


@dataclass(eq=False)
class PathUnknown(Failed):
    """A path that does not exist: on the disk, or in a snapshot."""

    path: str
    snapshot: str | None = None


@dataclass(eq=False)
class NothingToBackUp(Failed):
    paths: list[str]


@dataclass(eq=False)
class CommandFailed(Failed):
    """The command of ``backup --exec`` did not exit with 0."""

    command: str
    status: int


@dataclass(eq=False)
class ClockRefused(Failed):
    """The clock went backwards or leapt: times cannot be trusted to decide what may go."""

    now_ns: int
    newest_ns: int


@dataclass(eq=False)
class Refused(Failed):
    """A request that would do harm, refused. `reason` is a stable word, `detail` a fact for people."""

    reason: str
    detail: str | None = None


@dataclass(eq=False)
class ChainAlarm(Failed):
    """The repository's head for this client is not what the client remembers (design §2).

    `state` is one of ``rollback``, ``in-use-elsewhere``, ``fork``.
    """

    state: str
    client: str
    known_sequence: int
    found_sequence: int


@dataclass(eq=False)
class StateDamaged(Failed):
    """What this machine remembers of a repository cannot be read. The repository is not affected."""

    path: str
    why: str


@dataclass(eq=False)
class StaleSequence(Failed):
    """Another snapshot took this sequence number first: sign the next one."""

    sequence: int
    head_sequence: int


@dataclass(eq=False)
class ClientTimeRefused(Failed):
    """The client's clock and the repository's are too far apart for its snapshot to be believed."""

    client_ns: int
    server_ns: int


@dataclass(eq=False)
class QuotaExceeded(Failed):
    """The client's quota leaves no room for what it sends. All in bytes."""

    used: int
    quota: int


@dataclass(eq=False)
class RemoteFailed(Failed):
    """The far side of a connection cannot be used. `why` is a stable word, `detail` what was said about it.

    ``ssh`` (ssh itself failed), ``no-ssh`` (it cannot be started), ``not-installed``, ``connection-lost``, ``idle``,
    ``internal``.
    """

    host: str
    why: str
    detail: str | None = None


@dataclass(eq=False)
class RemoteVersion(Failed):
    """The two ends of a connection speak different versions of the protocol."""

    ours: int
    theirs: int


@dataclass(eq=False)
class ProtocolViolation(Failed):
    """The other end sent what the protocol does not allow. `what` names the frame, `why` the rule."""

    what: str
    why: str


# --- exit 2: usage ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class UsageError(PacknbackError):
    message: str


# --- exit 4: damage ----------------------------------------------------------------------------------------


class Damage(PacknbackError):
    """Stored truth is not what was once written."""


@dataclass(eq=False)
class FormatDamage(Damage):
    """Bytes that do not decode. `what` names the structure, `why` the rule that was broken."""

    what: str
    why: str
    where: str | None = None


@dataclass(eq=False)
class PackDamage(Damage):
    pack: str
    why: str
    offset: int | None = None


@dataclass(eq=False)
class ObjectMissing(Damage):
    id: bytes
    needed_by: str | None = None


@dataclass(eq=False)
class ObjectDamage(Damage):
    """An object was found, but its bytes are not what its id promises."""

    id: bytes
    why: str
    pack: str | None = None


@dataclass(eq=False)
class SnapshotDamage(Damage):
    snapshot: str
    why: str


@dataclass(eq=False)
class ConfigDamage(Damage):
    path: str
    why: str


@dataclass(eq=False)
class DamageBlocks(Damage):
    """Deleting is refused while damage stands: an unreadable object may need what looks like garbage."""

    what: str
    detail: list[str]


@dataclass(eq=False)
class IndexDamage(Damage):
    """The index is not readable. It is a view, not truth: it can be rebuilt."""

    path: str
    why: str


# --- exit 5: keys ------------------------------------------------------------------------------------------


class KeyProblem(PacknbackError):
    """No key, the wrong key, or a key file that cannot be used."""


@dataclass(eq=False)
class KeyMissing(KeyProblem):
    path: str


@dataclass(eq=False)
class KeyDamaged(KeyProblem):
    path: str
    why: str


@dataclass(eq=False)
class WrongPassphrase(KeyProblem):
    path: str


@dataclass(eq=False)
class PassphraseNeeded(KeyProblem):
    path: str


@dataclass(eq=False)
class PassphraseSourceFailed(KeyProblem):
    """Where the passphrase should have come from (a file, a command) did not give one."""

    source: str
    why: str


@dataclass(eq=False)
class WrongOwner(KeyProblem):
    """The key belongs to another owner than the repository."""

    key_owner: str
    repository_owner: str


@dataclass(eq=False)
class KeyCannot(KeyProblem):
    """The key is of a kind that cannot do this. `have` is its kind, `need` the kinds that could."""

    have: str
    need: list[str]
    action: str


@dataclass(eq=False)
class EnvelopeRejected(KeyProblem):
    """An envelope did not open: it was made for another key, or it was altered."""

    envelope: bytes
    why: str


# --- exit 6, 7 ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Locked(PacknbackError):
    path: str
    holder: str
    waited_s: float = 0.0


@dataclass(eq=False)
class NotAllowed(PacknbackError):
    """The far side refuses. `verb` is what was asked for, `why` a stable word."""

    verb: str
    why: str
