"""What a restore is asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct


class Overwrite(StrEnum):
    """What to do where something stands already.

    An existing directory is shared, never replaced. A file never takes the place of a directory, nor a directory that
    of a symlink.
    """

    NEVER = "never"
    """Keep it, and say so. Existing directories keep their owner, mode and times."""
    CHANGED = "changed"
    """Replace it, unless it is a file whose size and time of modification agree."""
    ALWAYS = "always"


class RestoreOptions(Struct, frozen=True):
    """What to restore, and how."""

    paths: Sequence[bytes] = ()
    """Subtrees; none means everything. Their full paths are kept below the target."""
    overwrite: Overwrite = Overwrite.NEVER
    delete: bool = False
    """Remove, from restored directories, what the snapshot does not have."""
    owners: bool = True
    dry_run: bool = False
