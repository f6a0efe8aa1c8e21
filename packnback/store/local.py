"""Opening and making repositories on a real file system: the one place that picks the real ports.

The index stands in the repository where locks and memory maps can be trusted, that is on a local file system;
for a remote one (NFS, SMB, sshfs) in the user's cache directory. A repository that this user cannot write to
is read with an index in a temporary directory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Self

import platformdirs

from packnback import lmdb_files
from packnback.errors import AlreadyExists, DiskFull, IndexDamage, NotARepository, PacknbackError, StorageFailed
from packnback.events import Watch
from packnback.format.config import Config
from packnback.mounts import is_remote
from packnback.oserrors import failure, reason_of
from packnback.store import layout, repository
from packnback.store.blobs import FileBlobStore
from packnback.store.index import Index
from packnback.store.index_probe import probe
from packnback.store.lmdb_index import LmdbIndex
from packnback.store.lock import FileLocks
from packnback.store.lost_config import repository_id_of
from packnback.store.osfs import OsFileSystem, make_root
from packnback.store.readme import README_TEXT
from packnback.store.repository import LocalRepository, Ports
from packnback.store.temporary import temporary

INDEX = "index"


def create_local(path: str, owner_bundle: bytes, watch: Watch | None = None) -> LocalRepository:
    """Make a repository in `path` (made if absent) and open it. What stands there already can only be an interrupted
    try, or a repository that has lost its config.

    `owner_bundle` is the 2472 bytes of the owner's public bundle. Raises AlreadyExists, StorageFailed.
    """
    path = os.path.abspath(path)
    try:
        make_root(path)
    except OSError as error:
        raise failure("make", path, error) from error
    ours = {*layout.DIRECTORIES, layout.README, layout.LOCK, layout.GATE, layout.SESSIONS, INDEX}
    strangers = set(os.listdir(path)) - ours - {"lost+found"}
    if strangers:
        raise AlreadyExists(path)
    fs = OsFileSystem(path, watch)
    try:
        layout.make_layout(fs)
        blobs = FileBlobStore(fs)
        if not blobs.exists(layout.README):
            blobs.publish(layout.README, [README_TEXT.encode()])
        repository.create(blobs, owner_bundle, os.urandom, repository_id_of(blobs, path, owner_bundle))
    except OSError as error:
        raise failure("make", path, error) from error
    finally:
        fs.close()
    return open_local(path, watch)


def open_local(
    path: str, watch: Watch | None = None, sleep: Callable[[float], None] = time.sleep
) -> LocalRepository:
    """Open the repository in the directory `path`. Its index may be behind: `reading` and `session` see to it.

    `sleep` is how it waits for locks, some seconds at a time; what that raises ends the waiting.
    Raises NotARepository, ConfigDamage, UnsupportedVersion, StorageFailed.
    """
    path = os.path.abspath(path)
    watch = watch or Watch()
    if not os.path.isdir(path):
        raise NotARepository(path)
    try:
        with ExitStack() as resources:
            blobs = FileBlobStore(resources.enter_context(closing(OsFileSystem(path, watch))))
            config = repository.read_config(blobs, path)
            remote = is_remote(path)
            locks = FileLocks(path, remote=remote, sleep=sleep, note=lambda told: watch.progress.note(told))
            index, makeshift = _open_index(path, config.repository_id)
            ports = Ports(blobs, index, locks, time.time_ns, os.urandom, _scratch_index, watch, not remote, makeshift)
            return LocalRepository(path, config, ports, resources.pop_all())
    except OSError as error:
        raise failure("open", path, error) from error


def _open_index(path: str, repository_id: bytes) -> tuple[LmdbIndex, bool]:
    """(the index, whether it is a makeshift one: see `Ports`)."""
    directory = index_directory(path, repository_id)
    if directory is None:
        return _TemporaryIndex.make(), False
    try:
        try:
            return LmdbIndex.open(directory), False
        except IndexDamage:
            # It is a view of the directories and nothing more: reconcile fills it again.
            lmdb_files.destroy(directory)
            return LmdbIndex.open(directory), False
    except DiskFull:
        # What there is of it takes room that those need who make some.
        with suppress(PacknbackError):
            lmdb_files.destroy(directory)
        return _TemporaryIndex.make(), True


def mend_index(path: str, wait_s: float) -> str | None:
    """Throw the index of the repository in `path` away if it is damaged; why it is, or None. For `check`.

    It is read in a process of its own first, because some damage kills whoever reads it. Raises Locked.
    """
    path = os.path.abspath(path)
    repository_id = _repository_id(path)
    directory = index_directory(path, repository_id) if repository_id is not None else None
    if directory is None or not os.path.exists(lmdb_files.data_path(directory)):
        return None
    why = probe(directory)
    if why is not None:
        with FileLocks(path, remote=is_remote(path)).exclusive(wait_s):
            lmdb_files.destroy(directory)
    return why


def mend_layout(path: str, wait_s: float) -> int:
    """Make the directories of a repository that a copy of it lacks, as tools do that leave out empty ones; how many.
    For `check --repair`. Raises Locked, StorageFailed.

    Where all that hold packs are missing, a disk may not be mounted: then nothing is made.
    """
    path = os.path.abspath(path)
    if _repository_id(path) is None:
        return 0
    missing = [d for d in (*layout.DIRECTORIES, *layout.PACK_DIRECTORIES) if not os.path.isdir(os.path.join(path, d))]
    if not missing or (set(missing).issuperset(layout.PACK_DIRECTORIES) and _has_snapshots(path)):
        return 0
    fs = OsFileSystem(path)
    try:
        with FileLocks(path, remote=is_remote(path)).exclusive(wait_s):
            layout.make_layout(fs)
    except OSError as error:
        raise failure("make", path, error) from error
    finally:
        fs.close()
    return len(missing)


def _has_snapshots(path: str) -> bool:
    directory = os.path.join(path, layout.SNAPSHOTS)
    return os.path.isdir(directory) and bool(os.listdir(directory))


def config_at(path: str) -> Config:
    """The config of the repository there. Raises NotARepository, ConfigDamage, UnsupportedVersion, StorageFailed."""
    try:
        fs = OsFileSystem(path)
    except OSError as error:
        raise failure("open", path, error) from error
    try:
        return repository.read_config(FileBlobStore(fs), path)
    finally:
        fs.close()


def _repository_id(path: str) -> bytes | None:
    """As its config says; None where that is for `open_local` to complain of."""
    try:
        return config_at(path).repository_id
    except PacknbackError:
        return None


def index_directory(path: str, repository_id: bytes) -> str | None:
    """Where the index of a repository stands, or None when it can only be a temporary one."""
    if not os.access(path, os.W_OK):
        return None
    if not is_remote(path):
        return os.path.join(path, INDEX)
    base = os.path.join(platformdirs.user_cache_dir("packnback"), repository_id.hex())
    directory = os.path.join(base, INDEX)
    try:
        os.makedirs(base, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageFailed("make", base, reason_of(error)) from error
    return directory


@contextmanager
def _scratch_index() -> Iterator[Index]:
    index = _TemporaryIndex.make()
    try:
        yield index
    finally:
        index.close()


class _TemporaryIndex(LmdbIndex):
    """An index that goes when it is closed."""

    _parent: str | None = None

    @classmethod
    def make(cls) -> Self:
        """A new, empty one in a temporary directory."""
        with temporary("make"):
            parent = tempfile.mkdtemp(prefix="packnback-index-")
        try:
            opened = cls.open(os.path.join(parent, INDEX), ballast_bytes=0, durable=False)
        except BaseException:
            shutil.rmtree(parent, ignore_errors=True)
            raise
        opened._parent = parent
        return opened

    def close(self) -> None:
        super().close()
        if self._parent is not None:
            shutil.rmtree(self._parent, ignore_errors=True)
