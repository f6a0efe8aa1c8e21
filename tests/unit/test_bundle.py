"""Bundling: where files end up, where bundles end, and what a bundle cut short must hide."""

from __future__ import annotations

from random import Random

import pytest
from blake3 import blake3

from packnback.backup import bundle
from packnback.backup.buffers import BUFFER_LEN, Buffer
from packnback.backup.bundle import BUNDLE_MAX, BUNDLE_MIN, Bundler
from packnback.backup.cut import FILE_MIN
from packnback.backup.extents import SmallContent
from packnback.backup.ticket import Ticket
from packnback.crypto.keys import OwnerKey
from packnback.format.entry import FILE, Entry, Extent
from packnback.ids import KIB, MIB, ObjectClass

PUT_KEY = OwnerKey(bytes(32)).put_key("laptop")


class Shelf:
    """Stores bundles under their hash, at once."""

    def __init__(self) -> None:
        self.objects: list[bytes] = []

    def acquire_buffer(self) -> Buffer:
        buffer = Buffer(BUFFER_LEN)
        buffer.users = 1
        return buffer

    def release_buffer(self, buffer: Buffer) -> None:
        buffer.users -= 1

    def new_ticket(self) -> Ticket:
        return Ticket(self)

    def wait_for(self, ticket: Ticket) -> None:
        raise AssertionError("an open bundle was waited for")

    def add_data(
        self, plaintext: bytes | memoryview, *, ticket: Ticket | None = None, lease: Buffer | None = None
    ) -> Ticket:
        ticket = ticket or self.new_ticket()
        plaintext = bytes(plaintext)
        self.objects.append(plaintext)
        ticket.submitted, ticket.id = True, blake3(plaintext).digest()
        return ticket

    def read(self, placed: SmallContent) -> bytes:
        extent = extent_of(placed)
        plaintext = next(o for o in self.objects if blake3(o).digest() == extent.id)
        return plaintext[extent.offset : extent.offset + extent.length]


def extent_of(placed: SmallContent) -> Extent:
    entry = Entry(b"name", FILE, 0o644, 0, 0, 0)
    placed.describe(entry)
    assert entry.size == placed.length
    assert entry.check == placed.check
    return entry.extents[0]


def small_files(seed: int, count: int, mean: int = 8 * KIB) -> list[bytes]:
    random = Random(seed)
    return [random.randbytes(1 + min(int(random.expovariate(1 / mean)), FILE_MIN - 2)) for _ in range(count)]


def bundle_all(files: list[bytes]) -> tuple[Shelf, list[SmallContent]]:
    shelf = Shelf()
    bundler = Bundler(shelf, PUT_KEY)
    places = [bundler.add(content) for content in files]
    bundler.flush()
    return shelf, places


def test_every_file_is_where_its_place_says() -> None:
    files = small_files(1, 400)
    shelf, places = bundle_all(files)
    assert [shelf.read(p) for p in places] == files
    assert len(shelf.objects) > 2


def test_sizes_of_bundles() -> None:
    shelf, _ = bundle_all(small_files(2, 8000, 4 * KIB))
    complete = [len(o) for o in shelf.objects[:-1]]
    assert all(BUNDLE_MIN <= n <= BUNDLE_MAX for n in complete)
    assert 0.3 * MIB < sum(complete) / len(complete) < 0.75 * MIB


def test_the_same_files_make_the_same_bundles_but_for_the_one_that_is_cut_short() -> None:
    files = small_files(3, 600)
    first, second = bundle_all(files)[0].objects, bundle_all(files)[0].objects
    assert first[:-1] == second[:-1]
    assert first[-1][:16] != second[-1][:16]
    assert first[-1][16:] == second[-1][16:]


def test_a_bundle_that_ends_with_the_run_starts_with_random_bytes() -> None:
    shelf, places = bundle_all([b"my little secret"])
    assert shelf.objects[0][16:] == b"my little secret"
    assert len(shelf.objects[0]) == 32
    assert extent_of(places[0]).offset == 16


def test_a_change_touches_few_bundles() -> None:
    files = small_files(4, 2000)
    before = set(bundle_all(files)[0].objects)
    after = set(bundle_all([*files[:1000], b"changed", *files[1001:]])[0].objects)
    assert len(after - before) <= 4, "its own, perhaps the next ones, and the last with its random prefix"


def test_identical_files_share_a_place() -> None:
    shelf = Shelf()
    bundler = Bundler(shelf, PUT_KEY)
    first = bundler.add(b"the same")
    bundler.add(b"another")
    again = bundler.add(b"the same")
    assert first is again
    assert bundler.files_shared == 1
    bundler.flush()
    assert len(shelf.objects[0]) == 16 + len(b"the same" + b"another")


def test_memory_of_contents_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "RECENT_CONTENTS", 8)
    bundler = Bundler(Shelf(), PUT_KEY)
    for i in range(100):
        bundler.add(b"%d" % i)
        assert len(bundler._recent) <= 8
    bundler.add(b"99")
    bundler.add(b"0")
    assert bundler.files_shared == 1


def test_check_is_the_keyed_hash_of_the_content() -> None:
    check = Bundler(Shelf(), PUT_KEY).add(b"content").check
    key = PUT_KEY.id_key[ObjectClass.DATA]
    assert check == blake3(b"file check\0content", key=key).digest()[:8]


def test_the_end_depends_on_the_key() -> None:
    files = small_files(5, 1000)
    other = Bundler(shelf := Shelf(), OwnerKey(b"\1" * 32).put_key("laptop"))
    for content in files:
        other.add(content)
    other.flush()
    assert {len(o) for o in shelf.objects} != {len(o) for o in bundle_all(files)[0].objects}


def test_a_place_in_an_open_bundle_is_not_resolved() -> None:
    placed = Bundler(Shelf(), PUT_KEY).add(b"content")
    assert not placed.submitted
    assert not placed.settle()


def test_flush_of_nothing_stores_nothing() -> None:
    shelf = Shelf()
    Bundler(shelf, PUT_KEY).flush()
    assert shelf.objects == []


@pytest.mark.parametrize("content", [b"", bytes(FILE_MIN)])
def test_only_small_files_are_taken(content: bytes) -> None:
    with pytest.raises(ValueError, match="small"):
        Bundler(Shelf(), PUT_KEY).add(content)
