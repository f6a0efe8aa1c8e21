"""A repository whose ``config`` was lost: its snapshots still tell which one it is.

The config holds two things. The owner's public bundle comes from the owner; the repository id, without which no
snapshot and no envelope would be accepted, stands in every snapshot header, signed by a client whose certificate
the owner has signed. To give such a directory a fresh id instead would be to lose everything in it.
"""

from __future__ import annotations

from packnback.errors import ConfigDamage, PacknbackError
from packnback.format import snapshot
from packnback.store import adoption, layout
from packnback.store.blobs import BlobStore


def repository_id_of(blobs: BlobStore, location: str, owner_bundle: bytes) -> bytes | None:
    """The id that this owner's snapshots name; None where there is neither a snapshot nor a pack.

    Raises ConfigDamage when there is something, but nothing that tells.
    """
    ids = set()
    names = [name for name in blobs.list(layout.SNAPSHOTS) if not layout.is_foreign(name)]
    for name in names:
        try:
            file = snapshot.decode_file(blobs.read(f"{layout.SNAPSHOTS}/{name}"))
            adoption.check_snapshot(name, file, file.header.repository_id, owner_bundle)
        except PacknbackError:
            continue  # another one will do; `check` tells what is wrong with this one
        ids.add(file.header.repository_id)
    if len(ids) == 1:
        return ids.pop()
    if not names and not any(_has_files(blobs, directory) for directory in layout.PACK_DIRECTORIES):
        return None
    why = "snapshots of several repositories" if ids else "no snapshot of this owner"
    raise ConfigDamage(f"{location}/{layout.CONFIG}", f"missing, and {why} to tell which repository this was")


def _has_files(blobs: BlobStore, directory: str) -> bool:
    return not all(map(layout.is_foreign, blobs.list(directory)))
