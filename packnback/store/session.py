"""One writer at work. The order in which things become durable is the whole point of this module:

    data packs → index transaction → meta packs → index transaction → … → snapshot file → acknowledge

- A meta pack is published only after every data pack that its refs need: closing the meta pack closes the data
  pack first.
- A row is written only after the pack that it names is durable under its name; both inside one transaction, which
  has seen that no other session gave one of its ids to something else.
- A pack that could not be published ends the session: what was in it passed for stored, and is nowhere.
- The snapshot file, the commit point, is published only when a transaction has seen its root *complete*, and
  inside that same transaction: so no two writers can take the same receipt counter, and none can commit
  against an index that somebody has just thrown away.
- Where no lock keeps out who deletes, the directories are looked at once more before the snapshot is published, and
  again before it is acknowledged: all that its root needs has to stand in packs that are not condemned
  (`packnback.store.condemned`). What does not is copied into new packs, as long as it can be read.

What a session is given is checked as if an attacker had sent it (record form, domain tag, kinds, levels, refs,
envelope, certificate, chain). Two things are taken on trust when the client is this very process
(`self_stamped`): the checksum of each record, and the client's clock, which is then the repository's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from packnback.crypto.envelope_layout import parse_envelope
from packnback.errors import (
    AlreadyExists,
    BlobMissing,
    EnvelopeRejected,
    FormatDamage,
    NotAllowed,
    ObjectMissing,
    Poisoned,
    Refused,
    SnapshotDamage,
    StorageFailed,
)
from packnback.format import record as record_format
from packnback.format import rows, snapshot
from packnback.format.record import REF_KINDS, Record, level_of
from packnback.format.snapshot import SnapshotFile
from packnback.ids import LEVEL_LIMIT, Kind, ObjectClass, class_of
from packnback.store import adoption, catalog, layout
from packnback.store import commit_rules as rules
from packnback.store.commit_rules import ClientIdentity
from packnback.store.current import Current, IndexReplaced
from packnback.store.distrust import Standing, by_level, distrusted
from packnback.store.fetch import Fetcher
from packnback.store.index import Index, ReadTxn, WriteTxn
from packnback.store.interface import Committed, Head
from packnback.store.ledger import changing
from packnback.store.lock import Held
from packnback.store.objects import contradicts, is_complete, lookup
from packnback.store.packer import BuiltPack, PackedEnvelope, Packer
from packnback.store.truth import Truth

_ENVELOPES_KEPT = 64
_COMMIT_ATTEMPTS = 3
_RESCUED_AT_ONCE = 1_000


class LocalSession:
    """`interface.Session` on a repository in a directory. The caller holds the lock."""

    def __init__(
        self,
        truth: Truth,
        index: Index,
        client: ClientIdentity,
        *,
        now_ns: Callable[[], int],
        random: Callable[[int], bytes],
        self_stamped: bool = True,
        fenced: bool = True,
        held: Held | None = None,
    ) -> None:
        """Without `fenced` the lock does not keep out who deletes: what a snapshot needs is looked for once more.

        So it is when the lock, `held`, is not where others look for it any more.
        """
        self._truth = truth
        self._index = index
        self._client = client
        self._now_ns = now_ns
        self._self_stamped = self_stamped
        self._fenced = fenced
        self._standing = Standing()
        self._current = Current(truth, index, self._standing.forget)
        self._held = held
        self._packers = {c: Packer(random) for c in ObjectClass}
        self._open: dict[ObjectClass, dict[bytes, Record]] = {c: {} for c in ObjectClass}
        self._envelopes: dict[bytes, PackedEnvelope] = {}
        self._lost: str | None = None
        """The pack that could not be published: what was in it, and passed for open, is nowhere."""
        self.bytes_published = 0

    # --- objects ------------------------------------------------------------------------------------------

    def has(self, ids: Sequence[bytes]) -> list[bool]:
        """See `interface.Session.has`. Ids of another domain are refused: nobody probes his neighbours."""
        self._refuse_if_lost()
        tag = self._client.domain_id[:8]
        if any(i[:8] != tag for i in ids):
            raise NotAllowed("has", "foreign domain")
        return self._current.read(lambda txn: self._has(txn, ids))

    def _has(self, txn: ReadTxn, ids: Sequence[bytes]) -> list[bool]:
        """What stands only where nobody relies on it has to be stored again (`packnback.store.distrust`)."""
        present = [is_complete(txn, object_id) for object_id in ids]
        if distrusted(txn):
            complete = [object_id for object_id, known in zip(ids, present, strict=True) if known]
            standing = iter(self._standing.all_of(txn, complete))
            present = [known and next(standing) for known in present]
        return [known or self._is_open(object_id) for object_id, known in zip(ids, present, strict=True)]

    def _is_open(self, object_id: bytes) -> bool:
        return any(object_id in opened for opened in self._open.values())

    def put(self, records: Iterable[bytes | bytearray]) -> None:
        """See `interface.Session.put`."""
        self._refuse_if_lost()
        for data in records:
            record = record_format.parse(data, checksum=not self._self_stamped)
            if record.length != len(data):
                raise FormatDamage("record", "trailing bytes")
            if record.kind == Kind.ENVELOPE:
                self._add_envelope(bytes(data), record)
            else:
                self._add_object(data, record)

    def _add_envelope(self, data: bytes, record: Record) -> None:
        facts = parse_envelope(bytes(record.body))
        if not rules.is_of(self._truth, self._client, facts):
            raise NotAllowed("put", "envelope of another repository, owner, client, domain or epoch")
        while len(self._envelopes) >= _ENVELOPES_KEPT:
            del self._envelopes[next(iter(self._envelopes))]
        self._envelopes[record.envelope_id] = PackedEnvelope.of(data, record, facts)

    def _add_object(self, data: bytes | bytearray, record: Record) -> None:
        if record.kind == Kind.METADATA or record.level >= LEVEL_LIMIT:
            raise NotAllowed("put", "kind or level")
        if record.id[:8] != self._client.domain_id[:8]:
            raise NotAllowed("put", "foreign domain")
        envelope = self._envelopes.get(record.envelope_id)
        if envelope is None or envelope.object_class != class_of(record.kind):
            raise NotAllowed("put", "envelope absent or of the other class")
        if self._is_open(record.id):
            return
        if self._is_known_or_new(record):
            return
        self._add_to_pack(data, record, envelope)

    def _add_to_pack(self, data: bytes | bytearray, record: Record, envelope: PackedEnvelope) -> None:
        object_class = class_of(record.kind)
        packer = self._packers[object_class]
        packer.add(data, record, envelope)
        self._open[object_class][record.id] = record
        if packer.full:
            if object_class == ObjectClass.META:
                self._publish(ObjectClass.DATA)
            self._publish(object_class)

    def _is_known_or_new(self, record: Record) -> bool:
        try:
            return self._current.read(lambda txn: self._is_known(txn, record))
        except ObjectMissing as missing:
            wanted = missing.id
            if self._current.read(lambda txn: lookup(txn, wanted)) is None:
                raise
        # It is there, but what it needs was lost, and may be in an open pack by now: then it is whole after a flush.
        self.flush()
        return self._current.read(lambda txn: self._is_known(txn, record))

    def _is_known(self, txn: ReadTxn, record: Record) -> bool:
        row = lookup(txn, record.id)
        if row is not None and distrusted(txn).leaves(txn, record.id, row):
            return True
        self._check_refs(txn, record)
        return False

    def _check_refs(self, txn: ReadTxn, record: Record) -> None:
        """Every ref is complete or in an open pack, of a kind that may be referred to; the level follows.

        A ref to another domain is refused unseen: the answer would tell whether that object exists.
        """
        levels = []
        for ref in record.ref_list:
            if ref[:8] != record.id[:8]:
                raise NotAllowed("put", "foreign domain")
            opened = self._open[ObjectClass.META].get(ref) or self._open[ObjectClass.DATA].get(ref)
            row = opened or (lookup(txn, ref) if is_complete(txn, ref) else None)
            if row is None:
                raise ObjectMissing(ref, record.id.hex())
            if row.kind not in REF_KINDS[record.kind]:
                raise NotAllowed("put", "a ref of a kind that this kind may not refer to")
            levels.append(row.level)
        if record.level != level_of(levels, record.kind):
            raise FormatDamage("record", f"level {record.level}")

    def abandon(self) -> None:
        """See `interface.Session.abandon`. A directory lets nobody wait for long."""

    def flush(self) -> None:
        """See `interface.Session.flush`: data packs first."""
        self._refuse_if_lost()
        self._publish(ObjectClass.DATA)
        self._publish(ObjectClass.META)

    def _publish(self, object_class: ObjectClass) -> None:
        packer = self._packers[object_class]
        if not packer:
            return
        built = packer.finish()
        path = layout.pack_path(built.name.hex())
        try:
            self._current.write(lambda txn: self._publish_in(txn, path, built))
        except BaseException:
            self._lost = path
            raise
        self.bytes_published += built.size
        self._open[object_class].clear()

    def _publish_in(self, txn: WriteTxn, path: str, built: BuiltPack) -> None:
        """Publish a pack and adopt it, unless it contradicts what the index has.

        Of two sessions that give one id to different objects, the second is refused while nothing of it is
        published: two packs that contradict each other would keep everybody from deleting.
        """
        for row in built.footer.records:
            if contradicts(txn, row.id, (row.kind, row.level, row.refs)):
                raise Refused("contradiction", row.id.hex())
        with suppress(AlreadyExists):  # from an earlier run of this transaction: nobody else draws this name
            self._truth.blobs.publish(path, built.buffers)
        with changing(txn) as ledger:
            ledger.adopt_packs([built.found])

    def _refuse_if_lost(self) -> None:
        if self._lost is not None:
            raise Poisoned(self._lost)

    @property
    def bytes_pending(self) -> int:
        """Bytes in packs that are not published yet."""
        return sum(packer.size for packer in self._packers.values() if packer)

    # --- the snapshot ---------------------------------------------------------------------------------------

    def head(self) -> Head | None:
        """See `interface.Session.head`."""
        return self._current.read(lambda txn: catalog.head(txn, self._client.client_id))

    def commit(self, snapshot_bytes: bytes) -> Committed:
        """See `interface.Session.commit`."""
        file = snapshot.decode_file(snapshot_bytes, receipt=False)
        name = snapshot.snapshot_name(file.header.client_id, file.header.sequence)
        rules.check_identity(self._truth, self._client, name, file)
        self.flush()
        if self._unfenced_deletion:
            self._secure(file)
        committed = self._commit(name, file)
        if self._unfenced_deletion:
            self._secure(file)
        return committed

    @property
    def _unfenced_deletion(self) -> bool:
        """Whether a compaction may delete that our lock does not stop.

        Because this is a network disk, or one that is exported as one, or because the lock file was removed under us:
        where other tools leave stale locks behind, people learn that.
        """
        if not self._fenced or self._truth.blobs.list(layout.CONDEMNED):
            return True
        try:
            if self._held is not None:
                self._held.confirm()
        except StorageFailed:
            return True
        return False

    def _commit(self, name: str, file: SnapshotFile) -> Committed:
        for _ in range(_COMMIT_ATTEMPTS - 1):
            # Rows that we knew are gone: somebody threw the index away. The directories still tell.
            with suppress(IndexReplaced, ObjectMissing):
                return self._commit_once(name, file)
            self._current.catch_up()
        try:
            return self._commit_once(name, file)
        except IndexReplaced:
            raise StorageFailed("commit", name, "the index is made anew again and again") from None

    def _commit_once(self, name: str, file: SnapshotFile) -> Committed:
        committed, length = self._current.write(lambda txn: self._commit_in(txn, name, file))
        self.bytes_published += length
        return committed

    def _secure(self, file: SnapshotFile) -> None:
        """Look into the directories: does the snapshot's root stand, complete, without any condemned pack?

        If not, copy what stands in condemned ones only. What cannot be read any more is missing: then the snapshot is
        not acknowledged; the next backup stores what is missing, and heals it.
        """
        root = file.header.root
        for _ in range(_COMMIT_ATTEMPTS):
            self._current.catch_up()
            if not self._current.read(lambda txn: is_complete(txn, root)):
                raise ObjectMissing(root, file.id.hex())
            lacking = self._current.read(lambda txn: by_level(txn, self._standing.lacking(txn, root)))
            if not lacking:
                return
            self._rescue(lacking)
        raise ObjectMissing(lacking[0], file.id.hex())

    def _rescue(self, ids: Sequence[bytes]) -> None:
        """Copy records, with their envelopes, into new packs; those that cannot be read are left out."""
        fetcher = Fetcher(self._truth.blobs, self._index, self._truth.watch)
        for at in range(0, len(ids), _RESCUED_AT_ONCE):
            for fetched in fetcher.fetch(ids[at : at + _RESCUED_AT_ONCE]):
                if fetched.problem is not None:
                    continue
                data, whole = bytes(fetched.record), record_format.envelope_record(fetched.envelope)
                try:
                    envelope = PackedEnvelope.of(whole, record_format.parse(whole))
                except EnvelopeRejected:
                    continue
                self._add_to_pack(data, record_format.parse(data), envelope)
        self.flush()

    def _commit_in(self, txn: WriteTxn, name: str, file: SnapshotFile) -> tuple[Committed, int]:
        """What is told to the client, and the length of the file that was published for it."""
        self._current.demand_same()
        header, snapshot_id = file.header, file.id
        known = catalog.find(txn, header.client_id, header.sequence, snapshot_id)
        if known is not None:
            return Committed(name, snapshot_id, known.time_ns), 0
        if not self._self_stamped:
            rules.check_client_time(header.time_ns, self._now_ns())
        rules.check_chain(txn, header)
        rules.check_root(txn, file)
        receipt = rules.stamp(txn, self._now_ns(), self.bytes_published, self_stamped=self._self_stamped)
        data = snapshot.encode_file(
            SnapshotFile(
                header,
                file.header_bytes,
                file.signature,
                file.certificate,
                file.envelope_record,
                file.metadata_record,
                receipt,
            )
        )
        markers = catalog.markers_of(txn, name)
        self._withdraw(markers)
        try:
            self._truth.blobs.publish(f"{layout.SNAPSHOTS}/{name}", [data])
        except AlreadyExists:
            # Published by an earlier run of this transaction, or by somebody whom our index has not seen.
            data = self._truth.blobs.read(f"{layout.SNAPSHOTS}/{name}")
        row = adoption.find_snapshot(name, data, self._truth.repository_id, self._truth.owner_bundle)
        with changing(txn) as ledger:
            ledger.adopt_snapshot(name, row)
            for marker in markers:
                ledger.drop_marker(marker)
        if row.status != rows.GOOD:
            # A damaged file has this number; `check --repair` puts it aside.
            raise SnapshotDamage(name, row.reason)
        if row.id != snapshot_id:
            raise IndexReplaced  # adopt the other one by reconciling, then answer StaleSequence
        return Committed(name, snapshot_id, row.receipt.time_ns), len(data)

    def _withdraw(self, markers: Sequence[str]) -> None:
        """Delete what says that the snapshot which we are about to publish is forgotten.

        It was meant for one that was lost, and whose number is free again; by a clock that was ahead, perhaps. This
        is durable before the snapshot stands: a marker that came back after a power cut would release it in the end.
        """
        for marker in markers:
            with suppress(BlobMissing):
                self._truth.blobs.delete(f"{layout.FORGOTTEN}/{marker}")
        if markers:
            self._truth.blobs.barrier()
