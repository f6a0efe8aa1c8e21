"""The bell that wakes a thread which may be interrupted."""

from __future__ import annotations

import threading
import time

from packnback.bell import Bell


def test_a_ring_before_the_wait_counts_and_many_count_once() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    bell.wait()
    late = threading.Timer(0.05, bell.ring)
    late.start()
    began = time.monotonic()
    bell.wait()
    assert time.monotonic() - began > 0.03
    late.join()


def test_no_ring_is_lost() -> None:
    """Many threads count up under a lock and ring; the listener sees the last count, whatever came in between."""
    bell, lock, count = Bell(), threading.Lock(), 0

    def work() -> None:
        nonlocal count
        for _ in range(2000):
            with lock:
                count += 1
                bell.ring()

    def listen() -> None:
        while not seen or seen[-1] < 8000:
            bell.wait()
            with lock:
                seen.append(count)

    seen: list[int] = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    for thread in (*threads, listener):
        thread.join(60)
    assert seen[-1] == 8000
    assert not listener.is_alive()
