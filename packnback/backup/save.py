"""Saving: one backup from the roots to a published snapshot.

The order: everything that can fail for reasons of the client's (roots, keys, what it remembers of the repository)
is looked at before anything is stored; then objects flow; then they are flushed, which makes them durable; then
the snapshot is published (`publish`). A long backup publishes checkpoints on the way, partial snapshots of the
part of the tree that is done, so that an interruption does not lose what was uploaded.

Nothing is printed here: the result says everything.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

from msgspec import Struct, field
from msgspec.structs import replace

import packnback
from packnback.backup import cache, itself, pins, roots, state
from packnback.backup.cache_rows import Rows, scope_of
from packnback.backup.listing_cuts import ListingCuts
from packnback.backup.pipeline import COMPRESSION, Pipeline
from packnback.backup.publish import Published, Publisher
from packnback.backup.remember import remembering
from packnback.backup.reuse import NOTHING, Reuse
from packnback.backup.roots import Roots
from packnback.backup.state_file import state_directory
from packnback.backup.store_tree import TreeStore
from packnback.backup.stream_source import StreamSource
from packnback.backup.tree import Root
from packnback.backup.walk import Walk, WalkOptions
from packnback.crypto.keys import PutKey
from packnback.errors import WrongOwner
from packnback.events import Watch
from packnback.format.metadata import Metadata
from packnback.ids import MIB
from packnback.store.interface import Repository, Session

Unreadable = tuple[bytes, str]
"""(absolute path, reason)."""
SourcePath = bytes

CHECKPOINT_SECONDS = 600
CHECKPOINT_BYTES = 8192 * MIB
"""Bytes stored since the last checkpoint that make another one worth while."""


class SaveOptions(Struct, frozen=True):
    """What to save, and how. Either `paths` or `stream`."""

    paths: Sequence[bytes] = ()
    stream: StreamSource | None = None
    walk: WalkOptions = field(default_factory=WalkOptions)
    tags: Mapping[str, str] = field(default_factory=dict)
    compression: int | None = COMPRESSION
    """zstd level, or None."""
    host: str | None = None
    """Name of this machine in the metadata; by default what it calls itself."""
    dry_run: bool = False
    """Walk and count, store nothing; the repository is not asked."""
    state_directory: bytes | None = None
    """Where this machine keeps what it remembers; by default `state_file.state_directory()`."""
    cache_directory: bytes | None = None
    """Where caches stand (`cache.cache_directory()`); None to read every file, changed or not."""


class SaveResult(Struct):
    """What a backup did."""

    published: Published | None = None
    """None for a dry run."""
    files: int = 0
    dirs: int = 0
    others: int = 0
    """Symlinks, fifos, devices, sockets."""
    bytes: int = 0
    files_unchanged: int = 0
    objects_new: int = 0
    bytes_stored: int = 0
    """Packs and snapshot files that were published."""
    seconds: float = 0.0
    errors: list[Unreadable] = field(default_factory=list)
    """What could not be read: the snapshot is complete but for these."""
    unsteady: list[SourcePath] = field(default_factory=list)
    """Files that changed while they were read; they are in the snapshot as they were read."""
    checkpoints: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, summed over threads."""


def save(
    repository: Repository,
    put_key: PutKey,
    options: SaveOptions,
    watch: Watch | None = None,
    reuse: Reuse = NOTHING,
) -> SaveResult:
    """Make one snapshot. Raises what stops a backup; files that cannot be read do not (see the result).

    NothingToBackUp, WrongOwner, WrongRepository, ChainAlarm, StateDamaged, CommandFailed, and what the
    repository raises.
    """
    watch = watch or Watch()
    began, started_ns = time.monotonic(), time.time_ns()
    result = SaveResult()
    if repository.config.owner_bundle != put_key.bundle.raw:
        raise WrongOwner(put_key.owner_id.hex(), repository.config.owner_id.hex())
    options = replace(options, walk=replace(options.walk, repository=itself.identity(repository.location)))
    run = _Run(put_key, options, watch, reuse, started_ns, result)
    if options.dry_run:
        run.count()
    else:
        directory = options.state_directory or state_directory()
        repository_id = repository.config.repository_id
        pins.pin_repository(directory, repository.location, put_key.owner_id, repository_id)
        chain = state.Chain(directory, repository_id, put_key.client_id)
        with repository.session(put_key.certificate.raw) as session:
            with chain.locked():  # another backup by this key may be between its intent and its acknowledgement
                state.check(session.head(), chain.load(), put_key.name)
            run.store(session, chain, repository)
    result.seconds = time.monotonic() - began
    return result


