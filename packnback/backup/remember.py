"""Memory of earlier runs, kept in the client's cache: what `reuse` describes.

Three rules make it harmless. What it says *exists* is asked of the repository before it is used (`ahead`). What it
says about *contents* rests on signatures that are taken only of files that held still, and that were changed last
before anything that could go unnoticed (`signature`). And rows are written only after what they point to is durable
(`spool`), each with a keyed check. So a cache that is lost, old, damaged or another repository's costs time, and
nothing else.

When the cache itself fails, the run goes on without it, and says so once.

*Liveness:* of each bundle the cache counts how many of its bytes the rows of a scope use. One that is used by less
than half counts as missing; the files that lie in it are read, and stored anew. So the waste inside bundles is
bounded although nobody can look into them. Of large files, `pieces` does the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from operator import attrgetter, itemgetter
from typing import TypeVar

from packnback.backup.ahead import Ahead, Known, Presence, Repository
from packnback.backup.cache import PIECES, USAGE, Cache, CacheFailed
from packnback.backup.cache_rows import (
    NO_STAMP,
    STAMP_LEN,
    PartRow,
    Rows,
    part_key,
)
from packnback.backup.contents import Contents
from packnback.backup.cut import FILE_MIN
from packnback.backup.pieces import COARSE_FROM, COARSE_STEP, NewPieceList, OldPieceList
from packnback.backup.reuse import NOTHING, NewPieces, OldObject, OldPieces, Reuse, Visit
from packnback.backup.roots import Roots, RootTree
from packnback.backup.signature import FileSystem, Signatures, stamp
from packnback.backup.spool import Spool
from packnback.backup.ticket import Place, Ticket
from packnback.backup.tree import Block
from packnback.backup.walk import Part
from packnback.errors import FormatDamage
from packnback.events import Progress
from packnback.format.entry import DIRECTORY, FILE, Entry, Extent, decode_block
from packnback.format.listing import path_key

T = TypeVar("T")
_TYPE, _DIRECTORY = 0o170000, 0o040000
_STATUS = itemgetter(1)
_USER, _GROUP = attrgetter("st_uid"), attrgetter("st_gid")


class Remembered:
    """`reuse.Reuse` on a cache that is open. `scope` is `cache_rows.scope_of` the options."""

    def __init__(
        self,
        cache: Cache,
        rows: Rows,
        scope: bytes,
        roots: Roots | None,
        repository: Repository,
        progress: Progress,
    ) -> None:
        """Raises CacheFailed."""
        self._cache = cache
        self._rows = rows
        self._scope = scope
        self._progress = progress
        self._failed = False
        self._presence = Presence(repository, self._poor)
        self.spool = Spool(cache, rows)
        self.contents = Contents(cache, rows, self._presence, self.spool)
        self._signatures = Signatures(rows.piece_key)
        prefixes = [path_key(path) for path in _leaves(roots.tree, b"")] if roots is not None else []
        self._ahead = Ahead(cache, rows, scope, prefixes, self._presence, self._drop)
        self._pieces: list[NewPieceList] = []

    def visit(self, part: Part) -> Visit:
        """See `reuse.Reuse`."""
        return self.attempt(lambda: self._visit(part), NOTHING.visit(part))

    def content(self, content_hash: bytes) -> Extent | None:
        """See `reuse.Reuse`."""
        if self.contents.is_empty:
            return None
        return self.attempt(lambda: self.contents.find(content_hash), None)

    def bundled(self, ticket: Ticket, size: int, contents: Sequence[tuple[bytes, int, int]]) -> None:
        """See `reuse.Reuse`."""
        self.attempt(lambda: self.contents.bundled(ticket, size, contents), None)

    def pieces(self, name: bytes, size: int) -> tuple[OldPieces | None, NewPieces] | None:
        """See `reuse.Reuse`."""
        return self.attempt(lambda: self._piece_lists(name, size), None)

    def keep(self, *, finished: bool = False) -> None:
        """See `reuse.Reuse`."""
        self.attempt(lambda: self._keep(finished), None)

    def close(self) -> None:
        """See `reuse.Reuse`."""
        self.spool.close()

    def stored(self, key: bytes, row: PartRow, old_uses: dict[bytes, int]) -> None:
        """A part has been read anew; `old_uses` is of the row in place of which this one comes."""
        self.attempt(lambda: self._stored(key, row, old_uses), None)

    def attempt(self, action: Callable[[], T], otherwise: T) -> T:
        """Do it unless the cache has failed, or does so now."""
        if not self._failed:
            try:
                return action()
            except CacheFailed as failed:
                self._failed = True
                self._progress.note(f"the cache cannot be used: {failed}")
        return otherwise

    def _visit(self, part: Part) -> Visit:
        now_ns = time.time_ns()
        file_system = self._signatures.file_system(part)
        signature = self._signatures.of_part(part, file_system)
        first = part.children[0][0] if part.later and part.children else b""
        key = part_key(self._scope, part.path, first)
        known = self._ahead.find(key)
        if known is not None and not known.missing and known.row.signature == signature:
            return _Unchanged(known.row)
        return _Changed(self, key, signature, part, file_system, now_ns, known)

    def _stored(self, key: bytes, row: PartRow, old_uses: dict[bytes, int]) -> None:
        self.contents.settle()
        self._settle_pieces()
        self.spool.part(key, self._rows.part(key, row), self._more(row.uses, old_uses))

    def _drop(self, key: bytes, row: PartRow | None) -> None:
        self.spool.drop(key, self._more({}, row.uses if row is not None else {}))

    def _more(self, new: dict[bytes, int], old: dict[bytes, int]) -> dict[bytes, tuple[int, int]]:
        """By usage key: how many bytes more of a bundle are used than before, and its size."""
        more = {bundle: new.get(bundle, 0) - old.get(bundle, 0) for bundle in {**old, **new}}
        return {self._scope + b: (count, self.contents.size_of(b)) for b, count in more.items() if count}

    def _poor(self, ids: Iterable[bytes]) -> set[bytes]:
        """Bundles of which less than half is used."""
        poor = set()
        with self._cache.reading() as txn:
            for bundle in ids:
                key = self._scope + bundle
                usage = self._rows.read_usage(key, txn.get(USAGE, key))
                if usage is not None and 2 * usage[0] < usage[1]:
                    poor.add(bundle)
        return poor

    def _piece_lists(self, name: bytes, size: int) -> tuple[OldPieces | None, NewPieces]:
        file = self._rows.file_key(name)
        step = COARSE_STEP if size >= COARSE_FROM else 1
        with self._cache.reading() as txn:
            facts = self._rows.read_piece_file(file, txn.get(PIECES, file))
        old = None
        if facts is not None and facts.step == step:
            old = OldPieceList(self._cache, self._rows, self._presence, file, facts)
        new = NewPieceList(self.spool, self._rows, file, old, step)
        self._pieces.append(new)
        return _CarefulOld(self, old) if old is not None else None, _CarefulNew(self, new)

    def _keep(self, finished: bool) -> None:
        if finished:
            self._ahead.finish()
        self.contents.settle()
        self._settle_pieces()
        self._pieces.clear()  # what is left is of files that could not be read to their end
        self.spool.write()

    def _settle_pieces(self) -> None:
        self._pieces = [pieces for pieces in self._pieces if not pieces.settle()]


@contextmanager
def remembering(
    place: bytes, rows: Rows, scope: bytes, roots: Roots | None, repository: Repository, progress: Progress
) -> Iterator[Reuse]:
    """Memory in the cache at `place` (`cache.place_of`), or, if that cannot be used, none."""
    with ExitStack() as stack:
        memory: Reuse = NOTHING
        try:
            cache = stack.enter_context(Cache.open(place))
            memory = Remembered(cache, rows, scope, roots, repository, progress)
            stack.callback(memory.close)
        except CacheFailed as failed:
            progress.note(f"the cache cannot be used: {failed}")
        yield memory


class _CarefulOld:
    """Old pieces, until the cache fails."""

    def __init__(self, memory: Remembered, pieces: OldPieceList) -> None:
        self._memory = memory
        self._pieces = pieces
        self.expected = pieces.expected
        self.object_ahead = pieces.object_ahead

    def passed(self, whole: OldObject) -> None:
        """See `reuse.OldPieces`."""
        self._memory.attempt(lambda: self._pieces.passed(whole), None)

    def seek(self, offset: int) -> None:
        """See `reuse.OldPieces`."""
        self._memory.attempt(lambda: self._pieces.seek(offset), None)

    def find(self, digest: bytes, length: int) -> Extent | None:
        """See `reuse.OldPieces`."""
        return self._memory.attempt(lambda: self._pieces.find(digest, length), None)


class _CarefulNew:
    """New pieces, until the cache fails."""

    def __init__(self, memory: Remembered, pieces: NewPieceList) -> None:
        self._memory = memory
        self._pieces = pieces
        self.step = pieces.step
        self.digest = pieces.digest

    def add(self, extent: Place | Extent, lengths: Sequence[int], digests: list[bytes]) -> None:
        """See `reuse.NewPieces`."""
        self._memory.attempt(lambda: self._pieces.add(extent, lengths, digests), None)

    def settle(self) -> None:
        """See `reuse.NewPieces`."""
        self._memory.attempt(self._pieces.settle, False)

    def finish(self) -> bool:
        """See `reuse.NewPieces`."""
        return self._memory.attempt(self._pieces.finish, False)


class _Unchanged:
    """A visit to a part that is taken over as a whole."""

    some_known = False

    def __init__(self, row: PartRow) -> None:
        self.blocks = row.blocks
        self.directories = row.directories
        self.users = row.users
        self.groups = row.groups

    def file(self, name: bytes, status: os.stat_result) -> Entry | None:
        """Never asked for."""
        return None

    def stored(
        self, blocks: Sequence[Block], entries: Sequence[Entry], *, doubtful: Collection[bytes], whole: bool
    ) -> None:
        """Never told."""


class _Changed:
    """A visit to a part of which single files may be known."""

    blocks = None
    directories = 0
    users: Sequence[int] = ()
    groups: Sequence[int] = ()

    def __init__(
        self,
        memory: Remembered,
        key: bytes,
        signature: bytes,
        part: Part,
        file_system: FileSystem,
        now_ns: int,
        known: Known | None,
    ) -> None:
        self._memory = memory
        self._key = key
        self._signature = signature
        self._known = known
        self.some_known = known is not None
        self._row = known.row if known is not None else None
        """As it stands in the cache, or is on its way there."""
        self._entries: dict[bytes, tuple[Entry, bytes]] | None = None
        self._file_system = file_system
        # Only stamps are kept, not what lstat said: a part may wait for its contents for long.
        self._stamps = file_system.settled(part.children, part.device, now_ns)
        statuses = list(map(_STATUS, part.children))
        # Names of one file are looked at one by one: all of them have to get the same content, wherever they stand,
        # and a key made of what is its inode number now.
        linked = any(s.st_nlink > 1 and s.st_mode & _TYPE != _DIRECTORY for s in statuses)
        self._can_be_taken_over = len(self._stamps) == len(statuses) and not linked
        self._users = sorted(set(map(_USER, statuses)))
        self._groups = sorted(set(map(_GROUP, statuses)))

    def file(self, name: bytes, status: os.stat_result) -> Entry | None:
        """See `reuse.Visit`."""
        if self._known is None:
            return None
        if self._entries is None:
            self._entries = _entries_of(self._known.row)
        entry, remembered = self._entries.get(name, (None, NO_STAMP))
        if entry is None or remembered == NO_STAMP or remembered != stamp(status, self._file_system):
            return None
        if (entry.size, entry.mtime_ns) != (status.st_size, status.st_mtime_ns):
            return None
        return entry if self._known.missing.isdisjoint(entry.ids()) else None

    def stored(
        self, blocks: Sequence[Block], entries: Sequence[Entry], *, doubtful: Collection[bytes], whole: bool
    ) -> None:
        """See `reuse.Visit`."""
        files = [entry for entry in entries if entry.type == FILE]
        if doubtful:
            stamps = [NO_STAMP if e.name in doubtful else self._stamps.get(e.name, NO_STAMP) for e in files]
        else:
            stamps = [self._stamps.get(e.name, NO_STAMP) for e in files]
        row = PartRow(
            self._signature if whole and not doubtful and self._can_be_taken_over else b"",
            [entry.type for entry in entries].count(DIRECTORY),
            self._users,
            self._groups,
            blocks,
            b"".join(stamps),
            _uses(files),
        )
        before, self._row = self._row, row
        if before is None or not _is_same(row, before):
            self._memory.stored(self._key, row, before.uses if before is not None else {})


def _is_same(row: PartRow, other: PartRow) -> bool:
    """Whether there is nothing to be written. So it is with parts whose files are looked at one by one each time."""
    if (row.signature, row.stamps, row.directories) != (other.signature, other.stamps, other.directories):
        return False
    if (list(row.users), list(row.groups)) != (list(other.users), list(other.groups)):
        return False
    mine, theirs = ([(list(b.ids), b.data, b.totals, b.level) for b in r.blocks] for r in (row, other))
    return row.uses == other.uses and mine == theirs


def _entries_of(row: PartRow) -> dict[bytes, tuple[Entry, bytes]]:
    """Regular files by name, with their stamps."""
    found: dict[bytes, tuple[Entry, bytes]] = {}
    at = 0
    try:
        for block in row.blocks:
            for entry in decode_block(block.ids, block.data):
                if entry.type == FILE:
                    found[entry.name] = (entry, row.stamps[at : at + STAMP_LEN])
                    at += STAMP_LEN
    except FormatDamage as damage:
        raise CacheFailed(str(damage)) from damage
    return found


def _uses(files: Sequence[Entry]) -> dict[bytes, int]:
    """Bytes of each bundle that small files use; what lies in the same place is counted once."""
    places = {
        entry.extents[0]
        for entry in files
        if entry.check and entry.size < FILE_MIN and len(entry.extents) == 1
    }
    uses: dict[bytes, int] = {}
    for bundle, _, size in places:
        if bundle is not None:
            uses[bundle] = uses.get(bundle, 0) + size
    return uses


def _leaves(tree: RootTree | None, path: bytes) -> list[bytes]:
    """The roots in a tree of them."""
    if tree is None:
        return [path]
    prefix = path + b"/" if path else b""
    return [leaf for name, below in tree.items() for leaf in _leaves(below, prefix + name)]
