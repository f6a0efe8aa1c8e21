"""Reading many snapshots of a far repository: not one round trip after the other, and not all at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from served import PipeTransport, Serving, backup, client_of
from smallclient import OWNER, SmallClient

from packnback import errors
from packnback.events import Watch
from packnback.remote import client as client_module
from packnback.remote.client import RemoteRepository
from packnback.store.local import create_local


def test_snapshots_are_asked_for_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_SNAPSHOTS_AHEAD", 3)
    repository = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    client = SmallClient(repository.config.repository_id)
    for number in range(10):
        with repository.session(client.certificate) as session:
            backup(client, session, {f"f{number}": b"content"})
    repository.close()
    with client_of(tmp_path / "repo", "list") as remote:
        names = [info.name for info in remote.snapshots()]
        assert len(names) == 10
        remote.expect_snapshots([*names[:4], names[0].replace("0", "f"), *names[4:]])
        assert len(remote._ahead) == 3
        files = []
        for name in names:
            files.append(remote.read_snapshot(name))
            assert len(remote._ahead) <= 3
        assert files == [(tmp_path / "repo" / "snapshots" / name).read_bytes() for name in names]
        with pytest.raises(errors.SnapshotUnknown):
            remote.read_snapshot(names[0].replace("0", "f"))
    with client_of(tmp_path / "repo", "list") as remote:
        remote.expect_snapshots(names)  # and nobody asks for them


def test_a_connection_that_broke_is_not_one_that_could_not_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the status is with which ssh ends then."""
    create_local(str(tmp_path / "repo"), OWNER.bundle.raw).close()
    monkeypatch.setattr(
        PipeTransport, "lost", lambda self: errors.RemoteFailed("far", "ssh", "Killed by signal 9.", "me@far")
    )
    serving = Serving(tmp_path / "repo", "list")
    remote = RemoteRepository(PipeTransport(serving.pipes.client), "ssh://far/repo", "far", ["list"], Watch())
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, serving.pipes.server._write_fd)  # the pipe's only writer is gone
    os.close(nowhere)
    with pytest.raises(errors.RemoteFailed) as told:
        remote.snapshots()
    assert (told.value.why, told.value.detail, told.value.address) == (
        "connection-lost", "Killed by signal 9.", "me@far"
    )  # fmt: skip
    remote.close()
    assert serving.ended()
