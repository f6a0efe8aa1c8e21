"""A repository in a directory, put together from its ports.

`LocalRepository` is what the rest of the program works with; it is given a blob store, an index, locks, a clock
and a source of randomness, so that the tests can give it simulated ones. `packnback.store.local` gives it the
real ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

from msgspec import Struct, field
from msgspec.structs import replace

from packnback.errors import (
    BlobMissing,
    ConfigDamage,
    DiskFull,
    FormatDamage,
    IndexDamage,
    NotAllowed,
    NotARepository,
    SnapshotUnknown,
)
from packnback.events import Watch
from packnback.format import config as config_format
from packnback.format import rows
from packnback.format.config import Config
from packnback.store import catalog, layout, leases
from packnback.store.blobs import BlobStore
from packnback.store.commit_rules import ClientIdentity
from packnback.store.condemned import condemned_lists
from packnback.store.current import IndexReplaced
from packnback.store.fetch import Fetcher
from packnback.store.index import Index, ReadTxn, T, WriteTxn
from packnback.store.interface import Fetched, SnapshotInfo
from packnback.store.leases import Lease
from packnback.store.lock import Held, Locks
from packnback.store.reconcile import Reconciled, reconcile
from packnback.store.session import LocalSession
from packnback.store.truth import Truth

SESSION_WAIT_S = 600.0
"""How long a session waits for a compaction to end, unless told otherwise."""


class Ports(Struct, frozen=True):
    """What a repository stands on."""

    blobs: BlobStore
    index: Index
    locks: Locks
    now_ns: Callable[[], int]
    """Wall-clock time, for receipts and markers."""
    random: Callable[[int], bytes]
    scratch_index: Callable[[], AbstractContextManager[Index]]
    """Makes an empty index that vanishes after use: to derive everything anew, and compare."""
    watch: Watch = field(default_factory=Watch)
    fenced: bool = True
    """Whether `locks` keep other machines out too. Where they do not, who is at work has a lease, and packs are
    condemned a day before they are deleted (`packnback.gc.condemn`)."""
    makeshift: bool = False
    """Whether `index` is a scratch one, as the disk has no room for any: good for everything but storing."""
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    """For watching other people's leases."""


def read_config(blobs: BlobStore, location: str) -> Config:
    """The repository's config. Raises NotARepository, ConfigDamage, UnsupportedVersion."""
    try:
        data = blobs.read(layout.CONFIG)
    except BlobMissing:
        if blobs.exists(layout.README) and blobs.list(layout.SNAPSHOTS):
            raise ConfigDamage(f"{location}/{layout.CONFIG}", "missing") from None
        raise NotARepository(location) from None
    try:
        return config_format.decode(data)
    except FormatDamage as damage:
        raise ConfigDamage(f"{location}/{layout.CONFIG}", damage.why) from None