class _Run:
    """One call of `save`."""

    def __init__(
        self,
        put_key: PutKey,
        options: SaveOptions,
        watch: Watch,
        reuse: Reuse,
        started_ns: int,
        result: SaveResult,
    ) -> None:
        self._put_key = put_key
        self._options = options
        self._watch = watch
        self._reuse = reuse
        self._started_ns = started_ns
        self._result = result
        self._cuts = ListingCuts(put_key.page_key)
        self._roots: Roots | None = None
        if options.stream is None:
            self._roots = roots.resolve(options.paths, self._report)
            itself.refuse_roots_inside(self._roots.paths, options.walk.repository)

    def count(self) -> None:
        """Walk and count."""
        result = self._result
        for part in self._walk():
            for _, status in part.children:
                if stat.S_ISREG(status.st_mode):
                    result.files += 1
                    result.bytes += status.st_size
                elif stat.S_ISDIR(status.st_mode):
                    result.dirs += 1
                else:
                    result.others += 1

    def store(self, session: Session, chain: state.Chain, repository: Repository) -> None:
        """Store the tree and publish the snapshot."""
        began = time.perf_counter_ns()
        put_key, options, watch = self._put_key, self._options, self._watch
        repository_id = repository.config.repository_id
        with ExitStack() as stack:
            pipeline = stack.enter_context(
                Pipeline(session, put_key, repository_id, compression=options.compression, watch=watch)
            )
            if options.cache_directory is not None:
                place = cache.place_of(options.cache_directory, repository_id, put_key)
                self._reuse = stack.enter_context(self._remembering(place, pipeline, repository_id))
            tree = TreeStore(pipeline, put_key, self._cuts, self._reuse, self._report, watch)
            publisher = Publisher(session, chain, put_key, repository_id, pipeline.sealer)
            watch.progress.begin("backup", None, "bytes")
            if options.stream is not None:
                tree.add_stream(options.stream, self._started_ns)
            else:
                self._store_parts(tree, pipeline, publisher)
            root = tree.finish()
            read_ns = time.perf_counter_ns() - began - tree.walk_ns
            timings = pipeline.timings
            timings["walk"] = tree.walk_ns / 1e9
            timings["read, cut, list"] = max(read_ns / 1e9 - timings["waiting"], 0.0)
            pipeline.drain()
            timings.update(pipeline.timings)
            self._result.published = publisher.publish(root, self._metadata(tree, root))
            began = time.perf_counter_ns()
            self._reuse.keep(finished=True)
            timings["remember"] = (time.perf_counter_ns() - began) / 1e9
        self._tell(tree, root, pipeline, session)
        self._result.timings = timings

    def _store_parts(self, tree: TreeStore, pipeline: Pipeline, publisher: Publisher) -> None:
        checkpoint_at, checkpoint_bytes = time.monotonic() + CHECKPOINT_SECONDS, CHECKPOINT_BYTES
        for _ in tree.add_parts(self._walk()):
            if time.monotonic() < checkpoint_at and pipeline.bytes_sealed < checkpoint_bytes:
                continue
            if pipeline.objects_new:
                root = tree.checkpoint()
                pipeline.drain()
                publisher.publish(root, self._metadata(tree, root), partial=True)
                self._reuse.keep()
                self._result.checkpoints += 1
            checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS
            checkpoint_bytes = pipeline.bytes_sealed + CHECKPOINT_BYTES

    def _remembering(self, place: bytes, pipeline: Pipeline, repository_id: bytes) -> AbstractContextManager[Reuse]:
        rows = Rows(self._put_key, repository_id)
        scope = scope_of(self._options.walk)
        return remembering(place, rows, scope, self._roots, pipeline, self._watch.progress)

    def _walk(self) -> Walk:
        assert self._roots is not None
        return Walk(self._roots, self._options.walk, self._cuts.part_starts, self._report)

    def _report(self, path: bytes, reason: str) -> None:
        self._result.errors.append((path, reason))

    def _tell(self, tree: TreeStore, root: Root, pipeline: Pipeline, session: Session) -> None:
        result = self._result
        result.files, result.bytes, result.dirs = root.totals.files, root.totals.bytes, tree.directories
        result.others = root.totals.entries - result.files - result.dirs
        result.files_unchanged = tree.files_unchanged
        result.objects_new = pipeline.objects_new
        result.bytes_stored = session.bytes_published
        result.unsteady = tree.unsteady

    def _metadata(self, tree: TreeStore, root: Root) -> Metadata:
        options = self._options
        asked = self._roots.paths if self._roots is not None else ()
        return Metadata(
            host=_utf8(options.host or os.uname().nodename),
            paths=asked if options.stream is None else (options.stream.name,),
            started_ns=self._started_ns,
            files=root.totals.files,
            directories=tree.directories,
            bytes=root.totals.bytes,
            unreadable=len(self._result.errors),
            tags={_utf8(name): _utf8(value) for name, value in options.tags.items()},
            users=_names(tree.users, lambda number: pwd.getpwuid(number).pw_name),
            groups=_names(tree.groups, lambda number: grp.getgrgid(number).gr_name),
            program=f"packnback {packnback.__version__}",
        )


def _names(numbers: Iterable[int], name_of: Callable[[int], str]) -> dict[int, str]:
    """Names of users or groups; numbers that have none are left out."""
    names: dict[int, str] = {}
    for number in numbers:
        try:
            names[number] = _utf8(name_of(number))
        except KeyError:
            continue
    return names


def _utf8(text: str) -> str:
    """`text` with what no encoding has, such as bytes that the system could not decode, as question marks."""
    return text.encode("utf-8", "replace").decode()
