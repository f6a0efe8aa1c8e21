"""Leases: who is at work, on file systems where no lock tells.

A lease is a file per holder in ``leases/``, with a counter in its name that moves about once a minute:
``HOLDER.COUNTER``, 32 and 16 hexadecimal digits. Blobs are immutable, so a tick is a new file, and there is no other
way to write one; an object store can do it as well. The file before the newest is kept until the next tick: a
listing that takes its time, while names come and go, sees one of the two.

A lease says which condemned lists its holder knew when it began (`Lease.learned`). Whoever is about to delete what a
list condemns looks for holders that do not know the list: they may have been told that something in it is stored.
Each side makes its mark first and looks afterwards: a session makes its lease and then lists ``condemned/``, a
compaction publishes its list and later lists ``leases/``. So one of the two sees the other.

Nobody compares clocks. Whether a holder is still alive is found out by watching its counter for a while, by the
watcher's own monotonic clock (`unaware`). A holder that is wrongly taken for dead loses no data: a session looks for
all that its snapshot needs once more before that is acknowledged. It may find that it has worked in vain.

Readers write nothing as long as they are quick: their lease begins with its second tick (`at_once`).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from msgspec import Struct

from packnback.errors import BlobMissing, DiskFull, FormatDamage, PacknbackError, UnsupportedVersion
from packnback.format import cbor
from packnback.ids import HASH_LEN
from packnback.store import layout
from packnback.store.blobs import BlobStore

BEAT_S = 60.0
"""A lease ticks so often."""
STALE_S = 15 * 60.0
"""A holder whose counter has not moved for so long is dead. Listings may be a minute old (NFS), ticks late."""
_POLL_S = 5.0
_NAME = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{16})")
_VERSION = 1


class Seen(Struct, frozen=True):
    """Somebody else's lease, as found."""

    holder: str
    counter: int
    what: str
    """What is being done, for people: ``backup of web1``."""
    knows: frozenset[str]
    """Names of the condemned lists that its holder knew when it began."""


class Lease:
    """One holder's lease. Made by `held`."""

    def __init__(self, blobs: BlobStore, holder: str, what: str) -> None:
        self.holder = holder
        self._blobs = blobs
        self._what = what
        self._knows: tuple[bytes, ...] = ()
        self._counter = 0
        self._files: list[str] = []
        self._mutex = threading.Lock()

    def learned(self, lists: Iterable[str]) -> None:
        """The holder has listed ``condemned/``, and asked nothing before that."""
        self._knows = tuple(sorted(bytes.fromhex(name) for name in lists))
        if self._files and self._knows:
            self.tick()

    def tick(self) -> str:
        """Move the counter; the name of the file that shows it. Raises what publishing raises."""
        with self._mutex:
            name = f"{layout.LEASES}/{self.holder}.{self._counter:016x}"
            self._counter += 1
            self._files.append(name)
            try:
                self._blobs.publish(name, [cbor.encode([_VERSION, self._what, list(self._knows)])])
            except DiskFull:
                self._blobs.publish(name, [])  # there is nearly always room for a name: whoever deletes must get in
            while len(self._files) > 2:
                self._delete(self._files.pop(0))
        return name

    def clock_ns(self) -> int:
        """The time by the file server's own clock, which stamps whatever any machine writes there."""
        try:
            return self._blobs.modified_ns(self.tick())
        except BlobMissing:  # somebody has taken us for dead, after we were stopped for a long time
            return self._blobs.modified_ns(self.tick())

    def end(self) -> None:
        """Take it away. Should the files come back after a power cut, nobody will move their counter."""
        with self._mutex:
            while self._files:
                self._delete(self._files.pop())

    def beat(self, ended: threading.Event, beat_s: float) -> None:
        """Tick until the end. A tick that fails is made up for by the next one."""
        while not ended.wait(beat_s):
            with suppress(PacknbackError):
                self.tick()

    def _delete(self, name: str) -> None:
        with suppress(PacknbackError):
            self._blobs.delete(name)


