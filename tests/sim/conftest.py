"""What the simulations change in the program."""

from __future__ import annotations

import pytest

from packnback.store import bulk


@pytest.fixture(autouse=True)
def adopt_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that was lost is made by way of sorted rows, although the repositories here have a few packs only."""
    monkeypatch.setattr(bulk, "MANY_PACKS", 2)
