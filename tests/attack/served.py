"""A server in a thread of this process, and what talks to it: the real client, or one that keeps no rules."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smallclient import SmallClient

from packnback.errors import PacknbackError, RemoteFailed
from packnback.events import Watch
from packnback.remote import failures, frames
from packnback.remote.channel import Channel
from packnback.remote.client import RemoteRepository
from packnback.remote.frames import Frame, Side
from packnback.remote.intake import Bounds
from packnback.remote.protocol import Connection
from packnback.remote.server import Role, Server
from packnback.remote.table import SPECS
from packnback.store.interface import Committed, Session
from packnback.store.local import open_local

PLENTY = 1 << 50


class Pipes:
    """Two pipes; a channel for each end. The server waits `patience_s` for somebody to read."""

    def __init__(self, patience_s: float | None = None) -> None:
        to_server, from_client = os.pipe()
        to_client, from_server = os.pipe()
        self.client = Channel(to_client, from_client)
        self.server = Channel(to_server, from_server, patience_s)


class PipeTransport:
    """Leads the real client to a server thread."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def lost(self) -> RemoteFailed:
        return RemoteFailed("far", "connection-lost")

    def hang_up(self) -> None:
        os.close(self.channel._write_fd)

    def release(self) -> None:
        os.close(self.channel._read_fd)


class Serving:
    """`packnback serve` in a thread, for one connection. `failure` is what ended it, if anything did."""

    def __init__(
        self, root: Path, *verbs: str, bounds: Bounds | None = None, room: int = PLENTY, idle_s: float = 60
    ) -> None:
        self.root = root
        self.role = Role(frozenset(verbs), bounds or Bounds())
        self.room = room
        self.idle_s = idle_s
        self.failure: PacknbackError | None = None
        self.pipes = Pipes(idle_s)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        repository = open_local(str(self.root))
        try:
            Server(repository, self.role, self.pipes.server, room=lambda: self.room, idle_s=self.idle_s).run()
        except PacknbackError as error:
            self.failure = error
        finally:
            repository.close()
            self.pipes.server.close()

    def ended(self, timeout_s: float = 20) -> bool:
        """Whether the server has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


@contextmanager
def client_of(root: Path, *verbs: str, **options: object) -> Iterator[RemoteRepository]:
    """The real client of a server with these verbs."""
    serving = Serving(root, *verbs, **options)  # type: ignore[arg-type]
    repository = RemoteRepository(PipeTransport(serving.pipes.client), "ssh://far/repo", "far", verbs, Watch())
    try:
        yield repository
    finally:
        repository.close()
        assert serving.ended()


class Lawless:
    """A client that sends what it likes."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self._channel = serving.pipes.client
        self._connection = Connection(Side.CLIENT)
        self.send(frames.Hello("lawless"))
        self.welcome = self.next()

    def send(self, frame: Frame) -> None:
        self._channel.write(self._connection.send(frame))

    def send_bytes(self, data: bytes) -> None:
        self._channel.write([data])

    def send_head(self, cls: type[Frame], length: int) -> None:
        """The head of a frame, without its body."""
        self.send_bytes(struct.pack("<IB", length, SPECS[cls].code))

    def next(self) -> Frame:
        """The next frame; `Closed` at the end."""
        while (event := self._connection.next_event()) is None:
            self._connection.receive(self._channel.read(20) or b"")
        return event

    def ask(self, frame: Frame) -> Frame:
        """Send, and the answer. What the server answers with instead of one is raised."""
        self.send(frame)
        answer = self.next()
        if isinstance(answer, frames.Failure | frames.Farewell):
            raise failures.understand(answer.name, answer.facts, "far")
        return answer

    def close(self) -> None:
        self._channel.close()


@contextmanager
def lawless(root: Path, *verbs: str, **options: object) -> Iterator[Lawless]:
    """A lawless client of a server with these verbs."""
    serving = Serving(root, *verbs, **options)  # type: ignore[arg-type]
    client = Lawless(serving)
    try:
        yield client
    finally:
        client.close()
        assert serving.ended()


def backup(client: SmallClient, session: Session, files: dict[str, bytes]) -> Committed:
    """An honest backup, dated now."""
    root = client.store(session, files)
    return session.commit(client.snapshot(root, session.head(), time_ns=time.time_ns()))


def stored(root: Path) -> dict[str, bytes]:
    """Everything that is truth in a repository, by path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for part in ("config", "packs", "snapshots", "forgotten", "headers", "quarantine")
        for path in ([root / part] if (root / part).is_file() else sorted((root / part).rglob("*")))
        if path.is_file()
    }
