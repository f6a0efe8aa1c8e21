"""What a client remembers of its own snapshots, and what it concludes from the repository's answer.

A repository that loses or hides snapshots, or a second machine that uses the same key, shows in the client's head
not being what the client remembers. So that a crash is never mistaken for one of these, the order is: store and
sync the header about to be published (the *intent*), publish it, then remember it as acknowledged. Intents are
kept until a snapshot with their number or a higher one is acknowledged: until then any of them may turn out to have
been published. After that none may, and a repository that shows one took back what it had acknowledged.

The file is held locked from looking at the head until the acknowledgement: two backups by one key on one machine
then come one after the other, and do not take each other for a clone.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from packnback.backup.state_file import StateFile
from packnback.errors import ChainAlarm
from packnback.format import cbor
from packnback.ids import HASH_LEN
from packnback.store.interface import Head

Link = tuple[int, bytes]
"""(sequence, snapshot id)."""
START: Link = (0, bytes(HASH_LEN))
"""What comes before the first snapshot."""


class Verdict(Enum):
    """What the repository's head means to a client."""

    GO_ON = "go-on"
    ADOPT = "adopt"
    """An own snapshot whose acknowledgement was lost in a crash."""
    REINSTALLED = "reinstalled"
    """The client remembers nothing, the repository does."""
    ROLLBACK = "rollback"
    IN_USE_ELSEWHERE = "in-use-elsewhere"
    FORK = "fork"

    @property
    def alarming(self) -> bool:
        """Whether a person has to look into it."""
        return self in (Verdict.ROLLBACK, Verdict.IN_USE_ELSEWHERE, Verdict.FORK)


class ClientState(Struct, frozen=True):
    """What is remembered."""

    head: Link = START
    """The newest snapshot that was acknowledged, or adopted."""
    intents: tuple[Link, ...] = ()
    lost: bool = False
    """Everything before `head` was forgotten, and no snapshot has said so yet."""
    accepted: tuple[tuple[int, str, str], ...] = ()
    """Alarms that somebody looked into: (time in ns, verdict, reason given)."""
    subject: bytes = b""
    """A hash of what the newest snapshot from here was of; empty if that is not known."""


def judge(head: Head | None, state: ClientState | None) -> Verdict:
    """Compare the repository's head for this client with what it remembers (None: nothing at all)."""
    found = (head.sequence, head.id) if head is not None else START
    if state is None:
        return Verdict.GO_ON if head is None else Verdict.REINSTALLED
    if found == state.head:
        return Verdict.GO_ON
    if found in state.intents and found[0] > state.head[0]:
        return Verdict.ADOPT
    if found[0] < state.head[0]:
        return Verdict.ROLLBACK
    return Verdict.IN_USE_ELSEWHERE if found[0] > state.head[0] else Verdict.FORK


def check(head: Head | None, state: ClientState | None, client: str) -> Verdict:
    """The verdict, if it is not alarming; raises ChainAlarm if it is. `client` is the client's name."""
    verdict = judge(head, state)
    if verdict.alarming:
        known = state.head[0] if state is not None else 0
        raise ChainAlarm(verdict.value, client, known, head.sequence if head is not None else 0)
    return verdict


class Chain:
    """The remembered state of one client in one repository."""

    def __init__(self, directory: bytes, repository_id: bytes, client_id: bytes) -> None:
        """`directory` is `state_file.state_directory()`."""
        path = posixpath.join(directory, repository_id.hex().encode(), client_id.hex().encode())
        self._file = StateFile(path, b"c")

    def load(self) -> ClientState | None:
        """What is remembered, or None. Raises StateDamaged."""
        value = self._file.load()
        return None if value is None else self._decode(value)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the state against other processes, from looking at the head until the acknowledgement."""
        with self._file.locked():
            yield

    def intend(self, head: Head | None, link: Link) -> None:
        """Remember, durably, that `link` is about to be published on top of `head`, which is hereby adopted."""
        state = self.load()
        lost = state.lost if state is not None else head is not None
        known = (head.sequence, head.id) if head is not None else START
        state = state or ClientState()
        intents = (*(i for i in state.intents if i != link), link)
        self._store(replace(state, head=known, intents=intents, lost=lost))

    def acknowledge(self, link: Link, subject: bytes = b"") -> None:
        """Remember, durably, that `link` was published, and what it is of."""
        state = self.load() or ClientState()
        intents = tuple(intent for intent in state.intents if intent[0] > link[0])
        self._store(replace(state, head=link, intents=intents, lost=False, subject=subject))

    def accept(self, head: Head | None, reason: str, now_ns: int) -> Verdict:
        """Go on from `head` although it raised an alarm that somebody looked into; returns what it was."""
        with self._file.locked():
            state = self.load()
            verdict = judge(head, state)
            state = state or ClientState(lost=head is not None)
            known = (head.sequence, head.id) if head is not None else START
            said = reason.encode("utf-8", "replace").decode()  # an argument may hold bytes that are no text
            accepted = (*state.accepted, (now_ns, verdict.value, said))
            self._store(replace(state, head=known, intents=(), accepted=accepted))
        return verdict

    def _store(self, state: ClientState) -> None:
        self._file.store(
            {
                "head": list(state.head),
                "intents": [list(intent) for intent in state.intents],
                "lost": state.lost,
                "subject": state.subject,
                "accepted": [list(each) for each in state.accepted],
            }
        )

    def _decode(self, value: Any) -> ClientState:
        try:
            state = ClientState(
                head=_link(value["head"]),
                intents=tuple(_link(intent) for intent in value["intents"]),
                lost=value["lost"] is True,
                subject=_subject(value.get("subject", b"")),
                accepted=tuple((int(time), str(verdict), str(why)) for time, verdict, why in value["accepted"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._file.damaged("it does not say what it should") from error
        return state


def _subject(value: Any) -> bytes:
    if type(value) is not bytes:
        raise ValueError("no hash")
    return value


def _link(value: Any) -> Link:
    sequence, snapshot = value
    if not cbor.is_uint(sequence) or type(snapshot) is not bytes or len(snapshot) != HASH_LEN:
        raise ValueError("no link of a chain")
    return sequence, snapshot
