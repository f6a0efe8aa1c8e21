"""Where a repository is: a directory, or the far end of an ssh pipe. Nobody below the command line can tell."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from packnback.errors import Refused, UsageError

if TYPE_CHECKING:
    from packnback.events import Watch
    from packnback.store.interface import Repository
    from packnback.store.repository import LocalRepository

VARIABLE = "PACKNBACK_REPO"

_SSH = re.compile(
    r"ssh://((?P<user>[^@/:\s-][^@/:\s]*)@)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[^@/:\s\[\]-][^@/:\s\[\]]*)"
    r"(:(?P<port>\d{1,5}))?(?P<path>/.*)"
)


@dataclass(frozen=True, slots=True)
class Directory:
    """A repository on a file system; `path` is absolute."""

    path: str


@dataclass(frozen=True, slots=True)
class Ssh:
    """A repository behind ``packnback serve`` on another machine."""

    url: str
    host: str
    path: str
    user: str | None = None
    port: int | None = None


Location = Directory | Ssh


def parse(text: str) -> Location:
    """A location from the command line. Raises UsageError for a malformed URL.

    User and host may not begin with a dash: ssh would take them for options.
    """
    if not text:
        raise UsageError("the repository's location is empty")
    if not text.startswith("ssh:"):
        return Directory(os.path.abspath(os.path.expanduser(text)))
    match = _SSH.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not of the form ssh://[user@]host[:port]/path")
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"{text!r}: port {port} is out of range")
    return Ssh(text, match["host"].strip("[]"), match["path"], match["user"], port)


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
    try:
        client = import_module("packnback.remote.client")
    except ModuleNotFoundError:
        raise Refused("remote", "this build has no remote support") from None
    return cast("Repository", client.open_ssh(location, verbs, watch))


def reading(repository: Repository) -> AbstractContextManager[object]:
    """Holds what has to be held while a repository is read: here its lock, elsewhere the far side sees to it."""
    from packnback.store.repository import LocalRepository

    return repository.reading() if isinstance(repository, LocalRepository) else nullcontext()


def open_directory(location: Location, watch: Watch) -> LocalRepository:
    """The repository in a directory, for what is only done beside it. Raises UsageError for ssh locations."""
    if isinstance(location, Ssh):
        raise UsageError(f"this is done where the repository is: log in to {location.host} and run it there")
    from packnback.store.local import open_local

    return open_local(location.path, watch)
