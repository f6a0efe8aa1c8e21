"""Where a repository is: a directory, or the far end of an ssh pipe. Nobody below the command line can tell."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, cast

from msgspec import Struct

from packnback.errors import UsageError
from packnback.remote.destination import Destination

if TYPE_CHECKING:
    from packnback.events import Watch
    from packnback.gc.maintenance import Maintenance
    from packnback.remote.client import RemoteRepository
    from packnback.store.interface import Repository
    from packnback.store.repository import LocalRepository

VARIABLE = "PACKNBACK_REPO"

_SSH = re.compile(
    r"ssh://((?P<user>[^@/:\s-][^@/:\s]*)@)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[^@/:\s\[\]-][^@/:\s\[\]]*)"
    r"(:(?P<port>\d{1,5}))?(?P<path>/.*)"
)


class Directory(Struct, frozen=True):
    """A repository on a file system; `path` is absolute."""

    path: str


Location = Directory | Destination


def parse(text: str) -> Location:
    """A location from the command line. Raises UsageError for a malformed URL.

    User and host may not begin with a dash: ssh would take them for options.
    """
    if not text:
        raise UsageError("the repository's location is empty")
    if not text.startswith("ssh:"):
        if ":" in text.partition("/")[0] and not os.path.isdir(text):
            raise UsageError(
                f"{text!r} is no directory, and a repository on another machine is written ssh://[user@]host[:port]/path"
                f" (for a new directory of that name: ./{text})"
            )
        return Directory(os.path.abspath(os.path.expanduser(text)))
    match = _SSH.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not of the form ssh://[user@]host[:port]/path")
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"{text!r}: port {port} is out of range")
    return Destination(text, match["host"].strip("[]"), match["path"], match["user"], port)


def open_repository(
    location: Location, verbs: tuple[str, ...], watch: Watch, wait_s: float | None = None
) -> Repository:
    """The repository at a location; `verbs` are what will be asked of it (``put``, ``list``, ``get`` …).

    `wait_s` is how long its sessions wait for a lock, in seconds.
    """
    if isinstance(location, Directory):
        opened = open_directory(location, watch)
        if wait_s is not None:
            opened.wait_s = wait_s
        return opened
    from packnback.remote.client import open_ssh

    return open_ssh(location, verbs, watch, wait_s)


def reading(repository: Repository, wait_s: float | None = None) -> AbstractContextManager[object]:
    """Holds the repository's lock, shared, and sees to it that its index is up to date."""
    return _either(repository).reading(wait_s)


def maintenance(repository: Repository) -> Maintenance:
    """What can be done to a repository as a whole, here or by the far side."""
    from packnback.store.repository import LocalRepository

    if isinstance(repository, LocalRepository):
        from packnback.gc.maintenance import LocalMaintenance

        return LocalMaintenance(repository)
    return cast("RemoteRepository", repository)


def _either(repository: Repository) -> LocalRepository | RemoteRepository:
    """There are two kinds of repository, and this module has made them all."""
    return cast("LocalRepository | RemoteRepository", repository)


def open_directory(location: Directory, watch: Watch) -> LocalRepository:
    """The repository in a directory."""
    from packnback.store.local import open_local

    return open_local(location.path, watch)
