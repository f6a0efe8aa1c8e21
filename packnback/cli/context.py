"""What every command shares: the options that all of them take, the output, the keys and the repository.

Where a key comes from is decided here: ``-k``, else ``PACKNBACK_KEY``, else the configuration directory
(``put.key`` for what writes, ``owner.key`` for what reads). So is whether the key's kind will do.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import click
from msgspec import Struct, field

from packnback.cli import location as locations
from packnback.cli import passphrase
from packnback.cli.location import Location
from packnback.cli.output import Output
from packnback.cli.progress import Notes, Reporter, reporter
from packnback.errors import KeyCannot, UsageError
from packnback.events import Watch

if TYPE_CHECKING:
    from packnback.crypto.keyfile import Key
    from packnback.crypto.keys import OwnerKey, PutKey, Reader
    from packnback.store.interface import Repository

KEY_VARIABLE = "PACKNBACK_KEY"


class Settings(Struct):
    """The shared options, as given before or after the command."""

    repository: str | None = None
    key: str | None = None
    passphrase_file: str | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    progress: str = "auto"


class Context(Struct):
    """One run of the program."""

    settings: Settings = field(default_factory=Settings)
    output: Output = field(default_factory=Output)
    reporter: Reporter = field(default_factory=Notes)
    watch: Watch = field(default_factory=Watch)
    when_stopped: str | None = None
    """What to do when the command is stopped from now on, by Ctrl-C, a full disk, a connection that breaks."""
    told: set[str] = field(default_factory=set)
    """Notes that are told once."""

    def begin(self) -> None:
        """Put the options into effect, once all of them are known."""
        self.output.json = self.settings.json
        self.output.quiet = self.settings.quiet
        self.reporter = reporter(self.settings.progress, quiet=self.settings.quiet)
        self.watch.progress = self.reporter

    # --- the repository ------------------------------------------------------------------------------------

    def location(self) -> Location:
        """Where the repository is. Raises UsageError when nobody said."""
        if self.settings.repository == "":  # not the one of the environment: that may be quite another one
            raise UsageError("--repo is empty: a variable that was never set?")
        named = self.settings.repository or os.environ.get(locations.VARIABLE)
        if not named:
            raise UsageError(f"which repository? Name it with --repo, or in {locations.VARIABLE}")
        return locations.parse(named)

    @contextmanager
    def repository(self, *verbs: str, wait_s: float | None = None) -> Iterator[Repository]:
        """The repository, wherever it is, closed afterwards. `wait_s`: how long its sessions wait for a lock."""
        opened = locations.open_repository(self.location(), verbs, self.watch, wait_s)
        try:
            yield opened
        finally:
            opened.close()

    @contextmanager
    def reading(self, *verbs: str, wait_s: float | None = None) -> Iterator[Repository]:
        """The repository, with its index up to date, locked against compaction."""
        with self.repository(*verbs, wait_s=wait_s) as opened, locations.reading(opened):
            yield opened

    # --- keys ----------------------------------------------------------------------------------------------

    def load(self, path: str) -> Key:
        """The key in a file. Raises KeyProblem. One that everybody on this machine can read is told of."""
        from packnback.crypto.keyfile import read_key

        key = read_key(path, passphrase.source_for(path, self.settings.passphrase_file))
        if os.path.isfile(path) and os.stat(path).st_mode & stat.S_IROTH:
            self.reporter.note(f"{path}: every user of this machine can read this key (mend: chmod 600)")
        return key

    def put_key(self) -> PutKey:
        """The key that makes backups. Raises KeyCannot for another kind."""
        from packnback.crypto.keys import PutKey

        key = self.load(self.key_path("put.key"))
        if not isinstance(key, PutKey):
            raise KeyCannot(key.kind, ["put"], "add backups")
        return key

    def reader(self, action: str = "read", *, contents: bool = False) -> Reader:
        """A key that opens listings and, with `contents`, files. Raises KeyCannot for another kind."""
        return _as_reader(self.load(self.key_path("owner.key")), action, contents=contents)

    def reader_if_any(self) -> Reader | None:
        """A key that opens listings, or None where there is none, or one that opens nothing."""
        path = self.key_path("owner.key")
        if not self.key_named() and not os.path.lexists(path):
            return None
        from packnback.crypto.keys import Reader

        key = self.load(path)
        return key if isinstance(key, Reader) else None

    def owner_key(self, path: str | None, action: str) -> OwnerKey:
        """The owner key in a file, or at its usual place. Raises KeyCannot for another kind."""
        from packnback.crypto.keys import OwnerKey

        key = self.load(path or self.key_path("owner.key"))
        if not isinstance(key, OwnerKey):
            raise KeyCannot(key.kind, ["owner"], action)
        return key

    def key_named(self) -> str | None:
        """The key file that the user named, if any."""
        if self.settings.key == "":
            raise UsageError("--key is empty: a variable that was never set?")
        return self.settings.key or os.environ.get(KEY_VARIABLE) or None

    def key_path(self, default: str) -> str:
        """The key file to use: the one named, else `default` in the configuration directory."""
        return self.key_named() or configured(default)


def configured(name: str) -> str:
    """A file in ``$XDG_CONFIG_HOME/packnback``."""
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    if not os.path.isabs(base):  # the specification: relative values are ignored
        base = os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "packnback", name)


def _as_reader(key: Key, action: str, *, contents: bool) -> Reader:
    from packnback.crypto.keys import Reader
    from packnback.ids import ObjectClass

    needed = ["owner", "restore"] if contents else ["owner", "restore", "list"]
    if not isinstance(key, Reader) or (contents and ObjectClass.DATA not in key.classes):
        raise KeyCannot(key.kind, needed, action)
    return key


def current(ctx: click.Context) -> Context:
    """The context that `packnback.cli.run` gave to this run."""
    return cast(Context, ctx.find_root().obj)
