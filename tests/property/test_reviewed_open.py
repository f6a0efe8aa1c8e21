"""The index is thrown away by another process at the moment at which this one opens it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from packnback import lmdb_files
from packnback.store import lmdb_environment
from packnback.store.lmdb_index import LmdbIndex


@pytest.mark.parametrize("moment", ["before it is mapped", "after it was mapped"])
def test_an_index_that_is_replaced_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What is opened in the end is what stands there; otherwise two processes would go on with two indexes."""
    directory = str(tmp_path / "index")
    LmdbIndex.open(directory, ballast_bytes=0).close()
    map_files, thrown = lmdb_environment._map, []

    def throw_away() -> None:
        if not thrown:
            thrown.append(True)
            lmdb_files.destroy(directory)
            for path in (lmdb_files.data_path(directory), lmdb_files.lock_path(directory)):
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    def replaced(*arguments: Any, **options: Any) -> Any:
        if moment == "before it is mapped":
            throw_away()
            return map_files(*arguments, **options)
        mapped = map_files(*arguments, **options)
        throw_away()
        return mapped

    monkeypatch.setattr(lmdb_environment, "_map", replaced)
    index = LmdbIndex.open(directory, ballast_bytes=0)
    assert thrown
    index.write(lambda txn: txn.put("meta", b"key", b"value"))
    index.close()
    index = LmdbIndex.open(directory, ballast_bytes=0)
    with index.read() as txn:
        assert txn.get("meta", b"key") == b"value", "written to files that somebody else had thrown away"
    index.close()


def test_the_lock_goes_before_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = str(tmp_path / "index")
    LmdbIndex.open(directory, ballast_bytes=0).close()
    gone: list[str] = []
    unlink = os.unlink

    def noted(path: str) -> None:
        gone.append(os.path.basename(path))
        unlink(path)

    monkeypatch.setattr(os, "unlink", noted)
    lmdb_files.destroy(directory)
    assert gone == ["lock.mdb", "data.mdb"]
