"""What a backup may take over from earlier ones: the seam between storing a tree and remembering it.

The walk shows each part to a `Reuse`, which answers with a `Visit`: either the whole part is unchanged and its
blocks are known, or single files are, or nothing is. Contents of small files and pieces of large ones are looked
up here as well. A run without memory uses `NOTHING`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from packnback.backup.ticket import Place, Ticket
from packnback.backup.tree import Block
from packnback.backup.walk import Part
from packnback.format.entry import Entry, Extent


class Visit(Protocol):
    """What is known of one part."""

    @property
    def blocks(self) -> Sequence[Block] | None:
        """All of it, if the part is unchanged and every object in it is in the repository."""

    @property
    def directories(self) -> int:
        """How many directories are among the children of an unchanged part."""

    @property
    def users(self) -> Sequence[int]:
        """Whom the children of an unchanged part belong to."""

    @property
    def groups(self) -> Sequence[int]:
        """Likewise the groups."""

    @property
    def some_known(self) -> bool:
        """Whether it is worth asking for single files."""

    def file(self, name: bytes, status: os.stat_result) -> Entry | None:
        """The entry of one regular file, if it is unchanged and its objects are in the repository."""

    def stored(
        self, blocks: Sequence[Block], entries: Sequence[Entry], *, doubtful: Collection[bytes], whole: bool
    ) -> None:
        """The part now has these blocks, made of these entries. May be told again, of more entries.

        `doubtful` names the files that are to be read again whatever they look like, as they did not hold still;
        without `whole` some entry is missing, and the part must not be taken for unchanged later. The objects are
        on their way to the repository, but not durable before `Reuse.keep`.
        """


class OldObject(NamedTuple):
    """A stored object that was one whole chunk of a large file: the pieces that it consists of."""

    id: bytes
    size: int
    lengths: Sequence[int]
    digests: list[bytes]


class OldPieces(Protocol):
    """The pieces of a large file as it was stored last."""

    def seek(self, offset: int) -> None:
        """So many bytes of the file have been looked at, holes not counted."""

    def find(self, digest: bytes, length: int) -> Extent | None:
        """Where the next piece of the file lies, if it is known and its object is in the repository."""

    def expected(self) -> tuple[int, bytes] | None:
        """(length, digest) of the piece that comes next if the file goes on as it did; None if that is not known.

        Never the file's last piece, which ended with the file and not by its own content.
        """

    def object_ahead(self) -> OldObject | None:
        """The whole object that comes next if the file goes on as it did, and if that is in the repository."""

    def passed(self, whole: OldObject) -> None:
        """The file does go on with what `object_ahead` has told of."""


class NewPieces(Protocol):
    """The pieces of a large file as it is being stored, in order."""

    step: int
    """Pieces that are joined into one; see `pieces.join`."""

    def add(self, extent: Place | Extent, lengths: Sequence[int], digests: list[bytes]) -> None:
        """A run of pieces that lie one behind the other in one object."""

    def digest(self, piece: memoryview) -> bytes:
        """The hash by which a piece is found."""

    def settle(self) -> None:
        """Write what is known by now, so that it need not be held; to be called now and then."""

    def finish(self) -> bool:
        """All pieces have been added. True if the file is worth another look although it does not change."""


class Reuse(Protocol):
    """Memory of earlier runs."""

    def visit(self, part: Part) -> Visit:
        """What is known of `part`, whose descriptor and children are not to be kept."""

    def content(self, content_hash: bytes) -> Extent | None:
        """Where the content of a small file lies, if the repository has it."""

    def bundled(self, ticket: Ticket, size: int, contents: Sequence[tuple[bytes, int, int]]) -> None:
        """A bundle with `size` bytes of contents was closed. `contents`: (hash, where it starts, length)."""

    def pieces(self, name: bytes, size: int) -> tuple[OldPieces | None, NewPieces] | None:
        """Memory of the large file `name`, which now has about `size` bytes; None without any memory."""

    def keep(self, *, finished: bool = False) -> None:
        """Everything that was stored up to now is durable. `finished`: and nothing follows."""

    def close(self) -> None:
        """The run is over, one way or the other."""


class Nothing:
    """Remembers nothing; its own only visit."""

    blocks = None
    some_known = False
    directories = 0
    users: Sequence[int] = ()
    groups: Sequence[int] = ()

    def visit(self, part: Part) -> Visit:
        """Nothing."""
        return self

    def file(self, name: bytes, status: os.stat_result) -> Entry | None:
        """Nothing."""
        return None

    def stored(
        self, blocks: Sequence[Block], entries: Sequence[Entry], *, doubtful: Collection[bytes], whole: bool
    ) -> None:
        """Forgets them."""

    def content(self, content_hash: bytes) -> Extent | None:
        """Nothing."""
        return None

    def bundled(self, ticket: Ticket, size: int, contents: Sequence[tuple[bytes, int, int]]) -> None:
        """Forgets it."""

    def pieces(self, name: bytes, size: int) -> tuple[OldPieces | None, NewPieces] | None:
        """Nothing."""
        return None

    def keep(self, *, finished: bool = False) -> None:
        """There is nothing to keep."""

    def close(self) -> None:
        """There is nothing to close."""


NOTHING: Reuse = Nothing()
"""Remembers nothing."""
