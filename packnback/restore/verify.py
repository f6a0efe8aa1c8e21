"""Verifying snapshots: everything that they reach is decrypted and compared with its id; nothing is written.

An object that several snapshots share is read once. What was read is remembered in two flat sets of 16 bytes per
object (`idset`; some 24 MB for a million objects). A page that was verified is not opened again for a later
snapshot, and neither is what lies below it; data is read by plans of bounded size, in the repository's order.

Beyond ids, some things are checked that ids cannot tell: that tables and pages agree with one another, and the
content checks of files that lie in one piece in an object that is being read. Files that were put together from
several objects, and the shape of the whole tree (`walk`), are checked when they are restored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from blake3 import blake3
from msgspec import Struct, field

from packnback import errors
from packnback.events import Watch
from packnback.format.entry import FILE, Entry, Extent
from packnback.format.listing import Group
from packnback.ids import Kind, ObjectClass
from packnback.restore.idset import IdSet
from packnback.restore.listing import PREFETCH, PROBLEMS, Hole, Listing, Node, decode_group, totals_of
from packnback.restore.locate import ContentCheck, Plan, deliver, extent_object, file_extents
from packnback.restore.look import join
from packnback.restore.objects import ObjectReader
from packnback.restore.snapshot import Snapshot, open_snapshot
from packnback.restore.walk import walk
from packnback.store.interface import SnapshotInfo


class Affected(Struct, frozen=True):
    """A path that cannot be restored as it was: the snapshot's id, the path, and what is wrong."""

    snapshot: bytes
    path: bytes
    reason: str
    cause: errors.PacknbackError | None = None
    """What `reason` says, for whoever has better words for it."""


class VerifyResult(Struct):
    """What was read, and what is wrong with it."""

    snapshots: int = 0
    objects: int = 0
    bytes_verified: int = 0
    """Plaintext bytes of all objects that were read."""
    bad: dict[bytes, errors.PacknbackError] = field(default_factory=dict)
    """By id: objects that are missing, damaged, or not what their id promises. For ``check --repair --bad``."""
    snapshots_bad: dict[bytes, errors.PacknbackError] = field(default_factory=dict)
    """By id: snapshots that could not be opened at all."""
    affected: list[Affected] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """Whether anything is wrong (exit 4)."""
        return bool(self.bad or self.snapshots_bad or self.affected)


_File = tuple[bytes, bytes, Entry]
"""(snapshot id, path, entry) of a file that asks for a piece."""


def verify(reader: ObjectReader, infos: Iterable[SnapshotInfo], watch: Watch | None = None) -> VerifyResult:
    """Read everything that these snapshots reach. Raises KeyCannot for a key that does not open contents."""
    reader.require(ObjectClass.DATA)
    work = _Verification(reader, watch or Watch())
    opened, infos = [], list(infos)
    reader.repository.expect_snapshots(info.name for info in infos)
    for info in infos:
        try:
            snapshot = open_snapshot(reader, info)
        except PROBLEMS as problem:
            work.result.snapshots_bad[info.id] = problem
            continue
        work.snapshot(snapshot)
        opened.append(snapshot)
    if work.result.bad:
        for snapshot in opened:
            work.result.affected.extend(_affected(reader, snapshot, work.result.bad))
    return work.result


