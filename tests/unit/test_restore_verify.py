"""Verify: every object once, every bad one found, and the paths that it takes with it."""

from __future__ import annotations

import random

import pytest
from snapshot_builder import OWNER, Client, directory, tree_of

from packnback import errors
from packnback.format.entry import FILE, Entry, Extent, encode_extent_object, encode_far_object
from packnback.format.listing import Child, Totals
from packnback.ids import Kind
from packnback.restore import idset
from packnback.restore.objects import ObjectReader
from packnback.restore.verify import VerifyResult, verify


def verified(client: Client, key: object = OWNER) -> VerifyResult:
    with ObjectReader(client.repository, key) as reader:  # type: ignore[arg-type]
        return verify(reader, client.repository.snapshots())


def two_snapshots() -> Client:
    client = Client()
    rows = [(b"d%d" % i, client.file(b"f", b"%d content %d" % (i, i), pieces=2)) for i in range(12)]
    client.commit(client.listing(tree_of(rows)))
    rows[3] = (b"d3", client.file(b"f", b"new content"))
    client.commit(client.listing(tree_of(rows)))
    return client


def test_sound_snapshots_are_read_once() -> None:
    client = two_snapshots()
    result = verified(client)
    assert not result.damaged
    assert result.snapshots == 2
    assert result.objects == len(client.repository.records)
    assert sorted(client.repository.fetched) == sorted(client.repository.records)


def test_every_damaged_object_is_found_and_named() -> None:
    client = two_snapshots()
    for wanted, before in list(client.repository.records.items()):
        client.repository.flip(wanted)
        result = verified(client)
        assert list(result.bad) == [wanted]
        assert result.damaged
        assert result.affected, wanted.hex()
        if before[5] == Kind.DATA:
            assert {a.path.rpartition(b"/")[2] for a in result.affected} == {b"f"}
        client.repository.records[wanted] = before


def fragmented() -> tuple[Client, dict[str, bytes]]:
    """A file of four extents below three extent objects, twelve bytes each, and their ids."""
    client = Client()
    content = b"".join(b"%d" % i * 12 for i in range(4))
    extents = client.file(b"x", content, pieces=4).extents
    ids = {f"data {i}": extent.id for i, extent in enumerate(extents) if extent.id}
    halves = [client.store(Kind.EXTENTS, 1, *encode_extent_object(extents[at : at + 2])) for at in (0, 2)]
    ids |= {"left": halves[0], "right": halves[1]}
    far = [(half, 24) for half in halves]
    ids["top"] = client.store(Kind.EXTENTS, 2, *encode_far_object(far, 1))
    entry = Entry(b"f", FILE, 0o644, 0, 0, 0, 48, far=((ids["top"], 48),), far_depth=2, check=client.check(content))
    beside = Entry(b"g", FILE, 0o644, 0, 0, 0, 48, far=tuple(far), far_depth=1, check=client.check(content))
    client.commit(client.listing({b"": [entry, beside]}))
    return client, ids


@pytest.mark.parametrize(
    ("damaged", "found"),
    [
        ({"left"}, {"left"}),
        ({"left", "right"}, {"left", "right"}),
        ({"left", "data 0", "data 3"}, {"left", "data 3"}),
        ({"top", "data 1", "right"}, {"top", "data 1", "right"}),
    ],
)
def test_a_damaged_extent_object_hides_no_other(damaged: set[str], found: set[str]) -> None:
    """But for what only it leads to."""
    client, ids = fragmented()
    sound = verified(client)
    assert not sound.damaged and sound.objects == len(client.repository.records)
    for name in damaged:
        client.repository.flip(ids[name])
    result = verified(client)
    assert set(result.bad) == {ids[name] for name in found}
    assert {affected.path for affected in result.affected} == ({b"f", b"g"})


def test_an_extent_object_that_is_not_what_a_second_parent_says() -> None:
    client, ids = fragmented()
    entry = Entry(b"h", FILE, 0o644, 0, 0, 0, 25, far=((ids["left"], 25),), far_depth=1)
    client.commit(client.listing({b"": [entry]}))
    result = verified(client)
    assert set(result.bad) == {ids["left"]}


def test_a_missing_object_is_found_in_every_snapshot_that_needs_it() -> None:
    client = two_snapshots()
    wanted = next(e for e in client.repository.records if client.repository.records[e][5] == Kind.DATA)
    del client.repository.records[wanted]
    result = verified(client)
    assert isinstance(result.bad[wanted], errors.ObjectMissing)
    assert [a.path for a in result.affected] == [b"d0/f", b"d0/f"]
    assert len({a.snapshot for a in result.affected}) == 2


def test_a_snapshot_that_cannot_be_opened_does_not_hide_the_others() -> None:
    client = two_snapshots()
    name = client.repository.infos[0].name
    client.repository.files[name] = client.repository.files[name][:100]
    result = verified(client)
    assert list(result.snapshots_bad) == [client.repository.infos[0].id]
    assert result.snapshots == 1


def test_a_bad_sector_under_a_snapshot_file_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    client = two_snapshots()
    real, unreadable = client.repository.read_snapshot, client.repository.infos[0]

    def read_snapshot(name: str) -> bytes:
        if name == unreadable.name:
            raise errors.Unreadable("read", name, "Input/output error")
        return real(name)

    monkeypatch.setattr(client.repository, "read_snapshot", read_snapshot)
    result = verified(client)
    assert list(result.snapshots_bad) == [unreadable.id]
    assert "Input/output error" in str(result.snapshots_bad[unreadable.id])
    assert result.snapshots == 1


@pytest.mark.parametrize("wrong", ["content", "short", "totals", "kind"])
def test_intact_objects_that_make_no_sense_together(wrong: str) -> None:
    client = Client()
    entry = client.file(b"f", b"right")
    if wrong == "content":
        entry.extents = (Extent(client.data(b"wrong"), 0, 5),)
    elif wrong == "short":
        entry.extents = (Extent(client.data(b"rig"), 0, 5),)
    elif wrong == "kind":
        entry = Entry(b"f", FILE, 0, 0, 0, 0, 5, extents=(Extent(client.store(Kind.PAGE, 1, [], b"p"), 0, 5),))
    root = client.listing({b"": [entry]})
    if wrong == "totals":
        page = next(e for e, raw in client.repository.records.items() if raw[5] == Kind.PAGE)
        root = client.table([Child(page, b"", 0, Totals(1, 1, 1 << 40))]).id
    client.commit(root)
    result = verified(client)
    assert result.damaged
    assert result.bad or [a.path for a in result.affected] == [b"f"]


def test_a_list_key_cannot_verify() -> None:
    client = Client()
    client.commit(client.listing({b"": [directory(b"d")], b"d": []}))
    with pytest.raises(errors.KeyCannot):
        verified(client, OWNER.list_key())


def test_id_sets_hold_what_was_added_and_nothing_else() -> None:
    rng = random.Random(3)
    ids = [rng.randbytes(32) for _ in range(5000)] + [bytes(32), bytes(31) + b"\1"]
    held, absent = ids[::2], ids[1::2]
    found = idset.IdSet()
    assert all(found.add(i) for i in held)
    assert not any(found.add(i) for i in held)
    assert len(found) == len(held)
    assert all(i in found for i in held)
    assert not any(i in found for i in absent)
