"""Navigation: order, the work done for one look-up, holes, and the shape of the tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshot_builder import OWNER, Client, directory, other, tree_of

from packnback import errors
from packnback.format.entry import Entry, encode_block
from packnback.format.listing import Group, Totals, path_key
from packnback.ids import Kind
from packnback.restore import listing as listing_module
from packnback.restore.listing import Hole, Listing
from packnback.restore.objects import ObjectReader
from packnback.restore.walk import Part, walk

Tree = dict[bytes, list[Entry]]


def plain(paths: list[bytes]) -> Tree:
    """A tree of fifos, which need no objects, at these paths."""
    return tree_of((path.rpartition(b"/")[0], other(path.rpartition(b"/")[2], ord("p"))) for path in paths)


def wide(directories: int = 40) -> Tree:
    return plain([b"top/d%03d/leaf" % i for i in range(directories)])


def parts(client: Client, root: bytes, under: bytes = b"") -> list[Part | Hole]:
    with ObjectReader(client.repository, OWNER) as reader:
        return list(walk(Listing(reader, root).groups(under), under))


def paths(found: list[Part | Hole]) -> list[bytes]:
    return [part.path for part in found if isinstance(part, Part)]


def holes(found: list[Part | Hole]) -> list[Hole]:
    return [part for part in found if isinstance(part, Hole)]


names = st.sampled_from([b"a", b"a-", b"a.b", b"b", b"b0", b"\xff", b" "])
trees = st.lists(st.lists(names, min_size=1, max_size=4).map(b"/".join), max_size=25)


@given(trees, st.integers(1, 4), st.integers(2, 4))
def test_all_directories_come_once_and_in_order(files: list[bytes], per_page: int, fanout: int) -> None:
    client = Client()
    tree = plain([path + b"/leaf" for path in files])
    root = client.listing(tree, per_page=per_page, fanout=fanout)
    found = parts(client, root)
    assert not holes(found)
    assert paths(found) == sorted(tree, key=path_key)
    assert {part.path: part.entries for part in found if isinstance(part, Part)} == tree
    for under in tree:
        inside = [path for path in tree if path == under or path.startswith(under + b"/") or not under]
        assert paths(parts(client, root, under)) == sorted(inside, key=path_key)


def test_one_directory_costs_one_object_per_level() -> None:
    client = Client()
    tree = wide()
    root = client.listing(tree, per_page=1, fanout=3)  # 42 pages under 4 levels of tables
    with ObjectReader(client.repository, OWNER) as reader:
        listing = Listing(reader, root)
        assert [e.name for e in listing.entries(b"top/d017")] == [b"leaf"]
        assert len(client.repository.fetched) == 5
        assert listing.entry(b"top/d017/leaf").type == ord("p")
        assert len(client.repository.fetched) == 5
        assert [path for path, _ in listing.lineage(b"top/d017/leaf")] == [b"top", b"top/d017", b"top/d017/leaf"]
        for unknown in (b"nothing", b"top/d017/leaf/below", b"top/d0170", b"top/d017/leag"):
            with pytest.raises(errors.PathUnknown):
                listing.lineage(unknown)


def test_a_huge_directory_in_parts() -> None:
    client = Client()
    tree: dict[object, list[Entry]] = {b"": [directory(b"big")]}
    for part in range(7):
        tree[b"big", part] = [other(b"%d-%d" % (part, i), ord("p")) for i in range(3)]
    root = client.listing(tree, per_page=2, fanout=2)  # type: ignore[arg-type]
    found = parts(client, root)
    assert not holes(found)
    assert [part.part for part in found[1:] if isinstance(part, Part)] == list(range(7))
    with ObjectReader(client.repository, OWNER) as reader:
        assert len(list(Listing(reader, root).entries(b"big"))) == 21
        assert Listing(reader, root).entry(b"big/6-2").name == b"6-2"


def test_a_name_in_a_huge_directory_is_looked_for_in_few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    tree: dict[object, list[Entry]] = {b"": [directory(b"big")]}
    for part in range(64):
        tree[b"big", part] = [other(b"%02d-%d" % (part, i), ord("p")) for i in range(0, 6, 2)]
    root = client.listing(tree, per_page=2, fanout=4)  # type: ignore[arg-type]
    decoded = 0
    real = listing_module.decode_group

    def count(group: Group) -> list[Entry]:
        nonlocal decoded
        decoded += 1
        return real(group)

    monkeypatch.setattr(listing_module, "decode_group", count)
    with ObjectReader(client.repository, OWNER) as reader:
        found = Listing(reader, root)
        for part in (0, 1, 31, 62, 63):
            for i in (0, 2, 4):
                decoded = 0
                assert found.entry(b"big/%02d-%d" % (part, i)).name == b"%02d-%d" % (part, i)
                assert decoded <= 7
        for unknown in (b"00", b"31-1", b"31-5", b"99"):
            with pytest.raises(errors.PathUnknown):
                found.entry(b"big/" + unknown)


def test_tables_on_the_way_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    path = b"/".join(b"d%d" % i for i in range(40))
    root = client.listing(plain([path + b"/leaf"]), per_page=2, fanout=4)
    decoded = 0
    real = listing_module.decode_table

    def count(refs: Sequence[bytes], plaintext: bytes) -> Any:
        nonlocal decoded
        decoded += 1
        return real(refs, plaintext)

    monkeypatch.setattr(listing_module, "decode_table", count)
    with ObjectReader(client.repository, OWNER) as reader:
        assert len(Listing(reader, root).lineage(path + b"/leaf")) == 41
    assert decoded < 41


def test_parts_in_the_wrong_order_hide_nothing() -> None:
    client = Client()
    tree: dict[object, list[Entry]] = {b"": [directory(b"big")]}
    for part, name in enumerate((b"m", b"z", b"a")):
        tree[b"big", part] = [other(name, ord("p"))]
    root = client.listing(tree, per_page=1, fanout=2)  # type: ignore[arg-type]
    with ObjectReader(client.repository, OWNER) as reader:
        for name in (b"m", b"z", b"a"):
            assert Listing(reader, root).entry(b"big/" + name).name == name


def test_a_damaged_page_is_a_hole_and_the_rest_goes_on() -> None:
    client = Client()
    tree = wide()
    root = client.listing(tree, per_page=4, fanout=3)
    order = sorted(tree, key=path_key)
    pages = [wanted for wanted, raw in client.repository.records.items() if raw[5] == Kind.PAGE]
    for page in pages:
        before = client.repository.records[page]
        client.repository.flip(page)
        found = parts(client, root)
        client.repository.records[page] = before
        (hole,) = holes(found)
        assert hole.id == page
        lost = [path for path in order if hole.covers((path_key(path), 0))]
        assert 0 < len(lost) <= 4
        assert paths(found) == [path for path in order if path not in lost]


def test_a_missing_root_is_one_hole() -> None:
    client = Client()
    root = client.listing(wide())
    del client.repository.records[root]
    (hole,) = parts(client, root)
    assert isinstance(hole, Hole)
    assert isinstance(hole.problem, errors.ObjectMissing)


def test_directories_below_a_lost_page_are_detached() -> None:
    client = Client()
    tree = plain([b"a/b/c/leaf", b"z/leaf"])
    root = client.listing(tree, per_page=1, fanout=8)
    with ObjectReader(client.repository, OWNER) as reader:
        page = next(
            child.id
            for child in Listing(reader, root).expand(Listing(reader, root).root)
            if getattr(child, "first", None) == (b"a", 0)
        )
    client.repository.flip(page)
    found = [part for part in parts(client, root) if isinstance(part, Part)]
    assert [(part.path, part.detached) for part in found] == [
        (b"", False), (b"a/b", True), (b"a/b/c", False), (b"z", False)
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", ["first", "totals", "depth", "kind", "range"])
def test_a_table_that_contradicts_its_children_is_damage(wrong: str) -> None:
    client = Client()
    leaf = [other(b"leaf", ord("p"))]
    groups = [Group(b"", 0, *encode_block([directory(b"a"), directory(b"b")]))]
    top = client.page(groups, [[directory(b"a"), directory(b"b")]])
    below = client.page([Group(b"a", 0, *encode_block(leaf)), Group(b"b", 0, *encode_block(leaf))], [leaf, leaf])
    inner = client.table([below])
    rows = [client.table([top]), inner]
    if wrong == "first":
        rows[1] = type(inner)(inner.id, b"a", 1, inner.totals)
    elif wrong == "totals":
        rows[1] = type(inner)(inner.id, b"a", 0, Totals(3))
    elif wrong == "kind":
        rows[1] = below
    elif wrong == "range":
        rows.append(client.table([client.page([Group(b"b", 0, *encode_block([]))], [[]])]))
    root = client.table(rows, 3 if wrong == "depth" else 1)
    assert holes(parts(client, root.id))


@pytest.mark.parametrize(
    ("tree", "lost"),
    [
        ({b"": [], b"a": []}, b"a"),  # its parent does not list it
        ({b"": [other(b"a", ord("l"), target=b"/outside")], b"a": []}, b"a"),  # it lists a symlink
        ({b"": [directory(b"a")], b"a": [], b"a/b/c": []}, b"a/b/c"),  # no parent at all
        ({b"": [directory(b"a")], (b"a", 1): []}, b"a"),  # no first part
        ({b"": [directory(b"a")], (b"a", 0): [], (b"a", 2): []}, b"a"),  # no second part
        ({b"": [directory(b"a")], (b"a", 0): [directory(b"n")], (b"a", 1): [directory(b"m")]}, b"a"),  # order
        ({b"": [directory(b"a")], (b"a", 0): [directory(b"n")], (b"a", 1): [directory(b"n")]}, b"a"),  # twice
        ({b"a": []}, b""),  # no root
    ],
)
def test_a_tree_of_the_wrong_shape_is_damage(tree: Tree, lost: bytes) -> None:
    client = Client()
    found = parts(client, client.listing(tree, per_page=1))
    assert [hole.path for hole in holes(found)] == [lost]
    assert all(isinstance(hole.problem, errors.FormatDamage | errors.ObjectDamage) for hole in holes(found))


def test_a_group_whose_entries_do_not_decode_loses_that_directory_only() -> None:
    client = Client()
    groups = [
        Group(b"", 0, *encode_block([directory(b"a"), directory(b"b")])),
        Group(b"a", 0, [], b"junk"),
        Group(b"a/x", 0, *encode_block([])),
        Group(b"b", 0, *encode_block([])),
    ]
    root = client.table([client.page(groups, [[], [], [], []])])
    found = parts(client, root.id)
    assert [hole.path for hole in holes(found)] == [b"a"]
    assert paths(found) == [b"", b"a/x", b"b"]
