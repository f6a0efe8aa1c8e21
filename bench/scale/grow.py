"""A large repository without its bytes: real footers, snapshots and signatures around holes.

The engine looks at nothing of a pack but its footer, unless it rewrites or scrubs it. So the data packs made here
are sparse files: magic, envelope, a hole in which the records would lie, footer, trailer. They weigh some KiB
each, and a repository of 5,000,000 objects (1.5 TB on paper) is made in a minute or two. Meta packs are real but
for their ciphertext, so that compaction can merge them.

The tree has pages of 500 data objects under tables of up to 2048 pages. A base tree holds 60 % of all data
objects; each snapshot replaces some of its pages, in turn, by pages of new data in packs of their own. So
forgetting the oldest snapshots frees whole packs. Everything follows from the seed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from packnback.format import record as record_format
from packnback.format import snapshot as snapshot_format
from packnback.format.pack import MAGIC, EnvelopeRow, RecordRow, encode_footer, encode_trailer
from packnback.format.snapshot import Receipt, SnapshotFile
from packnback.ids import Kind, ObjectClass
from packnback.store import layout
from packnback.store.interface import Head
from packnback.store.local import create_local

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "sim"))
from smallclient import OWNER, SmallClient

PAGE_REFS = 500
TABLE_REFS = 2048
PACK_BYTES = 32 << 20
DATA_BYTES = 320_000
INNER_BYTES = 500
FIRST_NS = 1_700_000_000 * 10**9
INTERVAL_NS = 3600 * 10**9


@dataclass(frozen=True)
class Thing:
    """An object that has an id and refs but no body. `body` is how long that would be, in bytes."""

    id: bytes
    kind: int
    level: int
    refs: bytes
    body: int


class Random:
    """As many bytes as anybody wants, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._hasher = blake3(b"scale %d" % seed)
        self._at = 0

    def bytes(self, count: int) -> bytes:
        found = self._hasher.digest(count, seek=self._at)
        self._at += count
        return found

    def ids(self, tag: bytes, count: int) -> list[bytes]:
        """Object ids of one domain, ascending."""
        raw = self.bytes(24 * count)
        return sorted(tag + raw[i : i + 24] for i in range(0, len(raw), 24))


