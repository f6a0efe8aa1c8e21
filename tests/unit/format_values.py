"""Hypothesis strategies for the values of the formats, and mutations of the bytes that encode them."""

from __future__ import annotations

from typing import Any

import cbor2
from blake3 import blake3
from hypothesis import strategies as st
from msgspec.structs import replace

from packnback.format import entry, listing, metadata, pack, record, snapshot
from packnback.format.entry import Entry, Extent
from packnback.ids import CHECKSUM_LEN, Kind

U32 = (1 << 32) - 1
U63 = (1 << 63) - 1
U64 = (1 << 64) - 1


def exactly(length: int) -> st.SearchStrategy[bytes]:
    """Byte strings of one length."""
    return st.binary(min_size=length, max_size=length)


ids = exactly(32)
names = st.one_of(
    st.binary(min_size=1, max_size=20), st.binary(min_size=255, max_size=255), st.just(b"..."), st.just(b"\xff")
).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))
paths = st.lists(names, max_size=4).map(b"/".join)
times = st.integers(-(1 << 63), U63)


@st.composite
def extents(draw: st.DrawFn, pool: list[bytes]) -> list[Extent]:
    """Extents of one file into the objects of `pool`, holes among them."""
    drawn = []
    for _ in range(draw(st.integers(1, 4))):
        object_id = draw(st.sampled_from([None, *pool]))
        offset = 0 if object_id is None else draw(st.integers(0, U32))
        drawn.append(Extent(object_id, offset, draw(st.integers(1, 1 << 40))))
    return drawn


@st.composite
def entries(draw: st.DrawFn, pool: list[bytes], name: bytes) -> Entry:
    """One valid entry of any type."""
    made = Entry(
        name,
        draw(st.sampled_from(b"fdlpcbs")),
        draw(st.integers(0, 0o7777)),
        draw(st.integers(0, U32)),
        draw(st.integers(0, U32)),
        draw(times),
        xattrs=draw(st.dictionaries(names, st.binary(max_size=10), max_size=2)),
        link_key=draw(st.sampled_from([b"", b"12345678"])),
        rdev=draw(st.sampled_from([0, 5, U63])),
    )
    if made.type == entry.FILE:
        made.check = draw(st.sampled_from([b"", b"87654321"]))
        shape = draw(st.sampled_from(["empty", "near", "far"] if pool else ["empty", "near"]))
        if shape == "near":
            made.extents = draw(extents(pool))
        elif shape == "far":
            far = st.tuples(st.sampled_from(pool), st.integers(1, 1 << 40))
            made.far, made.far_depth = draw(st.lists(far, min_size=1, max_size=3)), draw(st.integers(1, 7))
        made.size = sum(e.length for e in made.extents) + sum(n for _, n in made.far)
    elif made.type == entry.SYMLINK:
        made.target = draw(st.binary(min_size=1, max_size=30).filter(lambda t: b"\0" not in t))
    elif made.type == entry.DIRECTORY:
        made.implicit = draw(st.booleans())
    return made


@st.composite
def directories(draw: st.DrawFn) -> list[Entry]:
    """The entries of one directory, ascending by name."""
    pool = draw(st.lists(ids, max_size=3, unique=True))
    return [draw(entries(pool, name)) for name in sorted(draw(st.sets(names, max_size=5)))]


@st.composite
def pages(draw: st.DrawFn) -> list[listing.Group]:
    """The groups of one page, in listing order; their blocks are any bytes."""
    pool = draw(st.lists(ids, max_size=4, unique=True))
    keys = draw(st.sets(st.tuples(paths, st.integers(0, 3) | st.just(U32)), min_size=1, max_size=5))
    return [
        listing.Group(path, part, sorted(draw(st.sets(st.sampled_from(pool)))) if pool else [], draw(st.binary()))
        for path, part in sorted(keys, key=lambda k: (listing.path_key(k[0]), k[1]))
    ]


@st.composite
def tables(draw: st.DrawFn) -> listing.Table:
    """A table with its children in listing order."""
    keys = draw(st.sets(st.tuples(paths, st.integers(0, U32)), min_size=1, max_size=6))
    counts = st.integers(0, U63)
    used = draw(st.lists(ids, min_size=len(keys), max_size=len(keys), unique=True))
    ordered = sorted(keys, key=lambda k: (listing.path_key(k[0]), k[1]))
    children = [
        listing.Child(i, path, part, listing.Totals(draw(counts), draw(counts), draw(counts)))
        for i, (path, part) in zip(used, ordered, strict=True)
    ]
    return listing.Table(draw(st.integers(0, 15)), children)


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """One whole record with any body."""
    kind = draw(st.sampled_from(Kind))
    if kind == Kind.ENVELOPE:
        return record.envelope_record(draw(st.binary(max_size=2048)))
    refs = sorted(draw(st.sets(ids, max_size=4))) if kind != Kind.DATA else []
    level = 0 if kind == Kind.DATA else draw(st.integers(1, 16)) if refs else 1
    body = draw(st.binary(max_size=200))
    header = record.encode_header(kind, level, len(refs), len(body), draw(ids), draw(exactly(16)))
    return record.finish(header, b"".join(refs), body)


