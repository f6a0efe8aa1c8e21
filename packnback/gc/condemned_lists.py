"""Condemned lists as files: written last, taken away when all that they name has gone.

See `packnback.gc.condemn` for what they are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from blake3 import blake3

from packnback.errors import AlreadyExists, BlobMissing
from packnback.format import condemned as condemned_format
from packnback.format import rows
from packnback.store import layout
from packnback.store.condemned import condemned_lists
from packnback.store.index import ReadTxn, WriteTxn
from packnback.store.ledger import changing
from packnback.store.repository import LocalRepository


def publish_list(repository: LocalRepository, packs: Iterable[bytes]) -> str:
    """Condemn packs; the name of the list. All that is needed of them stands elsewhere, durably."""
    ports = repository.ports
    condemned = condemned_format.make(ports.now_ns(), packs, ports.blobs.list(layout.TMP))
    data = condemned_format.encode(condemned)
    name = blake3(data).hexdigest()
    with suppress(AlreadyExists):
        ports.blobs.publish(f"{layout.CONDEMNED}/{name}", [data])

    def adopt(txn: WriteTxn) -> None:
        with changing(txn) as ledger:
            ledger.adopt_condemned(name, condemned)

    ports.index.write(adopt)
    return name


def packs_of(txn: ReadTxn, lists: Iterable[str]) -> set[bytes]:
    """The packs on these lists that are there still."""
    wanted = set(lists)
    named = (rows.split_doomed_key(key) for key, _ in txn.scan("doomed"))
    return {pack for pack, name in named if name in wanted and txn.get("pack_names", pack) is not None}


def lists_without_packs(repository: LocalRepository) -> list[str]:
    """The lists of which every pack has gone."""
    with repository.ports.index.read() as txn:
        return [name for name in condemned_lists(txn) if not packs_of(txn, [name])]


def drop_lists(repository: LocalRepository, names: Sequence[str]) -> None:
    """Take lists away."""
    if not names:
        return
    blobs = repository.ports.blobs
    for name in names:
        with suppress(BlobMissing):
            blobs.delete(f"{layout.CONDEMNED}/{name}")
    blobs.barrier()

    def drop(txn: WriteTxn) -> None:
        with changing(txn) as ledger:
            for name in names:
                ledger.drop_condemned(name)

    repository.ports.index.write(drop)
