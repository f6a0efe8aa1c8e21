"""What a session says after something went wrong in it, and what two sessions of one key can do to the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smallclient import OWNER, SmallClient

from packnback.errors import DiskFull, Poisoned, Refused
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.ids import Kind, ObjectClass
from packnback.store.local import create_local
from packnback.store.repository import LocalRepository


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[LocalRepository]:
    opened = create_local(str(tmp_path / "repo"), OWNER.bundle.raw)
    yield opened
    opened.close()


def test_a_flush_after_a_failed_flush_is_not_acknowledged(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for a moment; whoever asks again must not hear that everything is durable."""
    client = SmallClient(repository.config.repository_id)
    with repository.session(client.certificate) as session:
        root = client.store(session, {"file": b"content"})
        with monkeypatch.context() as full:

            def no_room(name: str, buffers: Any) -> None:
                raise DiskFull(name)

            full.setattr(repository.ports.blobs, "publish", no_room)
            with pytest.raises(DiskFull):
                session.flush()
        with pytest.raises(Poisoned):
            session.flush()
        with pytest.raises(Poisoned):
            session.has([root])
        with pytest.raises(Poisoned):
            session.put([client.envelope(ObjectClass.DATA)[0]])
    with repository.session(client.certificate) as session:
        assert session.has([root]) == [False]
        client.backup(session, {"file": b"content"})
    assert [i.complete for i in repository.snapshots()] == [True]


def test_two_sessions_of_one_key_cannot_block_compaction(repository: LocalRepository) -> None:
    """A stolen put key names two different objects alike, in two sessions at a time."""
    honest = SmallClient(repository.config.repository_id, "honest")
    with repository.session(honest.certificate) as session:
        honest.backup(session, {"file": b"content"})
    thief = SmallClient(repository.config.repository_id, "stolen")
    data = [thief.seal(Kind.DATA, [], content, 0) for content in (b"a", b"b")]
    pages = []
    for one in data:
        page = thief.seal(Kind.PAGE, [one.id], b"", 1)
        pages.append(renamed(page.record, bytes(page.id[:8]) + b"x" * 24))
    with repository.session(thief.certificate) as left, repository.session(thief.certificate) as right:
        for session, one, page in zip((left, right), data, pages, strict=True):
            session.put([thief.envelope(ObjectClass.DATA)[0], thief.envelope(ObjectClass.META)[0]])
            session.put([one.record, page])
        left.flush()
        with pytest.raises(Refused):
            right.flush()
    assert not repository.damaged_files()
    compact(repository, CompactOptions(grace_ns=0))
    assert [i.complete for i in repository.snapshots()] == [True]


def renamed(record: bytes, object_id: bytes) -> bytes:
    """The record under another id."""
    from packnback.format import record as format

    parsed = format.parse(record)
    header = parsed.header[:16] + object_id + parsed.header[48:]
    return format.finish(header, parsed.refs, parsed.body)
