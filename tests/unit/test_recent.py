"""The bounded memory of what was noted lately."""

from __future__ import annotations

from packnback.recent import Recent


def test_what_is_asked_for_now_and_then_stays() -> None:
    recent = Recent[int, str](8)
    recent.note(0, "kept")
    for key in range(1, 1000):
        recent.note(key, str(key))
        assert len(recent) <= 8
        if key % 3 == 0:
            assert recent.get(0) == "kept"
    assert recent.get(999) == "999" and recent.get(1) is None


def test_the_last_word_counts() -> None:
    recent = Recent[bytes, bool](4)
    for value in (True, False, True, False):
        recent.note(b"k", value)
        assert recent.get(b"k") is value
    for key in (b"a", b"b", b"c"):
        recent.note(key, True)
    recent.note(b"k", True)
    assert recent.get(b"k") is True, "not what an older generation says"
