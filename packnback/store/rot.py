"""Known rot: which packs are damaged, and what in them, noted where every machine and every new index finds it.

``quarantine/rot-PACK`` holds the ids of the objects that are damaged in the pack, 64 hexadecimal digits a line, as
``verify --bad`` writes them; none means all of the pack. It is written by whoever reads the pack and finds out, and
goes when the pack was read and is whole, or is gone. The index has a row for each, so that the files need not be
read: nobody relies on what is damaged (`packnback.store.distrust`), and nothing is deleted meanwhile.

The rows follow the files whenever the index is brought up to the directories. Were the rows all there is, a new index
would take for good what is known to be bad, and the next compaction would delete what could still mend it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress

from packnback.errors import AlreadyExists, BlobMissing, StorageFailed
from packnback.format import meta_rows
from packnback.ids import ID_LEN
from packnback.store import layout
from packnback.store.blobs import BlobStore
from packnback.store.index import Index, ReadTxn, WriteTxn
from packnback.store.truth import Truth

_PREFIX = "rot-"


def damaged_packs(txn: ReadTxn) -> list[bytes]:
    """The names of the packs in which something is known to be damaged."""
    return [meta_rows.split_damaged_key(key) for key, _ in txn.scan(meta_rows.TABLE, meta_rows.DAMAGED)]


def note(truth: Truth, index: Index, pack: bytes, ids: Iterable[bytes] | None) -> None:
    """Write down that these objects of a pack are damaged; None: all of it. Raises DiskFull.

    Where nothing can be written, whoever reads keeps to himself what he has found.
    """
    text = "".join(f"{object_id.hex()}\n" for object_id in sorted(ids or ())).encode()
    path = _path(pack)
    with suppress(StorageFailed, BlobMissing):
        try:
            truth.blobs.publish(path, [text])
        except AlreadyExists:
            if truth.blobs.read(path) != text:
                truth.blobs.delete(path)
                truth.blobs.publish(path, [text])
    index.write(lambda txn: _put(txn, pack, _parsed(text)))


def strike(truth: Truth, index: Index, pack: bytes) -> None:
    """The pack was read, and is whole."""
    with index.read() as txn:
        noted = txn.get(meta_rows.TABLE, meta_rows.damaged_key(pack)) is not None
    if noted:
        _delete(truth.blobs, pack)
        index.write(lambda txn: txn.delete(meta_rows.TABLE, meta_rows.damaged_key(pack)))


def bring_up(truth: Truth, index: Index) -> None:
    """Let the rows follow the files. The packs are brought up already."""
    names = truth.blobs.list(layout.QUARANTINE)
    noted = {pack for name in names if (pack := _pack_of(name)) is not None}
    with index.read() as txn:
        known = set(damaged_packs(txn))
        gone = {pack for pack in noted if txn.get("pack_names", pack) is None}
    for pack in gone:
        if not truth.blobs.exists(layout.pack_path(pack.hex())):
            _delete(truth.blobs, pack)
    new = {pack: _read(truth.blobs, pack) for pack in noted - known - gone}
    if new or known - noted:
        index.write(lambda txn: _follow(txn, new, known - noted))


def _follow(txn: WriteTxn, new: dict[bytes, frozenset[bytes] | None], old: Collection[bytes]) -> None:
    for pack, ids in new.items():
        _put(txn, pack, ids)
    for pack in old:
        txn.delete(meta_rows.TABLE, meta_rows.damaged_key(pack))


def _put(txn: WriteTxn, pack: bytes, ids: frozenset[bytes] | None) -> None:
    if txn.get("pack_names", pack) is not None:  # a compaction may have deleted it meanwhile
        key = meta_rows.damaged_key(pack)
        txn.put(meta_rows.TABLE, key, meta_rows.encode_damaged(key, ids))


def _path(pack: bytes) -> str:
    return f"{layout.QUARANTINE}/{_PREFIX}{pack.hex()}"


def _pack_of(name: str) -> bytes | None:
    digits = name.removeprefix(_PREFIX)
    if digits == name or len(digits) != 2 * ID_LEN or not set(digits) <= set("0123456789abcdef"):
        return None
    return bytes.fromhex(digits)


def _read(blobs: BlobStore, pack: bytes) -> frozenset[bytes] | None:
    try:
        return _parsed(blobs.read(_path(pack)))
    except (BlobMissing, StorageFailed):
        return None


def _parsed(text: bytes) -> frozenset[bytes] | None:
    """What cannot be parsed, too, means all of the pack."""
    try:
        ids = frozenset(bytes.fromhex(line) for line in text.decode("ascii").split())
    except ValueError:
        return None
    return ids if ids and all(len(object_id) == ID_LEN for object_id in ids) else None


def _delete(blobs: BlobStore, pack: bytes) -> None:
    with suppress(BlobMissing, StorageFailed):
        blobs.delete(_path(pack))
