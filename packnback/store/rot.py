"""Known rot: which packs are damaged, and what in them, noted where every machine and every new index finds it.

``quarantine/rot-PACK-HASH`` holds the ids of the objects that are damaged in the pack, 64 hexadecimal digits a line,
as ``verify --bad`` writes them; none means all of the pack. It is written by whoever reads the pack and finds out,
and goes when the pack was read and is whole, or is gone. The index has a row for each, so that the files need not be
read: nobody relies on what is damaged (`packnback.store.distrust`), and nothing is deleted meanwhile.

The rows follow the files whenever the index is brought up to the directories. Were the rows all there is, a new index
would take for good what is known to be bad, and the next compaction would delete what could still mend it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from contextlib import suppress

from blake3 import blake3

from packnback.errors import AlreadyExists, BlobMissing, StorageFailed
from packnback.format import meta_rows
from packnback.ids import ID_LEN
from packnback.store import layout
from packnback.store.blobs import BlobStore
from packnback.store.index import Index, ReadTxn, WriteTxn
from packnback.store.truth import Truth

_PREFIX = "rot-"
_NAME = re.compile(_PREFIX + "([0-9a-f]{64})-[0-9a-f]{16}")


def damaged_packs(txn: ReadTxn) -> list[bytes]:
    """The names of the packs in which something is known to be damaged."""
    return [meta_rows.split_damaged_key(key) for key, _ in txn.scan(meta_rows.TABLE, meta_rows.DAMAGED)]


def note(truth: Truth, index: Index, pack: bytes, ids: Iterable[bytes] | None) -> None:
    """Write down that these objects of a pack are damaged; None: all of it. Raises DiskFull.

    An earlier note goes only when the new one stands: at any moment the pack is known to be damaged. Where nothing
    can be written, whoever reads keeps to himself what he has found.
    """
    text = "".join(f"{object_id.hex()}\n" for object_id in sorted(ids or ())).encode()
    name = f"{_PREFIX}{pack.hex()}-{blake3(text).hexdigest(8)}"
    with suppress(StorageFailed):
        with suppress(AlreadyExists):
            truth.blobs.publish(f"{layout.QUARANTINE}/{name}", [text])
        _delete(truth.blobs, [old for old in _notes(truth.blobs).get(pack, ()) if old != name])
    index.write(lambda txn: _put(txn, pack, _parsed(text)))


def strike(truth: Truth, index: Index, pack: bytes) -> None:
    """The pack was read, and is whole. Of a note without a row, and of a row without one, `bring_up` makes an end."""
    with index.read() as txn:
        noted = txn.get(meta_rows.TABLE, meta_rows.damaged_key(pack)) is not None
    if noted:
        _delete(truth.blobs, _notes(truth.blobs).get(pack, ()))
        index.write(lambda txn: txn.delete(meta_rows.TABLE, meta_rows.damaged_key(pack)))


def bring_up(truth: Truth, index: Index) -> None:
    """Let the rows follow the files. The packs are brought up already.

    The rows are read before the directory is listed, as in `reconcile`: of one that comes meanwhile the note may not
    be in our listing, and it is not ours to doubt.
    """
    with index.read() as txn:
        known = set(damaged_packs(txn))
    noted = _notes(truth.blobs)
    with index.read() as txn:
        gone = {pack for pack in noted if txn.get("pack_names", pack) is None}
    for pack in gone:
        if not truth.blobs.exists(layout.pack_path(pack.hex())):
            _delete(truth.blobs, noted[pack])
    new = {pack: _read(truth.blobs, noted[pack]) for pack in noted.keys() - known - gone}
    if new or known - noted.keys():
        index.write(lambda txn: _follow(txn, new, known - noted.keys()))


def _follow(txn: WriteTxn, new: dict[bytes, frozenset[bytes] | None], old: Collection[bytes]) -> None:
    for pack, ids in new.items():
        _put(txn, pack, ids)
    for pack in old:
        txn.delete(meta_rows.TABLE, meta_rows.damaged_key(pack))


def _put(txn: WriteTxn, pack: bytes, ids: frozenset[bytes] | None) -> None:
    if txn.get("pack_names", pack) is not None:  # a compaction may have deleted it meanwhile
        key = meta_rows.damaged_key(pack)
        txn.put(meta_rows.TABLE, key, meta_rows.encode_damaged(key, ids))


def _notes(blobs: BlobStore) -> dict[bytes, list[str]]:
    """The names of all notes, by pack."""
    found: dict[bytes, list[str]] = {}
    for name in blobs.list(layout.QUARANTINE):
        if match := _NAME.fullmatch(name):
            found.setdefault(bytes.fromhex(match[1]), []).append(name)
    return found


def _read(blobs: BlobStore, names: Iterable[str]) -> frozenset[bytes] | None:
    """What is damaged according to any of the notes of a pack: after a crash there may be two."""
    found: frozenset[bytes] = frozenset()
    for name in names:
        try:
            ids = _parsed(blobs.read(f"{layout.QUARANTINE}/{name}"))
        except (BlobMissing, StorageFailed):
            ids = None
        if ids is None:
            return None
        found |= ids
    return found


def _parsed(text: bytes) -> frozenset[bytes] | None:
    """What cannot be parsed, too, means all of the pack."""
    try:
        ids = frozenset(bytes.fromhex(line) for line in text.decode("ascii").split())
    except ValueError:
        return None
    return ids if ids and all(len(object_id) == ID_LEN for object_id in ids) else None


def _delete(blobs: BlobStore, names: Iterable[str]) -> None:
    for name in names:
        with suppress(BlobMissing, StorageFailed):
            blobs.delete(f"{layout.QUARANTINE}/{name}")
