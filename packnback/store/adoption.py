"""From files to rows: what the repository believes of a pack, a snapshot or a header batch that it finds.

Everything here is checked without keys: hashes, structure, certificates and signatures. What cannot be parsed
is not an error but a finding: it gets a row that says so, because damage must be known to block deletion and
must not be mistaken for absence. So is what the disk does not give back (`Unreadable`): one bad sector must not
keep anybody from the rest. Should it come back to life, `check` notices, as it derives everything anew. Other
errors of the disk go through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from blake3 import blake3
from msgspec import Struct

from packnback.errors import (
    BlobMissing,
    FormatDamage,
    PackDamage,
    PacknbackError,
    Unreadable,
    UnsupportedVersion,
    WrongOwner,
)
from packnback.events import Counters
from packnback.format import condemned as condemned_format
from packnback.format import pack as pack_format
from packnback.format import rows, snapshot
from packnback.format.condemned import CondemnedList
from packnback.format.pack import Footer
from packnback.format.rows import PackRow, SnapshotRow
from packnback.format.snapshot import KeptHeader, SnapshotFile
from packnback.ids import KIB
from packnback.store import layout
from packnback.store.blobs import BlobStore

if TYPE_CHECKING:
    from concurrent.futures import Future

_TAIL = 64 * KIB
"""Read this much from the end of a pack at once: it nearly always holds the whole footer."""
_MANY = 256
"""For fewer packs no thread is started."""
_THREADS = 4
_READ_AHEAD = 32
"""So many tails, of 64 KiB each, are on their way at a time."""


class FoundPack(Struct, frozen=True):
    """A pack's file as found: `footer` is None when it cannot be parsed, `problem` tells why."""

    name: bytes
    size: int
    footer: Footer | None
    problem: PacknbackError | None = None

    @property
    def status(self) -> int:
        """The status for its row."""
        if self.footer is not None:
            return rows.GOOD
        return rows.NEWER if isinstance(self.problem, UnsupportedVersion) else rows.DAMAGED


class PackFacts(Struct, frozen=True):
    """What an index remembers of a pack beside its objects."""

    row: PackRow
    used: dict[bytes, int]
    """By client id, the bytes of its records."""


Tail = tuple[int, bytes]
"""Size of a pack, and its last bytes."""


def read_tail(blobs: BlobStore, name: bytes) -> Tail:
    """What `read_footer` takes from the disk, nearly always. Raises BlobMissing, Unreadable."""
    path = layout.pack_path(name.hex())
    size = blobs.size(path)
    start = max(0, size - _TAIL)
    try:
        return size, blobs.read(path, start, size - start)
    except Unreadable as problem:
        return size, _footer_alone(blobs, path, size, problem).rjust(size - start, b"\0")


def _footer_alone(blobs: BlobStore, path: str, size: int, problem: Unreadable) -> bytes:
    """Footer and trailer, as far as they stand in the tail: the bad sector may be among the records before them."""
    try:
        trailer = pack_format.decode_trailer(blobs.read(path, max(0, size - pack_format.TRAILER_LEN)), size)
    except (FormatDamage, UnsupportedVersion):
        raise problem from None
    start = max(trailer.footer_offset, size - _TAIL)
    return blobs.read(path, start, size - start)


def read_footer(
    blobs: BlobStore, name: bytes, counters: Counters, read: Callable[[], Tail] | None = None
) -> tuple[int, Footer]:
    """(size in bytes, footer) of the pack `name` (32 bytes), which is the hash of that footer.

    `read` gives a tail that was read ahead. Raises PackDamage, UnsupportedVersion, BlobMissing, Unreadable.
    """
    path = layout.pack_path(name.hex())
    size, tail = read_tail(blobs, name) if read is None else read()
    start = max(0, size - _TAIL)
    counters.footers_read += 1
    try:
        trailer = _trailer(blobs, path, tail, size)
        if trailer.footer_hash != name:
            raise FormatDamage("pack footer", "not the one that the name commits to")
        if trailer.footer_offset < start:
            tail = blobs.read(path, trailer.footer_offset, size - trailer.footer_offset)
            start = trailer.footer_offset
        at = trailer.footer_offset - start
        return size, pack_format.decode_footer(tail[at : at + trailer.footer_length], trailer)
    except FormatDamage as damage:
        raise PackDamage(name.hex(), f"{damage.what}: {damage.why}") from None


def _trailer(blobs: BlobStore, path: str, tail: bytes, size: int) -> pack_format.Trailer:
    try:
        return pack_format.decode_trailer(tail[-pack_format.TRAILER_LEN :], size)
    except UnsupportedVersion:
        # Both ends of a pack carry the version: a flipped byte at one end is not the future.
        if blobs.read(path, 0, len(pack_format.MAGIC)) == pack_format.MAGIC:
            raise FormatDamage("pack trailer", "version") from None
        raise


def find_pack(
    blobs: BlobStore, name: bytes, counters: Counters, read: Callable[[], Tail] | None = None
) -> FoundPack | None:
    """The pack as found; None when its file is gone. `read`: see `read_footer`."""
    try:
        size, footer = read_footer(blobs, name, counters, read)
    except BlobMissing:
        return None
    except (PackDamage, UnsupportedVersion, Unreadable) as problem:
        return FoundPack(name, _size(blobs, name), None, problem)
    return FoundPack(name, size, footer)


def _size(blobs: BlobStore, name: bytes) -> int:
    """Bytes in a pack that is damaged; none in what is no file."""
    try:
        return blobs.size(layout.pack_path(name.hex()))
    except Unreadable:
        return 0