class Packs:
    """Writes packs of one class."""

    def __init__(self, root: str, client: SmallClient, object_class: ObjectClass, random: Random) -> None:
        self._root, self._random = root, random
        envelope, self._envelope_id, _ = client.envelope(object_class)
        parsed = record_format.parse(envelope)
        self._envelope = envelope
        key = client.key
        self._facts = (parsed.id, parsed.checksum, key.client_id, key.domain_id, key.epoch, object_class)
        self._object_class = object_class
        self._reset()

    def _reset(self) -> None:
        self._rows: list[RecordRow] = []
        self._pieces = [MAGIC, self._envelope]
        self._at = len(MAGIC) + len(self._envelope)

    def add(self, thing: Thing) -> None:
        length = record_format.record_length(len(thing.refs) // 32, thing.body)
        checksum = thing.id[-16:]
        if self._object_class == ObjectClass.META:
            args = (thing.kind, thing.level, len(thing.refs) // 32, thing.body, thing.id, self._envelope_id)
            self._pieces.append(
                record_format.finish(record_format.encode_header(*args), thing.refs, bytes(thing.body))
            )
            checksum = self._pieces[-1][-16:]
        row = RecordRow(self._at, length, thing.kind, thing.level, thing.id, checksum, 0, thing.refs)
        self._rows.append(row)
        self._at += length
        if self._at >= PACK_BYTES:
            self.finish()

    def finish(self) -> None:
        if not self._rows:
            return
        envelope = EnvelopeRow(len(MAGIC), len(self._envelope), *self._facts)
        footer = encode_footer(self._random.bytes(16), self._rows, [envelope])
        path = os.path.join(self._root, layout.pack_path(blake3(footer).hexdigest()))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.pwrite(fd, b"".join(self._pieces), 0)
            os.pwrite(fd, footer + encode_trailer(self._at, footer), self._at)
        finally:
            os.close(fd)
        self._reset()


class Grower:
    """Makes one repository."""

    def __init__(self, path: str, seed: int) -> None:
        opened = create_local(path, OWNER.bundle.raw)
        self.repository_id = opened.config.repository_id
        opened.close()
        self._path, self._random = path, Random(seed)
        self.client = SmallClient(self.repository_id, "scale")
        self._tag = self.client.key.domain_id[:8]
        self._data = Packs(path, self.client, ObjectClass.DATA, self._random)
        self._meta = Packs(path, self.client, ObjectClass.META, self._random)
        self.objects = 0

    def pages(self, data_objects: int) -> Iterator[Thing]:
        """Pages of new data objects, all of them written."""
        while data_objects > 0:
            ids = self._random.ids(self._tag, min(PAGE_REFS, data_objects))
            for object_id in ids:
                self._data.add(Thing(object_id, Kind.DATA, 0, b"", DATA_BYTES))
            yield self._inner(Kind.PAGE, 1, b"".join(ids), INNER_BYTES)
            self.objects += len(ids)
            data_objects -= len(ids)

    def _inner(self, kind: Kind, level: int, refs: bytes, body: int) -> Thing:
        thing = Thing(self._random.ids(self._tag, 1)[0], kind, level, refs, body)
        self._meta.add(thing)
        self.objects += 1
        return thing

    def root(self, pages: Sequence[Thing], tables: dict[bytes, Thing]) -> Thing:
        """The root over `pages`; tables of the tree before are taken over where nothing changed below."""
        level: Sequence[Thing] = pages
        while True:
            parents = []
            for at in range(0, len(level), TABLE_REFS):
                refs = b"".join(sorted(child.id for child in level[at : at + TABLE_REFS]))
                height = 1 + max(child.level for child in level[at : at + TABLE_REFS])
                if refs not in tables:
                    tables[refs] = self._inner(Kind.TABLE, height, refs, INNER_BYTES)
                parents.append(tables[refs])
            if len(parents) == 1:
                return parents[0]
            level = parents

    def finish_packs(self) -> None:
        self._data.finish()
        self._meta.finish()

    def snapshot(self, root: Thing, head: Head | None, number: int) -> Head:
        """Write a snapshot file with a receipt."""
        time_ns = FIRST_NS + number * INTERVAL_NS
        # A client of its own each time: every session has an envelope of its own, which a reader has to open.
        data = SmallClient(self.repository_id, "scale").snapshot(root.id, head, time_ns=time_ns, level=root.level + 1)
        bare = snapshot_format.decode_file(data, receipt=False)
        stamped = snapshot_format.encode_file(
            SnapshotFile(
                bare.header, bare.header_bytes, bare.signature, bare.certificate, bare.envelope_record,
                bare.metadata_record, Receipt(time_ns, number + 1, 0, True),
            )
        )  # fmt: skip
        name = snapshot_format.snapshot_name(bare.header.client_id, bare.header.sequence)
        with open(os.path.join(self._path, layout.SNAPSHOTS, name), "xb") as file:
            file.write(stamped)
        return Head(bare.header.sequence, bare.id, time_ns, bare.header.epoch)


def grow(path: str, objects: int, snapshots: int, seed: int = 1) -> Grower:
    """Make a repository of about so many objects and exactly so many snapshots in the directory `path`."""
    grower = Grower(path, seed)
    base = objects * 6 // 10
    each = max(1, (objects - base) // max(1, snapshots - 1))
    pages = list(grower.pages(base))
    tables: dict[bytes, Thing] = {}
    head, at = None, 0
    for number in range(snapshots):
        if number:
            for page in grower.pages(each):
                pages[at % len(pages)] = page
                at += 1
        root = grower.root(pages, tables)
        head = grower.snapshot(root, head, number)
        tables = {refs: t for refs, t in tables.items() if refs == root.refs or t.id in root.refs or t is root}
    grower.finish_packs()
    return grower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--objects", type=int, default=50_000)
    parser.add_argument("--snapshots", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    made = grow(chosen.path, chosen.objects, chosen.snapshots, chosen.seed)
    print(f"{made.objects} objects, {chosen.snapshots} snapshots in {chosen.path}")


if __name__ == "__main__":
    main()
