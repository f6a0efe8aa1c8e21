"""The listing builder: what it makes decodes to what went in, and changes stay where they happen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packnback.backup import listing_cuts, tree
from packnback.backup.backlog import Backlog
from packnback.backup.extents import LargeContent, SmallContent
from packnback.backup.layers import Layers, Limits
from packnback.backup.listing_cuts import ListingCuts
from packnback.backup.ticket import Place, Ticket
from packnback.backup.tree import Block, ListingBuilder, Root, encode_entries
from packnback.format.entry import (
    DIRECTORY,
    FILE,
    INLINE_EXTENTS,
    Entry,
    Extent,
    decode_block,
    decode_extent_object,
)
from packnback.format.listing import Group, Totals, decode_page, decode_table
from packnback.ids import KIB, REFS_LIMIT, Kind

CUTS = ListingCuts(bytes(range(32)))


def data_id(name: object) -> bytes:
    return sha256(repr(name).encode()).digest()


class Store:
    """Keeps meta objects, and checks levels and refs as a repository does."""

    def __init__(self) -> None:
        self.objects: dict[bytes, tuple[Kind, int, bytes, bytes]] = {}
        self.again = 0

    def add_meta(self, kind: Kind, level: int, refs: Sequence[bytes], plaintext: bytes) -> bytes:
        assert list(refs) == sorted(set(refs))
        assert len(refs) <= REFS_LIMIT
        assert len(plaintext) <= 1 << 20
        levels = [self.objects[ref][1] if ref in self.objects else 0 for ref in refs]
        assert level == 1 + max(levels, default=0)
        object_id = sha256(bytes([kind]) + b"".join(refs) + plaintext).digest()
        self.again += object_id in self.objects
        self.objects[object_id] = (kind, level, b"".join(refs), plaintext)
        return object_id

    def groups(self, object_id: bytes) -> list[Group]:
        kind, _, refs, plaintext = self.objects[object_id]
        if kind == Kind.PAGE:
            return decode_page(refs, plaintext)
        return [group for child in decode_table(refs, plaintext).children for group in self.groups(child.id)]

    def extents(self, entry: Entry) -> list[Extent]:
        if not entry.far:
            return list(entry.extents)
        return [extent for object_id, _ in entry.far for extent in self.far(object_id, entry.far_depth - 1)]

    def far(self, object_id: bytes, depth: int) -> list[Extent]:
        kind, _, refs, plaintext = self.objects[object_id]
        assert kind == Kind.EXTENTS
        found = decode_extent_object(refs, plaintext)
        assert found.depth == depth
        return list(found.extents) or [e for child, _ in found.far for e in self.far(child, depth - 1)]


class Resolver:
    """Resolves a ticket when it is waited for, and remembers the order of waiting."""

    def __init__(self) -> None:
        self.waited: list[Ticket] = []
        self.flushed = 0
        self.tickets: list[Ticket] = []

    def ticket(self, submitted: bool = True) -> Ticket:
        ticket = Ticket(self)
        ticket.submitted = submitted
        self.tickets.append(ticket)
        return ticket

    def wait_for(self, ticket: Ticket) -> None:
        assert ticket.submitted
        self.waited.append(ticket)
        self.resolve(ticket)

    def resolve(self, ticket: Ticket) -> None:
        ticket.id = data_id(self.tickets.index(ticket))

    def flush(self) -> None:
        self.flushed += 1
        for ticket in self.tickets:
            ticket.submitted = True


def file_entry(name: bytes, content: object) -> Entry:
    extents = (Extent(data_id(content), 0, 10),)
    return Entry(name, FILE, 0o644, 1000, 1000, 1, size=10, extents=extents, check=bytes(8))


def directories(count: int, seed: int = 1) -> dict[bytes, list[Entry]]:
    """A tree of `count` directories in listing order, each with some files."""
    draw = random.Random(seed)
    found = {b"": [Entry(b"d%05d" % i, DIRECTORY, 0o755, 0, 0, 1) for i in range(count)]}
    for i in range(count):
        names = sorted({b"f%x" % draw.randrange(1 << 30) for _ in range(draw.choice((0, 1, 3, 20, 120)))})
        found[b"d%05d" % i] = [file_entry(name, (i, n // 8)) for n, name in enumerate(names)]
    return found


def build(store: Store, listing: dict[bytes, list[Entry]]) -> Root:
    builder = ListingBuilder(store, CUTS)
    for path, entries in listing.items():
        builder.add(path, encode_entries(entries))
    return builder.finish()


def decoded(store: Store, root: Root) -> dict[bytes, list[Entry]]:
    found: dict[bytes, list[Entry]] = {}
    for group in store.groups(root.id):
        entries = found.setdefault(group.path, [])
        assert (group.part == 0) == (not entries)
        entries += decode_block(group.ids, group.block)
    return found


def test_what_is_built_decodes_to_what_went_in() -> None:
    store, listing = Store(), directories(300)
    root = build(store, listing)
    assert decoded(store, root) == listing
    files = sum(entry.type == FILE for entries in listing.values() for entry in entries)
    assert root.totals == Totals(files + 300, files, 10 * files)
    assert store.objects[root.id][0] == Kind.TABLE
    assert store.objects[root.id][1] == root.level


def test_an_empty_listing_is_a_table_over_a_page() -> None:
    store = Store()
    root = ListingBuilder(store, CUTS).finish()
    assert [store.objects[i][0] for i in store.objects] == [Kind.PAGE, Kind.TABLE]
    assert decoded(store, root) == {b"": []}
    assert root.level == 2


def test_the_same_tree_makes_the_same_objects() -> None:
    store, listing = Store(), directories(200)
    first = build(store, listing)
    count = len(store.objects)
    assert build(store, listing) == first
    assert len(store.objects) == count


@pytest.mark.parametrize("change", ["modify", "add", "remove", "new directory"])
def test_a_change_makes_one_page_and_the_tables_above_it(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "CHILDREN_PER_TABLE", Limits(4, 16))
    monkeypatch.setattr(listing_cuts, "PAGE_TARGET", 8 * KIB)
    store, listing = Store(), directories(300)
    build(store, listing)
    pages = sum(kind == Kind.PAGE for kind, *_ in store.objects.values())
    assert pages > 20
    path = b"d00150"
    listing[path] = [file_entry(b"f%d" % i, i) for i in range(10)]
    before = build(store, listing)
    known = set(store.objects)
    if change == "modify":
        listing[path][3] = file_entry(b"f3", "other")
    elif change == "add":
        listing[path].append(file_entry(b"z", "new"))
    elif change == "remove":
        del listing[path][3]
    else:
        listing[path] += [Entry(b"sub", DIRECTORY, 0o755, 0, 0, 1)]
        listing = {
            p: e for p, es in listing.items() for p, e in [(p, es), *([(path + b"/sub", [])] if p == path else [])]
        }
    after = build(store, listing)
    new = [store.objects[i][0] for i in set(store.objects) - known]
    # The group's size may cross a power of two, and then its page may end differently.
    assert 1 <= new.count(Kind.PAGE) <= 2
    assert new.count(Kind.TABLE) <= after.level
    assert after.level == before.level >= 3
    assert decoded(store, after) == listing


def test_tables_grow_in_levels_that_stay_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "CHILDREN_PER_TABLE", Limits(2, 4))
    monkeypatch.setattr(tree, "PAGE_LIMIT", 600)
    store, listing = Store(), directories(60)
    root = build(store, listing)
    assert root.level > 3
    assert decoded(store, root) == listing
    for kind, _, refs, plaintext in store.objects.values():
        if kind == Kind.TABLE:
            assert 1 <= len(decode_table(refs, plaintext).children) <= 4


def test_blocks_are_split_by_size_and_by_ids() -> None:
    long = [Entry(b"%08d" % i, FILE, 0o644, 0, 0, 1, xattrs={b"user.x": bytes(5000)}) for i in range(300)]
    blocks = encode_entries(long)
    assert len(blocks) > 1
    assert all(len(block.data) <= tree.BLOCK_LIMIT for block in blocks)
    assert [e for block in blocks for e in decode_block(block.ids, block.data)] == long
    many = [file_entry(b"%08d" % i, i) for i in range(5000)]
    blocks = encode_entries(many)
    assert [len(block.ids) for block in blocks] == [2048, 2048, 904]
    store = Store()
    root = build(store, {b"": long, b"00000000": many})
    assert decoded(store, root) == {b"": long, b"00000000": many}
    assert root.totals == Totals(5300, 5300, 50000)


def test_a_page_has_no_more_refs_than_an_object_may_have() -> None:
    class Never(ListingCuts):
        def page_ends(self, path: bytes, part: int, size: int) -> bool:
            return False

    store = Store()
    builder = ListingBuilder(store, Never(bytes(32)))
    for d in range(8):
        builder.add(b"%d" % d, encode_entries([file_entry(b"%04d" % i, (d, i)) for i in range(1500)]))
    builder.finish()
    pages = [len(refs) // 32 for kind, _, refs, _ in store.objects.values() if kind == Kind.PAGE]
    assert pages == [3000, 3000, 3000, 3000]


def test_pages_average_about_the_target() -> None:
    store = Store()
    build(store, directories(1500, seed=7))
    sizes = [len(plaintext) for kind, _, _, plaintext in store.objects.values() if kind == Kind.PAGE]
    assert 50_000 < sum(sizes) / len(sizes) < 200_000


def test_a_checkpoint_disturbs_nothing() -> None:
    listing = directories(400)
    plain = build(Store(), listing)
    store = Store()
    builder = ListingBuilder(store, CUTS)
    for i, (path, entries) in enumerate(listing.items()):
        builder.add(path, encode_entries(entries))
        if i % 50 == 10:
            done = dict(list(listing.items())[: i + 1])
            root = builder.checkpoint()
            assert decoded(store, root) == done
    assert builder.finish() == plain


# --- layers ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50)), st.integers(2, 4), st.integers(1, 6), st.integers(0, 6))
def test_layers_keep_order_and_limits(numbers: list[int], least: int, more: int, keep: int) -> None:
    made: list[tuple[int, int]] = []

    def join(items: Sequence[object], depth: int) -> object:
        made.append((depth, len(items)))
        return list(items)

    layers = Layers[object](
        join, lambda item: item in (7, [7, 7]), lambda depth: max(keep, depth), Limits(least, least + more)
    )
    for number in numbers:
        layers.append(number)
    items, depth = layers.finish()

    def flat(value: object) -> list[int]:
        return [x for each in value for x in flat(each)] if isinstance(value, list) else [value]  # type: ignore[list-item]

    assert flat(list(items)) == numbers
    assert len(items) <= max(keep, depth)
    assert all(length <= least + more for _, length in made)
    assert (depth == 0) == (len(numbers) <= keep)


# --- contents ------------------------------------------------------------------------------------------------


def test_few_extents_stay_in_the_entry() -> None:
    store = Store()
    content = LargeContent(store, CUTS)
    extents = [Extent(data_id(i), i, 10) for i in range(INLINE_EXTENTS)]
    for extent in extents:
        content.add(extent)
    entry = file_entry(b"x", 0)
    content.describe(entry)
    assert list(entry.extents) == extents
    assert not store.objects
    assert entry.size == 10 * INLINE_EXTENTS


@settings(max_examples=20, deadline=None)
@given(st.integers(INLINE_EXTENTS + 1, 6000), st.integers(0, 1000))
def test_many_extents_go_into_objects(count: int, seed: int) -> None:
    draw = random.Random(seed)
    store = Store()
    content = LargeContent(store, CUTS)
    extents = [
        Extent(None, 0, 1 + i) if draw.random() < 0.2 else Extent(data_id(draw.randrange(count)), i, 1 + i)
        for i in range(count)
    ]
    for extent in extents:
        content.add(extent)
    entry = Entry(b"x", FILE, 0o644, 0, 0, 1)
    content.describe(entry)
    assert not entry.extents
    assert entry.far_depth == 1
    assert store.extents(entry) == extents
    assert entry.size == sum(extent.length for extent in extents)
    second = Entry(b"y", FILE, 0o644, 0, 0, 1)
    content.describe(second)
    assert second.far == entry.far
    (block,) = encode_entries([entry])
    assert block.level == 1
    root = build(store, {b"": [entry, second]})
    assert root.level == 3
    assert decoded(store, root) == {b"": [entry, second]}


def test_a_file_of_very_many_extents_has_several_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packnback.backup.extents.INLINE_EXTENTS", 8)
    monkeypatch.setattr("packnback.backup.extents.EXTENTS_PER_OBJECT", Limits(4, 16))
    store = Store()
    content = LargeContent(store, CUTS)
    # The same object everywhere, and it ends an extent object wherever it may.
    ending = next(data_id(i) for i in range(10**6) if CUTS.extents_end(data_id(i)))
    extents = [Extent(ending, 0, 5)] * 1000
    for extent in extents:
        content.add(extent)
    entry = Entry(b"x", FILE, 0o644, 0, 0, 1)
    content.describe(entry)
    assert entry.far_depth > 1
    assert len(entry.far) <= 8
    assert store.extents(entry) == extents
    assert build(store, {b"": [entry]}).level == entry.far_depth + 2


def test_an_inserted_extent_leaves_other_extent_objects_alone() -> None:
    store = Store()
    extents = [Extent(data_id(i), 0, 10) for i in range(6000)]
    for stretch in (extents, [*extents[:3000], Extent(data_id("new"), 0, 10), *extents[3000:]]):
        known = set(store.objects)
        content = LargeContent(store, CUTS)
        for extent in stretch:
            content.add(extent)
        content.describe(Entry(b"x", FILE, 0o644, 0, 0, 1))
    assert len(known) > 5
    assert len(set(store.objects) - known) <= 2


def test_settling_keeps_the_order_of_the_file() -> None:
    store, resolver = Store(), Resolver()
    content = LargeContent(store, CUTS)
    tickets = [resolver.ticket() for _ in range(4)]
    for ticket in tickets:
        content.add(Place(ticket, 0, 10))
    for ticket in (tickets[2], tickets[0]):
        resolver.resolve(ticket)
    assert not content.settle()
    entry = Entry(b"x", FILE, 0o644, 0, 0, 1)
    content.describe(entry)
    assert [extent.id for extent in entry.extents] == [ticket.id for ticket in tickets]
    assert resolver.waited == [tickets[1], tickets[3]]


# --- the backlog ---------------------------------------------------------------------------------------------


def small(resolver: Resolver, name: bytes, *, submitted: bool = True) -> tuple[Entry, SmallContent]:
    return Entry(name, FILE, 0o644, 0, 0, 1), SmallContent(resolver.ticket(submitted), 5, 10, bytes(8))


def test_directories_wait_in_order_for_what_is_under_way() -> None:
    resolver = Resolver()
    done: list[str] = []

    class Listing(ListingBuilder):
        def add(self, path: bytes, blocks: Sequence[Block]) -> None:
            done.append(path.decode())
            super().add(path, blocks)

    store = Store()
    listing = Listing(store, CUTS)
    backlog = Backlog(listing, resolver.flush)
    first, second = small(resolver, b"one"), small(resolver, b"two")
    kept: list[Sequence[Block]] = []
    backlog.add_entries(b"", [first[0]], [first], kept.append)
    backlog.add_entries(b"a", [second[0]], [second])
    unchanged = encode_entries([file_entry(b"old", 1)])
    backlog.add_blocks(b"b", unchanged)
    assert done == []
    resolver.resolve(second[1].ticket)
    backlog.add_entries(b"c", [], [])
    assert done == []
    resolver.resolve(first[1].ticket)
    backlog.add_entries(b"d", [], [])
    assert done == ["", "a", "b", "c", "d"]
    assert backlog.weight == 0
    assert resolver.waited == []
    root = listing.finish()
    assert decoded(store, root)[b""][0].extents == (Extent(first[1].ticket.id, 5, 10),)
    assert len(kept) == 1


def test_what_waits_is_bounded() -> None:
    resolver = Resolver()
    listing = ListingBuilder(Store(), CUTS)
    backlog = Backlog(listing, resolver.flush, limit=20_000)
    waiting = small(resolver, b"one", submitted=False)
    backlog.add_entries(b"", [waiting[0]], [waiting])
    unchanged = encode_entries([file_entry(b"f%d" % i, i) for i in range(20)])
    for i in range(100):
        backlog.add_blocks(b"d%03d" % i, unchanged)
        assert backlog.weight <= 20_000
    assert resolver.flushed == 1
    assert resolver.waited == [waiting[1].ticket]
    backlog.drain()
    assert listing.finish().totals.files == 2001


def test_page_chance_follows_the_size_class() -> None:
    def ends(size: int) -> set[int]:
        return {i for i in range(2000) if CUTS.page_ends(b"%d" % i, 0, size)}

    assert ends(1025) == ends(2000) == ends(2048)
    assert ends(1024) < ends(1025) < ends(5000) < ends(60_000)
    assert len(ends(100_000)) == 2000
    assert 10 <= len(ends(1025)) <= 80
