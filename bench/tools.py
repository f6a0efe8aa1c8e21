"""The programs that are compared, and how each of them is asked to do the same.

Every tool works with its defaults, but for what would make it do less than the others: borg compresses with zstd 3,
as packnback and restic do, and its repository is encrypted. Every tool has a home directory and a cache of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from bench.measure import CommandFailed

Command = list[str]
_PASSWORD = "correct horse battery staple"


class Tool(ABC):
    """One tool with one new repository. Methods return commands; `directory` is where they are run."""

    name: str

    def __init__(self, work: Path) -> None:
        self.work = work
        self.repository = work / "repository"
        self.home = work / "home"
        self.home.mkdir(parents=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PACKNBACK_", "RESTIC_", "BORG_", "XDG_"))}
        self.environment = {**kept, "HOME": str(self.home), "LC_ALL": "C.UTF-8", **self._variables()}

    @classmethod
    @abstractmethod
    def installed(cls) -> bool:
        """Whether it can be run here."""

    @abstractmethod
    def _variables(self) -> dict[str, str]: ...

    @abstractmethod
    def version(self) -> Command:
        """Prints name and version."""

    @abstractmethod
    def prepare(self) -> list[Command]:
        """Make keys and a repository."""

    @abstractmethod
    def backup(self, tree: Path, snapshot: str) -> Command:
        """Back a tree up, as a snapshot that can be found by that word."""

    @abstractmethod
    def restore(self, snapshot: str, to: Path) -> Command:
        """Bring a snapshot back below an existing directory, run there."""

    @abstractmethod
    def delete(self, snapshots: Sequence[str]) -> list[Command]:
        """Give snapshots up, and their space back."""

    @abstractmethod
    def check(self) -> Command:
        """Check the structure of the repository."""

    @abstractmethod
    def check_data(self) -> Command:
        """Read and check everything in it."""

    def output(self, command: Command) -> str:
        """What a command prints, unmeasured."""
        done = subprocess.run(command, env=self.environment, cwd=self.work, capture_output=True, text=True)
        if done.returncode != 0:
            raise CommandFailed(command, done.returncode, done.stderr)
        return done.stdout


class Packnback(Tool):
    """This program, from this tree."""

    name = "packnback"

    @classmethod
    def installed(cls) -> bool:
        return True

    def _variables(self) -> dict[str, str]:
        return {"PACKNBACK_REPO": str(self.repository)}

    def _command(self, *arguments: str) -> Command:
        return [sys.executable, "-m", "packnback", *arguments]

    def _key(self, kind: str) -> str:
        return str(self.home / f"{kind}.key")

    def version(self) -> Command:
        return self._command("--version")

    def prepare(self) -> list[Command]:
        owner, put = self._key("owner"), self._key("put")
        return [
            self._command("key", "new", owner),
            self._command("key", "put", put, "--from", owner, "--client", "bench"),
            self._command("init", "--owner", owner),
        ]

    def backup(self, tree: Path, snapshot: str) -> Command:
        return self._command("-q", "backup", "-k", self._key("put"), "--tag", f"bench={snapshot}", str(tree))

    def _id(self, snapshot: str) -> str:
        listed = json.loads(self.output(self._command("--json", "list", "-k", self._key("owner"))))
        return next(str(row["id"]) for row in listed if row["tags"]["bench"] == snapshot)

    def restore(self, snapshot: str, to: Path) -> Command:
        return self._command("-q", "restore", "-k", self._key("owner"), self._id(snapshot), "--to", str(to))

    def delete(self, snapshots: Sequence[str]) -> list[Command]:
        ids = [self._id(snapshot) for snapshot in snapshots]
        return [self._command("-q", "forget", "--force", *ids), self._command("-q", "compact", "--grace", "0")]

    def check(self) -> Command:
        return self._command("-q", "check")

    def check_data(self) -> Command:
        return self._command("-q", "check", "--read-data")


class Restic(Tool):
    """restic, repository version 2."""

    name = "restic"

    @classmethod
    def installed(cls) -> bool:
        return shutil.which("restic") is not None

    def _variables(self) -> dict[str, str]:
        return {"RESTIC_REPOSITORY": str(self.repository), "RESTIC_PASSWORD": _PASSWORD}

    def version(self) -> Command:
        return ["restic", "version"]

    def prepare(self) -> list[Command]:
        return [["restic", "init", "-q", "--repository-version", "2"]]

    def backup(self, tree: Path, snapshot: str) -> Command:
        return ["restic", "backup", "-q", "--tag", snapshot, str(tree)]

    def _id(self, snapshot: str) -> str:
        listed = json.loads(self.output(["restic", "snapshots", "--json", "--tag", snapshot]))
        return str(listed[0]["id"])

    def restore(self, snapshot: str, to: Path) -> Command:
        return ["restic", "restore", "-q", self._id(snapshot), "--target", str(to)]

    def delete(self, snapshots: Sequence[str]) -> list[Command]:
        return [["restic", "forget", "-q", "--prune", *(self._id(snapshot) for snapshot in snapshots)]]

    def check(self) -> Command:
        return ["restic", "check", "-q"]

    def check_data(self) -> Command:
        return ["restic", "check", "-q", "--read-data"]


class Borg(Tool):
    """borg 1.x; the program named by $BENCH_BORG, or the one on the path."""

    name = "borg"
    _program = os.environ.get("BENCH_BORG", "borg")

    @classmethod
    def installed(cls) -> bool:
        return shutil.which(cls._program) is not None

    def _variables(self) -> dict[str, str]:
        return {
            "BORG_REPO": str(self.repository),
            "BORG_PASSPHRASE": _PASSWORD,
            "BORG_BASE_DIR": str(self.home),
            "BORG_DELETE_I_KNOW_WHAT_I_AM_DOING": "YES",
        }

    def version(self) -> Command:
        return [self._program, "--version"]

    def prepare(self) -> list[Command]:
        return [[self._program, "init", "-e", "repokey-blake2"]]

    def backup(self, tree: Path, snapshot: str) -> Command:
        return [self._program, "create", "-C", "zstd,3", f"::{snapshot}", str(tree)]

    def restore(self, snapshot: str, to: Path) -> Command:
        return [self._program, "extract", f"::{snapshot}"]

    def delete(self, snapshots: Sequence[str]) -> list[Command]:
        first, *more = snapshots
        return [[self._program, "delete", f"::{first}", *more], [self._program, "compact"]]

    def check(self) -> Command:
        return [self._program, "check"]

    def check_data(self) -> Command:
        return [self._program, "check", "--verify-data"]


TOOLS: dict[str, type[Tool]] = {tool.name: tool for tool in (Packnback, Restic, Borg)}
