"""One repository for all tests of damage: two snapshots of one client, several packs of each class."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from damaged_repository import DATA_PACK, PAGE, Cli, Repo, make_tree
from smallclient import OWNER

from packnback.backup import listing_cuts
from packnback.crypto.keyfile import write_key
from packnback.ids import KIB
from packnback.store import packer
from packnback.store.local import create_local


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Several packs and pages even in a small repository."""
    patch.setattr(packer, "PACK_TARGET", DATA_PACK)
    patch.setattr(listing_cuts, "PAGE_TARGET", PAGE)


@pytest.fixture(autouse=True)
def small_packs_and_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each test by itself: what lasted longer would change the tests of other folders too."""
    shrink(monkeypatch)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """Never changed: tests work on copies."""
    home = tmp_path_factory.mktemp("original")
    repo = Repo(home, home / "tree")
    make_tree(repo.tree)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        create_local(str(repo.path), OWNER.bundle.raw).close()
        repo.backup()
        (repo.tree / "d6").mkdir()
        (repo.tree / "d6" / "late.bin").write_bytes(bytes(range(256)) * 4 * 700 + b"late" * KIB)
        (repo.tree / "d0" / "small0").write_bytes(b"changed")
        repo.backup()
    return repo


@pytest.fixture
def repo(original: Repo, tmp_path: Path) -> Repo:
    """A copy to break."""
    return original.copy(tmp_path / "copy")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """The command line, in this process, with a home of its own and the owner's key in it."""
    configuration = tmp_path / "home" / ".config" / "packnback"
    configuration.mkdir(parents=True)
    write_key(str(configuration / "owner.key"), OWNER)
    for name in [name for name in os.environ if name.startswith(("XDG_", "PACKNBACK_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Cli(capfd)
