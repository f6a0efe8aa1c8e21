"""Reading ahead: everything comes in order, within a bound, and while the server is at something else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import Pipes, PipeTransport
from smallclient import OWNER, SmallClient

from packnback.events import Watch
from packnback.ids import MIB, Kind, ObjectClass
from packnback.remote.channel import Channel
from packnback.remote.client import RemoteRepository
from packnback.remote.readahead import ReadAhead
from packnback.remote.server import Role, Server
from packnback.store.blobs import FileBlobStore
from packnback.store.local import create_local, open_local

PATIENCE_S = 30.0
COST = 1000 + 1024
"""What one of `Endless`'s pieces counts for."""


class Endless:
    """A channel on which there is always more."""

    def __init__(self, error: Exception | None = None, after: int = 1 << 60, length: int = 1000) -> None:
        self.reads = 0
        self._length = length
        self._error = error
        self._after = after

    def read(self, timeout_s: float | None = None) -> bytes | None:
        self.reads += 1
        if self.reads > self._after:
            if self._error is not None:
                raise self._error
            return b""
        return bytes([self.reads % 256]) * self._length


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = Pipes()
    yield made
    for channel in (made.client, made.server):
        channel.close()


def test_no_more_is_held_than_the_bound_and_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless()
    waits: list[None] = []
    ahead = ReadAhead(endless, limit=10_500)  # type: ignore[arg-type]
    wait = ahead._room.wait

    def counted() -> None:
        waits.append(None)
        wait()

    until(lambda: endless.reads >= 6)
    monkeypatch.setattr(ahead._room, "wait", counted)
    for taken in range(1, 200):
        assert ahead.read() == bytes([taken % 256]) * 1000
        assert endless.reads * COST <= taken * COST + 10_500 + COST
    until(lambda: endless.reads == 199 + 6)
    assert waits


def test_single_bytes_do_not_fill_the_memory() -> None:
    endless = Endless(length=1)
    ahead = ReadAhead(endless, limit=100_000)  # type: ignore[arg-type]
    until(lambda: ahead._held >= 100_000)
    assert ahead._came.qsize() <= 100
    for taken in range(1, 1000):
        assert ahead.read() == bytes([taken % 256])
        assert ahead._came.qsize() <= 100


@pytest.mark.parametrize("error", [None, OSError(5, "no")])
def test_the_end_is_told_after_what_came_before_and_again(error: Exception | None) -> None:
    ahead = ReadAhead(Endless(error, after=3))  # type: ignore[arg-type]
    assert [len(ahead.read() or b"") for _ in range(3)] == [1000] * 3
    for _ in range(3):
        if error is None:
            assert ahead.read() == b""
            assert ahead.read(0.0) == b""
        else:
            with pytest.raises(OSError, match="no"):
                ahead.read()


def test_nothing_has_come(pipes: Pipes) -> None:
    ahead = ReadAhead(pipes.server)
    assert ahead.read(0.0) is None
    assert ahead.read(0.001) is None
    pipes.client.write([b"some"])
    assert ahead.read(PATIENCE_S) == b"some"
    ahead.write([b"back"])
    assert pipes.client.read() == b"back"
    os.close(pipes.client._write_fd)
    assert ahead.read() == b""
    pipes.client._write_fd = os.dup(pipes.client._read_fd)  # for the fixture to close


def test_a_client_goes_on_sending_while_a_pack_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pack takes for ever: 30 MiB more are taken meanwhile, far more than pipes hold."""
    create_local(str(tmp_path / "repo"), OWNER.bundle.raw).close()
    writing, go_on = threading.Event(), threading.Event()
    publish = FileBlobStore.publish

    def slow(self: FileBlobStore, name: str, pieces: list[bytes]) -> None:
        writing.set()
        go_on.wait(2 * PATIENCE_S)
        publish(self, name, pieces)

    pipes = Pipes()
    server = threading.Thread(target=serve, args=(tmp_path / "repo", pipes.server), daemon=True)
    server.start()
    remote = RemoteRepository(PipeTransport(pipes.client), "ssh://far/repo", "far", ["put"], Watch())  # type: ignore[arg-type]
    client = SmallClient(remote.config.repository_id)
    try:
        with remote.session(client.certificate) as session:
            monkeypatch.setattr(FileBlobStore, "publish", slow)
            records = [client.seal(Kind.DATA, [], os.urandom(MIB), 0).record for _ in range(64)]
            records.insert(0, client.envelope(ObjectClass.DATA)[0])
            sender = threading.Thread(target=session.put, args=(records,), daemon=True)
            sender.start()
            assert writing.wait(PATIENCE_S)
            sender.join(PATIENCE_S)
            sent = not sender.is_alive()
            go_on.set()
            assert sent
            session.flush()
            assert session.bytes_published > 64 * MIB
    finally:
        go_on.set()
    remote.close()
    server.join(PATIENCE_S)
    assert not server.is_alive()


def serve(path: Path, channel: Channel) -> None:
    repository = open_local(str(path))
    Server(repository, Role(frozenset({"put"})), ReadAhead(channel), room=lambda: 1 << 50).run()
    repository.close()
    channel.close()
