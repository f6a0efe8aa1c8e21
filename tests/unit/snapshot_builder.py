"""Makes snapshots from crypto and format alone, and a repository in memory that can be told to do damage.

Nothing of the backup package is used: what these tests read is made by an independent, and much simpler, hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from blake3 import blake3

from packnback import errors
from packnback.crypto.envelope import make_envelope
from packnback.crypto.keys import OwnerKey
from packnback.crypto.seal import body_length, encode_payload, object_id, seal_body
from packnback.crypto.sign import sign_snapshot
from packnback.format import metadata, record, snapshot
from packnback.format.config import Config
from packnback.format.entry import DIRECTORY, FILE, Entry, Extent, encode_block
from packnback.format.listing import Child, Group, Totals, encode_page, encode_table, path_key
from packnback.ids import Kind, ObjectClass, class_of
from packnback.store.interface import Fetched, Session, SnapshotInfo

OWNER = OwnerKey(b"\7" * 32)
REPOSITORY_ID = b"repository id 16"


@dataclass
class MemoryRepository:
    """What a reader needs of a repository. `records` may be altered; `fetched` logs what was asked for."""

    config: Config
    location: str = "/memory"
    records: dict[bytes, bytes] = field(default_factory=dict)
    envelopes: dict[bytes, bytes] = field(default_factory=dict)
    infos: list[SnapshotInfo] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    fetched: list[bytes] = field(default_factory=list)

    def session(self, certificate: bytes) -> AbstractContextManager[Session]:
        raise NotImplementedError

    def snapshots(self) -> list[SnapshotInfo]:
        return list(self.infos)

    def read_snapshot(self, name: str) -> bytes:
        if name not in self.files:
            raise errors.SnapshotUnknown(name)
        return self.files[name]

    def expect_snapshots(self, names: Iterable[str]) -> None:
        """They are all here."""

    def fetch(self, ids: Sequence[bytes], *, checked: bool = True) -> Iterator[Fetched]:
        for wanted in sorted(ids):  # an order that is not the one asked for
            self.fetched.append(wanted)
            found = self.records.get(wanted)
            if found is None:
                yield Fetched(wanted, b"", b"", errors.ObjectMissing(wanted))
            else:
                yield Fetched(wanted, found, self.envelopes.get(found[48:64], b""))

    def close(self) -> None:
        """Nothing to give back."""

    def flip(self, wanted: bytes, at: int = -20) -> None:
        """Flip one bit of a stored record (by default in its body)."""
        altered = bytearray(self.records[wanted])
        altered[at] ^= 1
        self.records[wanted] = bytes(altered)


class Client:
    """One client that stores objects and snapshots in a memory repository."""

    def __init__(self, repository: MemoryRepository | None = None, name: str = "alice", **put: object) -> None:
        self.key = OWNER.put_key(name, **put)  # type: ignore[arg-type]
        self.repository = repository or MemoryRepository(Config(REPOSITORY_ID, OWNER.bundle.raw))
        self.sealers = {}
        for object_class in ObjectClass:
            raw, envelope_id, keys = make_envelope(self.key, REPOSITORY_ID, object_class)
            self.repository.envelopes[envelope_id] = raw
            self.sealers[object_class] = (raw, envelope_id, keys)
        self.sequence = 0
        self.previous = bytes(32)

    def seal(self, kind: int, level: int, refs: Sequence[bytes], plaintext: bytes) -> tuple[bytes, bytes]:
        """(id, record)."""
        object_class = class_of(kind)
        _, envelope_id, keys = self.sealers[object_class]
        joined = b"".join(refs)
        wanted = object_id(self.key.id_key[object_class], self.key.domain_id, kind, joined, plaintext)
        padded = encode_payload(plaintext, object_class, codec_level=1)
        header = record.encode_header(kind, level, len(refs), body_length(padded), wanted, envelope_id)
        return wanted, bytes(record.finish(header, joined, seal_body(keys, header, joined, padded)))

    def store(self, kind: int, level: int, refs: Sequence[bytes], plaintext: bytes) -> bytes:
        wanted, sealed = self.seal(kind, level, refs, plaintext)
        self.repository.records[wanted] = sealed
        return wanted

    def data(self, content: bytes) -> bytes:
        """Store a data object."""
        return self.store(Kind.DATA, 0, [], content)

    def check(self, content: bytes) -> bytes:
        """The content check of a file."""
        return blake3(b"file check\0" + content, key=self.key.id_key[ObjectClass.DATA]).digest(8)

    def file(self, name: bytes, content: bytes, *, pieces: int = 1, **more: object) -> Entry:
        """A file entry whose content is stored in `pieces` objects."""
        step = -(-len(content) // pieces) or 1
        cuts = [content[i : i + step] for i in range(0, len(content), step)]
        extents = tuple(Extent(self.data(cut), 0, len(cut)) for cut in cuts)
        more = {"mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 1_600_000_000_123_456_789} | more
        return Entry(name, FILE, size=len(content), extents=extents, check=self.check(content), **more)  # type: ignore[arg-type]

    def page(self, groups: Sequence[Group], entries: Sequence[Sequence[Entry]]) -> Child:
        """Store a page."""
        refs, plaintext = encode_page(groups)
        stored = self.store(Kind.PAGE, 1, refs, plaintext)
        every = [e for group in entries for e in group]
        files = [e.size for e in every if e.type == FILE]
        return Child(stored, groups[0].path, groups[0].part, Totals(len(every), len(files), sum(files)))

    def table(self, children: Sequence[Child], depth: int = 0) -> Child:
        """Store a table."""
        refs, plaintext = encode_table(children, depth)
        stored = self.store(Kind.TABLE, depth + 2, refs, plaintext)
        return Child(stored, children[0].path, children[0].part, sum((c.totals for c in children), Totals()))

    def listing(self, directories: dict[bytes, Sequence[Entry]], *, per_page: int = 2, fanout: int = 4) -> bytes:
        """Store a listing of these directories, exactly as they are; its root. A tuple key is (path, part)."""
        rows = sorted(((k if isinstance(k, tuple) else (k, 0)), v) for k, v in directories.items())  # type: ignore[misc]
        rows.sort(key=lambda row: (path_key(row[0][0]), row[0][1]))
        children = []
        for i in range(0, len(rows), per_page):
            batch = rows[i : i + per_page]
            groups = [Group(path, part, *encode_block(entries)) for (path, part), entries in batch]
            children.append(self.page(groups, [entries for _, entries in batch]))
        depth = 0
        while True:
            children = [self.table(children[i : i + fanout], depth) for i in range(0, len(children), fanout)]
            if len(children) == 1:
                return children[0].id
            depth += 1

    def commit(self, root: bytes, *, flags: int = 0, forgotten_ns: int | None = None) -> SnapshotInfo:
        """Store a snapshot file; what the repository says of it."""
        self.sequence += 1
        raw_envelope, _, _ = self.sealers[ObjectClass.META]
        binding = (self.key.client_id, self.sequence, self.previous, root)
        plaintext = metadata.encode(binding, metadata.Metadata("host", (b"/home",), 1))
        _, sealed = self.seal(Kind.METADATA, 10, [root], plaintext)
        certificate = self.key.certificate
        header = snapshot.Header(
            flags, REPOSITORY_ID, self.key.client_id, self.key.domain_id, self.key.epoch, self.sequence,
            self.previous, root, blake3(sealed).digest(), 1_700_000_000_000_000_000, certificate.hash,
        )  # fmt: skip
        header_bytes = snapshot.encode_header(header)
        counter = len(self.repository.infos) + 1
        receipt = snapshot.Receipt(counter, counter, 0)
        file = snapshot.SnapshotFile(
            header, header_bytes, sign_snapshot(self.key.sign_seed, header_bytes), certificate.raw,
            bytes(record.envelope_record(raw_envelope)), sealed, receipt,
        )  # fmt: skip
        name = snapshot.snapshot_name(self.key.client_id, self.sequence)
        raw = snapshot.encode_file(file)
        self.repository.files[name] = raw
        info = SnapshotInfo(
            name, file.id, self.key.client_id, self.key.name, self.key.domain_id, self.key.epoch, self.sequence,
            self.previous, root, header.time_ns, receipt, header.partial, forgotten_ns, True, len(raw),
        )  # fmt: skip
        self.repository.infos.append(info)
        self.previous = file.id
        return info


def directory(name: bytes, **more: object) -> Entry:
    """A directory entry."""
    more = {"mode": 0o755, "uid": 0, "gid": 0, "mtime_ns": 1_500_000_000_000_000_000} | more
    return Entry(name, DIRECTORY, **more)  # type: ignore[arg-type]


def other(name: bytes, kind: int, **more: object) -> Entry:
    """An entry that is neither file nor directory."""
    more = {"mode": 0o777, "uid": 0, "gid": 0, "mtime_ns": 1_400_000_000_000_000_000} | more
    return Entry(name, kind, **more)  # type: ignore[arg-type]


def tree_of(entries: Iterable[tuple[bytes, Entry]]) -> dict[bytes, list[Entry]]:
    """Directories by path, from (path of a directory, entry) pairs, with the directories above them added."""
    directories: dict[bytes, dict[bytes, Entry]] = {b"": {}}
    for path, entry in entries:
        at = b""
        for name in path.split(b"/") if path else []:
            directories.setdefault(at, {}).setdefault(name, directory(name))
            at = at + b"/" + name if at else name
        directories.setdefault(at, {})[entry.name] = entry
        if entry.type == DIRECTORY:
            directories.setdefault(at + b"/" + entry.name if at else entry.name, {})
    return {path: [row[name] for name in sorted(row)] for path, row in directories.items()}
