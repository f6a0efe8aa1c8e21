"""One object on its way through the pipeline."""

from __future__ import annotations

from msgspec import Struct

from packnback.backup.buffers import Buffer
from packnback.backup.sealing import Sealed
from packnback.backup.ticket import Ticket
from packnback.crypto.derive import Buffer as Bytes
from packnback.ids import ObjectClass, class_of


class Job(Struct, eq=False):
    """An object and what has become of it so far."""

    kind: int
    level: int
    refs: bytes
    """Concatenated, ascending."""
    plaintext: Bytes
    """Let go of, that is, emptied, as soon as it is encoded or known to be stored."""
    size: int
    """Length of the plaintext in bytes."""
    lease: Buffer | None = None
    """The lent buffer in which the plaintext lies; None if it was charged to the budget by itself."""
    ticket: Ticket | None = None
    number: int = 0
    """Position in the order of submission."""
    id: bytes = b""
    sealed: Sealed | None = None
    settled: bool = False
    """Whether it is stored, or known to be."""

    @property
    def object_class(self) -> ObjectClass:
        """The class whose keys seal it."""
        return class_of(self.kind)

    @property
    def record_length(self) -> int:
        """Bytes of its record; 0 before it is sealed."""
        return len(self.sealed.record) if self.sealed is not None else 0