@contextmanager
def held(
    blobs: BlobStore, holder: str, what: str, *, at_once: bool = True, beat_s: float = BEAT_S
) -> Iterator[Lease]:
    """Hold a lease. With `at_once` there is a file when this is entered; raises what publishing raises."""
    lease = Lease(blobs, holder, what)
    ended = threading.Event()
    ticking = threading.Thread(target=lease.beat, args=(ended, beat_s), name="lease", daemon=True)
    try:
        if at_once:
            lease.tick()
        ticking.start()
        yield lease
    finally:
        ended.set()
        if ticking.ident is not None:
            ticking.join()
        lease.end()


# --- looking at others -----------------------------------------------------------------------------------------


def others(blobs: BlobStore, own: str = "") -> dict[str, Seen]:
    """Everybody else's lease, by holder. One that cannot be read knows nothing."""
    newest: dict[str, int] = {}
    for name in blobs.list(layout.LEASES):
        match = _NAME.fullmatch(name)
        if match is not None and match[1] != own:
            newest[match[1]] = max(newest.get(match[1], 0), int(match[2], 16))
    return {holder: _read(blobs, holder, counter) for holder, counter in newest.items()}


def _read(blobs: BlobStore, holder: str, counter: int) -> Seen:
    unknown = Seen(holder, counter, "session", frozenset())
    try:
        value = cbor.decode(blobs.read(f"{layout.LEASES}/{holder}.{counter:016x}"), "lease")
        cbor.expect(type(value) is list and len(value) == 3, "lease", "shape")
        cbor.expect_version(value[0], "lease", _VERSION)
        _, what, knows = value
        cbor.expect(type(what) is str and type(knows) is list, "lease", "shape")
        cbor.expect(all(type(k) is bytes and len(k) == HASH_LEN for k in knows), "lease", "list")
    except (BlobMissing, FormatDamage, UnsupportedVersion):
        return unknown
    return Seen(holder, counter, what, frozenset(k.hex() for k in knows))


def unaware(
    blobs: BlobStore,
    lists: Iterable[str],
    own: str,
    *,
    sleep: Callable[[float], None],
    monotonic: Callable[[], float],
) -> list[Seen]:
    """The living holders that do not know all of these lists.

    Returns at the first sign of life of one of them, at the latest after `STALE_S` without any. The leases of those
    who gave none are taken away: should they be alive all the same, their next tick makes a new one.
    """
    wanted = frozenset(lists)
    watched: dict[str, tuple[Seen, float]] = {}
    while True:
        now_s = monotonic()
        found = {holder: seen for holder, seen in others(blobs, own).items() if not wanted <= seen.knows}
        moved = [seen for h, seen in found.items() if h in watched and watched[h][0].counter != seen.counter]
        if moved:
            return moved
        watched = {holder: watched.get(holder, (seen, now_s)) for holder, seen in found.items()}
        for holder in [h for h, (_, since_s) in watched.items() if now_s - since_s >= STALE_S]:
            _take_away(blobs, holder)
            del watched[holder]
        if not watched:
            return []
        sleep(_POLL_S)


def sweep(blobs: BlobStore, own: str, server_ns: int, age_ns: int) -> None:
    """Take away the leases that are older than this by the server's clock: those nobody has to watch."""
    for holder, seen in others(blobs, own).items():
        with suppress(BlobMissing):
            if server_ns - blobs.modified_ns(f"{layout.LEASES}/{holder}.{seen.counter:016x}") >= age_ns:
                _take_away(blobs, holder)


def _take_away(blobs: BlobStore, holder: str) -> None:
    for name in blobs.list(layout.LEASES):
        if name.startswith(f"{holder}."):
            with suppress(BlobMissing):
                blobs.delete(f"{layout.LEASES}/{name}")
