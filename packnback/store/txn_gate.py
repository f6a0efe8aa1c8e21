"""A gate between transactions and the changes that no transaction may live through.

A memory map can be replaced (grown, closed, opened on other files) only while nobody holds a pointer into it.
LMDB leaves that to its caller; this is where it is kept: any number of transactions, or one exclusive change.
A waiting change goes before transactions that begin later, so that a stream of readers cannot starve it.

One transaction per thread: with two, a thread whose second one has to wait for the change would block the
change with its first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TransactionGate:
    """Any number of threads with one live transaction each, or one thread that changes the ground."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._live: set[int] = set()
        self._changes_wanted = 0
        self._changing = False

    def enter(self) -> int:
        """Wait until a transaction may begin. Returns the pass that `leave` takes.

        Raises `RuntimeError` when this thread has a live transaction already.
        """
        self.refuse_live()
        thread = threading.get_ident()
        with self._lock:
            while self._changes_wanted:
                self._changed.wait()
            self._live.add(thread)
        return thread

    def leave(self, entered: int) -> None:
        """The transaction that `enter` gave this pass to has ended."""
        with self._lock:
            self._live.discard(entered)
            self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until no transaction is live, and keep new ones out.

        Raises `RuntimeError` when this thread itself has a live one.
        """
        self.refuse_live()
        with self._lock:
            self._changes_wanted += 1
        changing = False
        try:  # from here on, for an interrupt of the wait must not leave the gate shut
            with self._lock:
                while self._live or self._changing:
                    self._changed.wait()
                self._changing = changing = True
            yield
        finally:
            with self._lock:
                if changing:
                    self._changing = False
                self._changes_wanted -= 1
                self._changed.notify_all()

    def refuse_live(self) -> None:
        """Raise `RuntimeError` when this thread has a live transaction."""
        if threading.get_ident() in self._live:
            raise RuntimeError("this thread has a live transaction on the index already")
