"""Threads that let others go first."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from packnback.backup.priority import NICENESS, step_back

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness of threads")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def in_thread(times: int) -> int:
    found: list[int] = []

    def run() -> None:
        for _ in range(times):
            step_back()
        found.append(niceness())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_only_the_thread_itself_steps_back_and_from_where_it_was() -> None:
    before = niceness()
    assert in_thread(1) == min(before + NICENESS, 19)
    assert niceness() == before


def test_there_is_an_end_to_it() -> None:
    assert in_thread(9) == 19