class _Verification:
    def __init__(self, reader: ObjectReader, watch: Watch) -> None:
        self.result = VerifyResult()
        self._reader = reader
        self._progress = watch.progress
        self._listed = IdSet()
        self._agreed = IdSet()
        """Hashes of what was found to be so: an extent object, what it covers, its depth."""
        self._read = IdSet()
        self._plan: Plan[_File] = Plan()

    def snapshot(self, snapshot: Snapshot) -> None:
        listing = Listing(self._reader, snapshot.header.root)
        check = ContentCheck(self._reader.key, snapshot.header.domain_id)
        total = listing.totals()
        self._progress.begin("verify", total.bytes if total else None, "bytes")
        self._node(listing, listing.root, snapshot.info.id, check)
        self._carry_out(check)
        self.result.snapshots += 1

    def _node(self, listing: Listing, node: Node, snapshot_id: bytes, check: ContentCheck) -> None:
        if node.id in self._listed:
            return
        self._listed.add(node.id)
        try:
            inside = listing.expand(node)
        except PROBLEMS as problem:
            self.result.bad[node.id] = problem
            return
        self._count(node.id, Kind.PAGE if node.depth == 0 else Kind.TABLE)
        groups = [group for group in inside if isinstance(group, Group)]
        if groups:
            self._page(listing, node, groups, snapshot_id, check)
        nodes = [child for child in inside if isinstance(child, Node) and child.id not in self._listed]
        for at in range(0, len(nodes), PREFETCH):
            batch = nodes[at : at + PREFETCH]
            self._reader.prefetch([child.id for child in batch])
            for child in batch:
                self._node(listing, child, snapshot_id, check)

    def _page(
        self, listing: Listing, node: Node, groups: Sequence[Group], snapshot_id: bytes, check: ContentCheck
    ) -> None:
        try:
            blocks = [decode_group(group) for group in groups]
            if node.totals is not None and totals_of(blocks) != node.totals:
                raise errors.ObjectDamage(node.id, "its totals are not what its table says")
        except PROBLEMS as problem:
            self.result.bad[node.id] = problem
            return
        for group, entries in zip(groups, blocks, strict=True):
            for entry in entries:
                if entry.type == FILE:
                    self._file((snapshot_id, join(group.path, entry.name), entry), check)
            if self._plan.full:
                self._carry_out(check)

    def _file(self, file: _File, check: ContentCheck) -> None:
        entry = file[2]
        if entry.far:
            self._far(file, entry.far, entry.far_depth - 1, 0, check)
        else:
            self._ask_for(file, entry.extents, 0)

    def _far(self, file: _File, far: Sequence[tuple[bytes, int]], depth: int, at: int, check: ContentCheck) -> None:
        """A damaged extent object hides neither those beside it nor what they lead to."""
        for object_id, covered in far:
            if self._agreed.add(blake3(b"%b%d %d" % (object_id, covered, depth)).digest()):
                try:
                    found = extent_object(self._reader, object_id, covered, depth)
                    if self._listed.add(object_id):
                        self._count(object_id, Kind.EXTENTS)
                except PROBLEMS as problem:
                    self.result.bad[object_id] = problem
                else:
                    behind = self._ask_for(file, found.extents, at)
                    self._far(file, found.far, depth - 1, behind, check)
                    if self._plan.full:
                        self._carry_out(check)
            at += covered

    def _ask_for(self, file: _File, extents: Iterable[Extent], at: int) -> int:
        """Ask for what was not read before, of extents from an offset of the file on; the offset behind them."""
        for extent in extents:
            if extent.id is not None and extent.id not in self._read:
                whole = extent.length == file[2].size
                self._plan.add(file, at, extent, file[2].check if whole else b"")
            at += extent.length
        return at

    def _carry_out(self, check: ContentCheck) -> None:
        plan, self._plan = self._plan, Plan()
        for delivery in deliver(self._reader, plan, check):
            self._read.add(delivery.id)
            self._progress.advance(sum(length for _, _, length, _, _ in delivery.contents))
            if delivery.problem is not None:
                self.result.bad[delivery.id] = delivery.problem
                continue
            self.result.objects += 1
            self.result.bytes_verified += delivery.length
            for (snapshot_id, path, _), _, _, content, right in delivery.contents:
                if isinstance(content, errors.PacknbackError):
                    self.result.affected.append(Affected(snapshot_id, path, str(content), content))
                elif not right:
                    reason = "its content is not what was backed up"
                    self.result.affected.append(Affected(snapshot_id, path, reason))

    def _count(self, object_id: bytes, kind: Kind) -> None:
        """Count what has just been read; it is at hand still."""
        self.result.objects += 1
        self.result.bytes_verified += len(self._reader.listing_object(object_id, kind).plaintext)


def _affected(
    reader: ObjectReader, snapshot: Snapshot, bad: dict[bytes, errors.PacknbackError]
) -> Iterator[Affected]:
    """Which paths of a snapshot need what is bad: a second reading of the listing, of no data."""
    listing = Listing(reader, snapshot.header.root)
    for part in walk(listing.groups()):
        if isinstance(part, Hole):
            if part.id is not None:
                yield Affected(snapshot.info.id, part.path, part.reason, part.problem)
            continue
        for entry in part.entries:
            if entry.type == FILE and (problem := _what_is_bad(reader, entry, bad)) is not None:
                yield Affected(snapshot.info.id, join(part.path, entry.name), str(problem), problem)


def _what_is_bad(
    reader: ObjectReader, entry: Entry, bad: dict[bytes, errors.PacknbackError]
) -> errors.PacknbackError | None:
    try:
        for extent in file_extents(reader, entry):
            if extent.id is not None and extent.id in bad:
                return bad[extent.id]
    except PROBLEMS as problem:
        return problem
    return None
