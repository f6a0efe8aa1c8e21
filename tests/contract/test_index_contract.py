"""What every implementation of the index port does. The simulated one has to be as strict as LMDB."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simindex import SimIndex
from steps import PowerCut, Steps

from packnback.store.index import KEY_LIMIT, TABLES, Index, ReadTxn, WriteTxn
from packnback.store.lmdb_index import LmdbIndex


class Stop(Exception):
    """Raised by bodies."""


def put(table: str, *rows: tuple[bytes, bytes]) -> Callable[[WriteTxn], None]:
    def body(txn: WriteTxn) -> None:
        for key, value in rows:
            txn.put(table, key, value)

    return body


def rows_of(index: Index, table: str = "objects") -> list[tuple[bytes, bytes]]:
    with index.read() as txn:
        return list(txn.scan(table))


class IndexContract(ABC):
    @pytest.fixture
    @abstractmethod
    def index(self, tmp_path: Path) -> Iterator[Index]:
        """An empty index."""

    def test_every_table_is_there_and_empty(self, index: Index) -> None:
        with index.read() as txn:
            assert {name: txn.count(name) for name in TABLES} == dict.fromkeys(TABLES, 0)
            assert list(txn.scan("objects")) == []
            assert list(txn.scan("objects", b"a")) == []

    def test_unknown_tables_are_refused(self, index: Index) -> None:
        with index.read() as txn, pytest.raises(KeyError):
            txn.get("nonsense", b"k")

    def test_tables_are_separate(self, index: Index) -> None:
        def body(txn: WriteTxn) -> None:
            for name in TABLES:
                txn.put(name, b"k", name.encode())

        index.write(body)
        with index.read() as txn:
            assert [txn.get(name, b"k") for name in TABLES] == [name.encode() for name in TABLES]

    def test_write_returns_what_the_body_returns(self, index: Index) -> None:
        assert index.write(lambda txn: ("done", txn.count("meta"))) == ("done", 0)

    def test_put_replaces(self, index: Index) -> None:
        index.write(put("meta", (b"k", b"1"), (b"k", b"2")))
        index.write(put("meta", (b"k", b"3")))
        assert rows_of(index, "meta") == [(b"k", b"3")]

    def test_values_may_be_empty_and_large(self, index: Index) -> None:
        large = bytes(range(256)) * 512
        assert len(large) == 128 * 1024
        index.write(put("refs", (b"empty", b""), (b"large", large)))
        with index.read() as txn:
            assert txn.get("refs", b"empty") == b""
            assert txn.get("refs", b"large") == large
            assert txn.get("refs", b"absent") is None

    def test_values_are_bytes(self, index: Index) -> None:
        index.write(put("meta", (b"k", b"v")))
        with index.read() as txn:
            [(key, value)] = txn.scan("meta")
            assert [type(x) for x in (key, value, txn.get("meta", b"k"))] == [bytes] * 3

    @pytest.mark.parametrize("key", [b"", b"k" * (KEY_LIMIT + 1)])
    def test_keys_out_of_bounds_are_refused(self, index: Index, key: bytes) -> None:
        with pytest.raises(ValueError):
            index.write(lambda txn: txn.put("meta", key, b""))
        with pytest.raises(ValueError):
            index.write(lambda txn: txn.put_many("meta", [(b"k", b""), (key, b"")]))
        assert rows_of(index, "meta") == []

    def test_the_longest_key_is_allowed(self, index: Index) -> None:
        index.write(put("meta", (b"k" * KEY_LIMIT, b"v")))
        assert rows_of(index, "meta") == [(b"k" * KEY_LIMIT, b"v")]

    def test_get_many_answers_in_the_order_of_the_keys(self, index: Index) -> None:
        index.write(put("objects", (b"a", b"1"), (b"b", b"2"), (b"c", b"")))
        with index.read() as txn:
            assert txn.get_many("objects", [b"c", b"x", b"a", b"a", b"b"]) == [b"", None, b"1", b"1", b"2"]
            assert txn.get_many("objects", []) == []

    def test_put_many(self, index: Index) -> None:
        rows = [(b"b", b"2"), (b"a", b"1"), (b"b", b"3")]
        index.write(lambda txn: txn.put_many("objects", iter(rows)))
        index.write(lambda txn: txn.put_many("objects", []))
        assert rows_of(index) == [(b"a", b"1"), (b"b", b"3")]

    def test_append_many(self, index: Index) -> None:
        index.write(put("objects", (b"a", b"1")))
        index.write(lambda txn: txn.append_many("objects", iter([(b"b", b"2"), (b"c", b"3")])))
        index.write(lambda txn: txn.append_many("objects", []))
        assert rows_of(index) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]

    @pytest.mark.parametrize("keys", [[b"a"], [b"b"], [b"c", b"c"], [b"d", b"c"]])
    def test_rows_that_do_not_ascend_are_not_appended(self, index: Index, keys: list[bytes]) -> None:
        index.write(put("objects", (b"b", b"1")))
        with pytest.raises(ValueError):
            index.write(lambda txn: txn.append_many("objects", [(key, b"2") for key in keys]))
        assert rows_of(index) == [(b"b", b"1")]

    def test_put_new(self, index: Index) -> None:
        index.write(put("objects", (b"a", b"1"), (b"c", b"3")))
        fresh = [(b"b", b"2"), (b"d", b"4")]
        assert index.write(lambda txn: txn.put_new("objects", fresh)) == []
        found = [(b"a", b"other"), (b"c", b"3"), (b"e", b"5"), (b"e", b"6"), (b"f", b"")]
        assert index.write(lambda txn: txn.put_new("objects", found)) == [0, 3]
        assert index.write(lambda txn: txn.put_new("objects", [])) == []
        kept = [(b"a", b"1"), (b"b", b"2"), (b"c", b"3"), (b"d", b"4"), (b"e", b"5"), (b"f", b"")]
        assert rows_of(index) == kept

    def test_an_exception_among_the_rows_aborts(self, index: Index) -> None:
        def rows() -> Iterator[tuple[bytes, bytes]]:
            yield b"a", b"1"
            raise Stop

        with pytest.raises(Stop):
            index.write(lambda txn: txn.put_many("objects", rows()))
        assert rows_of(index) == []

    def test_delete_says_whether_there_was_a_row(self, index: Index) -> None:
        index.write(put("objects", (b"a", b"1"), (b"b", b"")))
        assert index.write(lambda txn: [txn.delete("objects", k) for k in (b"b", b"x", b"b")]) == [True, False, False]
        assert rows_of(index) == [(b"a", b"1")]

    def test_clear_empties_one_table(self, index: Index) -> None:
        index.write(put("objects", (b"a", b"1")))
        index.write(put("packs", (b"p", b"1")))

        def body(txn: WriteTxn) -> int:
            txn.clear("objects")
            txn.put("objects", b"b", b"2")
            return txn.count("objects")

        assert index.write(body) == 1
        assert rows_of(index) == [(b"b", b"2")]
        assert rows_of(index, "packs") == [(b"p", b"1")]

    @pytest.mark.parametrize(
        ("prefix", "start", "expected"),
        [
            (b"", None, [b"\x00", b"a", b"ab", b"abc", b"b", b"ba", b"\xff", b"\xff\xff"]),
            (b"a", None, [b"a", b"ab", b"abc"]),
            (b"ab", None, [b"ab", b"abc"]),
            (b"\xff", None, [b"\xff", b"\xff\xff"]),
            (b"aa", None, []),
            (b"", b"b", [b"b", b"ba", b"\xff", b"\xff\xff"]),
            (b"", b"aba", [b"abc", b"b", b"ba", b"\xff", b"\xff\xff"]),
            (b"a", b"ab", [b"ab", b"abc"]),
            (b"b", b"a", [b"b", b"ba"]),
            (b"a", b"b", []),
            (b"", b"\xff\xff\xff", []),
            (b"", b"", [b"\x00", b"a", b"ab", b"abc", b"b", b"ba", b"\xff", b"\xff\xff"]),
        ],
    )
    def test_scan(self, index: Index, prefix: bytes, start: bytes | None, expected: list[bytes]) -> None:
        keys = [b"b", b"abc", b"\xff\xff", b"a", b"\x00", b"ba", b"\xff", b"ab"]
        index.write(put("objects", *((key, key[::-1]) for key in keys)))
        want = [(key, key[::-1]) for key in expected]
        with index.read() as txn:
            assert list(txn.scan("objects", prefix, start)) == want
        assert index.write(lambda txn: list(txn.scan("objects", prefix, start))) == want

    @pytest.mark.parametrize(
        ("prefix", "before", "expected"),
        [
            (b"", None, b"\xff\xff"),
            (b"a", None, b"abc"),
            (b"aa", None, None),
            (b"\xff", None, b"\xff\xff"),
            (b"\xff\xff", None, b"\xff\xff"),
            (b"b", b"ba", b"b"),
            (b"b", b"b", None),
            (b"b", b"zz", b"ba"),
            (b"a", b"b", b"abc"),
            (b"a", b"abb", b"ab"),
            (b"", b"\x00", None),
            (b"", b"\xff\xff\xff", b"\xff\xff"),
        ],
    )
    def test_last(self, index: Index, prefix: bytes, before: bytes | None, expected: bytes | None) -> None:
        with index.read() as txn:
            assert txn.last("objects", prefix, before) is None
        keys = [b"b", b"abc", b"\xff\xff", b"a", b"\x00", b"ba", b"\xff", b"ab"]
        index.write(put("objects", *((key, key[::-1]) for key in keys)))
        want = None if expected is None else (expected, expected[::-1])
        with index.read() as txn:
            assert txn.last("objects", prefix, before) == want
        assert index.write(lambda txn: txn.last("objects", prefix, before)) == want

    def test_two_scans_may_run_side_by_side_and_stop_early(self, index: Index) -> None:
        index.write(put("objects", *((bytes([i]), b"") for i in range(9))))
        with index.read() as txn:
            first, second = txn.scan("objects"), txn.scan("objects", start=b"\x05")
            assert [next(first)[0], next(second)[0], next(first)[0]] == [b"\x00", b"\x05", b"\x01"]
            assert txn.get("objects", b"\x03") == b""
            assert next(first)[0] == b"\x02"

    def test_a_scan_does_not_go_on_over_writes(self, index: Index) -> None:
        index.write(put("objects", (b"a", b""), (b"b", b"")))

        def body(txn: WriteTxn) -> None:
            for key, _ in txn.scan("objects"):
                txn.delete("objects", key)

        with pytest.raises(RuntimeError):
            index.write(body)
        assert len(rows_of(index)) == 2

    def test_a_transaction_sees_its_own_changes(self, index: Index) -> None:
        def body(txn: WriteTxn) -> object:
            txn.put("objects", b"b", b"2")
            txn.put("objects", b"a", b"1")
            txn.delete("objects", b"b")
            return txn.get_many("objects", [b"a", b"b"]), txn.count("objects"), list(txn.scan("objects"))

        assert index.write(body) == ([b"1", None], 1, [(b"a", b"1")])

    @pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
    def test_an_exception_aborts(self, index: Index, error: type[BaseException]) -> None:
        index.write(put("objects", (b"a", b"1")))

        def body(txn: WriteTxn) -> None:
            txn.put("objects", b"a", b"2")
            txn.put("objects", b"b", b"2")
            txn.clear("packs")
            raise error

        with pytest.raises(error):
            index.write(body)
        assert rows_of(index) == [(b"a", b"1")]
        index.write(put("objects", (b"c", b"3")))
        assert rows_of(index) == [(b"a", b"1"), (b"c", b"3")]

    def test_an_exception_in_a_read_goes_on_to_the_caller(self, index: Index) -> None:
        with pytest.raises(Stop), index.read():
            raise Stop
        assert rows_of(index) == []

    def test_a_reader_keeps_its_snapshot(self, index: Index) -> None:
        index.write(put("objects", (b"a", b"1")))
        with index.read() as txn:
            scan = txn.scan("objects")
            _in_a_thread(lambda: index.write(put("objects", (b"a", b"2"), (b"b", b"2"))))
            assert list(scan) == [(b"a", b"1")]
            assert txn.get("objects", b"b") is None
        assert rows_of(index) == [(b"a", b"2"), (b"b", b"2")]

    def test_nobody_sees_what_is_not_committed(self, index: Index) -> None:
        seen: list[list[tuple[bytes, bytes]]] = []

        def body(txn: WriteTxn) -> None:
            txn.put("objects", b"a", b"1")
            _in_a_thread(lambda: seen.append(rows_of(index)))

        index.write(body)
        assert seen == [[]]

    def test_writers_take_turns(self, index: Index) -> None:
        def add(txn: WriteTxn) -> None:
            old = int.from_bytes(txn.get("meta", b"n") or b"", "big")
            txn.put("meta", b"n", (old + 1).to_bytes(4, "big"))

        def many() -> None:
            for _ in range(25):
                index.write(add)

        threads = [threading.Thread(target=many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert rows_of(index, "meta") == [(b"n", (100).to_bytes(4, "big"))]

    def test_one_transaction_per_thread(self, index: Index) -> None:
        with index.read():
            with pytest.raises(RuntimeError), index.read():
                pass
            with pytest.raises(RuntimeError):
                index.write(put("meta", (b"k", b"v")))
        with pytest.raises(RuntimeError):
            index.write(lambda txn: rows_of(index))
        with pytest.raises(RuntimeError):
            index.write(lambda txn: index.write(put("meta", (b"k", b"v"))))
        assert rows_of(index, "meta") == []

    def test_ballast_can_be_given_up_and_taken_back(self, index: Index) -> None:
        index.release_ballast()
        index.release_ballast()
        assert index.restore_ballast() is True
        assert index.restore_ballast() is True

    def test_a_closed_handle_is_refused(self, index: Index) -> None:
        index.close()
        index.close()
        with pytest.raises(RuntimeError), index.read():
            pass
        with pytest.raises(RuntimeError):
            index.write(put("meta", (b"k", b"v")))


def _in_a_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


class TestLmdbIndex(IndexContract):
    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[Index]:
        index = LmdbIndex.open(str(tmp_path / "index"), ballast_bytes=4096)
        yield index
        index.close()


class TestLmdbIndexThatGrows(IndexContract):
    """Every test again, with a map of 64 KiB that many of them outgrow."""

    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[Index]:
        index = LmdbIndex.open(str(tmp_path / "index"), map_size=1 << 16, ballast_bytes=4096)
        yield index
        index.close()


class TestSimIndex(IndexContract):
    @pytest.fixture
    def index(self, tmp_path: Path) -> Index:
        return SimIndex()


KEYS = st.binary(min_size=1, max_size=3)
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.binary(max_size=3)),
        st.tuples(st.just("delete"), KEYS, st.just(b"")),
        st.tuples(st.just("clear"), st.just(b"k"), st.just(b"")),
    ),
    max_size=12,
)


def _apply(edits: list[tuple[str, bytes, bytes]], txn: WriteTxn) -> None:
    for what, key, value in edits:
        if what == "put":
            txn.put("objects", key, value)
        elif what == "delete":
            txn.delete("objects", key)
        else:
            txn.clear("objects")


def _answers(txn: ReadTxn, keys: list[bytes]) -> object:
    scans = [list(txn.scan("objects", key, other)) for key in keys for other in (None, *keys)]
    lasts = [txn.last("objects", key, other) for key in keys for other in (None, *keys)]
    return txn.count("objects"), list(txn.scan("objects")), txn.get_many("objects", keys), scans, lasts


@given(batches=st.lists(EDITS, max_size=4), keys=st.lists(KEYS, max_size=4))
def test_the_simulated_index_answers_like_lmdb(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, bytes, bytes]]], keys: list[bytes]
) -> None:
    real = LmdbIndex.open(str(tmp_path_factory.mktemp("index")), ballast_bytes=0)
    simulated = SimIndex(run_twice=True)
    try:
        for edits in batches:
            for index in (real, simulated):
                index.write(partial(_apply, edits))
            with real.read() as r, simulated.read() as s:
                assert _answers(r, keys) == _answers(s, keys)
    finally:
        real.close()


class TestPowerCuts:
    """The simulated index alone: what it may be after a crash."""

    def test_the_two_steps_of_a_commit(self) -> None:
        for crash_at, kept in ((1, []), (2, [(b"a", b"1")])):
            index = SimIndex(Steps(crash_at))
            with pytest.raises(PowerCut):
                index.write(put("objects", (b"a", b"1")))
            assert list(index.rows("objects").items()) == kept
            with pytest.raises(PowerCut), index.read():
                pass

    def test_the_power_goes_for_everybody_who_shares_the_steps(self) -> None:
        steps = Steps(crash_at=3)
        index = SimIndex(steps)
        index.write(put("objects", (b"a", b"1")))
        with pytest.raises(PowerCut):
            steps.step("something on the disk")
        with pytest.raises(PowerCut):
            index.write(put("objects", (b"b", b"1")))
        assert steps.log == ["index commit", "index committed", "something on the disk"]

    def test_every_committed_state_is_possible_and_none_at_all(self) -> None:
        index = SimIndex()
        for n in range(3):
            index.write(put("objects", (b"a", bytes([n]))))
        with pytest.raises(Stop):
            index.write(_put_and_stop)
        states = [state.rows("objects") for state in index.possible_states()]
        assert states == [{b"a": b"\2"}, {b"a": b"\1"}, {b"a": b"\0"}, {}, {}]

    def test_states_do_not_share_later_changes(self) -> None:
        index = SimIndex()
        index.write(put("objects", (b"a", b"1")))
        first, *_ = index.possible_states()
        first.write(put("objects", (b"b", b"1")))
        assert index.rows("objects") == {b"a": b"1"}
        assert first.rows("objects") == {b"a": b"1", b"b": b"1"}

    def test_a_body_that_cannot_run_twice_is_found(self) -> None:
        index = SimIndex(run_twice=True)
        calls: list[int] = []

        def count_calls(txn: WriteTxn) -> None:
            calls.append(1)
            txn.put("meta", b"n", bytes([len(calls)]))

        index.write(count_calls)
        assert index.rows("meta") == {b"n": b"\2"}

    def test_a_transaction_that_changed_nothing_is_no_step(self) -> None:
        index = SimIndex()
        index.write(lambda txn: txn.get("meta", b"k"))
        assert (index.steps.count, len(index.history)) == (0, 1)


def _put_and_stop(txn: WriteTxn) -> None:
    txn.put("objects", b"a", b"never")
    raise Stop
