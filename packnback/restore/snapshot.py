"""Snapshots: which one is meant, whether it is what its client signed, and whether one is missing.

What a repository says about a snapshot (`SnapshotInfo`) chooses among snapshots; nothing in it is believed once
one is opened. The certificate is verified against the owner in the *key*, never the one in the repository's
configuration, and the chain header → metadata record → binding inside the sealed metadata is followed to the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from packnback import errors
from packnback.crypto.certificate import Certificate, parse_certificate
from packnback.crypto.reader import open_object
from packnback.crypto.sign import verify_snapshot
from packnback.format import metadata as metadata_format
from packnback.format import record
from packnback.format.metadata import Metadata
from packnback.format.snapshot import Header, SnapshotFile, decode_file
from packnback.ids import TAG_LEN, ObjectClass, short
from packnback.restore.objects import ObjectReader
from packnback.store.interface import SnapshotInfo

PREFIX_MIN = 4
"""Fewest hexadecimal digits by which a snapshot can be named."""
_HEX = re.compile(rf"[0-9a-f]{{{PREFIX_MIN},64}}")


class Snapshot(Struct, frozen=True):
    """A snapshot that was verified and opened."""

    info: SnapshotInfo
    header: Header
    metadata: Metadata


def resolve(word: str, infos: Sequence[SnapshotInfo]) -> SnapshotInfo:
    """The snapshot that SNAPSHOT on the command line means. Needs no key.

    An id or a unique prefix of one, forgotten and partial snapshots included; ``latest``, the one received last
    (highest receipt counter); or ``latest:CLIENT``, that client's highest sequence number. The latter two
    choose among live snapshots that are no checkpoints. A damaged one is chosen all the same: to fall back
    to an older one unasked would pass off old files as new.
    Raises SnapshotUnknown or SnapshotAmbiguous.
    """
    if word == "latest" or word.startswith("latest:"):
        return _latest(word, infos)
    digits = word.lower()
    if not _HEX.fullmatch(digits):
        raise errors.SnapshotUnknown(word)
    found = [info for info in infos if info.id.hex().startswith(digits)]
    if not found:
        raise errors.SnapshotUnknown(word)
    if len(found) > 1:
        raise errors.SnapshotAmbiguous(word, sorted(short(info.id) for info in found))
    return found[0]


def _latest(word: str, infos: Sequence[SnapshotInfo]) -> SnapshotInfo:
    _, colon, client = word.partition(":")
    live = [info for info in infos if info.forgotten_ns is None and (not colon or info.client == client)]
    finished = [info for info in live if not info.partial]
    if not finished:
        raise errors.SnapshotUnknown(word, len(live) or None)
    if not colon:
        return max(finished, key=lambda info: info.receipt.counter)
    if len({info.client_id for info in finished}) > 1:
        raise errors.SnapshotAmbiguous(word, sorted(short(info.id) for info in finished))
    return max(finished, key=lambda info: info.sequence)


def open_snapshot(reader: ObjectReader, info: SnapshotInfo) -> Snapshot:
    """Verify a snapshot and open its metadata; any key that reads listings will do.

    Raises SnapshotDamage (which names the rule that was broken), WrongOwner, EnvelopeRejected,
    UnsupportedVersion.
    """
    try:
        raw = reader.repository.read_snapshot(info.name)
    except errors.Unreadable as error:  # a bad sector under one snapshot file keeps nobody from the others
        raise errors.SnapshotDamage(info.id.hex(), f"cannot be read: {error.reason}") from error
    try:
        file = decode_file(raw)
        certificate = parse_certificate(file.certificate)
        certificate.verify(reader.key.bundle)
        verify_snapshot(certificate.verify_key, file.header_bytes, file.signature)
        _check_header(reader, info, file, certificate)
        found = _open_metadata(reader, file)
    except errors.FormatDamage as damage:
        raise errors.SnapshotDamage(info.id.hex(), f"{damage.what}: {damage.why}") from damage
    except errors.ObjectDamage as damage:
        raise errors.SnapshotDamage(info.id.hex(), f"metadata: {damage.why}") from damage
    return Snapshot(info, file.header, found)


def _check_header(reader: ObjectReader, info: SnapshotInfo, file: SnapshotFile, certificate: Certificate) -> None:
    header = file.header
    _demand(info, header.repository_id == reader.repository.config.repository_id, "made for another repository")
    _demand(info, file.id == info.id, "another snapshot stands in its place")
    said = (info.client_id, info.sequence, info.root, info.prev, info.partial, info.client)
    signed = (header.client_id, header.sequence, header.root, header.prev, header.partial, certificate.name)
    _demand(info, said == signed, "the repository's account of it differs from what is signed")
    certified = (certificate.client_id, certificate.domain_id, certificate.epoch)
    _demand(info, certified == (header.client_id, header.domain_id, header.epoch), "its certificate is for another")
    _demand(info, header.root[:TAG_LEN] == header.domain_id[:TAG_LEN], "its root is of another domain")


def _open_metadata(reader: ObjectReader, file: SnapshotFile) -> Metadata:
    header = file.header
    envelope = reader.envelope(bytes(record.parse(file.envelope_record).body))
    facts = envelope.facts
    sealed_by = (facts.object_class, facts.client_id, facts.domain_id, facts.epoch)
    if sealed_by != (ObjectClass.META, header.client_id, header.domain_id, header.epoch):
        raise errors.FormatDamage("snapshot", "its envelope is of another client, domain, epoch or class")
    sealed = record.parse(file.metadata_record)
    if facts.id != sealed.envelope_id:
        raise errors.FormatDamage("snapshot", "its metadata names another envelope")
    plaintext = open_object(envelope, sealed.id, sealed.kind, sealed.header, sealed.refs, sealed.body)
    binding, found = metadata_format.decode(plaintext)
    if binding != (header.client_id, header.sequence, header.prev, header.root):
        raise errors.FormatDamage("snapshot", "its metadata is bound to another header")
    return found


def _demand(info: SnapshotInfo, condition: bool, why: str) -> None:
    if not condition:
        raise errors.SnapshotDamage(info.id.hex(), why)
