"""The pipeline: what arrives, in which order, what a repository sees of it, and how it fails."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from errno import EIO
from io import BytesIO
from itertools import pairwise
from random import Random

import pytest
from memory_session import MemoryReader, MemorySession

from packnback.backup import schedule as schedule_module
from packnback.backup import sealing
from packnback.backup.bundle import Bundler
from packnback.backup.disguise import BATCH_IDS, PACK_WORTH
from packnback.backup.pipeline import Pipeline
from packnback.backup.schedule import META_LIMIT, PLAINTEXT_LIMIT, SEALED_LIMIT
from packnback.backup.sealing import is_compressible
from packnback.backup.stream import ChunkStream
from packnback.crypto.keys import OwnerKey
from packnback.crypto.seal import object_id
from packnback.errors import StorageFailed
from packnback.events import Watch
from packnback.format.entry import FILE, Entry
from packnback.format.record import parse
from packnback.ids import KIB, MIB, Kind, ObjectClass
from packnback.store.interface import Session

OWNER = OwnerKey(bytes(32))
PUT_KEY = OWNER.put_key("laptop")
REPOSITORY = bytes(16)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())  # other tests of this process may have left some that wait for ever
    yield
    assert set(threading.enumerate()) <= before


def new(session: Session, **options: int | None) -> Pipeline:
    return Pipeline(session, PUT_KEY, REPOSITORY, **options)  # type: ignore[arg-type]


def blobs(seed: int, count: int, size: int = 20 * KIB) -> list[bytes]:
    random = Random(seed)
    return [random.randbytes(size) for _ in range(count)]


@pytest.mark.parametrize("compression", [None, 1, 3])
@pytest.mark.parametrize("workers", [1, 4])
def test_everything_arrives_and_opens(compression: int | None, workers: int) -> None:
    plaintexts = [*blobs(1, 100), b"", b"x", b"text " * 100_000, bytes(3 * MIB), *blobs(2, 3, 4 * MIB)]
    session = MemorySession()
    with new(session, compression=compression, workers=workers) as pipeline:
        tickets = [pipeline.add_data(p) for p in plaintexts]
        page = pipeline.add_meta(Kind.PAGE, 1, sorted({t.wait() for t in tickets}), b"a page")
        pipeline.drain()
        assert session.durable == {page} | {t.wait() for t in tickets}
    reader = MemoryReader(session, OWNER)
    assert [reader.read(t.wait()) for t in tickets] == plaintexts
    assert reader.read(page) == b"a page"
    assert pipeline.objects_new == len(plaintexts) + 1
    assert pipeline.bytes_new == sum(map(len, plaintexts)) + len(b"a page")
    assert set(pipeline.timings) == {"hash", "look-up", "compress", "seal", "publish", "waiting"}


def test_the_id_does_not_depend_on_compression_and_compression_saves() -> None:
    found = []
    for compression in (None, 3):
        session = MemorySession()
        with new(session, compression=compression) as pipeline:
            ticket = pipeline.add_data(b"some text that repeats itself. " * 20_000)
            pipeline.drain()
        found.append((ticket.wait(), session.bytes_put))
    assert found[0][0] == found[1][0]
    assert found[1][1] < found[0][1] / 10


def test_what_is_there_is_not_stored_again() -> None:
    plaintexts, session = blobs(3, 80), MemorySession()
    for _ in range(2):
        with new(session) as pipeline:
            for plaintext in plaintexts:
                pipeline.add_data(plaintext)
            pipeline.drain()
    assert (pipeline.objects_new, pipeline.objects_known) == (0, 80)
    assert len(session.records) == 80
    assert session.put_again == []


def test_duplicates_within_a_run_are_sealed_once() -> None:
    session, watch = MemorySession(), Watch()
    plaintexts = blobs(4, 30) * 7
    with new(session, watch=watch) as pipeline:  # type: ignore[arg-type]
        tickets = [pipeline.add_data(p) for p in plaintexts]
        pages = [pipeline.add_meta(Kind.PAGE, 1, [tickets[-1].wait()], b"the same page") for _ in range(3)]
        pipeline.drain()
    assert len({t.wait() for t in tickets}) == 30
    assert len(session.records) == 31
    assert session.put_again == []
    assert len(set(pages)) == 1
    assert watch.counters.bytes_hashed == sum(map(len, plaintexts)) + 3 * len(b"the same page")


def test_look_ups_are_sorted_and_large() -> None:
    session = MemorySession()
    with new(session) as pipeline:
        for plaintext in blobs(5, 1000, 100):
            pipeline.add_data(plaintext)
        for plaintext in blobs(6, 60, 1 * MIB):
            pipeline.add_data(plaintext)
        pipeline.drain()
    assert all(asked == sorted(asked) for asked in session.asked)
    lengths = {i: len(MemoryReader(session, OWNER).read(i)) for asked in session.asked for i in asked}
    for asked in session.asked[:-1]:
        assert len(asked) >= BATCH_IDS or sum(lengths[i] for i in asked) >= PACK_WORTH


def test_large_files_fill_their_look_ups_within_the_bound_of_memory() -> None:
    session, noise = MemorySession(), BytesIO(Random(14).randbytes(80 * MIB))
    with new(session) as pipeline:
        stream = ChunkStream(pipeline, PUT_KEY.chunk_key)
        lengths = {place.ticket: place.length for place, _ in stream.store(noise.readinto)}
        stream.close()
        pipeline.drain()
        assert pipeline.plaintext_peak <= PLAINTEXT_LIMIT
    length_of = {ticket.wait(): length for ticket, length in lengths.items()}
    assert [sum(length_of[i] for i in asked) >= PACK_WORTH for asked in session.asked] == [True, True, False]


def rank_correlation(order: Sequence[int]) -> float:
    """Spearman's rho of a permutation of 0 … n-1 against the identity."""
    n = len(order)
    return 1 - 6 * sum((i - x) ** 2 for i, x in enumerate(order)) / (n * (n * n - 1))


