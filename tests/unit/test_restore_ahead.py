"""Reading ahead: order, bounds, errors of either side, and ending early."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from packnback.restore.ahead import ReadAhead


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def ahead(pool: ThreadPoolExecutor, source: Iterator[int], count: int = 4, limit: int = 1000) -> ReadAhead[int, int]:
    def submit(item: int) -> Future[int]:
        return pool.submit(lambda: 100 // item)

    return ReadAhead(source, submit, lambda item: item, count_limit=count, bytes_limit=limit)


def test_results_come_in_the_order_of_the_source(pool: ThreadPoolExecutor) -> None:
    reading = ahead(pool, iter(range(1, 51)))
    assert list(reading) == [100 // i for i in range(1, 51)]
    reading.close()


@pytest.mark.parametrize(("count", "limit", "most"), [(3, 1000, 3), (100, 25, 3)])
def test_no_more_is_read_than_may_be_under_way(pool: ThreadPoolExecutor, count: int, limit: int, most: int) -> None:
    taken, reached, beyond = 0, threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        for number in range(20):
            if number >= taken + most:
                reached.set()
            if number > taken + most + 1:
                beyond.set()
            yield 10

    reading = ahead(pool, source(), count, limit)
    assert reached.wait(10)
    for _ in reading:
        taken += 1
    reading.close()
    assert taken == 20
    assert not beyond.is_set()


def test_what_the_source_raises_comes_after_what_it_gave(pool: ThreadPoolExecutor) -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    reading = ahead(pool, source())
    assert (next(reading), next(reading)) == (100, 50)
    with pytest.raises(OSError, match="the disk is gone"):
        next(reading)
    reading.close()


def test_what_the_work_raises_is_raised_for_its_item(pool: ThreadPoolExecutor) -> None:
    reading = ahead(pool, iter([1, 0, 4]))
    assert next(reading) == 100
    with pytest.raises(ZeroDivisionError):
        next(reading)
    assert next(reading) == 25
    reading.close()


def test_closing_ends_the_thread_though_nobody_takes_anything(pool: ThreadPoolExecutor) -> None:
    given, ended = 0, threading.Event()

    def source() -> Iterator[int]:
        nonlocal given
        try:
            while True:
                given += 1
                yield 1
        finally:
            ended.set()

    before = threading.active_count()
    reading = ahead(pool, source())
    next(reading)
    reading.close()
    assert given < 10
    assert not [t for t in threading.enumerate() if t.name == "fetch"]
    del reading
    assert ended.wait(10)
    assert threading.active_count() <= before + 3  # the pool's own
