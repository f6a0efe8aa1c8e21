"""Whatever the encoders write, the decoders read back; and what decoders accept is what encoders write."""

from __future__ import annotations

import format_values as values
from hypothesis import given, settings
from hypothesis import strategies as st

from packnback.format import cbor, config, entry, listing, metadata, pack, record, snapshot

untimed = settings(deadline=None)

cbor_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.binary(max_size=40)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.integers(0, 100) | st.binary(max_size=3) | st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=20,
)


@untimed
@given(cbor_values)
def test_cbor(value: object) -> None:
    assert cbor.decode(cbor.encode(value), "value") == value


@untimed
@given(values.exactly(16), values.exactly(2472))
def test_config(repository_id: bytes, bundle: bytes) -> None:
    written = config.Config(repository_id, bundle)
    assert config.decode(config.encode(written)) == written


@untimed
@given(values.records(), st.binary(max_size=20), st.binary(max_size=20))
def test_record(raw: bytes, before: bytes, after: bytes) -> None:
    parsed = record.parse(before + raw + after, len(before))
    assert parsed.length == len(raw) == record.record_length(len(parsed.ref_list), len(parsed.body))
    assert record.finish(parsed.header, parsed.refs, parsed.body) == raw
    assert record.split_refs(parsed.refs) == parsed.ref_list
    remade = record.encode_header(
        parsed.kind, parsed.level, len(parsed.ref_list), len(parsed.body), parsed.id, parsed.envelope_id
    )
    assert remade == parsed.header
    assert raw.endswith(parsed.checksum)


@untimed
@given(st.lists(values.records(), max_size=4), st.binary(max_size=30))
def test_scan_finds_every_record_between_rubbish(raws: list[bytes], rubbish: bytes) -> None:
    rubbish = rubbish.replace(b"P", b"p")
    whole = rubbish.join([b"", *raws, b""])
    found = [whole[at : at + r.length] for at, r in record.scan(whole)]
    assert found == raws


@untimed
@given(values.footers())
def test_pack_footer(drawn: tuple[pack.Footer, int]) -> None:
    footer, offset = drawn
    raw = pack.encode_footer(footer.nonce, footer.records, footer.envelopes)
    tail = pack.encode_trailer(offset, raw)
    trailer = pack.decode_trailer(tail, offset + len(raw) + len(tail))
    assert (trailer.footer_offset, trailer.footer_length) == (offset, len(raw))
    decoded = pack.decode_footer(raw, trailer)
    assert decoded == footer
    assert decoded.object_class == footer.envelopes[0].object_class


@untimed
@given(values.headers())
def test_snapshot_header(header: snapshot.Header) -> None:
    raw = snapshot.encode_header(header)
    assert len(raw) == snapshot.HEADER_LEN == 204
    assert snapshot.decode_header(raw) == header


@untimed
@given(values.receipts)
def test_receipt(receipt: snapshot.Receipt) -> None:
    raw = snapshot.encode_receipt(receipt)
    assert len(raw) == snapshot.RECEIPT_LEN == 48
    assert snapshot.decode_receipt(raw) == receipt


