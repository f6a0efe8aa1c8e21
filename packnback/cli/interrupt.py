"""Being asked to stop, and being sure to.

Ctrl-C, SIGTERM and SIGHUP become KeyboardInterrupt in the main thread, so that whoever holds a lock, a temporary file
or a thread lets go of it on the way out. Nothing is lost then: what is not committed was never promised.

There are moments at which that is not enough. Raised in a callback of the interpreter's, KeyboardInterrupt is
dropped; raised within `threading`, it may leave a lock taken that cleaning up then waits for (`packnback.bell`). So
an alarm raises it again and again until the command has ended, and at last ends the process as it is, which the
repository survives as it survives a power cut.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from packnback.cli import words

PATIENCE_S = 40.0
"""After so many seconds, and again after as many more, we ask again. A far side that has stopped gets 30 to end."""
REMINDERS = 3


class Interrupts:
    """Signals that ask us to stop. `last_words` are said if the process has to be ended as it is."""

    def __init__(self, last_words: Callable[[], object]) -> None:
        self._last_words = last_words
        self._reminders = 0

    def listen(self) -> None:
        """Take them from now on; those that are ignored, as by nohup, stay ignored."""
        signal.signal(signal.SIGALRM, self._remind)
        sys.unraisablehook = _ignore_interrupts
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._stop)

    def ended(self) -> None:
        """The command is over: nobody has to be reminded."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def obeyed(self) -> None:
        """The command has stopped, and it only remains to say so."""
        self.ended()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _stop(self, number: int, frame: FrameType | None) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, PATIENCE_S)
        raise KeyboardInterrupt

    def _remind(self, number: int, frame: FrameType | None) -> NoReturn:
        self._reminders += 1
        if self._reminders > REMINDERS:
            with suppress(Exception):
                self._last_words()
            os._exit(words.INTERRUPTED)
        raise KeyboardInterrupt


def _ignore_interrupts(told: sys.UnraisableHookArgs) -> None:
    """Say nothing of a KeyboardInterrupt that was dropped: the next one is sure to come."""
    if not isinstance(told.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(told)
