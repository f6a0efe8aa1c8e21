"""Tickets: objects that are on their way and have no id yet.

An id is known only after hashing, which other threads do, and where a small file lies in its bundle only when
the bundle is closed. Listings hold on to places until both are settled.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from packnback.format.entry import Extent


class Resolver(Protocol):
    """What a ticket waits with."""

    def wait_for(self, ticket: Ticket) -> None:
        """Return when the ticket has an id; raise what made that impossible."""


class Ticket:
    """One data object to be. `id` is None until it has been hashed; `shift` is settled before that."""

    __slots__ = ("_resolver", "id", "shift", "size", "submitted")

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self.id: bytes | None = None
        self.shift = 0
        """Bytes that were put in front of everything else in the object."""
        self.size = 0
        """Bytes of the complete object."""
        self.submitted = False
        """Whether the object is complete; the one of an open bundle is not, and must not be waited for."""

    def wait(self) -> bytes:
        """The id, as soon as there is one. Raises what stopped the pipeline."""
        if self.id is None:
            self._resolver.wait_for(self)
        if self.id is None:
            raise RuntimeError("the pipeline gave no id")
        return self.id


class Place(NamedTuple):
    """`length` bytes of a file: at `start` of the contents of an object to be."""

    ticket: Ticket
    start: int
    length: int

    @property
    def resolved(self) -> bool:
        """Whether `extent` would not have to wait."""
        return self.ticket.id is not None

    def extent(self) -> Extent:
        """The place as an extent of a listing; waits for the id."""
        return Extent(self.ticket.wait(), self.start + self.ticket.shift, self.length)


class _Settled:
    def wait_for(self, ticket: Ticket) -> None:
        """Never called: the ticket has its id."""


_SETTLED = _Settled()


def known_ticket(object_id: bytes | None) -> Ticket:
    """The ticket of an object that is stored already."""
    ticket = Ticket(_SETTLED)
    ticket.id = object_id
    ticket.submitted = True
    return ticket


def stretch(extent: Place | Extent, at: int, length: int) -> Place | Extent:
    """`length` bytes of an extent, from `at` within it."""
    if isinstance(extent, Place):
        return Place(extent.ticket, extent.start + at, length)
    return Extent(extent.id, extent.offset + at, length)


def joined(first: Place | Extent, second: Place | Extent) -> Place | Extent | None:
    """Two extents as one, if the second goes on in the same object where the first ends; else None."""
    if isinstance(first, Place):
        if isinstance(second, Place) and first.ticket is second.ticket and first.start + first.length == second.start:
            return Place(first.ticket, first.start, first.length + second.length)
        return None
    follows = isinstance(second, Extent) and first.id == second.id and first.offset + first.length == second.offset
    return Extent(first.id, first.offset, first.length + second.length) if follows and first.id else None