def find_packs(blobs: BlobStore, names: Sequence[bytes], counters: Counters) -> Iterator[FoundPack]:
    """`find_pack` for each name, in their order, without those that are gone.

    Many packs are read ahead by some threads: each costs a seek, or a round trip.
    """
    if len(names) < _MANY:
        found = (find_pack(blobs, name, counters) for name in names)
        yield from (pack for pack in found if pack is not None)
        return
    # Imported here because most commands on most days find a pack or none.
    from concurrent.futures import ThreadPoolExecutor

    ahead: deque[tuple[bytes, Future[Tail]]] = deque()
    waiting = iter(names)
    with ThreadPoolExecutor(_THREADS, "footers") as threads:
        while True:
            for name in islice(waiting, _READ_AHEAD - len(ahead)):
                ahead.append((name, threads.submit(read_tail, blobs, name)))
            if not ahead:
                return
            name, tail = ahead.popleft()
            pack = find_pack(blobs, name, counters, tail.result)
            if pack is not None:
                yield pack


def pack_facts(found: FoundPack) -> PackFacts:
    """What an index is to remember of a pack; of one without a footer that is little.

    A record belongs to the client that its envelope names, wherever compaction has moved it.
    """
    row, used, footer = PackRow(found.name, found.size, found.status), dict[bytes, int](), found.footer
    if footer is not None:
        row.object_class = footer.object_class
        row.records = len(footer.records)
        row.record_bytes = sum(r.length for r in footer.records)
        for record in footer.records:
            client_id = footer.envelopes[record.envelope].client_id
            used[client_id] = used.get(client_id, 0) + record.length
    return PackFacts(row, used)


def check_snapshot(name: str, file: SnapshotFile, repository_id: bytes, owner_bundle: bytes) -> str:
    """The client's name, when certificate and signature hold and the file stands under its own name.

    Raises FormatDamage, SnapshotDamage, WrongOwner.
    """
    # Imported here because most commands on most days have no new snapshot to check.
    from packnback.crypto.bundle import OwnerBundle
    from packnback.crypto.certificate import parse_certificate
    from packnback.crypto.sign import verify_snapshot

    header = file.header
    if snapshot.snapshot_name(header.client_id, header.sequence) != name:
        raise FormatDamage("snapshot", "stands under another's name", name)
    if header.repository_id != repository_id:
        raise FormatDamage("snapshot", "was made for another repository", name)
    certificate = parse_certificate(file.certificate)
    certificate.verify(OwnerBundle.parse(owner_bundle))
    named = (certificate.client_id, certificate.domain_id, certificate.epoch)
    if named != (header.client_id, header.domain_id, header.epoch):
        raise FormatDamage("snapshot", "certificate of another client, domain or epoch", name)
    verify_snapshot(certificate.verify_key, file.header_bytes, file.signature)
    return certificate.name


def can_be_snapshot(name: str) -> bool:
    """Whether it is worth opening a file of this name in ``snapshots/``: it might be a directory."""
    try:
        return snapshot.parse_name(name)[2] == "snap"
    except FormatDamage:
        return False


def can_be_batch(name: str) -> bool:
    """The same for ``headers/`` and ``condemned/``, where names are hashes."""
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def read_or_problem(blobs: BlobStore, path: str) -> bytes | Unreadable:
    """The blob, or why the disk does not give it back. Raises BlobMissing."""
    try:
        return blobs.read(path)
    except Unreadable as problem:
        return problem


def find_snapshot(name: str, data: bytes | Unreadable, repository_id: bytes, owner_bundle: bytes) -> SnapshotRow:
    """The row of a snapshot file, good or damaged."""
    if isinstance(data, Unreadable):
        return SnapshotRow(rows.DAMAGED, reason=data.reason)
    try:
        file = snapshot.decode_file(data)
        client = check_snapshot(name, file, repository_id, owner_bundle)
    except UnsupportedVersion as newer:
        return SnapshotRow(rows.NEWER, reason=f"{newer.what} version {newer.found}")
    except WrongOwner:
        return SnapshotRow(rows.DAMAGED, reason="certificate of another owner")
    except PacknbackError as damage:
        return SnapshotRow(rows.DAMAGED, reason=": ".join(str(fact) for fact in damage.facts().values()))
    return snapshot_row(file, client, len(data))


def snapshot_row(file: SnapshotFile, client: str, size: int) -> SnapshotRow:
    """The row of a snapshot file that was checked."""
    header = file.header
    if file.receipt is None:
        raise FormatDamage("snapshot", "no receipt")
    return SnapshotRow(
        rows.GOOD,
        file.id,
        header.client_id,
        header.domain_id,
        header.epoch,
        header.sequence,
        header.prev,
        header.root,
        header.time_ns,
        file.receipt,
        header.flags,
        size,
        client,
    )


def find_batch(name: str, data: bytes | Unreadable) -> tuple[int, Sequence[KeptHeader] | None]:
    """(status, headers) of a header batch; its name is its hash."""
    if isinstance(data, Unreadable) or blake3(data).hexdigest() != name:
        return rows.DAMAGED, None
    try:
        return rows.GOOD, snapshot.decode_batch(data)
    except UnsupportedVersion:
        return rows.NEWER, None
    except FormatDamage:
        return rows.DAMAGED, None


def find_condemned(name: str, data: bytes | Unreadable) -> tuple[int, CondemnedList | None]:
    """(status, contents) of a condemned list; its name is its hash."""
    if isinstance(data, Unreadable) or blake3(data).hexdigest() != name:
        return rows.DAMAGED, None
    try:
        return rows.GOOD, condemned_format.decode(data)
    except UnsupportedVersion:
        return rows.NEWER, None
    except FormatDamage:
        return rows.DAMAGED, None


def marker_status(name: str) -> int:
    """The status of a name in ``forgotten/``."""
    try:
        snapshot.parse_marker_name(name)
    except FormatDamage:
        return rows.DAMAGED
    return rows.GOOD
