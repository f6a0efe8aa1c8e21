"""What is said over a connection: one class for each frame. How each looks in bytes: `packnback.remote.table`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from packnback.ids import BODY_LIMIT, ID_LEN, KIB, MIB, REFS_LIMIT

Buffer = bytes | bytearray | memoryview

HAS_LIMIT = 4096
"""Ids in one `Has`."""
GET_LIMIT = 1 << 16
"""Ids in one `Get`."""
NAMES_LIMIT = 1 << 17
"""Snapshots, or bad ids, in one request."""
WINDOW = 16 * MIB
"""Bytes that the frames of a stream (`cost`) may be ahead of what its reader has asked for (`More`)."""
STREAMS_MAX = 4
"""Streams that may be open at a time: those that were asked for, and whose end has not been sent."""
OBJECT_COST = 64
TROUBLE_LIMIT = 64 * KIB
TROUBLE_COST = TROUBLE_LIMIT // 4
"""What one takes of the window, however long it is: a thousand are under way at most."""
PPM = 1_000_000
"""Parts in which shares are told, as frames hold no fractions."""
RECORD_LIMIT = 64 + REFS_LIMIT * ID_LEN + BODY_LIMIT + 16
OBJECT_LIMIT = RECORD_LIMIT + 4 * KIB
"""A record, its envelope, and what the frame says of them."""


class Side(Enum):
    """The two ends of a connection."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> Side:
        """The other end."""
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT


@dataclass(frozen=True, slots=True)
class Frame:
    """Base of all frames; an event of the protocol."""


# --- from the client ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Frame):
    """The first frame of a client."""

    program: str


@dataclass(frozen=True, slots=True)
class Ping(Frame):
    """Keeps a connection from being given up as idle. Not answered."""


@dataclass(frozen=True, slots=True)
class OpenSession(Frame):
    """Open a session for the client that the certificate names; wait so long for the lock."""

    certificate: bytes
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Has(Frame):
    """Which of these objects (ids, concatenated) are there, complete?"""

    ids: bytes


@dataclass(frozen=True, slots=True)
class Put(Frame):
    """One whole record. Not answered: what is wrong with it is told in the answer to the next request."""

    record: Buffer


@dataclass(frozen=True, slots=True)
class Flush(Frame):
    """Make everything put so far durable."""


@dataclass(frozen=True, slots=True)
class GetHead(Frame):
    """The client's newest snapshot?"""


@dataclass(frozen=True, slots=True)
class Commit(Frame):
    """A snapshot file without receipt: flush, then publish it."""

    snapshot: Buffer


@dataclass(frozen=True, slots=True)
class CloseSession(Frame):
    """End the session; what was put and not flushed is forgotten."""


@dataclass(frozen=True, slots=True)
class BeginReading(Frame):
    """Hold the repository's lock shared until `EndReading`."""

    wait_ms: int


@dataclass(frozen=True, slots=True)
class EndReading(Frame):
    """Let go of the lock."""


@dataclass(frozen=True, slots=True)
class ListSnapshots(Frame):
    """Every snapshot, as far as the repository knows it."""


@dataclass(frozen=True, slots=True)
class ReadSnapshot(Frame):
    """One snapshot file, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Get(Frame):
    """Stream these objects (ids, concatenated) under a number that is not in use. Ends with `StreamEnd`."""

    stream: int
    ids: bytes


@dataclass(frozen=True, slots=True)
class More(Frame):
    """So many bytes of a stream have been consumed: so many more may be sent."""

    stream: int
    count: int


@dataclass(frozen=True, slots=True)
class Cancel(Frame):
    """The rest of a stream is not wanted."""

    stream: int


@dataclass(frozen=True, slots=True)
class AskTime(Frame):
    """The repository's clock, if it can be believed (or with `force`)."""

    force: bool


@dataclass(frozen=True, slots=True)
class Forget(Frame):
    """Forget snapshots, by name."""

    names: list[str]
    force: bool


