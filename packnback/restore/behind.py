"""Work that goes on behind the caller's back: one thing at a time, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Behind(Generic[T]):
    """Does `work` on what is handed over, in order. A context manager: leaving it calls `stop`, and waits.

    What `work` raises ends everything: it is raised by the next call. `stop` is to make `work` return soon.
    """

    def __init__(self, work: Callable[[T], None], stop: Callable[[], None]) -> None:
        self._work = work
        self._stop = stop
        self._changed = threading.Condition()
        self._item: T | None = None
        self._ended = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def idle(self) -> bool:
        """Whether everything that was handed over is done."""
        return self._item is None

    def hand_over(self, item: T) -> None:
        """Wait until the last thing is done, and have this one done meanwhile."""
        with self._changed:
            self._wait()
            self._item = item
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until everything is done."""
        with self._changed:
            self._wait()

    def _wait(self) -> None:
        while self._item is not None and self._failure is None:
            self._changed.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._work(item)
            except BaseException as error:  # noqa: BLE001 -- it is raised in the caller's thread
                self._failure = error
            with self._changed:
                self._item = None
                self._changed.notify_all()
            if self._failure is not None:
                return

    def _next(self) -> T | None:
        with self._changed:
            while self._item is None and not self._ended:
                self._changed.wait()
            return None if self._ended else self._item
