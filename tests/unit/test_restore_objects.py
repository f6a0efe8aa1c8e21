"""Opening objects: nothing comes out whose id was not verified, and one bad object spoils no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from snapshot_builder import OWNER, REPOSITORY_ID, Client, MemoryRepository

from packnback import errors
from packnback.crypto.keys import OwnerKey
from packnback.crypto.seal import body_length, encode_payload, seal_body
from packnback.format import record
from packnback.format.config import Config
from packnback.ids import Kind, ObjectClass
from packnback.restore.objects import ObjectReader, Opened
from packnback.store.interface import Fetched


def one(client: Client, wanted: bytes, key: object = OWNER) -> Opened:
    with ObjectReader(client.repository, key) as reader:  # type: ignore[arg-type]
        return next(iter(reader.open_many([wanted])))


def test_every_object_is_opened_once_whatever_the_order() -> None:
    client = Client()
    stored = {client.data(bytes([i]) * 5000 * i): i for i in range(40)}
    with ObjectReader(client.repository, OWNER) as reader:
        found = {opened.id: opened.plaintext for opened in reader.open_many(list(stored))}
    assert found == {wanted: bytes([i]) * 5000 * i for wanted, i in stored.items()}
    assert sorted(client.repository.fetched) == sorted(stored)


def test_one_bad_object_spoils_no_other() -> None:
    client = Client()
    good, bad, gone = client.data(b"good"), client.data(b"bad"), client.data(b"gone")
    client.repository.flip(bad)
    del client.repository.records[gone]
    with ObjectReader(client.repository, OWNER) as reader:
        found = {opened.id: opened for opened in reader.open_many([good, bad, gone])}
    assert found[good].plaintext == b"good"
    assert isinstance(found[bad].problem, errors.ObjectDamage)
    assert isinstance(found[gone].problem, errors.ObjectMissing)


@pytest.mark.parametrize("at", [0, 4, 5, 6, 7, 8, 12, 16, 48, 64, 90, -17])
def test_a_flipped_bit_anywhere_that_counts_is_damage(at: int) -> None:
    client = Client()
    wanted = client.data(b"content")
    client.repository.flip(wanted, at)
    with ObjectReader(client.repository, OWNER) as reader:
        opened = reader.open_fetched(
            Fetched(wanted, client.repository.records[wanted], client.sealers[ObjectClass.DATA][0])
        )
    assert isinstance(opened.problem, errors.ObjectDamage)


def test_another_object_in_its_place_is_damage() -> None:
    client = Client()
    a, b = client.data(b"a"), client.data(b"b")
    client.repository.records[a] = client.repository.records[b]
    problem = one(client, a).problem
    assert isinstance(problem, errors.ObjectDamage)
    assert "another object" in problem.why


def test_contents_that_are_not_what_the_id_says_are_damage() -> None:
    """A stolen put key can seal anything under any id; the id is the last word."""
    client = Client()
    wanted = client.data(b"the truth")
    _, envelope_id, keys = client.sealers[ObjectClass.DATA]
    padded = encode_payload(b"a lie", ObjectClass.DATA, codec_level=1)
    header = record.encode_header(Kind.DATA, 0, 0, body_length(padded), wanted, envelope_id)
    client.repository.records[wanted] = record.finish(header, b"", seal_body(keys, header, b"", padded))
    problem = one(client, wanted).problem
    assert isinstance(problem, errors.ObjectDamage)
    assert "not what its id promises" in problem.why


def test_refs_to_another_domain_are_damage() -> None:
    client = Client()
    foreign = b"foreign!" + bytes(24)
    wanted = client.store(Kind.PAGE, 1, [foreign], b"whatever")
    problem = one(client, wanted).problem
    assert isinstance(problem, errors.ObjectDamage)
    assert "another domain" in problem.why


def test_an_altered_envelope_is_rejected() -> None:
    client = Client()
    wanted = client.data(b"content")
    raw, envelope_id, _ = client.sealers[ObjectClass.DATA]
    client.repository.envelopes[envelope_id] = raw[:-1] + bytes([raw[-1] ^ 1])
    assert isinstance(one(client, wanted).problem, errors.EnvelopeRejected)


def test_a_list_key_opens_listings_and_no_data() -> None:
    client = Client()
    data, page = client.data(b"content"), client.store(Kind.PAGE, 1, [], b"listing")
    list_key = OWNER.list_key()
    assert one(client, page, list_key).plaintext == b"listing"
    assert isinstance(one(client, data, list_key).problem, errors.KeyCannot)
    with ObjectReader(client.repository, list_key) as reader, pytest.raises(errors.KeyCannot):
        reader.require(ObjectClass.DATA)


def test_somebody_elses_key_is_refused_at_once() -> None:
    repository = MemoryRepository(Config(REPOSITORY_ID, OWNER.bundle.raw))
    with pytest.raises(errors.WrongOwner):
        ObjectReader(repository, OwnerKey(b"\1" * 32))


def test_a_repository_that_leaves_answers_out_or_makes_them_up() -> None:
    client = Client()
    asked, unasked, silent = client.data(b"asked"), client.data(b"unasked"), client.data(b"silent")
    honest = client.repository.fetch

    def fetch(ids: object, *, checked: bool = True) -> object:
        yield from honest([unasked])
        yield from honest([asked])
        yield from honest([asked])

    client.repository.fetch = fetch  # type: ignore[assignment, method-assign]
    with ObjectReader(client.repository, OWNER) as reader:
        found = list(reader.open_many([asked, silent]))
    assert [(o.id, type(o.problem)) for o in found] == [(asked, type(None)), (silent, errors.ObjectMissing)]


def test_listing_objects_are_kept_and_must_be_of_their_kind() -> None:
    client = Client()
    pages = [client.store(Kind.PAGE, 1, [], b"listing %d" % i) for i in range(5)]
    with ObjectReader(client.repository, OWNER) as reader:
        reader.prefetch(pages)
        for page in pages:
            reader.listing_object(page, Kind.PAGE)
        assert len(client.repository.fetched) == 5
        with pytest.raises(errors.ObjectDamage):
            reader.listing_object(pages[0], Kind.TABLE)


def test_what_does_not_open_is_asked_for_again_with_all_its_places_checked() -> None:
    """The first answer need not be checked; a rotten copy at one place must not hide the good one at another."""
    client = Client()
    wanted = [client.data(b"content %d" % i) for i in range(5)]
    rotten, honest = wanted[3], client.repository.fetch
    good = client.repository.records[rotten]
    asked: list[tuple[list[bytes], bool]] = []

    def fetch(ids: Sequence[bytes], *, checked: bool = True) -> Iterator[Fetched]:
        asked.append((sorted(ids), checked))
        client.repository.records[rotten] = good
        if not checked:
            client.repository.flip(rotten)
        return honest(ids)

    client.repository.fetch = fetch  # type: ignore[method-assign]
    with ObjectReader(client.repository, OWNER) as reader:
        found = {opened.id: opened.problem for opened in reader.open_many(wanted)}
    assert found == dict.fromkeys(wanted)
    assert asked == [(sorted(wanted), False), ([rotten], True)]
