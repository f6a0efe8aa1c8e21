"""Bytes to back up: the same for the same seed on every machine, made at several hundred MB/s.

All randomness is the output of BLAKE3 as an extendable-output function, so nothing depends on what is installed
here. What matters to a backup tool is how well contents compress and how often they repeat; so there are random
bytes, which do neither, and words whose frequencies follow Zipf's law, which compress like prose and sources do.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator

from blake3 import blake3

_VOCABULARY = 20_000
_WORDS_PER_LINE = 12
_ZIPF_EXPONENT = 1.05
_SLOTS = 1 << 16


class RandomBytes:
    """An endless stream of incompressible bytes."""

    def __init__(self, seed: str) -> None:
        self._hasher = blake3(b"packnback bench " + seed.encode())
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        found = self._hasher.digest(length=count, seek=self._at)
        self._at += count
        return found

    def number(self, limit: int) -> int:
        """A number in [0, limit)."""
        return int.from_bytes(self.take(8), "little") % limit


class Words:
    """Lines of text, and lines of a log, in a made-up language of 20,000 words."""

    def __init__(self, seed: str) -> None:
        self._random = RandomBytes("words " + seed)
        self._slots = _zipf_slots(_vocabulary())

    def text(self, count: int) -> bytes:
        """About `count` bytes (up to a line more) of prose-like lines."""
        return b"".join(self._lines(count))

    def log(self, count: int) -> bytes:
        """About `count` bytes of log lines: an ascending time, few levels and hosts, words and numbers."""
        lines, made, time_ms = [], 0, self._random.number(1 << 40)
        while made < count:
            pick = array("H", self._random.take(16 * 512))
            for i in range(0, len(pick), 8):
                time_ms += pick[i] >> 5
                first, second, third = (self._slots[pick[i + k]] for k in (1, 2, 3))
                line = b"%015d %s host-%d app[%d]: GET /%s/%s?id=%d from 10.0.%d.%d %s\n" % (
                    time_ms, _LEVELS[pick[i + 4] % 6], pick[i + 4] >> 12, 1000 + (pick[i + 5] & 255), first, second,
                    pick[i + 6], pick[i + 7] & 255, pick[i + 7] >> 8, third,
                )  # fmt: skip
                lines.append(line)
                made += len(line)
        return b"".join(lines)

    def _lines(self, count: int) -> Iterator[bytes]:
        made = 0
        while made < count:
            words = list(map(self._slots.__getitem__, array("H", self._random.take(2 * _WORDS_PER_LINE * 64))))
            for i in range(0, len(words), _WORDS_PER_LINE):
                line = b" ".join(words[i : i + _WORDS_PER_LINE]) + b"\n"
                made += len(line)
                yield line
                if made >= count:
                    return


_LEVELS = (b"INFO", b"INFO", b"INFO", b"DEBUG", b"WARN", b"ERROR")


def _vocabulary() -> list[bytes]:
    draw = random.Random("packnback bench vocabulary")
    words: dict[str, None] = {}
    while len(words) < _VOCABULARY:
        syllables = draw.randint(1, 4)
        word = "".join(draw.choice("bcdfghklmnprstvw") + draw.choice("aeiou") for _ in range(syllables))
        words[word + draw.choice(("", "", "n", "s", "t"))] = None
    return [word.encode() for word in words]


def _zipf_slots(words: list[bytes]) -> list[bytes]:
    """65,536 slots, in which a word stands as often as it is likely: two random bytes choose one."""
    weights = [1 / math.pow(rank + 2.7, _ZIPF_EXPONENT) for rank in range(1, len(words) + 1)]
    total, reached = sum(weights), 0.0
    slots: list[bytes] = []
    for word, weight in zip(words, weights, strict=True):
        reached += weight
        slots += [word] * (round(_SLOTS * reached / total) - len(slots))
    return slots
