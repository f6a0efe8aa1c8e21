"""A repository at the far end of a connection: the same interfaces as beside it, asked for over the wire.

What the far side says is believed in its form only. A client takes no key from it: whoever opens what comes, or
sends, compares the owner with its own key; a head is the client's own only if it carries its signature.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Protocol, TypeVar

from blake3 import blake3

import packnback
from packnback.crypto.bundle import OwnerBundle
from packnback.crypto.certificate import parse_certificate
from packnback.crypto.sign import verify_snapshot
from packnback.errors import (
    ConfigDamage,
    FormatDamage,
    NotAllowed,
    NotARepository,
    ProtocolViolation,
    Refused,
    RemoteFailed,
    SnapshotDamage,
)
from packnback.events import Watch
from packnback.format import config as config_format
from packnback.format import snapshot
from packnback.format.config import Config
from packnback.gc.compaction import Compacted, CompactOptions
from packnback.gc.maintenance import Checked, CheckOptions, Released
from packnback.remote import failures, frames, values
from packnback.remote.channel import Channel
from packnback.remote.destination import Destination
from packnback.remote.frames import GET_LIMIT, HAS_LIMIT, NAMES_LIMIT, PPM, Frame
from packnback.remote.link import Link
from packnback.remote.transport import SshTransport
from packnback.store.damage import Finding
from packnback.store.interface import Committed, Fetched, Head, SnapshotInfo
from packnback.store.sizes import Stats

SESSION_WAIT_S = 600.0
_READ_OUT_S = 10.0
T = TypeVar("T")


class Transport(Protocol):
    """Something that leads to a server."""

    channel: Channel

    def lost(self) -> RemoteFailed:
        """Why the connection has ended."""

    def hang_up(self) -> None:
        """End the far side."""

    def release(self) -> None:
        """Close what is left, once everything was read."""


_SNAPSHOTS_AHEAD = 32
"""So many snapshot files are asked for before the first one has come."""


def open_ssh(
    destination: Destination, verbs: Sequence[str], watch: Watch, wait_s: float | None = None
) -> RemoteRepository:
    """Connect to a repository by ssh; `verbs` are what will be asked of it.

    Raises RemoteFailed, RemoteVersion, NotAllowed, and what keeps the far side from opening its repository.
    """
    transport = SshTransport(destination, verbs, watch.progress)
    return RemoteRepository(transport, destination.url, destination.host, verbs, watch, wait_s)


class RemoteRepository:
    """`store.interface.Repository` and `gc.maintenance.Maintenance` of a repository elsewhere."""

    def __init__(
        self,
        transport: Transport,
        location: str,
        host: str,
        verbs: Sequence[str],
        watch: Watch,
        wait_s: float | None = None,
    ) -> None:
        self.location = location
        self._expected: deque[str] = deque()
        """Names of snapshots that will be asked for …"""
        self._ahead: dict[str, Future[Frame]] = {}
        """… and what is on its way already."""
        self.wait_s = SESSION_WAIT_S if wait_s is None else wait_s
        self._host = host
        self._transport = transport
        self._link = Link(transport.channel, host, watch, transport.lost)
        try:
            welcome = self._link.start(f"packnback {packnback.__version__}")
            self.verbs = frozenset(welcome.verbs)
            for verb in verbs:
                if verb not in self.verbs:
                    raise NotAllowed(verb, "role")
            self.config = self._read_config(welcome.config)
        except NotARepository:
            self.close()
            raise NotARepository(location) from None  # the far side does not say where it looked
        except BaseException:
            self.close()
            raise

    def _read_config(self, data: bytes) -> Config:
        try:
            return config_format.decode(data)
        except FormatDamage as damage:
            raise ConfigDamage(self.location, damage.why) from None

    def close(self) -> None:
        """Hang up; the far side ends."""
        self._link.hang_up()
        self._transport.hang_up()
        if self._link.join(_READ_OUT_S):
            self._transport.release()

    # --- writing ------------------------------------------------------------------------------------------------

    @contextmanager
    def session(self, certificate: bytes, wait_s: float | None = None) -> Iterator[RemoteSession]:
        """See `interface.Repository.session`. Raises NotAllowed, Locked, Refused (too many sessions)."""
        wait_ms = _milliseconds(self.wait_s if wait_s is None else wait_s)
        self._link.call(frames.OpenSession(certificate, wait_ms), frames.Opened)
        with self._ending(lambda: self._link.ask(frames.CloseSession())):
            yield RemoteSession(self._link, certificate, self.config)

    # --- reading ------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self, wait_s: float | None = None) -> Iterator[None]:
        """Keep the repository from being compacted meanwhile."""
        wait_ms = _milliseconds(self.wait_s if wait_s is None else wait_s)
        self._link.call(frames.BeginReading(wait_ms), frames.Done)
        with self._ending(lambda: self._link.call(frames.EndReading(), frames.Done)):
            yield

    @contextmanager
    def _ending(self, end: Callable[[], object]) -> Iterator[None]:
        """Tell the far side that something is over, unless we were interrupted: it may be the reason for that, and
        neither read nor answer. To hang up ends everything.
        """
        try:
            yield
        except Exception:
            if self._link.alive:
                end()
            raise
        if self._link.alive:
            end()

    def snapshots(self) -> list[SnapshotInfo]:
        """See `interface.Repository.snapshots`."""
        return self._link.call(frames.ListSnapshots(), frames.Snapshots).rows

    def read_snapshot(self, name: str) -> bytes:
        """See `interface.Repository.read_snapshot`."""
        answer = self._ahead.pop(name, None) or self._link.ask(frames.ReadSnapshot(name))
        self._ask_ahead()
        return bytes(self._link.wait(answer, frames.SnapshotFile).data)

    def expect_snapshots(self, names: Iterable[str]) -> None:
        """See `interface.Repository.expect_snapshots`."""
        self._expected = deque(names)
        self._ask_ahead()

    def _ask_ahead(self) -> None:
        while self._expected and len(self._ahead) < _SNAPSHOTS_AHEAD:
            name = self._expected.popleft()
            if name not in self._ahead:
                self._ahead[name] = self._link.ask(frames.ReadSnapshot(name))

    def fetch(self, ids: Sequence[bytes], *, checked: bool = True) -> Iterator[Fetched]:
        """See `interface.Repository.fetch`. Objects stream; the far side checks them, and chooses their order."""
        for at in range(0, len(ids), GET_LIMIT):
            yield from self._fetch(ids[at : at + GET_LIMIT])

    def _fetch(self, ids: Sequence[bytes]) -> Iterator[Fetched]:
        stream, envelope = self._link.open_stream(b"".join(ids)), b""
        try:
            while (item := self._link.next_item(stream)) is not None:
                if isinstance(item, frames.Trouble):
                    problem = failures.understand(item.name, item.facts, self._host)
                    yield Fetched(item.id, b"", b"", problem)
                else:
                    envelope = item.envelope or envelope
                    yield Fetched(item.id, item.record, envelope)
        finally:
            self._link.cancel(stream)

    # --- looking after it -----------------------------------------------------------------------------------------

    def clock(self, *, force: bool) -> int:
        """See `Maintenance.clock`: the far side's clock."""
        return self._link.call(frames.AskTime(force), frames.Time).now_ns

    def forget(self, names: Sequence[str], *, force: bool) -> list[str]:
        """See `Maintenance.forget`."""
        return self._link.call(frames.Forget(_bounded(names), force), frames.Names).names

    def recover(self, names: Sequence[str]) -> list[str]:
        """See `Maintenance.recover`."""
        return self._link.call(frames.Recover(_bounded(names)), frames.Names).names

    def compact(self, options: CompactOptions) -> Compacted:
        """See `Maintenance.compact`."""
        waste, wait_ms = round(options.max_waste * PPM), _milliseconds(options.wait_s)
        asked = frames.Compact(options.grace_ns, waste, options.force, options.dry_run, wait_ms)
        return values.decode(Compacted, self._link.call(asked, frames.Answer).value)

    def check(self, options: CheckOptions) -> Checked:
        """See `Maintenance.check`. A repair needs the verb ``compact`` as well."""
        bad = b"".join(_bounded(options.bad_ids))
        sample, wait_ms = round(options.sample_percent * PPM / 100), _milliseconds(options.wait_s)
        asked = frames.Check(options.read_data, sample, options.repair, bad, wait_ms)
        return values.decode(Checked, self._link.call(asked, frames.Answer).value)

    def stats(self) -> Stats:
        """See `Maintenance.stats`."""
        return self._stats(alone=False)[0]

    def held_alone(self) -> dict[str, int]:
        """See `Maintenance.held_alone`."""
        return self._stats(alone=True)[1]

    def _stats(self, *, alone: bool) -> tuple[Stats, dict[str, int]]:
        value = self._link.call(frames.AskStats(alone), frames.Answer).value
        if type(value) is not list or len(value) != 2:
            raise ProtocolViolation("Answer", "not two values")
        return values.decode(Stats, value[0]), values.decode_sizes(value[1])

    def gaps(self) -> list[Finding]:
        """See `Maintenance.gaps`."""
        return values.decode_findings(self._link.call(frames.AskGaps(), frames.Answer).value)

    def released(self) -> list[Released]:
        """See `Maintenance.released`."""
        return values.decode_released(self._link.call(frames.AskReleased(), frames.Answer).value)


