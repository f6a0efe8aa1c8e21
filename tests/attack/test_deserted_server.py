"""A client that is gone is not worked for: neither is what it sent before carried out, nor a lock waited for."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import Pipes
from smallclient import OWNER, SmallClient

from packnback.remote import frames, serving
from packnback.remote.frames import Frame, Side
from packnback.remote.protocol import Connection
from packnback.remote.server import Role, Server
from packnback.remote.table import SPECS
from packnback.store.local import create_local, open_local

PATIENCE_S = 30.0
PING = struct.pack("<IB", 1, SPECS[frames.Ping].code) + b"\x80"
PINGS = 300_000
AN_HOUR_MS = 3_600_000


class Deserter:
    """A client of `packnback serve` that can leave without a word."""

    def __init__(self, root: Path, *verbs: str) -> None:
        self.pipes = Pipes()
        self._connection = Connection(Side.CLIENT)
        self._server = threading.Thread(target=self._serve, args=(str(root), Role(frozenset(verbs))), daemon=True)
        self._server.start()

    def _serve(self, root: str, role: Role) -> None:
        try:
            serving.serve(root, role, self.pipes.server)
        finally:
            self.pipes.server.close()

    def send(self, *wanted: Frame) -> None:
        for frame in wanted:
            self.pipes.client.write(self._connection.send(frame))

    def next(self) -> Frame:
        while (event := self._connection.next_event()) is None:
            self._connection.receive(self.pipes.client.read(PATIENCE_S) or b"")
        return event

    def leave(self) -> None:
        self.pipes.client.close()

    def ended(self) -> bool:
        self._server.join(PATIENCE_S)
        return not self._server.is_alive()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    create_local(str(tmp_path / "repo"), OWNER.bundle.raw).close()
    return tmp_path / "repo"


@pytest.fixture
def web1(root: Path) -> SmallClient:
    repository = open_local(str(root))
    repository.close()
    return SmallClient(repository.config.repository_id)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[Frame]]]:
    """Opened, it lets the server answer; and all frames that it has answered since."""
    opened, answered = threading.Event(), []
    answer: Callable[[Server, Frame], None] = Server._answer

    def behind_the_gate(self: Server, frame: Frame) -> None:
        if isinstance(frame, frames.Ping):
            opened.wait(PATIENCE_S)
            answered.append(frame)
        answer(self, frame)

    monkeypatch.setattr(Server, "_answer", behind_the_gate)
    yield opened, answered
    opened.set()


def test_what_was_read_ahead_is_not_carried_out(root: Path, gate: tuple[threading.Event, list[Frame]]) -> None:
    """Frames that are not answered meet no broken pipe."""
    opened, answered = gate
    client = Deserter(root, "put")
    client.send(frames.Hello("x"))
    client.next()
    client.pipes.client.write([PING * PINGS])
    client.leave()
    opened.set()
    assert client.ended()
    assert len(answered) < PINGS / 2


def test_what_a_client_sent_before_it_closed_only_its_own_end_is_carried_out(
    root: Path, gate: tuple[threading.Event, list[Frame]]
) -> None:
    opened, answered = gate
    opened.set()
    client = Deserter(root, "put")
    client.send(frames.Hello("x"))
    client.pipes.client.write([PING * 1000])
    os.close(client.pipes.client._write_fd)
    client.pipes.client._write_fd = os.dup(client.pipes.client._read_fd)
    client.next()
    assert client.pipes.client.read() == b""
    assert client.ended()
    assert len(answered) == 1000
    client.leave()


@pytest.mark.parametrize("what", ["session", "reading", "compaction"])
def test_no_lock_is_waited_for(root: Path, web1: SmallClient, what: str) -> None:
    request = {
        "session": frames.OpenSession(web1.certificate, AN_HOUR_MS),
        "reading": frames.BeginReading(AN_HOUR_MS),
        "compaction": frames.Compact(0, 0, False, False, AN_HOUR_MS),
    }[what]
    owner = open_local(str(root))
    try:
        with owner.ports.locks.exclusive(0):
            clients = [Deserter(root, "put", "list", "compact") for _ in range(5)]
            for client in clients:
                client.send(frames.Hello("x"), request)
                client.next()
                client.leave()
            assert all(client.ended() for client in clients)
    finally:
        owner.close()
