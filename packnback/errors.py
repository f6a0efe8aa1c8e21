"""The error tree. Every error carries facts, never sentences: the command line alone turns a class into
words and an exit code, and scripts get the facts as JSON. One root class, one branch per exit code.

Checks on stored or received data raise one of these; they never ``assert``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, dataclass_transform


@dataclass_transform(eq_default=False)
class PacknbackError(Exception):
    """Root of all expected errors. Subclasses declare their facts as dataclasses do, and are made in the same way.

    They are no dataclasses, as code would have to be compiled for each of forty whenever the program starts.
    """

    DECLARED: ClassVar[Mapping[str, str]] = {}
    """The facts in order, each with its type as it is written here."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.DECLARED = {**cls.DECLARED, **cls.__annotations__}

    def __init__(self, *facts: Any, **named: Any) -> None:
        """Raises TypeError unless each fact that has no default is given, once, and nothing else is."""
        cls = type(self)
        given = dict(zip(self.DECLARED, facts, strict=False))
        absent = self.DECLARED.keys() - given.keys() - named.keys()
        excess = len(given) < len(facts) or named.keys() - (self.DECLARED.keys() - given.keys())
        if excess or not all(hasattr(cls, name) for name in absent):
            raise TypeError(f"{cls.__name__}({', '.join(self.DECLARED)}) made of {facts} and {named}")
        for name, fact in (given | named).items():
            setattr(self, name, fact)

    def facts(self) -> dict[str, Any]:
        """The facts by name, in the order in which they are declared; absent ones are left out."""
        found = {name: getattr(self, name) for name in self.DECLARED}
        return {name: value for name, value in found.items() if value is not None}

    def __repr__(self) -> str:
        shown = (f"{n}={v.hex() if isinstance(v, bytes) else v!r}" for n, v in self.facts().items())
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__


# --- exit 1: it failed, nothing is damaged -------------------------------------------------------------


class Failed(PacknbackError):
    """The operation could not be done; nothing was lost."""


class NotARepository(Failed):
    path: str


class AlreadyExists(Failed):
    path: str


class UnsupportedVersion(Failed):
    """Written by a newer packnback. Not damage: nothing may be deleted or rewritten because of it."""

    what: str
    found: int
    supported: int


class WrongRepository(Failed):
    """The repository at this place is not the one that was pinned at first use."""

    location: str
    expected: str
    found: str


class DiskFull(Failed):
    path: str


class StorageFailed(Failed):
    """An operating-system error on the repository's file system (not damage of what is stored)."""

    operation: str
    path: str
    reason: str


class Unreadable(StorageFailed):
    """The disk does not give back bytes that it has (a bad sector, a failed checksum of the file system): what
    was stored there is lost as long as this lasts, everything else can still be read.
    """


class BlobMissing(Failed):
    """The storage positively has no blob of this name. What that means is for the caller to say."""

    name: str


class Poisoned(Failed):
    """A sync failed earlier on this handle; nothing that is written through it can be trusted any more."""

    path: str


class SnapshotUnknown(Failed):
    wanted: str
    unfinished: int | None = None
    """For ``latest``: so many there are of backups that did not come to their end, and no others."""


class SnapshotAmbiguous(Failed):
    wanted: str
    candidates: list[str]


class PathUnknown(Failed):
    """A path that does not exist: on the disk, or in a snapshot."""

    path: str
    snapshot: str | None = None


class NothingToBackUp(Failed):
    paths: list[str]


class CommandFailed(Failed):
    """The command of ``backup --exec`` did not exit with 0."""

    command: str
    status: int


class ClockRefused(Failed):
    """The clock went backwards or leapt: times cannot be trusted to decide what may go."""

    now_ns: int
    newest_ns: int


class Refused(Failed):
    """A request that would do harm, refused. `reason` is a stable word, `detail` a fact for people."""

    reason: str
    detail: str | None = None


