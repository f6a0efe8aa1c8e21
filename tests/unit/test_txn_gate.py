"""The gate between transactions and changes of the map."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from packnback.store.txn_gate import TransactionGate


def started(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_a_waiting_change_goes_before_later_transactions() -> None:
    gate = TransactionGate()
    order: list[str] = []

    def change() -> None:
        with gate.exclusive():
            order.append("change")

    def transact() -> None:
        entered = gate.enter()
        order.append("transaction")
        gate.leave(entered)

    entered = gate.enter()
    changer = started(change)
    while not gate._changes_wanted:
        pass
    later = started(transact)
    later.join(0.1)
    assert order == []
    gate.leave(entered)
    changer.join(60)
    later.join(60)
    assert order == ["change", "transaction"]


def test_changes_take_turns() -> None:
    gate = TransactionGate()
    inside: list[int] = []
    most: list[int] = []

    def change() -> None:
        for _ in range(50):
            with gate.exclusive():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    for thread in [started(change) for _ in range(4)]:
        thread.join(60)
    assert len(most) == 200
    assert max(most) == 1


def test_an_interrupted_wait_leaves_the_gate_open(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = TransactionGate()
    passes: list[int] = []
    started(lambda: passes.append(gate.enter())).join()

    def interrupted(timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(gate._changed, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt), gate.exclusive():
        raise AssertionError("a transaction is live")
    monkeypatch.undo()
    gate.leave(gate.enter())
    gate.leave(passes[0])
    with gate.exclusive():
        pass


def test_an_exception_inside_leaves_the_gate_open() -> None:
    gate = TransactionGate()
    with pytest.raises(ZeroDivisionError), gate.exclusive():
        raise ZeroDivisionError
    gate.leave(gate.enter())


def test_a_thread_with_a_transaction_gets_no_second_one_and_no_change() -> None:
    gate = TransactionGate()
    entered = gate.enter()
    with pytest.raises(RuntimeError):
        gate.enter()
    with pytest.raises(RuntimeError), gate.exclusive():
        pass
    gate.leave(entered)
    with gate.exclusive():
        pass
