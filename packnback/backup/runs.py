"""The data of a sparse file as one stream, and the way back: where in the file each byte of the stream stands.

Holes are skipped by asking the file system (SEEK_DATA, SEEK_HOLE), so a huge and mostly empty disk image costs
what its data costs. What is read is cut as if the data lay together: many small islands make a few objects, not
thousands, and chunks are split into extents wherever a hole lies between.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator

from packnback.backup.ticket import Place, stretch
from packnback.format.entry import Extent


class FileRuns:
    """Reads the first `size` bytes of an open file, without its holes if `sparse`.

    A file that ends earlier than that is taken as it is: `ended_early` then says so.
    """

    def __init__(self, fd: int, size: int, *, sparse: bool) -> None:
        self._fd = fd
        self._size = size
        self._data = _find_data(fd, size) if sparse else iter([(0, size)])
        self._at = 0
        self._until = 0
        self._runs: deque[tuple[bool, int]] = deque()
        """(whether it is a hole, length) in order of the file, of what was read and not yet placed."""
        self.ended_early = False

    def read(self, view: memoryview) -> int:
        """Fill the beginning of `view` with the next data; 0 at the end. Raises OSError."""
        if self._at == self._until and not self._next_run():
            return 0
        count = os.preadv(self._fd, [view[: self._until - self._at]], self._at)
        if count == 0:
            self.ended_early = True
            self._data = iter(())
            self._until = self._at
        else:
            self._push(False, count)
        return count

    def place(self, chunk: Place | Extent) -> Iterator[Place | Extent]:
        """The stretches of the file that the next `chunk.length` bytes of data cover, holes before them included."""
        taken = 0
        while taken < chunk.length:
            is_hole, length = self._runs.popleft()
            if is_hole:
                yield Extent(None, 0, length)
                continue
            used = min(length, chunk.length - taken)
            yield stretch(chunk, taken, used)
            taken += used
            if used < length:
                self._runs.appendleft((False, length - used))

    def tail(self) -> Iterator[Extent]:
        """The hole at the end of the file, if there is one, once everything is read and placed."""
        for _, length in self._runs:
            yield Extent(None, 0, length)

    def _next_run(self) -> bool:
        """Go to the next run of data; False at the end of the file."""
        if self.ended_early:
            return False
        begin, end = next(self._data, (self._size, self._size))
        if begin == self._size:
            # Where a file was cut, no hole follows.
            begin = end = max(self._at, min(self._size, os.fstat(self._fd).st_size))
        if begin > self._at:
            self._push(True, begin - self._at)
        self._at, self._until = begin, end
        return begin < end

    def _push(self, is_hole: bool, length: int) -> None:
        if not is_hole:
            self._at += length
            if self._runs and not self._runs[-1][0]:
                length += self._runs.pop()[1]
        self._runs.append((is_hole, length))


def _find_data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of each run of data in the first `size` bytes."""
    end = 0
    while end < size:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
            end = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on; or the file was cut off just now
                return
            raise
        if begin >= size:
            return
        yield begin, end