class LocalRepository:
    """`interface.Repository` on a directory. Open it, use it, `close` it."""

    def __init__(self, location: str, config: Config, ports: Ports, resources: ExitStack | None = None) -> None:
        """`resources` is what the ports stand on: closed with the repository."""
        self.location = location
        self.config = config
        self.ports = ports
        self.wait_s = SESSION_WAIT_S
        self.truth = Truth(ports.blobs, config.repository_id, config.owner_bundle, ports.watch)
        self._generation = ports.index.generation
        self._resources = resources or ExitStack()
        self._fetcher = Fetcher(ports.blobs, self, ports.watch)

    # --- keeping the index up to date ------------------------------------------------------------------------

    def reconcile(self) -> Reconciled:
        """Bring the index up to the directories; a damaged one is thrown away and made anew.

        The caller holds the lock, shared or exclusive. Somebody else's throwing it away meanwhile begins it again.
        """
        mended = False
        while True:
            before = self.ports.index.generation
            try:
                done = self._reconcile()
            except IndexDamage:
                if mended:
                    raise
                self.ports.index.discard()
                mended = True
                continue
            if self.ports.index.generation == before:
                self._generation = before
                return done

    def _reconcile(self) -> Reconciled:
        """A disk is filled by writers who could not finish: what they have left must not lock everybody out."""
        try:
            return reconcile(self.truth, self.ports.index)
        except DiskFull:
            self.ports.index.release_ballast()
            try:
                return reconcile(self.truth, self.ports.index)
            finally:
                self.ports.index.restore_ballast()

    def _make_do(self) -> None:
        """Take a scratch index: the disk has not even room for one, and what there is of it is only in the way."""
        with ExitStack() as stack:
            scratch = stack.enter_context(self.ports.scratch_index())
            stack.callback(self.ports.index.close)
            self.ports.index.discard()
            self.ports = replace(self.ports, index=scratch, makeshift=True)
            self._resources.push(stack.pop_all())

    def rebuild(self) -> Reconciled:
        """Throw the index away, files and all, and derive it from the directories.

        Clearing its tables would not do: LMDB refuses to, or goes on using the pages that are damaged.
        """
        self.ports.index.discard()
        return self.reconcile()

    @contextmanager
    def reading(self, wait_s: float | None = None) -> Iterator[Held]:
        """Hold the lock shared (not at all on an unwritable repository), with the index up to date."""
        wait_s = self.wait_s if wait_s is None else wait_s
        with self.leased("reader", at_once=False) as lease, self.ports.locks.shared(wait_s, reading=True) as held:
            try:
                self.reconcile()
            except DiskFull:
                self._make_do()
                self.reconcile()
            self.learn(lease)
            yield held

    @contextmanager
    def leased(self, what: str, *, at_once: bool = True) -> Iterator[Lease | None]:
        """Hold a lease where locks do not tell that somebody is at work; elsewhere nothing (`store.leases`).

        It begins before anything is looked at. When the index is up to date, `learn` has to be called.
        """
        if self.ports.fenced:
            yield None
            return
        with leases.held(self.ports.blobs, self.ports.random(16).hex(), what, at_once=at_once) as lease:
            yield lease

    def learn(self, lease: Lease | None) -> None:
        """Let a lease say which condemned lists its holder knows."""
        if lease is not None:
            with self.ports.index.read() as txn:
                lists = condemned_lists(txn)
            lease.learned(lists)

    # --- writing -----------------------------------------------------------------------------------------------

    @contextmanager
    def session(
        self, certificate: bytes, wait_s: float | None = None, *, remote: bool = False
    ) -> Iterator[LocalSession]:
        """See `interface.Repository.session`. Raises Locked, WrongOwner, NotAllowed (an old epoch).

        With `remote` the client is another process, on another machine: nothing of it is taken on trust.
        Raises DiskFull at once where there is not even room for an index: writers agree by means of one index.
        """
        if self.ports.makeshift:
            raise DiskFull(self.location)
        client = self.identify(certificate)
        wait_s = self.wait_s if wait_s is None else wait_s
        with self.leased(f"backup of {client.name}") as lease, self.ports.locks.shared(wait_s) as held:
            self.reconcile()
            self.learn(lease)
            self._check_client(client)
            ports = self.ports
            yield LocalSession(
                self.truth,
                ports.index,
                client,
                now_ns=ports.now_ns,
                random=ports.random,
                self_stamped=not remote,
                fenced=ports.fenced,
                held=held,
            )

    def identify(self, certificate: bytes) -> ClientIdentity:
        """The facts of a certificate that this repository's owner signed."""
        # Imported here: listing snapshots needs no cryptography.
        from packnback.crypto.bundle import OwnerBundle
        from packnback.crypto.certificate import parse_certificate

        parsed = parse_certificate(certificate)
        parsed.verify(OwnerBundle.parse(self.config.owner_bundle))
        return ClientIdentity(parsed.name, parsed.client_id, parsed.domain_id, parsed.epoch, parsed.owner_id)

    def _check_client(self, client: ClientIdentity) -> None:
        """No epoch below the highest seen, no second domain behind the tag of a known one."""
        with self.read() as txn:
            for key, value in txn.scan("snapshots"):
                row = rows.decode_snapshot(key, value)
                if row.status in (rows.DAMAGED, rows.NEWER):
                    continue
                if row.client_id == client.client_id and row.epoch > client.epoch:
                    raise NotAllowed("put", "epoch lower than before")
                if row.domain_id[:8] == client.domain_id[:8] and row.domain_id != client.domain_id:
                    raise NotAllowed("put", "domain tag collides")
            head = catalog.head(txn, client.client_id)
            if head is not None and head.epoch > client.epoch:
                raise NotAllowed("put", "epoch lower than before")

    # --- reading -----------------------------------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[ReadTxn]:
        """A transaction on the index as this handle has reconciled it.

        Not on one that another process has just thrown away and is still filling: of a snapshot that is not there
        yet, nobody could tell that it is not lost. The caller holds the lock.
        """
        while True:
            with self.ports.index.read() as txn:
                if self.ports.index.generation == self._generation:
                    yield txn
                    return
            self.reconcile()

    def write(self, body: Callable[[WriteTxn], T]) -> T:
        """Run `body` in a write transaction on the index as this handle has reconciled it, like `read`."""

        def on_the_same(txn: WriteTxn) -> T:
            if self.ports.index.generation != self._generation:
                raise IndexReplaced
            return body(txn)

        while True:
            with suppress(IndexReplaced):
                return self.ports.index.write(on_the_same)
            self.reconcile()

    def snapshots(self) -> list[SnapshotInfo]:
        """See `interface.Repository.snapshots`."""
        with self.read() as txn:
            return catalog.snapshots(txn)

    def damaged_files(self) -> list[tuple[str, str, str]]:
        """(directory, name, why) of every file that could not be parsed."""
        with self.read() as txn:
            return catalog.damaged_files(txn)

    def read_snapshot(self, name: str) -> bytes:
        """See `interface.Repository.read_snapshot`."""
        try:
            return self.ports.blobs.read(f"{layout.SNAPSHOTS}/{name}")
        except BlobMissing:
            raise SnapshotUnknown(name) from None

    def expect_snapshots(self, names: Iterable[str]) -> None:
        """See `interface.Repository.expect_snapshots`."""

    def fetch(self, ids: Sequence[bytes], *, checked: bool = True) -> Iterator[Fetched]:
        """See `interface.Repository.fetch`."""
        return self._fetcher.fetch(ids, checked=checked)

    def close(self) -> None:
        """Close the index, and what else is open. Locks are held by `reading` and `session` alone."""
        with self._resources:
            self.ports.index.close()


def create(
    blobs: BlobStore,
    owner_bundle: bytes,
    random: Callable[[int], bytes],
    repository_id: bytes | None = None,
) -> Config:
    """Make a repository of directories that `layout.make_layout` has made: its config is its birth.

    `repository_id` is given when the directory has been one already (`packnback.store.lost_config`).
    Raises AlreadyExists when there is a config.
    """
    config = Config(random(16) if repository_id is None else repository_id, owner_bundle)
    blobs.publish(layout.CONFIG, [config_format.encode(config)])
    return config
