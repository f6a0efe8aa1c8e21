"""Two writers and a reader, real processes on real LMDB, open, reconcile and commit at the same time. One of the
writers starts from an old copy of the index. Nothing that was acknowledged is ever dropped, in anybody's eyes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crowd import acknowledged
from smallclient import OWNER, SmallClient

from packnback.store.check import check_structure, index_difference
from packnback.store.lmdb_index import LmdbIndex
from packnback.store.local import create_local, open_local
from packnback.store.reconcile import reconcile

SEED = 5


def start(role: str, name: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own, with the tests' modules on its path."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent / "sim"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, str(here / "crowd.py"), role, name, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_nobody_drops_what_others_have_just_written(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    seconds = 60 if pytestconfig.getoption("--nightly") else 8
    path, notes, old_index = tmp_path / "repo", tmp_path / "notes", tmp_path / "old-index"
    notes.mkdir()
    repository = create_local(str(path), OWNER.bundle.raw)
    client = SmallClient(repository.config.repository_id, "first", group="crowd")
    with repository.session(client.certificate) as session:
        (notes / "first").write_text(client.backup(session, {"file0": b"0" * 3000}).name + "\n")
    repository.close()
    shutil.copytree(path / "index", old_index)
    repository = open_local(str(path))
    with repository.session(client.certificate) as session:
        name = client.backup(session, {"file1": b"1" * 3000}).name
    (notes / "first").write_text(f"{(notes / 'first').read_text()}{name}\n")
    repository.close()

    common = path, notes, seconds, SEED
    crowd = [
        start("write", "near", *common),
        start("write", "far", *common, old_index),
        start("read", "reader", *common),
    ]
    for process in crowd:
        out, err = process.communicate(timeout=seconds + 120)
        assert process.returncode == 0, (err, f"seed {SEED}")
        assert int(out) >= 3, f"only {out} rounds"
    _everything_is_there(path, notes, old_index)


def _everything_is_there(path: Path, notes: Path, old_index: Path) -> None:
    repository = open_local(str(path))
    far = LmdbIndex.open(str(old_index))
    with repository.reading():
        infos = {info.name: info for info in repository.snapshots()}
        assert infos.keys() == acknowledged(notes)
        assert all(info.complete for info in infos.values())
        report = check_structure(repository)
        assert not report.damage, report.damage
        assert not report.repaired, report.repaired
        reconcile(repository.truth, far)
        assert index_difference(far, repository.ports.index) is None
    far.close()
    repository.close()
