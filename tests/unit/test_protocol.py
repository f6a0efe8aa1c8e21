"""The protocol's state machine, without any I/O: what it accepts, and that nothing else gets through."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packnback import errors
from packnback.errors import PacknbackError, ProtocolViolation, RemoteVersion
from packnback.format import cbor
from packnback.gc.maintenance import Checked
from packnback.remote import failures, frames, values
from packnback.remote.frames import Frame, Side
from packnback.remote.protocol import VERSION, Closed, Connection
from packnback.remote.table import BY_CODE, SPECS, CborBody
from packnback.store.check import CheckReport
from packnback.store.damage import Finding

DOCUMENTED = (ProtocolViolation, RemoteVersion)
ID = bytes(range(32))
CONFIG = b"PNBF" + bytes(100)
TEXT = st.text(max_size=40)
FACTS = st.dictionaries(TEXT, st.one_of(TEXT, st.integers(0, 1 << 62), st.binary(max_size=40)), max_size=4)
IDS = st.integers(1, 20).map(lambda n: ID * n)
NUMBER = st.integers(0, (1 << 63) - 1)
STREAM = st.integers(0, (1 << 32) - 1)
FLAG = st.booleans()
NAMES = st.lists(TEXT, max_size=4)
BLOB = st.binary(max_size=64)

EXAMPLES: dict[type[Frame], tuple[st.SearchStrategy, ...]] = {
    frames.Hello: (TEXT,),
    frames.Ping: (),
    frames.OpenSession: (BLOB, NUMBER),
    frames.Has: (IDS,),
    frames.Put: (st.binary(max_size=3000),),
    frames.Flush: (),
    frames.GetHead: (),
    frames.Commit: (st.binary(max_size=3000),),
    frames.CloseSession: (),
    frames.BeginReading: (NUMBER,),
    frames.EndReading: (),
    frames.ListSnapshots: (),
    frames.ReadSnapshot: (TEXT,),
    frames.Get: (STREAM, IDS),
    frames.More: (STREAM, NUMBER),
    frames.Cancel: (STREAM,),
    frames.AskTime: (FLAG,),
    frames.Forget: (NAMES, FLAG),
    frames.Recover: (NAMES,),
    frames.Compact: (NUMBER, NUMBER, FLAG, FLAG, NUMBER),
    frames.Check: (FLAG, NUMBER, FLAG, IDS, NUMBER),
    frames.AskStats: (FLAG,),
    frames.AskGaps: (),
    frames.AskReleased: (),
    frames.Welcome: (TEXT, BLOB, st.lists(st.text(max_size=8), max_size=4)),
    frames.Failure: (TEXT, FACTS),
    frames.Farewell: (TEXT, FACTS),
    frames.Done: (),
    frames.Opened: (NUMBER, st.none() | NUMBER),
    frames.Present: (BLOB,),
    frames.Flushed: (NUMBER,),
    frames.HeadIs: (NUMBER, BLOB, BLOB, BLOB),
    frames.CommittedAs: (TEXT, st.just(ID), NUMBER, NUMBER),
    frames.Snapshots: (st.lists(NUMBER, max_size=4), st.just(False)),
    frames.SnapshotFile: (st.binary(max_size=3000),),
    frames.Object: (STREAM, st.just(ID), BLOB, st.binary(max_size=3000)),
    frames.Trouble: (STREAM, st.just(ID), TEXT, FACTS),
    frames.StreamEnd: (STREAM,),
    frames.Time: (NUMBER,),
    frames.Names: (NAMES,),
    frames.Answer: (st.lists(NUMBER, max_size=4),),
    frames.Progress: (st.text(max_size=16), TEXT, NUMBER, TEXT),
}
REQUEST_OF = {spec.reply: cls for cls, spec in SPECS.items() if spec.reply is not None}


def joined(pieces: list[frames.Buffer]) -> bytes:
    return b"".join(pieces)


def example(cls: type[Frame]) -> st.SearchStrategy[Frame]:
    return st.tuples(*EXAMPLES[cls]).map(lambda values: cls(*values))


def smallest(cls: type[Frame]) -> Frame:
    """Some frame of a class, the same in every run."""
    simple = {TEXT: "x", BLOB: b"x", NUMBER: 1, STREAM: 1, FLAG: False, IDS: ID, NAMES: ["x"], FACTS: {}}
    special = {
        frames.Welcome: frames.Welcome("x", CONFIG, ["put"]),
        frames.Opened: frames.Opened(1, None),
        frames.CommittedAs: frames.CommittedAs("x", ID, 1, 1),
        frames.Snapshots: frames.Snapshots([], False),
        frames.Object: frames.Object(1, ID, b"", b"x"),
        frames.Trouble: frames.Trouble(1, ID, "x", {}),
        frames.Answer: frames.Answer([]),
        frames.Put: frames.Put(b"x"),
        frames.Commit: frames.Commit(b"x"),
        frames.SnapshotFile: frames.SnapshotFile(b"x"),
        frames.Progress: frames.Progress("note", "x", 0, ""),
    }
    return special.get(cls) or cls(*(simple[s] for s in EXAMPLES[cls]))


def pair() -> tuple[Connection, Connection]:
    """A client and a server that have greeted each other."""
    client, server = Connection(Side.CLIENT), Connection(Side.SERVER)
    server.receive(joined(client.send(frames.Hello("p"))))
    client.receive(joined(server.send(frames.Welcome("p", CONFIG, []))))
    assert isinstance(server.next_event(), frames.Hello)
    assert isinstance(client.next_event(), frames.Welcome)
    return client, server


def prepared_for(cls: type[Frame]) -> tuple[Connection, Connection]:
    """(sender, receiver) between which a frame of this class may be sent now."""
    if cls is frames.Hello:
        return Connection(Side.CLIENT), Connection(Side.SERVER)
    if cls is frames.Welcome:
        return Connection(Side.SERVER), Connection(Side.CLIENT)
    client, server = pair()
    request = {frames.Failure: frames.Flush, frames.Progress: frames.AskGaps}.get(cls) or REQUEST_OF.get(cls)
    if request is not None:
        server.receive(joined(client.send(smallest(request))))
        server.next_event()
    return (client, server) if SPECS[cls].sender is Side.CLIENT else (server, client)


def test_every_frame_has_an_example_and_codes_tell_the_sender() -> None:
    assert set(EXAMPLES) == set(SPECS) == set(BY_CODE.values())
    assert len(BY_CODE) == len(SPECS)
    assert all((code >= 0x80) == (SPECS[cls].sender is Side.SERVER) for code, cls in BY_CODE.items())
    for cls, spec in SPECS.items():
        if isinstance(spec.body, CborBody):
            assert len(spec.body.checks) == len(cls.__struct_fields__), cls


@pytest.mark.parametrize("cls", list(SPECS), ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_what_is_sent_arrives_in_whatever_pieces(cls: type[Frame], data: st.DataObject) -> None:
    frame = data.draw(example(cls))
    sender, receiver = prepared_for(cls)
    wire = joined(sender.send(frame))
    step = data.draw(st.integers(1, max(1, len(wire))))
    found = []
    for at in range(0, len(wire), step):
        receiver.receive(wire[at : at + step])
        event = receiver.next_event()
        if event is not None:
            found.append(event)
    assert found == [frame]
    assert receiver.next_event() is None


@pytest.mark.parametrize("cls", list(SPECS), ids=lambda cls: cls.__name__)
def test_a_frame_beyond_its_limit_is_refused_by_its_head_alone(cls: type[Frame]) -> None:
    sender, receiver = prepared_for(cls)
    wire = joined(sender.send(smallest(cls)))
    greeting = wire[: wire.index(b"\n") + 1] if cls in (frames.Hello, frames.Welcome) else b""
    receiver.receive(greeting + struct.pack("<IB", SPECS[cls].limit + 1, SPECS[cls].code))
    with pytest.raises(ProtocolViolation) as caught:
        receiver.next_event()
    assert caught.value.what == cls.__name__
    with pytest.raises(ProtocolViolation):
        receiver.next_event()


@pytest.mark.parametrize("side", list(Side))
@given(junk=st.binary(max_size=400), ended=st.booleans())
def test_junk_raises_only_what_is_documented(side: Side, junk: bytes, ended: bool) -> None:
    for connection in (Connection(side), pair()[0 if side is Side.CLIENT else 1]):
        connection.receive(junk)
        if ended:
            connection.receive(b"")
        try:
            while (event := connection.next_event()) is not None and not isinstance(event, Closed):
                assert isinstance(event, Frame)
        except DOCUMENTED:
            continue


@pytest.mark.parametrize("cls", list(SPECS), ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_altered_frames_raise_only_what_is_documented(cls: type[Frame], data: st.DataObject) -> None:
    sender, receiver = prepared_for(cls)
    wire = bytearray(joined(sender.send(data.draw(example(cls)))))
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    receiver.receive(bytes(wire))
    receiver.receive(b"")
    try:
        while not isinstance(receiver.next_event(), Closed):
            pass
    except DOCUMENTED:
        pass


@pytest.mark.parametrize("cls", [c for c, s in SPECS.items() if isinstance(s.body, CborBody)])
@given(value=st.recursive(st.none() | st.booleans() | NUMBER | BLOB | TEXT, lambda v: st.lists(v, max_size=6)))
def test_other_values_in_a_frame_raise_only_what_is_documented(cls: type[Frame], value: object) -> None:
    _, receiver = prepared_for(cls)
    body = cbor.encode(value)
    first = b"packnback-wire 1\n" if cls in (frames.Hello, frames.Welcome) else b""
    receiver.receive(first + struct.pack("<IB", len(body), SPECS[cls].code) + body)
    try:
        event = receiver.next_event()
    except ProtocolViolation:
        return
    assert event is None or type(event) is cls


def test_another_version_is_told_apart_from_another_program() -> None:
    client = Connection(Side.CLIENT)
    client.receive(b"packnback-wire 7\n")
    with pytest.raises(RemoteVersion) as caught:
        client.next_event()
    assert (caught.value.ours, caught.value.theirs) == (VERSION, 7)
    client = Connection(Side.CLIENT)
    client.receive(b"Welcome to Debian! You have new mail.\n")
    with pytest.raises(ProtocolViolation) as violation:
        client.next_event()
    assert "You have new mail" in violation.value.why


@pytest.mark.parametrize("number", [b"", b"99999999999999999999999999999", b"1x", b"-1", b" 1"])
def test_greetings_that_are_none(number: bytes) -> None:
    client = Connection(Side.CLIENT)
    client.receive(b"packnback-wire " + number + b"\n")
    with pytest.raises(DOCUMENTED):
        client.next_event()


def test_answers_come_in_turn_or_not_at_all() -> None:
    for wrong in (frames.Done(), frames.Flushed(1), frames.Failure("Refused", {"reason": "x"})):
        client, _ = pair()
        client.receive(b"".join(lawless(wrong)))
        with pytest.raises(ProtocolViolation):
            client.next_event()
    client, server = pair()
    server.receive(joined(client.send(frames.Flush())) + joined(client.send(frames.GetHead())))
    server.next_event(), server.next_event()
    with pytest.raises(ValueError):
        server.send(frames.HeadIs(0, b"", b"", b""))
    client.receive(joined(server.send(frames.Flushed(3))) + joined(server.send(frames.HeadIs(0, b"", b"", b""))))
    assert [client.next_event(), client.next_event()] == [frames.Flushed(3), frames.HeadIs(0, b"", b"", b"")]
    assert client.outstanding == 0


def lawless(frame: Frame) -> list[bytes]:
    """A frame as a server that keeps no rules would send it."""
    spec = SPECS[type(frame)]
    body = b"".join(spec.body.encode(frame))
    return [struct.pack("<IB", len(body), spec.code), body]


@pytest.mark.parametrize("frame", [frames.Welcome("p", CONFIG, []), frames.Hello("p")])
def test_no_second_greeting(frame: Frame) -> None:
    client, server = pair()
    receiver = client if isinstance(frame, frames.Welcome) else server
    receiver.receive(b"".join(lawless(frame)))
    with pytest.raises(ProtocolViolation):
        receiver.next_event()


def test_nothing_before_the_greeting_but_a_farewell() -> None:
    client = Connection(Side.CLIENT)
    client.receive(b"packnback-wire 1\n" + b"".join(lawless(frames.Progress("note", "x", 0, ""))))
    with pytest.raises(ProtocolViolation):
        client.next_event()
    client = Connection(Side.CLIENT)
    client.receive(joined(Connection(Side.SERVER).send(frames.Farewell("NotARepository", {"path": "x"}))))
    assert client.next_event() == frames.Farewell("NotARepository", {"path": "x"})


@pytest.mark.parametrize("asked", [None, frames.Flush])
def test_progress_is_told_only_of_what_takes_long(asked: type[Frame] | None) -> None:
    client, server = pair()
    if asked is not None:
        server.receive(joined(client.send(smallest(asked))))
        server.next_event()
    client.receive(joined(server.send(frames.Progress("note", "x", 0, ""))))
    with pytest.raises(ProtocolViolation):
        client.next_event()


def test_the_end_tells_whether_something_was_cut_off() -> None:
    client, server = pair()
    wire = joined(server.send(frames.StreamEnd(7)))
    client.receive(wire[:-1])
    client.receive(b"")
    assert client.next_event() == Closed(True)
    client, _ = pair()
    client.receive(b"")
    assert client.next_event() == Closed(False)


# --- errors ---------------------------------------------------------------------------------------------------


def instances() -> list[PacknbackError]:
    return [
        errors.NotARepository("/srv/x"),
        errors.ObjectMissing(ID, "y"),
        errors.ObjectMissing(ID),
        errors.Locked("/srv/x/lock", "pid 3: compact", 2.5),
        errors.NotAllowed("get", "role"),
        errors.DamageBlocks("files", ["a", "b"]),
        errors.ClientTimeRefused(1, 2),
        errors.QuotaExceeded(5, 4),
        errors.StaleSequence(3, 4),
    ]


@pytest.mark.parametrize("error", instances(), ids=lambda e: type(e).__name__)
def test_errors_cross_the_wire(error: PacknbackError) -> None:
    again = failures.understand(*failures.tell(error, redact=False), "host")
    assert type(again) is type(error)
    assert again.facts() == error.facts()


def test_a_client_is_not_told_about_the_far_machine() -> None:
    for error in (errors.NotARepository("/srv/secret"), errors.Locked("/srv/secret", "pid 3: secret", 0.0)):
        assert "secret" not in str(failures.tell(error, redact=True))
    assert failures.tell(errors.KeyMissing("/root/owner.key"), redact=True)[0] == "RemoteFailed"


def concrete(cls: type[PacknbackError]) -> set[type[PacknbackError]]:
    """The classes of the tree that are raised: those with facts of their own, or without subclasses."""
    below = set().union(*map(concrete, cls.__subclasses__()))
    return below | ({cls} if cls.DECLARED or not below else set())


def test_every_error_crosses_the_wire_or_is_known_not_to() -> None:
    """What is in neither set is told as "internal" when a server raises it."""
    at_home = {
        "AlreadyExists", "ChainAlarm", "CommandFailed", "KeyCannot", "KeyDamaged", "KeyMissing", "NothingToBackUp",
        "PassphraseNeeded", "PassphraseSourceFailed", "PathUnknown", "SnapshotAmbiguous", "StateDamaged",
        "StateUnusable", "UsageError", "WrongPassphrase", "WrongRepository",
    }  # fmt: skip
    unknown = {cls.__name__ for cls in concrete(PacknbackError)} - failures._BY_NAME.keys()
    assert unknown == at_home


def test_what_a_user_is_told_to_try_comes_from_this_side() -> None:
    facts = {"host": "there", "why": "ssh", "detail": "lost", "address": "-o ProxyCommand=evil"}
    told = failures.understand("RemoteFailed", facts, "here")
    assert told.facts() == {"host": "here", "why": "ssh", "detail": "lost"}


@given(name=st.sampled_from([*(cls.__name__ for cls in failures._TOLD), "KeyMissing", "x", "Exception"]), facts=FACTS)
def test_any_error_that_comes_is_an_error_of_the_tree(name: str, facts: dict[str, object]) -> None:
    assert isinstance(failures.understand(name, facts, "host"), PacknbackError)


@given(
    facts=st.dictionaries(st.sampled_from(["path", "id", "why", "reason", "holder", "used"]), TEXT | NUMBER | BLOB)
)
def test_facts_of_wrong_types_are_refused(facts: dict[str, object]) -> None:
    made = failures.understand("Locked", facts, "host")
    assert isinstance(made, ProtocolViolation) or all(isinstance(v, str | float) for v in made.facts().values())


# --- the document ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", list(SPECS), ids=lambda cls: cls.__name__)
def test_docs_protocol_says_the_same(cls: type[Frame]) -> None:
    document = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    spec = SPECS[cls]
    [row] = [line for line in document.splitlines() if line.startswith(f"| {spec.code:#04x} |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == f"`{cls.__name__}`"
    assert all(field in cells[2] for field in cls.__struct_fields__)
    assert cells[3] == str(spec.limit)
    if spec.reply is not None:
        assert f"`{spec.reply.__name__}`" in cells[4]


def test_the_worst_check_crosses_the_wire() -> None:
    """A year of snapshots and some lost packs: tens of thousands of objects, each of which many snapshots need."""
    names = {f"{'ab' * 16}-{number:016x}.snap": "cd" * 32 for number in range(365)}
    ordered = tuple(names)
    touched = [ordered[first:] for first in range(0, 365, 30)]
    damage = [Finding("object", f"{i:064x}", "missing", touched[i % len(touched)]) for i in range(50_000)]
    checked = Checked(CheckReport(1, 2, 3, damage), names)
    client, server = pair()
    server.receive(joined(client.send(frames.Check(False, frames.PPM, False, b"", 0))))
    server.next_event()
    client.receive(joined(server.send(frames.Answer(values.encode(checked)))))
    answer = client.next_event()
    assert isinstance(answer, frames.Answer)
    assert values.decode(Checked, answer.value) == checked
    assert checked.standing == damage


def test_findings_that_nobody_could_read() -> None:
    """Some MiB that would be told as some TiB."""
    rows = [["object", "x", "missing", 0, b""]] * 100_000
    with pytest.raises(ProtocolViolation):
        values.decode_findings([[["name"] * 10_000], rows])
    with pytest.raises(ProtocolViolation):
        values.decode_findings([[["name"]], [["object", "x", "missing", 1, b""]]])