@dataclass(frozen=True, slots=True)
class Recover(Frame):
    """Take `Forget` back."""

    names: list[str]


@dataclass(frozen=True, slots=True)
class Compact(Frame):
    """Compact: grace in ns, waste in millionths."""

    grace_ns: int
    max_waste_ppm: int
    force: bool
    dry_run: bool
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Check(Frame):
    """Check: sample in millionths of all packs; `repair` needs the verb ``compact`` too."""

    read_data: bool
    sample_ppm: int
    repair: bool
    bad: bytes
    wait_ms: int


@dataclass(frozen=True, slots=True)
class AskStats(Frame):
    """Sizes; with `alone` also what each snapshot alone holds."""

    alone: bool


@dataclass(frozen=True, slots=True)
class AskGaps(Frame):
    """Where history has holes?"""


@dataclass(frozen=True, slots=True)
class AskReleased(Frame):
    """Which snapshots were released?"""


# --- from the server ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome(Frame):
    """The first frame of a server: its version, the repository's config file, the verbs that it allows."""

    program: str
    config: bytes
    verbs: list[str]


@dataclass(frozen=True, slots=True)
class Failure(Frame):
    """The answer to a request that failed: an error's class, and its facts."""

    name: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Farewell(Frame):
    """An error that ends the connection."""

    name: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Done(Frame):
    """It is done."""


@dataclass(frozen=True, slots=True)
class Opened(Frame):
    """The session is open. Bytes that the client's records take, and its quota, if there is one."""

    used: int
    quota: int | None


@dataclass(frozen=True, slots=True)
class Present(Frame):
    """A bit for each id of `Has`, lowest bit first."""

    bits: bytes


@dataclass(frozen=True, slots=True)
class Flushed(Frame):
    """Everything is durable. Bytes that this session has published."""

    published: int


@dataclass(frozen=True, slots=True)
class HeadIs(Frame):
    """The client's head: time of receipt, and the signed header with its certificate; all empty without one."""

    received_ns: int
    header: bytes
    signature: bytes
    certificate: bytes


@dataclass(frozen=True, slots=True)
class CommittedAs(Frame):
    """The snapshot is published. No counter: put clients are not told how much others store."""

    name: str
    id: bytes
    received_ns: int
    published: int


@dataclass(frozen=True, slots=True)
class Snapshots(Frame):
    """Some snapshots (`packnback.remote.values`), and whether more are to come."""

    rows: list[Any]
    more: bool


@dataclass(frozen=True, slots=True)
class SnapshotFile(Frame):
    """A snapshot file, with its receipt."""

    data: Buffer


@dataclass(frozen=True, slots=True)
class Object(Frame):
    """An object of a stream. An empty envelope means: that of the stream's object before."""

    stream: int
    id: bytes
    envelope: bytes
    record: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Trouble(Frame):
    """An object of a stream that cannot be had."""

    stream: int
    id: bytes
    name: str
    facts: dict[str, Any]


def cost(frame: Object | Trouble) -> int:
    """Bytes that a frame takes of its stream's window. Each costs something, so that what piles up is bounded."""
    if isinstance(frame, Trouble):
        return TROUBLE_COST
    return OBJECT_COST + len(frame.envelope) + len(frame.record)


@dataclass(frozen=True, slots=True)
class StreamEnd(Frame):
    """Nothing more comes of a stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Time(Frame):
    """The repository's clock."""

    now_ns: int


@dataclass(frozen=True, slots=True)
class Names(Frame):
    """What was done, by name."""

    names: list[str]


@dataclass(frozen=True, slots=True)
class Answer(Frame):
    """A value of `packnback.remote.values`."""

    value: Any


@dataclass(frozen=True, slots=True)
class Progress(Frame):
    """How a long request is getting on: ``begin`` (phase, total, unit), ``advance`` (amount) or ``note``."""

    kind: str
    text: str
    amount: int
    unit: str