def test_the_order_of_a_file_is_not_told() -> None:
    session = MemorySession()
    with new(session) as pipeline:
        tickets = [pipeline.add_data(p) for p in blobs(7, 300)]
        pipeline.drain()
    number = {t.wait(): i for i, t in enumerate(tickets)}
    order = [number[i] for i in session.records]
    # For 300 shuffled items |rho| exceeds 0.3 once in ten million runs; unshuffled it is close to 1.
    assert abs(rank_correlation(order)) < 0.3, order
    by_id = [number[i] for i in sorted(session.records)]
    assert order != by_id
    asked = [number[i] for asked in session.asked for i in asked]
    assert sum(abs(a - b) == 1 for a, b in pairwise(asked)) < len(asked) / 4


def test_a_listing_comes_after_what_it_needs() -> None:
    """MemorySession refuses a record whose refs are absent."""
    session = MemorySession()
    with new(session, workers=4) as pipeline:
        pages: list[bytes] = []
        for round_ in range(40):
            ids = sorted({pipeline.add_data(p).wait() for p in blobs(100 + round_, 5, 200 * KIB)})
            pages.append(pipeline.add_meta(Kind.PAGE, 1, ids, b"page %d" % round_ * 20_000))
        table = pipeline.add_meta(Kind.TABLE, 2, sorted(pages), b"table")
        root = pipeline.add_meta(Kind.TABLE, 3, [table], b"root")
        pipeline.drain()
    assert root in session.durable
    order = list(session.records)
    assert order.index(root) > order.index(table) > max(map(order.index, pages))


def test_memory_is_bounded_however_slow_the_repository_is() -> None:
    class Slow(MemorySession):
        def put(self, records: Iterable[bytes | bytearray]) -> None:
            gate.wait(0.05)
            super().put(records)

    gate = threading.Event()
    session, noise = Slow(), Random(8).randbytes(8 * MIB)
    with new(session) as pipeline:
        for i in range(30):
            pipeline.add_data(i.to_bytes(4, "little") + noise)
        pipeline.drain()
        assert pipeline.plaintext_peak <= PLAINTEXT_LIMIT
        assert pipeline.sealed_peak <= SEALED_LIMIT + 2 * 9 * MIB * len(pipeline._threads)
    assert len(session.records) == 30


