"""ls, find, cat and diff."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshot_builder import OWNER, Client, directory, other, tree_of

from packnback import errors
from packnback.format.entry import FILE, Entry, Extent, encode_extent_object, encode_far_object
from packnback.ids import Kind
from packnback.restore.diff import Change, diff
from packnback.restore.listing import Hole, Listing
from packnback.restore.look import Found, cat, find, ls, normalise
from packnback.restore.objects import ObjectReader


def listing_of(client: Client, root: bytes) -> Listing:
    return Listing(ObjectReader(client.repository, OWNER, workers=1), root)


def home(client: Client) -> Listing:
    tree = tree_of([
        (b"home/u", client.file(b"notes.txt", b"some notes")),
        (b"home/u", client.file(b"photo.jpg", b"x" * 900, pieces=3)),
        (b"home/u/src", client.file(b"main.c", b"int main;")),
        (b"", other(b"link", ord("l"), target=b"home/u")),
    ])  # fmt: skip
    return listing_of(client, client.listing(tree, per_page=1, fanout=2))


def shown(found: object) -> list[bytes]:
    return [item.path for item in found if isinstance(item, Found)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given_path", "normal"),
    [
        (b"/", b""),
        (b"", b""),
        (b"/home/u/", b"home/u"),
        (b"a//b/./c/../d", b"a/b/d"),
        (b"../../x", b"x"),
        (b"//x", b"x"),
    ],
)
def test_paths_are_normalised(given_path: bytes, normal: bytes) -> None:
    assert normalise(given_path) == normal


def test_ls() -> None:
    listing = home(Client())
    assert shown(ls(listing)) == [b"home", b"link"]
    assert shown(ls(listing, b"home/u")) == [b"home/u/notes.txt", b"home/u/photo.jpg", b"home/u/src"]
    assert shown(ls(listing, b"home/u/notes.txt")) == [b"home/u/notes.txt"]
    assert shown(ls(listing, b"home/u", recursive=True))[-1] == b"home/u/src/main.c"
    assert len(shown(ls(listing, recursive=True))) == 7
    for wrong in (b"link/src", b"home/x", b"nowhere/at/all"):
        with pytest.raises(errors.PathUnknown) as caught:
            list(ls(listing, wrong))
        assert caught.value.path == f"/{wrong.decode()}"


def test_find() -> None:
    listing = home(Client())
    assert shown(find(listing, b"*.[ct]*")) == [b"home/u/notes.txt", b"home/u/src/main.c"]
    assert shown(find(listing, b"home/*/main.c")) == [b"home/u/src/main.c"]
    assert shown(find(listing, b"/home/u/photo.???")) == [b"home/u/photo.jpg"]
    assert shown(find(listing, b"nothing*")) == []


def test_find_goes_by_characters() -> None:
    client = Client()
    names = sorted(["é".encode(), b"\xff", b"a", b"ab"])
    tree = {b"": [client.file(name, b"x") for name in names]}
    listing = listing_of(client, client.listing(tree))
    assert shown(find(listing, b"?")) == sorted(["é".encode(), b"\xff", b"a"])
    assert shown(find(listing, "[é]".encode())) == ["é".encode()]
    assert shown(find(listing, b"[^a]")) == shown(find(listing, b"[!a]")) == sorted(["é".encode(), b"\xff"])
    assert shown(find(listing, b"\xff")) == [b"\xff"]


def test_cat() -> None:
    client = Client()
    listing = home(client)
    assert b"".join(cat(listing, b"home/u/photo.jpg", client.key.domain_id)) == b"x" * 900
    with pytest.raises(errors.UsageError):
        list(cat(listing, b"home/u", client.key.domain_id))


def test_cat_of_a_file_with_holes_and_far_extents() -> None:
    client = Client()
    rng = random.Random(5)
    content, extents = b"", []
    for _ in range(40):
        piece = rng.randbytes(rng.randrange(1, 2000))
        extents.append(Extent(client.data(b"front" + piece), 5, len(piece)))
        content += piece
        if rng.random() < 0.3:
            extents.append(Extent(None, 0, 3000))
            content += bytes(3000)
    far = []
    for i in range(0, len(extents), 10):
        refs, plaintext = encode_extent_object(extents[i : i + 10])
        covered = sum(e.length for e in extents[i : i + 10])
        far.append((client.store(Kind.EXTENTS, 1, refs, plaintext), covered))
    refs, plaintext = encode_far_object(far, 1)
    top = client.store(Kind.EXTENTS, 2, refs, plaintext)
    entry = Entry(b"f", FILE, 0o600, 0, 0, 0, len(content), far=[(top, len(content))], far_depth=2)
    entry.check = client.check(content)
    listing = listing_of(client, client.listing({b"": [entry]}))
    assert b"".join(cat(listing, b"f", client.key.domain_id)) == content


def test_cat_notices_content_that_was_put_together_wrongly() -> None:
    client = Client()
    entry = client.file(b"f", b"the right content")
    entry.extents = (Extent(client.data(b"the wrong content"), 0, 17),)
    listing = listing_of(client, client.listing({b"": [entry]}))
    with pytest.raises(errors.FormatDamage):
        list(cat(listing, b"f", client.key.domain_id))


def test_an_extent_beyond_its_object_is_damage() -> None:
    client = Client()
    entry = Entry(b"f", FILE, 0o600, 0, 0, 0, 10, extents=(Extent(client.data(b"short"), 3, 10),))
    listing = listing_of(client, client.listing({b"": [entry]}))
    with pytest.raises(errors.ObjectDamage):
        list(cat(listing, b"f", client.key.domain_id))


def test_diff_tells_what_changed() -> None:
    client = Client()
    same = client.file(b"same", b"same")
    before = client.listing(tree_of([
        (b"d", same), (b"d", client.file(b"edited", b"one")), (b"d", client.file(b"gone", b"x")),
        (b"d", client.file(b"mode", b"m")), (b"d", client.file(b"turned", b"t")),
        (b"old/deep", client.file(b"f", b"1")),
    ]))  # fmt: skip
    after = client.listing(tree_of([
        (b"d", same), (b"d", client.file(b"edited", b"two")), (b"d", client.file(b"new", b"n")),
        (b"d", client.file(b"mode", b"m", mode=0o600)), (b"d", directory(b"turned")),
    ]))  # fmt: skip
    found = list(diff(listing_of(client, before), listing_of(client, after)))
    assert [(change.path, change.what) for change in found if isinstance(change, Change)] == [
        (b"old", "removed"), (b"d/edited", "content"), (b"d/gone", "removed"), (b"d/mode", "metadata"),
        (b"d/new", "added"), (b"d/turned", "type"), (b"old/deep", "removed"), (b"old/deep/f", "removed"),
    ]  # fmt: skip


names = st.sampled_from([b"a", b"a-b", b"a0", b"b", b"c"])
trees = st.dictionaries(st.lists(names, min_size=1, max_size=3).map(b"/".join), st.integers(0, 2), max_size=14)


@given(trees, trees, st.integers(1, 3), st.integers(1, 3))
def test_diff_is_what_a_comparison_of_everything_gives(
    old: dict[bytes, int], new: dict[bytes, int], old_pages: int, new_pages: int
) -> None:
    client = Client()
    sides = []
    for tree in (old, new):
        sides.append(tree_of((path, other(b"x", ord("p"), uid=value)) for path, value in tree.items()))
    roots = [client.listing(s, per_page=n, fanout=2) for s, n in zip(sides, (old_pages, new_pages), strict=True)]
    found = list(diff(*(listing_of(client, root) for root in roots)))
    flat = [{(path, e.name): e for path, entries in side.items() for e in entries} for side in sides]
    expected = {
        (path + b"/" + name if path else name): (flat[0].get((path, name)), flat[1].get((path, name)))
        for path, name in flat[0].keys() | flat[1].keys()
        if flat[0].get((path, name)) != flat[1].get((path, name))
    }
    assert {c.path: (c.before, c.after) for c in found if isinstance(c, Change)} == expected
    assert len(found) == len(expected)


def test_diff_does_not_read_what_both_share() -> None:
    client = Client()
    files = [(b"d%02d" % i, client.file(b"f", b"%d" % i)) for i in range(64)]
    before = client.listing(tree_of(files), per_page=1, fanout=4)
    files[40] = (b"d40", client.file(b"f", b"changed"))
    after = client.listing(tree_of(files), per_page=1, fanout=4)
    client.repository.fetched.clear()
    (change,) = diff(listing_of(client, before), listing_of(client, after))
    assert change.path == b"d40/f"
    assert len(client.repository.fetched) == 2 * 5
    client.repository.fetched.clear()
    assert not list(diff(listing_of(client, before), listing_of(client, before)))
    assert client.repository.fetched == []


def test_diff_with_a_damaged_page_compares_nothing_there() -> None:
    client = Client()
    files = [(b"d%02d" % i, client.file(b"f", b"%d" % i)) for i in range(16)]
    before = client.listing(tree_of(files), per_page=2, fanout=4)
    files = [(path, client.file(b"f", b"%d, changed" % i)) for i, (path, _) in enumerate(files)]
    after = client.listing(tree_of(files), per_page=2, fanout=4)
    pages = [wanted for wanted, raw in client.repository.records.items() if raw[5] == Kind.PAGE]
    page = pages[3]
    client.repository.flip(page)
    found = list(diff(listing_of(client, before), listing_of(client, after)))
    (hole,) = [item for item in found if isinstance(item, Hole)]
    changes = [item for item in found if isinstance(item, Change)]
    assert len(changes) == 14
    assert all(change.what == "content" for change in changes)
    assert hole.id == page
