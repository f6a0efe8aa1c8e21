"""The smallest honest reader: a flat tree of `smallclient` back to {name: content}, every object decrypted."""

from __future__ import annotations

from collections.abc import Iterable

from smallclient import OWNER

from packnback.format.entry import decode_block
from packnback.format.listing import decode_page, decode_table
from packnback.restore.objects import ObjectReader, Opened
from packnback.store.repository import LocalRepository


def read_back(repository: LocalRepository, root: bytes) -> dict[str, bytes]:
    """The files under `root`. Raises the problem of the first object that cannot be opened."""
    files = {}
    with ObjectReader(repository, OWNER, workers=1) as reader:

        def opened(ids: Iterable[bytes]) -> dict[bytes, Opened]:
            found = {o.id: o for o in reader.open_many(sorted(set(ids)))}
            for one in found.values():
                if one.problem is not None:
                    raise one.problem
            return found

        table = opened([root])[root]
        pages = opened(child.id for child in decode_table(table.refs, table.plaintext).children)
        for page in pages.values():
            for group in decode_page(page.refs, page.plaintext):
                data = opened(group.ids)
                for entry in decode_block(group.ids, group.block):
                    content = b"".join(data[e.id].plaintext[e.offset : e.offset + e.length] for e in entry.extents)
                    files[entry.name.decode()] = content
    return files
