"""Reading many snapshots of a far repository: not one round trip after the other, and not all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from served import backup, client_of
from smallclient import OWNER, SmallClient

from packnback import errors
from packnback.remote import client as client_module
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
