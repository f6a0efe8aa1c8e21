"""The queue of bytes that came: nothing is lost or turned round, and small pieces do not pile up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packnback.ids import KIB, MIB
from packnback.remote import inbox
from packnback.remote.inbox import Inbox


@given(st.data(), st.lists(st.binary(max_size=40), max_size=30))
def test_a_queue_of_bytes(data: st.DataObject, pieces: list[bytes]) -> None:
    queue, whole = Inbox(), b""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inbox, "_SMALL", 16)
        for piece in pieces:
            queue.add(piece)
            whole += piece
            ahead = data.draw(st.integers(0, 60))
            assert queue.peek(ahead) == whole[:ahead]
            count = data.draw(st.integers(0, len(whole)))
            assert queue.take(count) == whole[:count]
            whole = whole[count:]
            assert len(queue) == len(whole)
    with pytest.raises(ValueError, match="bytes of"):
        queue.take(len(whole) + 1)
    queue.clear()
    assert not queue
    assert queue.peek(5) == b""


def test_what_comes_byte_by_byte_takes_no_more_room() -> None:
    queue = Inbox()
    for _ in range(MIB):
        queue.add(b"ab")
    assert len(queue._pieces) <= 2 * MIB // (64 * KIB) + 1
    assert queue.take(2 * MIB) == b"ab" * MIB
