"""The file-system port: the few things that packnback asks of a directory tree.

It is narrow on purpose. Files are made exclusively, grow at their end and are never written again; names
are given without replacing. There is no call that overwrites, truncates or replaces, so no bug above this
line can destroy a pack: half of the crash safety is what cannot be said.

Nothing is durable until it is told to be, and the two parts of a file are told separately: `AppendFile.sync`
makes its *bytes* durable and says nothing about its name; `FileSystem.sync_dir` makes the *names* in one
directory durable (arrivals and departures) and says nothing about bytes.

Paths are relative to the root that the implementation was opened on, POSIX style, ``packs/ab/NAME.pack``;
``""`` is the root itself. `check_path` says which ones are legal. Operations raise `OSError` and its
subclasses, as the operating system tells them; turning these into errors of ours is the blob store's work.

Implementations: `packnback.store.osfs` (the real one), and a simulated disk in the tests that knows what a
power cut may leave behind. One contract test holds both to what is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview


class AppendFile(Protocol):
    """A new file, open for appending. After any failed `append` or `sync` it is poisoned: every later
    `append` and `sync` raises `errors.Poisoned`, because nobody knows which of its bytes are there.
    """

    def append(self, buffers: Sequence[Buffer]) -> None:
        """Adds all bytes of `buffers`, in order. They are readable at once, and not yet durable."""

    def sync(self) -> None:
        """Returns when every byte appended so far is durable. The file's name may still not be."""

    def close(self) -> None:
        """Gives the handle back. It neither syncs nor fails; closing twice is harmless."""


class FileSystem(Protocol):
    """A directory tree with create-exclusive, append-only files. Safe to use from several threads."""

    def create(self, path: str) -> AppendFile:
        """A new, empty file. FileExistsError if the name is taken, by whatever it is."""

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Up to `length` bytes (None: all) from `offset` on; what lies beyond the end is left out, silently.

        FileNotFoundError if there is no such file. Symbolic links are not followed: OSError (ELOOP).
        """

    def size(self, path: str) -> int:
        """Length of the file in bytes."""

    def modified_ns(self, path: str) -> int:
        """When the file was last written to, in ns, by the clock of whoever keeps the file system.

        On a network file system that is the server: one clock for all machines.
        """

    def list(self, path: str) -> list[str]:
        """Names of all entries of a directory, in no particular order. FileNotFoundError if it is missing."""

    def move(self, source: str, target: str) -> None:
        """Gives the file the name `target` and takes the name `source` away.

        Never replaces: FileExistsError if `target` is taken, and then nothing has changed. To a power cut
        this is two edits, of which either, both or none may be found afterwards.
        """

    def unlink(self, path: str) -> None:
        """Takes away the name of a file; it is durably gone only after `sync_dir` of its directory."""

    def make_dir(self, path: str) -> None:
        """A new directory. FileExistsError if the name is taken, FileNotFoundError without a parent."""

    def sync_dir(self, path: str) -> None:
        """Returns when all edits made so far to the names in this directory are durable."""


def check_path(path: str) -> str:
    """Returns `path` if it is legal: relative, no empty, ``.`` or ``..`` component, no NUL. ValueError if not."""
    if path and ("\0" in path or any(part in ("", ".", "..") for part in path.split("/"))):
        raise ValueError(f"illegal repository path: {path!r}")
    return path


def parent_of(path: str) -> str:
    """The directory in which `path` stands; ``""`` is the root."""
    return path.rpartition("/")[0]
