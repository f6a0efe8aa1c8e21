"""How many sessions one client may have open at a time, counted over all server processes.

A session takes memory for two packs, and a client can start as many servers as sshd lets it. So each connection
takes one of a few slots with its first session: an open-file-description lock (fcntl(2), F_OFD_SETLK) on one byte of
the empty file ``sessions``, at a place that follows from the client's id. Such a lock vanishes with its process,
however that ends. It is kept until then: so long the process also keeps its place among the index's readers, of
which there are some hundred for all.

The file is one of its own because flock(2) over NFS arrives here as a lock on all bytes of ``lock`` or ``gate``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from blake3 import blake3

from packnback.byte_lock import try_lock_byte
from packnback.errors import Refused, StorageFailed
from packnback.mounts import is_remote
from packnback.oserrors import reason_of
from packnback.store.layout import SESSIONS

SESSIONS_MAX = 4


class Slots:
    """The slots of one connection to the repository at `root`."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._taken: set[bytes] = set()
        self._stack = ExitStack()

    def take(self, client_id: bytes) -> None:
        """One of the client's slots, unless we have one. Raises Refused (``sessions``) when all are taken."""
        if client_id not in self._taken:
            self._stack.enter_context(session_slot(self._root, client_id))
            self._taken.add(client_id)

    def close(self) -> None:
        """Give all of them back."""
        self._stack.close()
        self._taken.clear()


@contextmanager
def session_slot(root: str, client_id: bytes) -> Iterator[None]:
    """Hold one of the client's slots in the repository at `root`. Raises Refused (``sessions``) when all are taken.

    On remote file systems, which may know no such locks, sessions are not counted.
    """
    if is_remote(root):
        yield
        return
    path = os.path.join(root, SESSIONS)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StorageFailed("lock", path, reason_of(error)) from error
    try:
        first = int.from_bytes(blake3(client_id).digest(7), "little") * SESSIONS_MAX
        if not any(try_lock_byte(fd, first + slot) for slot in range(SESSIONS_MAX)):
            raise Refused("sessions", str(SESSIONS_MAX))
        yield
    finally:
        os.close(fd)
