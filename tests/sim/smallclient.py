"""The smallest honest client: it seals real objects and signs real snapshots, without reading any file.

The engine's tests use it where the backup pipeline (threads, buffers of megabytes) would only hide what is
being tested. Everything is derived from a seed, so that a failing example can be run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packnback.crypto.derive import H
from packnback.crypto.envelope import SealingKeys, make_envelope
from packnback.crypto.keys import OwnerKey, PutKey
from packnback.crypto.payload import encode_payload
from packnback.crypto.seal import body_length, object_id, seal_body
from packnback.crypto.sign import sign_snapshot
from packnback.format import metadata, record, snapshot
from packnback.format.entry import FILE, Entry, Extent, encode_block
from packnback.format.listing import Child, Group, Totals, encode_page, encode_table
from packnback.format.snapshot import Header, SnapshotFile
from packnback.ids import Kind, ObjectClass, class_of
from packnback.store.interface import Committed, Head, Session

OWNER = OwnerKey(bytes(range(32)))


@dataclass
class Sealed:
    id: bytes
    record: bytes
    level: int


class SmallClient:
    """One client of one repository. `backup` stores files given as {name: content}."""

    def __init__(self, repository_id: bytes, name: str = "web1", *, group: str | None = None, epoch: int = 1) -> None:
        self.repository_id = repository_id
        self.key: PutKey = OWNER.put_key(name, epoch, group)
        self.certificate = self.key.certificate.raw
        self._envelopes: dict[ObjectClass, tuple[bytes, bytes, SealingKeys]] = {}

    def envelope(self, object_class: ObjectClass) -> tuple[bytes, bytes, SealingKeys]:
        """(envelope record, envelope id, keys) of this client's one session."""
        if object_class not in self._envelopes:
            envelope, envelope_id, keys = make_envelope(self.key, self.repository_id, object_class)
            self._envelopes[object_class] = record.envelope_record(envelope), envelope_id, keys
        return self._envelopes[object_class]

    def seal(self, kind: int, refs: Sequence[bytes], plaintext: bytes, level: int) -> Sealed:
        """Any object, honest or not."""
        object_class = class_of(kind)
        _, envelope_id, keys = self.envelope(object_class)
        joined = b"".join(refs)
        made = object_id(self.key.id_key[object_class], self.key.domain_id, kind, joined, plaintext)
        padded = encode_payload(plaintext, object_class, codec_level=None)
        header = record.encode_header(kind, level, len(refs), body_length(padded), made, envelope_id)
        return Sealed(made, record.finish(header, joined, bytes(seal_body(keys, header, joined, padded))), level)

    def objects(self, files: dict[str, bytes]) -> tuple[list[Sealed], Sealed]:
        """(data objects and pages, root) of a flat tree: one object a file, one page for each 4 files."""
        sealed: dict[bytes, Sealed] = {}
        children = []
        names = sorted(files)
        for at in range(0, max(1, len(names)), 4):
            entries = []
            for name in names[at : at + 4]:
                data = self.seal(Kind.DATA, [], files[name], 0)
                sealed[data.id] = data
                extents = (Extent(data.id, 0, len(files[name])),) if files[name] else ()
                entries.append(Entry(name.encode(), FILE, 0o644, 0, 0, 0, len(files[name]), extents))
            ids, block = encode_block(entries)
            refs, plaintext = encode_page([Group(b"", at // 4, ids, block)])
            page = self.seal(Kind.PAGE, refs, plaintext, 1)
            sealed[page.id] = page
            children.append(Child(page.id, b"", at // 4, Totals(len(entries), len(entries), 0)))
        refs, plaintext = encode_table(children, 0)
        return list(sealed.values()), self.seal(Kind.TABLE, refs, plaintext, 2)

    def store(self, session: Session, files: dict[str, bytes]) -> bytes:
        """Put what is new; the root's id."""
        objects, root = self.objects(files)
        objects = [*objects, root]
        known = session.has([o.id for o in objects])
        new = [o for o, there in zip(objects, known, strict=True) if not there]
        for object_class in ObjectClass:
            session.put([self.envelope(object_class)[0]])
        session.put([o.record for o in sorted(new, key=lambda o: o.level)])
        return root.id

    def snapshot(self, root: bytes, head: Head | None, *, time_ns: int = 0, flags: int = 0, level: int = 3) -> bytes:
        """A signed snapshot file (without receipt) that continues `head`."""
        sequence, prev = (head.sequence + 1, head.id) if head else (1, bytes(32))
        plaintext = metadata.encode(
            (self.key.client_id, sequence, prev, root), metadata.Metadata("host", (b"/data",), time_ns)
        )
        sealed = self.seal(Kind.METADATA, [root], plaintext, level)
        header = Header(
            flags=flags,
            repository_id=self.repository_id,
            client_id=self.key.client_id,
            domain_id=self.key.domain_id,
            epoch=self.key.epoch,
            sequence=sequence,
            prev=prev,
            root=root,
            metadata_hash=H(sealed.record),
            time_ns=time_ns,
            certificate_hash=self.key.certificate.hash,
        )
        raw = snapshot.encode_header(header)
        return snapshot.encode_file(
            SnapshotFile(
                header,
                raw,
                sign_snapshot(self.key.sign_seed, raw),
                self.certificate,
                self.envelope(ObjectClass.META)[0],
                sealed.record,
                None,
            )
        )

    def backup(self, session: Session, files: dict[str, bytes], *, flags: int = 0) -> Committed:
        """Store, flush, commit."""
        root = self.store(session, files)
        return session.commit(self.snapshot(root, session.head(), flags=flags))


