"""Extended attributes as a backup reads them: ACLs, capabilities and labels are among them.

Most file systems and most files have none, so asking has to be cheap: a file that is open anyway is asked through
its descriptor, and a file system that once said that it knows no such thing is not asked again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from packnback.backup.roots import Report
from packnback.backup.walk import CALL_LIMIT
from packnback.format.entry import NO_XATTRS
from packnback.ids import KIB
from packnback.oserrors import reason_of

TOTAL_LIMIT = 256 * KIB
"""Most bytes of attributes of one file, names included; listings are made of entries of moderate size."""

_GONE = frozenset((errno.ENODATA, errno.EOPNOTSUPP))
"""The attribute was removed since it was listed, or is one that only lists itself (some network file systems)."""


class AttributeReader:
    """Reads the attributes of files, and reports those that cannot be read."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._without: set[int] = set()
        """Devices whose file systems know no attributes."""

    def none_on(self, fd: int, device: int) -> bool:
        """Whether an open file surely has none; the cheapest way to ask."""
        if device in self._without:
            return True
        try:
            return not os.listxattr(fd)
        except OSError:
            return False

    def read_name(
        self, directory: int, name: bytes, path: bytes, device: int
    ) -> tuple[Mapping[bytes, bytes], bool]:
        """As `read`, of `name` in an open directory, which may be a link or anything else that must not be opened."""
        # The system has no such call; /proc leads to a directory that lies deeper than a path can tell.
        at = path if len(path) <= CALL_LIMIT else b"/proc/self/fd/%d/%b" % (directory, name)
        return self.read(at, path, device)

    def read(self, at: int | bytes, path: bytes, device: int) -> tuple[Mapping[bytes, bytes], bool]:
        """(attributes, whether that is all of them) of a descriptor, or of a path without following links."""
        if device in self._without:
            return NO_XATTRS, True
        follow = isinstance(at, int)
        try:
            names = os.listxattr(at, follow_symlinks=follow)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._without.add(device)
                return NO_XATTRS, True
            return NO_XATTRS, self._failed(path, error)
        if not names:
            return NO_XATTRS, True
        found: dict[bytes, bytes] = {}
        whole = True
        for name in names:
            try:
                found[os.fsencode(name)] = os.getxattr(at, name, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in _GONE:
                    whole = self._failed(path, error, name)
        if sum(len(name) + len(value) for name, value in found.items()) > TOTAL_LIMIT:
            self._report(path, "its extended attributes are too large and were left out")
            return {}, False
        return found, whole

    def _failed(self, path: bytes, error: OSError, name: str = "") -> bool:
        """Report; False, to be returned. What has vanished is none of our business."""
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            which = f"extended attribute {name}" if name else "extended attributes"
            self._report(path, f"{which}: {reason_of(error)}")
        return False