@untimed
@given(st.lists(values.kept_headers, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_header_batch_whatever_the_order(kept: list[snapshot.KeptHeader], random: object) -> None:
    shuffled = list(kept)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert snapshot.encode_batch(shuffled) == snapshot.encode_batch(kept)
    assert snapshot.decode_batch(snapshot.encode_batch(shuffled)) == sorted(kept)


@untimed
@given(values.headers(), values.exactly(64), st.binary(max_size=300), st.binary(max_size=99), values.receipts)
def test_snapshot_file(
    header: snapshot.Header, signature: bytes, body: bytes, name: bytes, receipt: snapshot.Receipt
) -> None:
    """The certificate has the right shape and nothing else: its contents are the crypto layer's business."""
    certificate = b"PNBC" + bytes(104) + len(name).to_bytes(2, "little") + name + bytes(64)
    envelope = record.envelope_record(b"an envelope")
    sealed = record.finish(
        record.encode_header(5, 4, 1, len(body), b"m" * 32, record.parse(envelope).envelope_id), header.root, body
    )
    fields = {f: getattr(header, f) for f in header.__struct_fields__}
    fields["metadata_hash"] = snapshot.blake3(sealed).digest()
    fields["certificate_hash"] = snapshot.blake3(certificate).digest()
    header = snapshot.Header(**fields)
    raw = snapshot.encode_header(header)
    written = snapshot.SnapshotFile(header, raw, signature, certificate, envelope, sealed, receipt)
    assert snapshot.decode_file(snapshot.encode_file(written)) == written
    sent = snapshot.SnapshotFile(header, raw, signature, certificate, envelope, sealed, None)
    assert snapshot.decode_file(snapshot.encode_file(sent), receipt=False) == sent
    assert sent.id == written.id == snapshot.blake3(raw).digest()


@untimed
@given(values.directories())
def test_entries(entries: list[entry.Entry]) -> None:
    ids, block = entry.encode_block(entries)
    assert ids == sorted(set().union(*(e.ids() for e in entries)))
    assert entry.decode_block(ids, block) == [_as_read(e) for e in entries]
    assert entry.encode_block(entry.decode_block(ids, block)) == (ids, block)


def _as_read(written: entry.Entry) -> entry.Entry:
    """Sequences and maps as the decoder makes them."""
    single = len(written.extents) == 1 and written.extents[0].id is not None
    written.extents = tuple(written.extents) if single or not written.extents else list(written.extents)
    written.far = list(written.far) if written.far else ()
    return written


@untimed
@given(st.data())
def test_extent_objects(data: st.DataObject) -> None:
    pool = data.draw(st.lists(values.ids, min_size=1, max_size=4, unique=True))
    extents = data.draw(values.extents(pool))
    refs, plaintext = entry.encode_extent_object(extents)
    decoded = entry.decode_extent_object(b"".join(refs), plaintext)
    assert (decoded.depth, decoded.extents, decoded.far) == (0, extents, ())
    far = [(i, n) for n, i in enumerate(pool, 1)]
    refs, plaintext = entry.encode_far_object(far, 7)
    decoded = entry.decode_extent_object(b"".join(refs), plaintext)
    assert (decoded.depth, decoded.extents, decoded.far) == (7, (), far)


@untimed
@given(values.pages())
def test_page(groups: list[listing.Group]) -> None:
    refs, plaintext = listing.encode_page(groups)
    assert listing.decode_page(b"".join(refs), plaintext) == groups


@untimed
@given(values.tables())
def test_table(table: listing.Table) -> None:
    refs, plaintext = listing.encode_table(table.children, table.depth)
    assert refs == sorted(c.id for c in table.children)
    assert listing.decode_table(b"".join(refs), plaintext) == table


@untimed
@given(st.tuples(values.exactly(16), st.integers(0, values.U64), values.ids, values.ids), values.metadatas)
def test_metadata(binding: tuple[bytes, int, bytes, bytes], written: metadata.Metadata) -> None:
    assert metadata.decode(metadata.encode(binding, written)) == (binding, written)


@untimed
@given(values.exactly(16), st.integers(1, values.U64), st.integers(0, values.U63))
def test_file_names(client_id: bytes, sequence: int, time_ns: int) -> None:
    assert snapshot.parse_name(snapshot.snapshot_name(client_id, sequence)) == (client_id, sequence, "snap")
    marker = snapshot.marker_name(client_id, sequence, time_ns)
    assert snapshot.parse_marker_name(marker) == (client_id, sequence, time_ns)


@untimed
@given(st.lists(values.paths, max_size=8))
def test_listing_order_is_depth_first_and_by_component(paths: list[bytes]) -> None:
    by_component = sorted(paths, key=lambda p: p.split(b"/") if p else [])
    assert sorted(paths, key=listing.path_key) == by_component
