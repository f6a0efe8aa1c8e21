"""The sweeps and meetings of two machines notice every fault in the two steps of a compaction."""

from __future__ import annotations

import pytest
from invariants import Broken
from mutations import Mutation
from sweep import small_packs
from two_machines_mutations import TWO_MACHINES


@pytest.mark.parametrize("mutation", TWO_MACHINES, ids=lambda m: m.name.replace(" ", "-"))
def test_a_fault_in_the_two_steps_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    small_packs(monkeypatch)
    mutation.apply(monkeypatch)
    with pytest.raises(Broken) as noticed:
        mutation.proof()
    print(mutation.name, "→", noticed.value)
    assert str(noticed.value).startswith(mutation.breaks)
