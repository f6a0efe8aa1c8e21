"""Building packs: records of one class, with the envelopes that they need, in memory until the pack is full.

A pack is self-contained: every envelope that one of its records names is in it. Records are not copied; the
pack is a list of buffers that the blob store writes in one go.
"""

from __future__ import annotations

from collections.abc import Callable

from blake3 import blake3
from msgspec import Struct

from packnback.crypto.envelope_layout import EnvelopeFacts, parse_envelope
from packnback.errors import FormatDamage
from packnback.format.pack import (
    MAGIC,
    NONCE_LEN,
    EnvelopeRow,
    Footer,
    RecordRow,
    encode_footer,
    encode_trailer,
)
from packnback.format.record import Record
from packnback.ids import MIB
from packnback.store.adoption import FoundPack

PACK_TARGET = 32 * MIB
"""A pack is published when it has grown to this many bytes."""
RECORDS_LIMIT = 16_384
"""… or to this many records, which bounds its footer."""


class PackedEnvelope(Struct, frozen=True):
    """An envelope as it goes into a pack: its whole record, and what the pack's footer says of it."""

    record: bytes
    id: bytes
    """The id of its record."""
    client_id: bytes
    domain_id: bytes
    epoch: int
    object_class: int

    @classmethod
    def of(cls, data: bytes, record: Record, facts: EnvelopeFacts | None = None) -> PackedEnvelope:
        """From its whole record (`data`, parsed as `record`). Raises EnvelopeRejected unless `facts` are known."""
        facts = facts or parse_envelope(bytes(record.body))
        return cls(data, record.id, facts.client_id, facts.domain_id, facts.epoch, facts.object_class)


class BuiltPack(Struct, frozen=True):
    """A finished pack, ready to be published."""

    name: bytes
    buffers: list[bytes | bytearray]
    size: int
    footer: Footer

    @property
    def found(self) -> FoundPack:
        """As it would be found among the others."""
        return FoundPack(self.name, self.size, self.footer)


class Packer:
    """One open pack. `random` gives the nonce that makes its name unique."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._reset()

    def _reset(self) -> None:
        self._buffers: list[bytes | bytearray] = [MAGIC]
        self._records: list[RecordRow] = []
        self._envelopes: list[EnvelopeRow] = []
        self._envelope_index: dict[bytes, int] = {}
        self.size = len(MAGIC)

    def __len__(self) -> int:
        """Number of objects in the open pack."""
        return len(self._records)

    @property
    def full(self) -> bool:
        """Whether it is time to publish."""
        return self.size >= PACK_TARGET or len(self._records) >= RECORDS_LIMIT

    def add(self, data: bytes | bytearray, record: Record, envelope: PackedEnvelope) -> None:
        """Append a whole record (`data`, parsed as `record`) that is sealed under `envelope`."""
        if record.envelope_id != envelope.id[: len(record.envelope_id)]:
            raise FormatDamage("record", "another envelope")
        index = self._envelope_index.get(envelope.id)
        if index is None:
            index = self._add_envelope(envelope)
        self._records.append(
            RecordRow(self.size, len(data), record.kind, record.level, record.id, record.checksum, index, record.refs)
        )
        self._buffers.append(data)
        self.size += len(data)

    def _add_envelope(self, envelope: PackedEnvelope) -> int:
        index = self._envelope_index[envelope.id] = len(self._envelopes)
        self._envelopes.append(
            EnvelopeRow(
                self.size,
                len(envelope.record),
                envelope.id,
                envelope.record[-16:],
                envelope.client_id,
                envelope.domain_id,
                envelope.epoch,
                envelope.object_class,
            )
        )
        self._buffers.append(envelope.record)
        self.size += len(envelope.record)
        return index

    def finish(self) -> BuiltPack:
        """Close the pack with its footer and trailer, and begin a new one."""
        footer = Footer(self._random(NONCE_LEN), tuple(self._records), tuple(self._envelopes))
        encoded = encode_footer(footer.nonce, footer.records, footer.envelopes)
        buffers = [*self._buffers, encoded, encode_trailer(self.size, encoded)]
        built = BuiltPack(blake3(encoded).digest(), buffers, sum(map(len, buffers)), footer)
        self._reset()
        return built
