"""What came of a restore: counts, and every path that is not as it was backed up, with the reason."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct, field

from packnback.errors import PacknbackError


class Trouble(StrEnum):
    """Why a path is not as it was backed up."""

    DAMAGE = "damage"
    """The repository does not hold it any more as it was."""
    EXISTS = "exists"
    """Something stands there already, and the overwrite policy keeps it."""
    REFUSED = "refused"
    """Writing it would lead outside the target, or through something that is not ours to remove."""
    FAILED = "failed"
    """The operating system said no."""
    ATTRIBUTE = "attribute"
    """It is there, but an owner, mode, time or extended attribute could not be set."""
    NOTE = "note"
    """Nothing is wrong; somebody may want to know."""


class Problem(Struct, frozen=True):
    """One path, without a slash in front, that is not as it was backed up."""

    path: bytes
    reason: str
    kind: Trouble
    cause: PacknbackError | None = None
    """What `reason` begins with, for whoever has better words for it; then comes `rest`."""
    rest: str = ""


class RestoreResult(Struct):
    """What a restore did (or, in a dry run, would have done)."""

    files: int = 0
    """Names of files, as a backup counts them: further names of hard-linked files, too."""
    directories: int = 0
    others: int = 0
    """Symlinks, fifos, devices."""
    bytes_restored: int = 0
    unchanged: int = 0
    """Files that stood there already, and were kept because size and time agree."""
    deleted: int = 0
    problems: list[Problem] = field(default_factory=list)

    def add(self, path: bytes, reason: str, kind: Trouble) -> None:
        """Note a problem."""
        self.problems.append(Problem(path, reason, kind))

    def add_damage(self, path: bytes, cause: PacknbackError, rest: str = "") -> None:
        """Note that something cannot be had of the repository, and what came of that."""
        self.problems.append(Problem(path, f"{cause}{rest}", Trouble.DAMAGE, cause, rest))

    @property
    def damaged(self) -> bool:
        """Whether something was lost in the repository (exit 4)."""
        return any(problem.kind == Trouble.DAMAGE for problem in self.problems)

    @property
    def incomplete(self) -> bool:
        """Whether something is not there as it was backed up (exit 3, or 4 if `damaged`)."""
        return any(problem.kind != Trouble.NOTE for problem in self.problems)