def test_listings_are_bounded_too_and_push_what_they_wait_for() -> None:
    """The data that the listings wait for fills no batch: it has to be sent early."""
    session = MemorySession()
    with new(session) as pipeline:
        data = pipeline.add_data(b"small").wait()
        for i in range(40):
            pipeline.add_meta(Kind.PAGE, 1, [data], Random(i).randbytes(1 * MIB))
            assert pipeline._schedule.meta_bytes <= META_LIMIT + 2 * MIB
        pipeline.drain()
    assert len(session.records) == 41


def test_room_runs_out_while_a_batch_is_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_module, "PLAINTEXT_LIMIT", 8 * MIB)
    session = MemorySession()
    with new(session) as pipeline:
        for plaintext in blobs(9, 20, 1 * MIB):
            pipeline.add_data(plaintext)
        pipeline.drain()
    assert len(session.records) == 20


def test_files_through_stream_and_bundler() -> None:
    session, random = MemorySession(), Random(10)
    large, small = random.randbytes(20 * MIB), [random.randbytes(3000) for _ in range(500)]
    position = 0

    def read(into: memoryview) -> int:
        nonlocal position
        part = large[position : position + len(into)]
        into[: len(part)] = part
        position += len(part)
        return len(part)

    with new(session) as pipeline:
        stream, bundler = ChunkStream(pipeline, PUT_KEY.chunk_key), Bundler(pipeline, PUT_KEY)
        small_places = [bundler.add(content) for content in small]
        large_places = [place for place, _ in stream.store(read)]
        stream.close()
        bundler.flush()
        pipeline.drain()
    reader = MemoryReader(session, OWNER)

    def restored(extent: object) -> bytes:
        return reader.read(extent.id)[extent.offset : extent.offset + extent.length]  # type: ignore[attr-defined]

    assert b"".join(restored(p.extent()) for p in large_places) == large
    entries = [Entry(b"small", FILE, 0o644, 0, 0, 0) for _ in small]
    for entry, placed in zip(entries, small_places, strict=True):
        placed.describe(entry)
    assert [restored(entry.extents[0]) for entry in entries] == small


def test_envelopes_are_renewed_by_volume_and_stored_before_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "ENVELOPE_BYTES", 1 * MIB)
    session = MemorySession()
    with new(session) as pipeline:
        for plaintext in blobs(11, 100, 100 * KIB):
            pipeline.add_data(plaintext)
        pipeline.drain()
    used = {r.envelope_id for r in session.records.values()}
    assert 8 <= len(used) <= 13, "10 MiB at about 1 MiB each"
    assert used == set(session.envelopes)


def test_envelopes_are_renewed_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(sealing.time, "monotonic", lambda: now)
    session = MemorySession()
    with new(session) as pipeline:
        for step in range(3):
            now = step * 1000.0
            pipeline.add_data(b"%d" % step)
            pipeline.drain()
    assert len(session.envelopes) == 3


