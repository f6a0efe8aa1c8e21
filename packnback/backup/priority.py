"""Who goes first where there are fewer cores than threads: the one that everybody waits for."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

NICENESS = 5
_NICEST = 19


def step_back() -> None:
    """Let the other threads of this process go before the calling one. Linux schedules each by its own niceness."""
    if sys.platform != "linux":
        return  # elsewhere the number of a thread may be that of another process
    thread = threading.get_native_id()
    with suppress(OSError):
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + NICENESS
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _NICEST))
