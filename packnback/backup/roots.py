"""What was asked for: PATH arguments turned into the one tree that a snapshot holds.

Paths are made absolute and normalised by their letters alone; symbolic links are not resolved. Several PATHs make
one tree, a PATH below another one adds nothing, and the directories above a root are entries too, marked as
implicit. Inside a snapshot paths have no leading slash, and the top is the empty path.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable, Sequence

from msgspec import Struct

from packnback.errors import NothingToBackUp
from packnback.format.listing import path_key
from packnback.oserrors import reason_of

Report = Callable[[bytes, str], None]
"""Told of a path (absolute) that could not be backed up, and why."""

RootTree = dict[bytes, "RootTree | None"]
"""Directories above the roots by name; None is a root itself, with everything below."""


class Roots(Struct, frozen=True):
    """The roots of a backup."""

    paths: tuple[bytes, ...]
    """What was asked for, absolute and normalised, missing ones included."""
    tree: RootTree | None
    """None when ``/`` itself was asked for."""
    devices: frozenset[int]
    """The file systems that the roots stand on."""


def resolve(paths: Sequence[bytes], report: Report) -> Roots:
    """The roots that exist; what cannot be had is reported. Raises NothingToBackUp if that leaves none."""
    asked = tuple(dict.fromkeys(_absolute(path) for path in paths))
    devices: set[int] = set()
    found: list[bytes] = []
    for path in sorted(asked, key=path_key):
        try:
            status = os.lstat(path)
        except OSError as error:
            report(path, reason_of(error))
            continue
        # Sorted like this, everything below a root comes directly after it.
        outer = found[-1] if found and _is_below(path, found[-1]) else None
        link = _link_between(outer, path) if outer is not None else None
        if link is not None:
            report(path, f"lies behind the symbolic link {os.fsdecode(link)}, which is backed up as a link")
            continue
        devices.add(status.st_dev)
        if outer is None:
            found.append(path)
    if not found:
        raise NothingToBackUp([os.fsdecode(path) for path in asked])
    return Roots(asked, _tree(found), frozenset(devices))


def _absolute(path: bytes) -> bytes:
    # POSIX gives two leading slashes a meaning of their own, and normpath keeps them; Linux does not.
    return b"/" + posixpath.normpath(posixpath.join(os.getcwdb(), path)).lstrip(b"/")


def _is_below(path: bytes, root: bytes) -> bool:
    return path.startswith(root if root.endswith(b"/") else root + b"/")


def _link_between(outer: bytes, path: bytes) -> bytes | None:
    """The first symbolic link from `outer` on, above `path`: the walk of `outer` will not go through it."""
    above = posixpath.dirname(path)
    chain = []
    while len(above) >= len(outer):
        chain.append(above)
        if above == outer:
            break
        above = posixpath.dirname(above)
    return next((step for step in reversed(chain) if stat.S_ISLNK(os.lstat(step).st_mode)), None)


def _tree(roots: Sequence[bytes]) -> RootTree | None:
    if roots == [b"/"]:
        return None
    tree: RootTree = {}
    for root in roots:
        *above, name = root[1:].split(b"/")
        node = tree
        for component in above:
            below = node.setdefault(component, {})
            assert below is not None, "a root below a root was not collapsed"
            node = below
        node[name] = None
    return tree
