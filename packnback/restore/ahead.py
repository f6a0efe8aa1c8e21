"""Reading ahead: a source of its own thread feeds work to a pool, and results come out in the source's order.

The three kinds of work of a restore overlap: the disk is read (and checksums are compared) in one thread, objects
are opened in a pool, and the caller writes files. Handing something from thread to thread costs more than a small
file does, so what is handed over is an object, with everything that is to be done to it there.

What is under way, read and not yet taken by the caller, is bounded by number and by bytes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Generic, TypeVar

from packnback.bell import Bell

S = TypeVar("S")
T = TypeVar("T")


class ReadAhead(Generic[S, T]):
    """An iterator over the results of `submit` for each item of `source`, in order.

    `source` is run, from its first item to its end, in one thread that is not the caller's. What it raises is
    raised to the caller, after the results of what came before. To be closed, in any case.
    """

    def __init__(
        self,
        source: Iterator[S],
        submit: Callable[[S], Future[T]],
        size_of: Callable[[S], int],
        *,
        count_limit: int,
        bytes_limit: int,
    ) -> None:
        self._source = source
        self._submit = submit
        self._size_of = size_of
        self._count_limit = count_limit
        self._bytes_limit = bytes_limit
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._caller = Bell()
        """Not a condition: the caller is the thread that may be interrupted."""
        self._under_way: deque[tuple[Future[T], int]] = deque()
        self._bytes = 0
        self._ended = False
        self._stopped = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fetch")
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while True:
            with self._lock:
                if self._under_way:
                    future, size = self._under_way.popleft()
                    self._bytes -= size
                    self._room.notify()
                    break
                if self._ended:
                    raise self._failure or StopIteration
            self._caller.wait()
        return future.result()

    def close(self) -> None:
        """Stop reading, and forget what was read. Returns when the thread has ended."""
        with self._lock:
            self._stopped = True
            self._room.notify()
        self._thread.join()
        while self._under_way:
            self._under_way.popleft()[0].cancel()

    def _run(self) -> None:
        try:
            for item in self._source:
                if not self._pass_on(item):
                    break
        except BaseException as error:  # noqa: BLE001 -- it is raised in the caller's thread
            self._failure = error
        finally:
            with self._lock:
                self._ended = True
                self._caller.ring()

    def _pass_on(self, item: S) -> bool:
        """Hand an item to the pool, when there is room; False if nobody wants it any more."""
        size = self._size_of(item)
        with self._lock:
            while not self._stopped and self._full:
                self._room.wait()
            if self._stopped:
                return False
            self._under_way.append((self._submit(item), size))
            self._bytes += size
            self._caller.ring()
        return True

    @property
    def _full(self) -> bool:
        return len(self._under_way) >= self._count_limit or self._bytes >= self._bytes_limit
