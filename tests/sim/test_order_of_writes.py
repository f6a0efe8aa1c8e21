"""The sweeps notice every fault in the order of writes: a crash test that cannot fail is worth nothing."""

from __future__ import annotations

import pytest
from invariants import Broken
from mutations import MUTATIONS, Mutation
from sweep import small_packs


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name.replace(" ", "-"))
def test_a_fault_in_the_order_of_writes_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    small_packs(monkeypatch)
    mutation.apply(monkeypatch)
    with pytest.raises(Broken) as noticed:
        mutation.proof()
    print(mutation.name, "→", noticed.value)
    assert str(noticed.value).startswith(mutation.breaks)