class ChainAlarm(Failed):
    """The repository's head for this client is not what the client remembers (`packnback.backup.state`).

    `state` is one of ``rollback``, ``in-use-elsewhere``, ``fork``.
    """

    state: str
    client: str
    known_sequence: int
    found_sequence: int


class StateUnusable(StorageFailed):
    """This machine has no place to remember in what it has seen of a repository. The repository is not affected."""


class StateDamaged(Failed):
    """What this machine remembers of a repository cannot be read. The repository is not affected."""

    path: str
    why: str


class StaleSequence(Failed):
    """Another snapshot took this sequence number first: sign the next one."""

    sequence: int
    head_sequence: int


class ClientTimeRefused(Failed):
    """The client's clock and the repository's are too far apart for its snapshot to be believed."""

    client_ns: int
    server_ns: int


class QuotaExceeded(Failed):
    """The client's quota leaves no room for what it sends. All in bytes."""

    used: int
    quota: int


class RemoteFailed(Failed):
    """The far side of a connection cannot be used. `why` is a stable word, `detail` what was said about it.

    ``ssh`` (ssh itself failed), ``no-ssh`` (it cannot be started), ``not-installed``, ``connection-lost``, ``idle``,
    ``internal``. `address` is what ssh was given to find it.
    """

    host: str
    why: str
    detail: str | None = None
    address: str | None = None


class RemoteVersion(Failed):
    """The two ends of a connection speak different versions of the protocol."""

    ours: int
    theirs: int


class ProtocolViolation(Failed):
    """The other end sent what the protocol does not allow. `what` names the frame, `why` the rule."""

    what: str
    why: str


# --- exit 2: usage ---------------------------------------------------------------------------------------


class UsageError(PacknbackError):
    message: str


# --- exit 4: damage ----------------------------------------------------------------------------------------


class Damage(PacknbackError):
    """Stored truth is not what was once written."""


class FormatDamage(Damage):
    """Bytes that do not decode. `what` names the structure, `why` the rule that was broken."""

    what: str
    why: str
    where: str | None = None


class PackDamage(Damage):
    pack: str
    why: str
    offset: int | None = None


class ObjectMissing(Damage):
    id: bytes
    needed_by: str | None = None


class ObjectDamage(Damage):
    """An object was found, but its bytes are not what its id promises."""

    id: bytes
    why: str
    pack: str | None = None


class SnapshotDamage(Damage):
    snapshot: str
    why: str


class ConfigDamage(Damage):
    path: str
    why: str


class DamageBlocks(Damage):
    """Deleting is refused while damage stands: an unreadable object may need what looks like garbage."""

    what: str
    detail: list[str]


class IndexDamage(Damage):
    """The index is not readable. It is a view, not truth: it can be rebuilt."""

    path: str
    why: str


# --- exit 5: keys ------------------------------------------------------------------------------------------


class KeyProblem(PacknbackError):
    """No key, the wrong key, or a key file that cannot be used."""


class KeyMissing(KeyProblem):
    path: str


class KeyDamaged(KeyProblem):
    path: str
    why: str


class WrongPassphrase(KeyProblem):
    path: str


class PassphraseNeeded(KeyProblem):
    path: str


class PassphraseSourceFailed(KeyProblem):
    """Where the passphrase should have come from (a file, a command) did not give one."""

    source: str
    why: str


class WrongOwner(KeyProblem):
    """The key belongs to another owner than the repository."""

    key_owner: str
    repository_owner: str


class KeyCannot(KeyProblem):
    """The key is of a kind that cannot do this. `have` is its kind, `need` the kinds that could."""

    have: str
    need: list[str]
    action: str


class EnvelopeRejected(KeyProblem):
    """An envelope did not open: it was made for another key, or it was altered."""

    envelope: bytes
    why: str


# --- exit 6, 7 ------------------------------------------------------------------------------------------------


class Locked(PacknbackError):
    path: str
    holder: str
    waited_s: float = 0.0


class NotAllowed(PacknbackError):
    """The far side refuses. `verb` is what was asked for, `why` a stable word."""

    verb: str
    why: str
