"""Key files on disk. Losing a key is losing every backup, so writing one is done like writing a backup.

A new key: write a temporary file beside it → sync it → link it into place, which never replaces anything → remove
the temporary name → sync the directory → read it back, compare, and load it. Only then is success reported.
A changed passphrase: write the new file beside the old one → sync → read it back, compare, and load it with the
new passphrase → rename it over the old one → sync the directory. Until the rename the old file is whole, after
it the new one is; what is lost at a crash is at most the temporary file's removal.

On file systems without hard links (memory sticks) a new key is created at its final name, exclusively: that
does not replace anything either, and a crash leaves a file that its checksum tells is incomplete.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from packnback import errors
from packnback.crypto.keybody import Key
from packnback.crypto.keytext import decode_key, encode_key
from packnback.crypto.passphrase import DEFAULT_COST, Cost
from packnback.oserrors import failure, sync_directory

__all__ = ["Key", "change_passphrase", "read_key", "write_key"]

SIZE_LIMIT = 64 * 1024
"""Bytes; the longest key file there is has about 4500."""

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def read_key(path: str, passphrase: Callable[[], bytes] | None = None) -> Key:
    """Load a key of any kind, with all checks. `passphrase` is called only if the file is protected.

    Raises KeyMissing, KeyDamaged, PassphraseNeeded, WrongPassphrase; StorageFailed if it cannot be read.
    """
    return decode_key(_read(path), path, passphrase)


def write_key(path: str, key: Key, passphrase: bytes | None = None, *, cost: Cost = DEFAULT_COST) -> None:
    """Write a new key file, mode 0600, protected if a passphrase is given.

    Raises AlreadyExists (nothing is ever replaced), DiskFull, StorageFailed; KeyDamaged if what stands there
    afterwards is not what was written.
    """
    text = encode_key(key, passphrase, cost=cost)
    temporary = _temporary_beside(path)
    with _storage_errors("write", path), _removed_afterwards(temporary):
        _create(temporary, text)
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _create(path, text)
    _sync_directory(path)
    _verify(path, path, text, key, passphrase)


def change_passphrase(
    path: str,
    old: Callable[[], bytes] | None,
    new: bytes | None,
    *,
    cost: Cost = DEFAULT_COST,
) -> None:
    """Set, change or (with None) remove the passphrase of a key file, atomically.

    Salt, nonce and cost are new, whatever the file had before. A symbolic link stays one: the file that it
    points to is replaced. Raises as `read_key` and `write_key` do.
    """
    target = os.path.realpath(path)
    key = read_key(target, old)
    text = encode_key(key, new, cost=cost)
    temporary = _temporary_beside(target)
    with _storage_errors("write", target), _removed_afterwards(temporary):
        _create(temporary, text)
        _verify(temporary, target, text, key, new)
        os.rename(temporary, target)
    _sync_directory(target)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            text = file.read(SIZE_LIMIT + 1)
    except FileNotFoundError as error:
        raise errors.KeyMissing(path) from error
    except OSError as error:
        raise errors.StorageFailed("read", path, os.strerror(error.errno or errno.EIO)) from error
    if len(text) > SIZE_LIMIT:
        raise errors.KeyDamaged(path, "is too large to be a key")
    return text


def _verify(written: str, path: str, text: bytes, key: Key, passphrase: bytes | None) -> None:
    """Read back what was written: the same bytes, and the same key when it is loaded as any key is."""
    if _read(written) != text:
        raise errors.KeyDamaged(path, "reads back differently from what was written")
    if decode_key(text, path, None if passphrase is None else lambda: passphrase) != key:
        raise errors.KeyDamaged(path, "does not load as the key that was written")


def _create(path: str, text: bytes) -> None:
    """A new file, mode 0600, durable except for its name. Never opens an existing one, nor follows a link."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(path)
        raise


def _temporary_beside(path: str) -> str:
    return os.path.join(os.path.dirname(path), f".packnback-key-{os.urandom(8).hex()}.tmp")


@contextmanager
def _removed_afterwards(path: str) -> Iterator[None]:
    """Remove a temporary file, if it is still there, whatever happened."""
    try:
        yield
    finally:
        if os.path.lexists(path):
            os.unlink(path)


@contextmanager
def _storage_errors(operation: str, path: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise errors.AlreadyExists(path) from error
    except OSError as error:
        raise failure(operation, path, error) from error


def _sync_directory(path: str) -> None:
    with _storage_errors("sync the directory of", path):
        descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_directory(descriptor)
        finally:
            os.close(descriptor)
