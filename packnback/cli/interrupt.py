"""Being asked to stop, and being sure to.

Ctrl-C, SIGTERM and SIGHUP become KeyboardInterrupt in the main thread, so that whoever holds a lock, a temporary file
or a thread lets go of it on the way out. Nothing is lost then: what is not committed was never promised.

There are moments at which that is not enough. Raised in a callback of the interpreter's, KeyboardInterrupt is
dropped; raised within `threading`, it may leave a lock taken that cleaning up then waits for (`packnback.bell`); and
it is not raised at all while the main thread waits for a stream that another one is printing to. So an alarm raises
it again and again until the command has ended, and at last a thread ends the process as it is, which the repository
survives as it survives a power cut.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from packnback.cli import words

PATIENCE_S = 40.0
"""After so many seconds, and again after as many more, we ask again. A far side that has stopped gets 30 to end."""
REMINDERS = 3
"""So often do we ask again; then the process is ended."""
LAST_WORDS_S = 2.0


class Interrupts:
    """Signals that ask us to stop. `last_words` are said if the process has to be ended as it is."""

    def __init__(self, last_words: Callable[[], object]) -> None:
        self._last_words = last_words
        self._is_asked = self._is_over = False

    def listen(self) -> None:
        """Take them from now on; those that are ignored, as by nohup, stay ignored."""
        signal.signal(signal.SIGALRM, self._remind)
        sys.unraisablehook = _ignore_interrupts
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._stop)

    def ended(self) -> None:
        """The command is over: nobody has to be reminded."""
        self._is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)

    def obeyed(self) -> None:
        """The command has stopped, and it only remains to say so."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _stop(self, number: int, frame: FrameType | None) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, PATIENCE_S)
        if not self._is_asked:
            self._is_asked = True
            with suppress(RuntimeError):  # no thread is to be had
                _thread.start_new_thread(self._end, ())  # which waits for nothing, as `threading` would
        raise KeyboardInterrupt

    def _remind(self, number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    def _end(self) -> None:
        time.sleep(PATIENCE_S * (REMINDERS + 0.5))
        if self._is_over:
            return
        # Not for longer than a moment: whoever reads what we print may be what all this is waiting for.
        with suppress(RuntimeError):
            speaker = threading.Thread(target=self._last_words, daemon=True)
            speaker.start()
            speaker.join(LAST_WORDS_S)
        os._exit(words.INTERRUPTED)


def _ignore_interrupts(told: sys.UnraisableHookArgs) -> None:
    """Say nothing of a KeyboardInterrupt that was dropped: the next one is sure to come."""
    if not isinstance(told.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(told)