class Broken(MemorySession):
    """Raises `error` in the call named `where`, from the second time on."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__()
        self._where, self._error, self._calls = where, error, 0

    def _maybe(self, where: str) -> None:
        if where == self._where:
            self._calls += 1
            if self._calls > 1 or where == "flush":
                raise self._error

    def has(self, ids: Sequence[bytes]) -> list[bool]:
        self._maybe("has")
        return super().has(ids)

    def put(self, records: Iterable[bytes | bytearray]) -> None:
        self._maybe("put")
        super().put(records)

    def abandon(self) -> None:
        """Nobody waits here."""

    def flush(self) -> None:
        self._maybe("flush")
        super().flush()


class PowerCut(BaseException):
    """Like the simulated one: no Exception."""


@pytest.mark.parametrize("where", ["has", "put", "flush"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [(MemoryError("x"), MemoryError), (PowerCut(), PowerCut), (OSError(EIO, "the disk"), StorageFailed)],
    ids=["error", "power cut", "error of the system"],
)
def test_an_error_stops_everything_and_is_raised_again_and_again(
    where: str, error: BaseException, raised: type[BaseException]
) -> None:
    """One of the system not as such: whoever reads files meanwhile would take it for one of theirs."""
    with new(Broken(where, error)) as pipeline:
        with pytest.raises(raised):
            for plaintext in blobs(12, 40, 1 * MIB):
                pipeline.add_data(plaintext)
            pipeline.drain()
        with pytest.raises(raised):
            pipeline.add_data(b"more")
        with pytest.raises(raised):
            pipeline.add_meta(Kind.PAGE, 1, [], b"more")
        with pytest.raises(raised):
            pipeline.drain()


def test_an_error_in_a_worker_reaches_a_waiting_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise MemoryError("worker")

    monkeypatch.setattr(sealing.Sealer, "object_id", fail)
    with new(MemorySession()) as pipeline:
        ticket = pipeline.add_data(b"content")
        with pytest.raises(MemoryError, match="worker"):
            ticket.wait()


def test_an_interrupt_of_the_caller_abandons_what_is_under_way() -> None:
    session = MemorySession()
    with pytest.raises(KeyboardInterrupt), new(session) as pipeline:
        for plaintext in blobs(13, 40, 1 * MIB):
            pipeline.add_data(plaintext)
        raise KeyboardInterrupt
    assert session.flushes == 0
    with pytest.raises(RuntimeError, match="closed"):
        pipeline.add_data(b"late")


def test_drain_may_be_called_between_and_without_anything() -> None:
    session = MemorySession()
    with new(session) as pipeline:
        pipeline.drain()
        first = pipeline.add_data(b"first")
        pipeline.drain()
        assert session.durable == {first.wait()}
        second = pipeline.add_data(b"second")
        pipeline.drain()
        assert session.durable == {first.wait(), second.wait()}


def test_the_ticket_of_an_open_bundle_cannot_be_waited_for() -> None:
    with new(MemorySession()) as pipeline, pytest.raises(RuntimeError, match="put together"):
        pipeline.new_ticket().wait()


def test_sealer_makes_single_records_too() -> None:
    """The snapshot's metadata record is sealed like this and never put."""
    session = MemorySession()
    with new(session) as pipeline:
        root = pipeline.add_meta(Kind.TABLE, 1, [], b"root")
        name, sealed = pipeline.sealer.record(Kind.METADATA, 2, [root], b"metadata")
        pipeline.drain()
    session.envelopes[sealed.envelope.id] = sealed.envelope.envelope
    assert MemoryReader(session, OWNER).open(parse(sealed.record)) == b"metadata"
    assert parse(sealed.record).id == name


def test_ids_are_made_under_the_key_of_the_class() -> None:
    session = MemorySession()
    with new(session) as pipeline:
        data = pipeline.add_data(b"content").wait()
        page = pipeline.add_meta(Kind.PAGE, 1, [data], b"page")
        pipeline.drain()
    keys = PUT_KEY.id_key
    assert data == object_id(keys[ObjectClass.DATA], PUT_KEY.domain_id, Kind.DATA, b"", b"content")
    assert page == object_id(keys[ObjectClass.META], PUT_KEY.domain_id, Kind.PAGE, data, b"page")


@pytest.mark.parametrize(
    ("plaintext", "expected"),
    [
        (Random(1).randbytes(1 * MIB), False),
        (b"".join(b"line %d of a text\n" % i for i in range(40_000)), True),
        (Random(2).randbytes(900 * KIB) + b"text" * (50 * KIB), True),
        (Random(3).randbytes(1000), True),
        (b"", True),
    ],
    ids=["noise", "text", "text at the end", "small noise", "empty"],
)
def test_judging_compressibility(plaintext: bytes, expected: bool) -> None:
    assert is_compressible(plaintext) is expected
    assert is_compressible(memoryview(plaintext)) is expected
