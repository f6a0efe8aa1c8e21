"""The directories of a repository, and the only code that makes them.

`init` makes every directory at once, the 256 of ``packs/`` included, so that nobody else ever has to: a
publisher that made directories on its way would have to sync their parents too, and the one that forgot
would lose a whole directory of acknowledged packs.

Order: children, then the directory that names them, then the root. Only then may ``config`` be published,
which is what makes the place a repository: an interrupted `make_layout` leaves no repository, and is simply
run again. A new directory itself is synced by the first publish into it; before that it holds nothing.
"""

from __future__ import annotations

import re

from blake3 import blake3

from packnback.store.fs import FileSystem

CONFIG = "config"
README = "README.txt"
LOCK = "lock"
GATE = "gate"
SESSIONS = "sessions"
"""Made by `packnback.remote.slots`, in repositories that are served."""
PACKS = "packs"
SNAPSHOTS = "snapshots"
FORGOTTEN = "forgotten"
HEADERS = "headers"
CONDEMNED = "condemned"
LEASES = "leases"
QUARANTINE = "quarantine"
TMP = "tmp"

PACK_DIRECTORIES = tuple(f"{PACKS}/{first:02x}" for first in range(256))
"""Where packs stand: by the first two digits of their names."""

DIRECTORIES = (PACKS, SNAPSHOTS, FORGOTTEN, HEADERS, CONDEMNED, LEASES, QUARANTINE, TMP)
"""The directories in the root. ``index/`` is not among them: on remote file systems it lives elsewhere."""


_FOREIGN = re.compile(r"[.@#].*|lost\+found|Thumbs\.db|desktop\.ini", re.DOTALL)
_NAME_SHOWN = 60
_NAME_LIMIT = 90


def is_foreign(name: str) -> bool:
    """Whether a file or directory is what file servers and desktops leave everywhere (``@eaDir``, ``.nfs0001``).

    No version of packnback gives its files such names, so they are nobody's damage.
    """
    return _FOREIGN.fullmatch(name) is not None


def known_as(name: str) -> str:
    """The name under which the index knows a file: its own, unless it is one that packnback would never give.

    Such a file is damage, as it may be one of ours whose name was damaged; but the index cannot hold any name.
    """
    if name.isascii() and name.isprintable() and len(name) <= _NAME_LIMIT:
        return name
    raw = name.encode(errors="surrogateescape")
    return f"?{blake3(raw).hexdigest(8)}-{raw.decode('ascii', 'backslashreplace')[:_NAME_SHOWN]}"


def pack_path(name: str) -> str:
    """Where the pack with this name (64 hexadecimal digits) stands."""
    return f"{PACKS}/{name[:2]}/{name}.pack"


def pack_name(directory: str, file_name: str) -> bytes | None:
    """The 32-byte name of the pack in this file, or None for a file that cannot be a pack of this directory."""
    stem, suffix = file_name[:64], file_name[64:]
    if suffix != ".pack" or stem != stem.lower() or not directory.endswith("/" + stem[:2]):
        return None
    try:
        return bytes.fromhex(stem) if len(stem) == 64 else None
    except ValueError:
        return None


def make_layout(fs: FileSystem) -> None:
    """Makes and syncs all directories. Those that are there already (an interrupted run) are kept.

    Raises OSError, like everything of the port.
    """
    for path in (*DIRECTORIES, *PACK_DIRECTORIES):
        try:
            fs.make_dir(path)
        except FileExistsError:
            fs.list(path)  # NotADirectoryError if a file has taken the name
    fs.sync_dir(PACKS)
    fs.sync_dir("")
