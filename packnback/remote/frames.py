"""What is said over a connection: one class for each frame. How each looks in bytes: `packnback.remote.table`."""

from __future__ import annotations

from enum import Enum
from typing import Any

from msgspec import Struct

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


class Frame(Struct, frozen=True):
    """Base of all frames; an event of the protocol."""


# --- from the client ---------------------------------------------------------------------------------------


class Hello(Frame, frozen=True):
    """The first frame of a client."""

    program: str


class Ping(Frame, frozen=True):
    """Keeps a connection from being given up as idle. Not answered."""


class OpenSession(Frame, frozen=True):
    """Open a session for the client that the certificate names; wait so long for the lock."""

    certificate: bytes
    wait_ms: int


class Has(Frame, frozen=True):
    """Which of these objects (ids, concatenated) are there, complete?"""

    ids: bytes


class Put(Frame, frozen=True):
    """One whole record. Not answered: what is wrong with it is told in the answer to the next request."""

    record: Buffer


class Flush(Frame, frozen=True):
    """Make everything put so far durable."""


class GetHead(Frame, frozen=True):
    """The client's newest snapshot?"""


class Commit(Frame, frozen=True):
    """A snapshot file without receipt: flush, then publish it."""

    snapshot: Buffer


class CloseSession(Frame, frozen=True):
    """End the session; what was put and not flushed is forgotten."""


class BeginReading(Frame, frozen=True):
    """Hold the repository's lock shared until `EndReading`."""

    wait_ms: int


class EndReading(Frame, frozen=True):
    """Let go of the lock."""


class ListSnapshots(Frame, frozen=True):
    """Every snapshot, as far as the repository knows it."""


class ReadSnapshot(Frame, frozen=True):
    """One snapshot file, by its name."""

    name: str


class Get(Frame, frozen=True):
    """Stream these objects (ids, concatenated) under a number that is not in use. Ends with `StreamEnd`."""

    stream: int
    ids: bytes


class More(Frame, frozen=True):
    """So many bytes of a stream have been consumed: so many more may be sent."""

    stream: int
    count: int


class Cancel(Frame, frozen=True):
    """The rest of a stream is not wanted."""

    stream: int


class AskTime(Frame, frozen=True):
    """The repository's clock, if it can be believed (or with `force`)."""

    force: bool


class Forget(Frame, frozen=True):
    """Forget snapshots, by name."""

    names: list[str]
    force: bool


class Recover(Frame, frozen=True):
    """Take `Forget` back."""

    names: list[str]


class Compact(Frame, frozen=True):
    """Compact: grace in ns, waste in millionths."""

    grace_ns: int
    max_waste_ppm: int
    force: bool
    dry_run: bool
    wait_ms: int


class Check(Frame, frozen=True):
    """Check: sample in millionths of all packs; `repair` needs the verb ``compact`` too."""

    read_data: bool
    sample_ppm: int
    repair: bool
    bad: bytes
    wait_ms: int


class AskStats(Frame, frozen=True):
    """Sizes; with `alone` also what each snapshot alone holds."""

    alone: bool


class AskGaps(Frame, frozen=True):
    """Where history has holes?"""


class AskReleased(Frame, frozen=True):
    """Which snapshots were released?"""


# --- from the server ----------------------------------------------------------------------------------------


class Welcome(Frame, frozen=True):
    """The first frame of a server: its version, the repository's config file, the verbs that it allows."""

    program: str
    config: bytes
    verbs: list[str]


class Failure(Frame, frozen=True):
    """The answer to a request that failed: an error's class, and its facts."""

    name: str
    facts: dict[str, Any]


class Farewell(Frame, frozen=True):
    """An error that ends the connection."""

    name: str
    facts: dict[str, Any]


class Done(Frame, frozen=True):
    """It is done."""


class Opened(Frame, frozen=True):
    """The session is open. Bytes that the client's records take, and its quota, if there is one."""

    used: int
    quota: int | None


class Present(Frame, frozen=True):
    """A bit for each id of `Has`, lowest bit first."""

    bits: bytes


class Flushed(Frame, frozen=True):
    """Everything is durable. Bytes that this session has published."""

    published: int


class HeadIs(Frame, frozen=True):
    """The client's head: time of receipt, and the signed header with its certificate; all empty without one."""

    received_ns: int
    header: bytes
    signature: bytes
    certificate: bytes


class CommittedAs(Frame, frozen=True):
    """The snapshot is published. No counter: put clients are not told how much others store."""

    name: str
    id: bytes
    received_ns: int
    published: int


class Snapshots(Frame, frozen=True):
    """Some snapshots (`packnback.remote.values`), and whether more are to come."""

    rows: list[Any]
    more: bool


class SnapshotFile(Frame, frozen=True):
    """A snapshot file, with its receipt."""

    data: Buffer


class Object(Frame, frozen=True):
    """An object of a stream. An empty envelope means: that of the stream's object before."""

    stream: int
    id: bytes
    envelope: bytes
    record: bytes | memoryview


class Trouble(Frame, frozen=True):
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


class StreamEnd(Frame, frozen=True):
    """Nothing more comes of a stream."""

    stream: int


class Time(Frame, frozen=True):
    """The repository's clock."""

    now_ns: int


class Names(Frame, frozen=True):
    """What was done, by name."""

    names: list[str]


class Answer(Frame, frozen=True):
    """A value of `packnback.remote.values`."""

    value: Any


class Progress(Frame, frozen=True):
    """How a long request is getting on: ``begin`` (phase, total, unit), ``advance`` (amount) or ``note``."""

    kind: str
    text: str
    amount: int
    unit: str