class RemoteSession:
    """`store.interface.Session` over a connection."""

    def __init__(self, link: Link, certificate: bytes, config: Config) -> None:
        self._link = link
        self._client_id = parse_certificate(certificate).client_id
        self._config = config
        self.bytes_published = 0

    def has(self, ids: Sequence[bytes]) -> list[bool]:
        """See `interface.Session.has`. One round trip, however many ids."""
        batches = [ids[at : at + HAS_LIMIT] for at in range(0, len(ids), HAS_LIMIT)]
        answers = [self._link.ask(frames.Has(b"".join(batch))) for batch in batches]
        known: list[bool] = []
        if answers:
            self._link.wait(answers[-1], frames.Present)
        for batch, answer in zip(batches, answers, strict=True):
            found = answer.result()
            assert isinstance(found, frames.Present)
            known += _bits(found.bits, len(batch))
        return known

    def put(self, records: Iterable[bytes | bytearray]) -> None:
        """See `interface.Session.put`. Nothing is waited for: what is wrong is raised by a later call."""
        for record in records:
            self._link.send(frames.Put(record))

    def abandon(self) -> None:
        """See `interface.Session.abandon`."""
        self._link.abandon()

    def flush(self) -> None:
        """See `interface.Session.flush`."""
        self.bytes_published = self._link.call(frames.Flush(), frames.Flushed).published

    def head(self) -> Head | None:
        """See `interface.Session.head`. Raises SnapshotDamage unless the head was signed with this client's key."""
        told = self._link.call(frames.GetHead(), frames.HeadIs)
        if not told.header:
            return None
        header = snapshot.decode_header(told.header)
        snapshot_id = snapshot.KeptHeader(told.header, told.signature, told.certificate, b"").id
        certificate = parse_certificate(told.certificate)
        certificate.verify(OwnerBundle.parse(self._config.owner_bundle))
        verify_snapshot(certificate.verify_key, told.header, told.signature)
        mine = (self._client_id, self._config.repository_id)
        if (header.client_id, header.repository_id) != mine or certificate.client_id != self._client_id:
            raise SnapshotDamage(snapshot_id.hex(), "the far side gives it out for this client's newest")
        return Head(header.sequence, snapshot_id, told.received_ns, header.epoch)

    def commit(self, data: bytes) -> Committed:
        """See `interface.Session.commit`."""
        told = self._link.call(frames.Commit(data), frames.CommittedAs)
        raw = data[: snapshot.HEADER_LEN]
        header = snapshot.decode_header(raw)
        mine = (snapshot.snapshot_name(header.client_id, header.sequence), blake3(raw).digest())
        if (told.name, told.id) != mine:
            raise ProtocolViolation("CommittedAs", "another snapshot than the one that was sent")
        self.bytes_published = told.published
        return Committed(told.name, told.id, told.received_ns)


def _bits(bits: bytes, count: int) -> list[bool]:
    if len(bits) != -(-count // 8):
        raise ProtocolViolation("Present", "another number of bits than of ids")
    number = int.from_bytes(bits, "little")
    if number >> count:
        raise ProtocolViolation("Present", "bits for ids that were not asked for")
    return [bool(number >> i & 1) for i in range(count)]


def _milliseconds(seconds: float) -> int:
    return max(0, min(round(seconds * 1000), 1 << 40))


def _bounded(items: Sequence[T]) -> list[T]:
    """The items, unless they are more than one request may hold."""
    if len(items) > NAMES_LIMIT:
        raise Refused("too many at once", f"{len(items)}; {NAMES_LIMIT} are the limit")
    return list(items)
