"""The error tree: how its classes are made."""

from __future__ import annotations

import pytest

from packnback.errors import FormatDamage, Locked, PackDamage, StorageFailed, Unreadable


def test_facts_are_given_in_order_or_by_name() -> None:
    error = FormatDamage("pack", why="too short")
    assert (error.what, error.why, error.where) == ("pack", "too short", None)
    assert error.facts() == {"what": "pack", "why": "too short"}
    assert Locked("/repo", holder="backup").waited_s == 0.0
    assert str(FormatDamage("pack", "short", "/x")) == "FormatDamage(what='pack', why='short', where='/x')"


def test_a_subclass_has_the_facts_of_its_base() -> None:
    assert Unreadable.DECLARED == StorageFailed.DECLARED == {"operation": "str", "path": "str", "reason": "str"}
    assert Unreadable("read", "/x", "I/O error").facts() == {"operation": "read", "path": "/x", "reason": "I/O error"}


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        pytest.param((), {}, id="nothing"),
        pytest.param(("p",), {}, id="one is missing"),
        pytest.param(("p", "w", 1, 2), {}, id="too many"),
        pytest.param(("p", "w"), {"where": "x"}, id="unknown"),
        pytest.param(("p", "w"), {"why": "x"}, id="twice"),
    ],
)
def test_other_facts_than_the_declared_ones_are_refused(facts: tuple[object, ...], named: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=r"PackDamage\(pack, why, offset\)"):
        PackDamage(*facts, **named)  # type: ignore[arg-type]