@st.composite
def footers(draw: st.DrawFn) -> tuple[pack.Footer, int]:
    """(a footer, its offset): records of one class that tile the pack, envelopes among them."""
    object_class = draw(st.sampled_from([1, 2]))
    at = len(pack.MAGIC)
    envelopes: list[pack.EnvelopeRow] = []
    rows: list[pack.RecordRow] = []
    for number in range(draw(st.integers(1, 3))):
        length = 80 + draw(st.integers(1, 2048))
        name = number.to_bytes(1, "little") + draw(exactly(31))
        envelopes.append(
            pack.EnvelopeRow(
                at,
                length,
                name,
                checksum=draw(exactly(CHECKSUM_LEN)),
                client_id=draw(exactly(16)),
                domain_id=draw(exactly(16)),
                epoch=draw(st.integers(0, U32)),
                object_class=object_class,
            )
        )
        at += length
        for serial in range(draw(st.integers(0, 3))):
            kind = 1 if object_class == 1 else draw(st.sampled_from([2, 3, 4]))
            refs = sorted(draw(st.sets(ids, max_size=3))) if kind != 1 else []
            level = 0 if kind == 1 else draw(st.integers(1, 16)) if refs else 1
            object_id = envelopes[-1].domain_id[:8] + bytes([number, serial]) + draw(exactly(22))
            length = 80 + 32 * len(refs) + draw(st.integers(0, 1000))
            rows.append(
                pack.RecordRow(
                    at, length, kind, level, object_id, draw(exactly(CHECKSUM_LEN)), number, b"".join(refs)
                )
            )
            at += length
    return pack.Footer(draw(exactly(16)), tuple(rows), tuple(envelopes)), at


receipts = st.builds(
    snapshot.Receipt, times, st.integers(0, U64), st.integers(0, U64), self_stamped=st.booleans()
)
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
metadatas = st.builds(
    metadata.Metadata,
    host=_texts,
    paths=st.lists(st.binary(max_size=10), max_size=3).map(tuple),
    started_ns=times,
    files=st.integers(0, U63),
    directories=st.integers(0, U63),
    bytes=st.integers(0, U63),
    unreadable=st.integers(0, U63),
    tags=st.dictionaries(_texts, _texts, max_size=3),
    users=st.dictionaries(st.integers(0, U32), _texts, max_size=3),
    groups=st.dictionaries(st.integers(0, U32), _texts, max_size=3),
    program=_texts,
)


@st.composite
def headers(draw: st.DrawFn) -> snapshot.Header:
    """A snapshot header that stands for itself."""
    sequence = draw(st.one_of(st.just(1), st.integers(2, U64)))
    prev = bytes(32) if sequence == 1 else draw(ids.filter(any))
    return snapshot.Header(
        draw(st.integers(0, 3)), draw(exactly(16)), draw(exactly(16)), draw(exactly(16)), draw(st.integers(0, U32)),
        sequence, prev, draw(ids), draw(ids), draw(times), draw(ids),
    )  # fmt: skip


@st.composite
def _kept_headers(draw: st.DrawFn) -> snapshot.KeptHeader:
    """With the certificate that the header names."""
    certificate = draw(st.binary(max_size=200))
    header = replace(draw(headers()), certificate_hash=blake3(certificate).digest())
    receipt = snapshot.encode_receipt(draw(receipts))
    return snapshot.KeptHeader(snapshot.encode_header(header), draw(exactly(64)), certificate, receipt)


kept_headers = _kept_headers()


@st.composite
def mangled(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid` with bytes flipped, cut off, put in, appended or repeated; or any bytes at all."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "flip", "cut", "put in", "append", "drop", "any"])):
            case "flip" if data:
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at:]
            case "put in":
                data[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "append":
                data += draw(st.binary(min_size=1, max_size=40))
            case "drop":
                del data[at : at + draw(st.integers(1, 40))]
            case "any":
                data = bytearray(draw(st.binary(max_size=300)))
    return bytes(data)


ODD_VALUES: list[Any] = [
    0, 1, 2, -1, 1 << 32, 1 << 63, U64, -(1 << 63) - 1, True, False, None, 1.0, 0.5, b"", b"a", b"x" * 32, b"..",
    b"a/b", b"a\0b", "", "a", [], {}, [[]], {1: 1}, {True: 1}, {1.0: 1}, [0], [0, 0, 0], [1, 0, 1 << 63],
    cbor2.undefined, cbor2.CBORSimpleValue(1), cbor2.CBORTag(2, b"\1"), cbor2.CBORTag(30, [1, 2]), 1 << 70,
]  # fmt: skip
"""What a hostile writer might put in the place of anything."""


@st.composite
def rebuilt(draw: st.DrawFn, valid: bytes) -> bytes:
    """The CBOR document `valid` with some of its values replaced, removed, repeated or exchanged."""
    document = [cbor2.loads(valid)]
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = document
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = holder[key]
            if isinstance(inner, (list, dict)) and inner and draw(st.integers(0, 4)):
                holder = inner
                continue
            _edit(draw, holder, key)
            break
    return cbor2.dumps(document[0]) if document else b""


def _edit(draw: st.DrawFn, holder: Any, key: Any) -> None:
    action = draw(st.sampled_from(["replace", "replace", "nudge", "remove", "repeat", "exchange", "rename"]))
    if action == "replace":
        holder[key] = _copy(ODD_VALUES[draw(st.integers(0, len(ODD_VALUES) - 1))])
    elif action == "nudge" and type(holder[key]) is int:
        holder[key] += draw(st.sampled_from([-1, 1, 1 << 32]))
    elif action == "nudge" and isinstance(holder[key], bytes):
        holder[key] = draw(mangled(holder[key]))
    elif action == "remove":
        del holder[key]
    elif action == "repeat" and isinstance(holder, list):
        holder.insert(key, _copy(holder[key]))
    elif action == "exchange":
        other = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else list(range(len(holder)))))
        holder[key], holder[other] = holder[other], holder[key]
    elif action == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from([0, 1, 8, True, 1.0, "a", b"a", None, (1,)]))] = holder.pop(key)


def _copy(value: Any) -> Any:
    """Lists and maps anew, so that a later edit does not show in both places."""
    if isinstance(value, list):
        return [_copy(x) for x in value]
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value
