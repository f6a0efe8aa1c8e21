"""The index port in memory, with everything that a power cut may make of it.

An index may come back from a crash as any state that it ever committed, or not at all. So every committed state
is kept (tables that a transaction did not touch are shared between states), and `possible_states` hands each out.

A commit is two steps of the machine: power that goes at "index commit" loses it, power that goes at "index
committed" keeps it without anybody having been told.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from steps import Steps

from packnback.store.index import KEY_LIMIT, TABLES, ReadTxn, T, WriteTxn
from packnback.store.txn_gate import TransactionGate


class Table:
    """Rows and their keys in order. Changed only by the one transaction that copied it."""

    def __init__(self, rows: dict[bytes, bytes], order: list[bytes]) -> None:
        self.rows = rows
        self.order = order

    def copy(self) -> Table:
        return Table(self.rows.copy(), self.order.copy())


State = dict[str, Table]


def empty_state() -> State:
    return {name: Table({}, []) for name in TABLES}


def _checked(key: bytes) -> bytes:
    if not 0 < len(key) <= KEY_LIMIT:
        raise ValueError(f"keys have 1 to {KEY_LIMIT} bytes, not {len(key)}")
    return key


class SimReadTxn:
    def __init__(self, state: State, steps: Steps) -> None:
        self._state = state
        self._steps = steps
        self._changes = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        self._steps.check()
        return self._state[table].rows.get(_checked(key))

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(table, key) for key in keys]

    def scan(self, table: str, prefix: bytes = b"", start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        self._steps.check()
        rows, order = self._state[table].rows, self._state[table].order
        changes = self._changes
        at = bisect_left(order, prefix if start is None else max(prefix, start))
        while at < len(order) and order[at].startswith(prefix):
            yield order[at], rows[order[at]]
            if self._changes != changes:
                raise RuntimeError("written to during a scan")
            at += 1

    def last(self, table: str, prefix: bytes = b"", before: bytes | None = None) -> tuple[bytes, bytes] | None:
        self._steps.check()
        rows, order = self._state[table].rows, self._state[table].order
        at = len(order) if before is None else bisect_left(order, before)
        found = next((key for key in reversed(order[:at]) if key.startswith(prefix)), None)
        return None if found is None else (found, rows[found])

    def count(self, table: str) -> int:
        self._steps.check()
        return len(self._state[table].rows)


class SimWriteTxn(SimReadTxn):
    """Works on copies of the tables that it touches; `_state` is what a commit would publish."""

    def __init__(self, state: State, steps: Steps) -> None:
        super().__init__(state.copy(), steps)
        self._own: set[str] = set()

    def _owned(self, table: str) -> Table:
        self._steps.check()
        self._changes += 1
        if table not in self._own:
            self._state[table] = self._state[table].copy()
            self._own.add(table)
        return self._state[table]

    def put(self, table: str, key: bytes, value: bytes) -> None:
        owned = self._owned(table)
        if _checked(key) not in owned.rows:
            insort(owned.order, key)
        owned.rows[bytes(key)] = bytes(value)

    def put_many(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        self._owned(table)
        for key, value in rows:
            self.put(table, key, value)

    def append_many(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        order = self._owned(table).order
        for key, value in rows:
            if order and _checked(key) <= order[-1]:
                raise ValueError("appended rows do not ascend")
            self.put(table, key, value)

    def put_new(self, table: str, rows: Sequence[tuple[bytes, bytes]]) -> list[int]:
        owned = self._owned(table)
        for key, value in rows:
            if key not in owned.rows:
                self.put(table, key, value)
        return [i for i, (key, value) in enumerate(rows) if owned.rows[key] != value]

    def delete(self, table: str, key: bytes) -> bool:
        owned = self._owned(table)
        if owned.rows.pop(_checked(key), None) is None:
            return False
        del owned.order[bisect_left(owned.order, key)]
        return True

    def clear(self, table: str) -> None:
        self._owned(table)
        self._state[table] = Table({}, [])


class SimIndex:
    """`Index` in memory.

    `run_twice` runs every body once in vain before the run that counts, as a store does that has to grow: it
    catches bodies that are not re-runnable.
    """

    def __init__(self, steps: Steps | None = None, *, state: State | None = None, run_twice: bool = False) -> None:
        self.steps = steps if steps is not None else Steps()
        self.history: list[State] = [state if state is not None else empty_state()]
        self.generation = 0
        self.ballast = True
        self._run_twice = run_twice
        self._gate = TransactionGate()
        self._writing = threading.Lock()
        self._closed = False

    @contextmanager
    def read(self) -> Iterator[ReadTxn]:
        with self._transaction():
            yield SimReadTxn(self.history[-1], self.steps)

    def write(self, body: Callable[[WriteTxn], T]) -> T:
        with self._transaction(), self._writing:
            if self._run_twice:
                body(SimWriteTxn(self.history[-1], self.steps))
            txn = SimWriteTxn(self.history[-1], self.steps)
            result = body(txn)
            if txn._own:
                self.steps.step("index commit")
                self.history.append(txn._state)
                self.steps.step("index committed")
            return result

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.steps.check()
        if self._closed:
            raise RuntimeError("the index is closed")
        entered = self._gate.enter()
        try:
            yield
        finally:
            self._gate.leave(entered)

    def discard(self) -> None:
        self.throw_away()

    def release_ballast(self) -> None:
        self.ballast = False

    def restore_ballast(self) -> bool:
        self.ballast = True
        return True

    def close(self) -> None:
        self._closed = True

    def throw_away(self) -> None:
        """What happens to the handle when somebody removes the files under it."""
        self.history.append(empty_state())
        self.generation += 1

    def possible_states(self, steps: Steps | None = None) -> Iterator[SimIndex]:
        """What a power cut now may leave: each committed state, the newest first, and last an empty index.

        Each is an index of its own on a machine that runs on `steps`, which all of them share.
        """
        for state in reversed(self.history):
            yield SimIndex(steps, state=state, run_twice=self._run_twice)
        yield SimIndex(steps, run_twice=self._run_twice)

    def rows(self, table: str) -> dict[bytes, bytes]:
        """All rows of the newest state, for comparisons; also on a machine that has crashed."""
        return dict(self.history[-1][table].rows)
