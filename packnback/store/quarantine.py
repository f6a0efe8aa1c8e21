"""`quarantine/`: where damaged files are put aside. Nothing in the program ever deletes what was put there. (Notes
of what is damaged stand there, too: `packnback.store.rot`.)

A copy is published in ``quarantine/`` first; only then the file leaves its place. A crash between the two leaves
both, and the next repair finds the copy there.

A snapshot file that is put aside no longer protects its objects by being in ``snapshots/``. So that damage does not
turn into deletion behind somebody's back, compaction refuses to delete as long as such a file stands here
(`put_aside_snapshots`): giving up a snapshot is for a person to decide, by deleting the file, or with ``--force``.
"""

from __future__ import annotations

from contextlib import suppress

from blake3 import blake3

from packnback.errors import AlreadyExists, Unreadable
from packnback.store import layout
from packnback.store.blobs import BlobStore

_NAME_SHOWN = 120


def put_aside(blobs: BlobStore, path: str, data: bytes) -> str:
    """Move the damaged blob at `path`, of which `data` could be read, into the quarantine; its path there.

    Durable on return. Packs keep their names, if they can; other names say where the file stood, and begin with a
    hash of the contents, because a client may take the number of a lost snapshot once more.
    """
    directory, _, name = path.rpartition("/")
    if not directory.startswith(layout.PACKS):
        name = f"{directory}-{blake3(path.encode() + data).hexdigest(8)}-{name[:_NAME_SHOWN]}"
    target = f"{layout.QUARANTINE}/{name}"
    try:
        blobs.publish(target, [data])
    except AlreadyExists:
        if not _holds(blobs, target, data):
            # Somebody has brought the pack back, and it is damaged once more, elsewhere. Both may be of use.
            target = f"{layout.QUARANTINE}/{blake3(data).hexdigest(8)}-{name}"
            with suppress(AlreadyExists):
                blobs.publish(target, [data])
        # Otherwise an earlier repair was cut off right after this.
    blobs.delete(path)
    blobs.barrier()
    return target


def _holds(blobs: BlobStore, path: str, data: bytes) -> bool:
    try:
        return blobs.read(path) == data
    except Unreadable:
        return False


def put_aside_snapshots(blobs: BlobStore) -> list[str]:
    """Paths of the snapshot files in the quarantine."""
    names = blobs.list(layout.QUARANTINE)
    return [f"{layout.QUARANTINE}/{name}" for name in names if name.startswith(f"{layout.SNAPSHOTS}-")]
