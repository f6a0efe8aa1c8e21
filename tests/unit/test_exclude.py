"""Exclude patterns against paths: what each rule of the module's docstring says."""

from __future__ import annotations

import ctypes
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packnback.backup.exclude import Excludes, read_patterns
from packnback.errors import UsageError


def excluded(patterns: list[bytes], path: bytes) -> bool:
    is_directory = path.endswith(b"/")
    path = path.rstrip(b"/")
    return Excludes(patterns).excluded(path, posixpath.basename(path), is_directory)


@pytest.mark.parametrize(
    ("pattern", "hits", "misses"),
    [
        (b"*.o", [b"/a/x.o", b"/x.o", b"/a/.o", b"/a/d.o/"], [b"/a/x.oo", b"/a/x.o/y"]),
        (b"a?c", [b"/abc", b"/x/a\xffc", b"/x/a\nc"], [b"/ac", b"/abbc"]),
        (b"[a-c]x", [b"/ax", b"/q/cx"], [b"/dx", b"/x"]),
        (b"[!a-c]x", [b"/dx"], [b"/ax"]),
        (b"[]x]", [b"/]", b"/x"], [b"/y"]),
        (b"[x", [b"/[x"], [b"/x"]),
        (b"[[:alpha:]]1", [b"/a1", b"/Z1"], [b"/:1", b"/11", b"/[1"]),
        (b"[![:space:]_-]", [b"/a", b"/["], [b"/ ", b"/\n", b"/_", b"/-"]),
        (rb"[\]a]", [b"/]", b"/a"], [b"/\\", b"/b"]),
        (rb"[a\-c]", [b"/a", b"/-", b"/c"], [b"/b", b"/\\"]),
        (b"a.b", [b"/a.b"], [b"/aXb"]),
        (rb"\*", [b"/*"], [b"/x"]),
        (rb"\!x", [b"/!x"], [b"/x"]),
        (b"x/", [b"/x/", b"/a/x/"], [b"/x", b"/a/x"]),
        (b"/var/tmp/*", [b"/var/tmp/x", b"/var/tmp/d/"], [b"/var/tmp", b"/a/var/tmp/x", b"/var/tmp/d/x"]),
        (b"/var", [b"/var", b"/var/"], [b"/a/var", b"/variable"]),
        (b"t/d", [b"/t/d", b"/a/t/d", b"/a/b/t/d/"], [b"/a/xt/d", b"/t/x/d", b"/t/de"]),
        (b"t/d/", [b"/a/t/d/"], [b"/a/t/d"]),
        (b"a/**/b", [b"/a/b", b"/a/x/b", b"/q/a/x/y/b"], [b"/a/xb", b"/ab"]),
        (b"a/**", [b"/a/b", b"/a/b/c", b"/q/a/b/"], [b"/a", b"/a/"]),
        (b"**/b", [b"/b", b"/x/b", b"/x/y/b"], [b"/xb"]),
        (b"/a/**/*.o", [b"/a/x.o", b"/a/b/x.o"], [b"/b/x.o"]),
        (b"a**b", [b"/ab", b"/axxb"], [b"/a/b"]),
        (b"\xff\xfe*", [b"/\xff\xfe", b"/d/\xff\xfex"], [b"/\xff"]),
    ],
)
def test_one_pattern(pattern: bytes, hits: list[bytes], misses: list[bytes]) -> None:
    for path in hits:
        assert excluded([pattern], path), path
    for path in misses:
        assert not excluded([pattern], path), path


def test_the_last_pattern_that_matches_decides() -> None:
    patterns = [b"*.log", b"!keep.log", b"/tmp/keep.log"]
    assert excluded(patterns, b"/a/x.log")
    assert not excluded(patterns, b"/a/keep.log")
    assert excluded(patterns, b"/tmp/keep.log")


def test_a_file_of_patterns() -> None:
    data = b"# objects\n*.o \r\n\n  \n\\#x\n!y.o\nblank\\  \r\n"
    patterns = read_patterns(data)
    assert patterns == [b"*.o", b"\\#x", b"!y.o", b"blank\\ "]
    assert excluded(patterns, b"/blank ")
    assert excluded(patterns, b"/#x")
    assert excluded(patterns, b"/x.o")
    assert not excluded(patterns, b"/y.o")


@pytest.mark.parametrize("pattern", [b"", b"/", b"//", b"!", b"!/", b"[z-a]", b"[[:nix:]]", b"./x", b"a/../b"])
def test_patterns_that_mean_nothing_are_refused(pattern: bytes) -> None:
    with pytest.raises(UsageError):
        Excludes([pattern])


def test_no_patterns_are_falsy() -> None:
    assert not Excludes()
    assert Excludes([b"x"])


@given(st.binary(min_size=1, max_size=20).filter(lambda n: b"/" not in n and b"\0" not in n))
def test_an_escaped_name_matches_itself_and_nothing_else(name: bytes) -> None:
    escaped = b"".join(b"\\" + bytes([byte]) for byte in name)
    excludes = Excludes([escaped])
    assert excludes.excluded(b"/d/" + name, name, False)
    assert not excludes.excluded(b"/d/" + name + b"x", name + b"x", False)
    assert not excludes.excluded(b"/d/x" + name, b"x" + name, False)


_PIECES = [b"*", b"?", b"[ab]", b"[!ab]", b"[a-c]", b"[]-]", b"[[:digit:]b]", b"[![:upper:]]", b"a", b"b", b"B"]


@given(
    st.lists(st.sampled_from(_PIECES), min_size=1, max_size=6).map(b"".join),
    st.lists(st.sampled_from(b"abcB1]-_"), min_size=1, max_size=6).map(bytes),
)
def test_a_name_matches_as_it_does_in_the_c_library(pattern: bytes, name: bytes) -> None:
    """fnmatch(3), in the C locale that Python's own start leaves to it, or a UTF-8 one: all of this is ASCII."""
    fnmatch = getattr(ctypes.CDLL(None), "fnmatch", None)
    if fnmatch is None:
        pytest.skip("no fnmatch(3) here")
    assert Excludes([pattern]).excluded(b"/d/" + name, name, False) == (fnmatch(pattern, name, 0) == 0)


@given(st.binary(max_size=12).filter(lambda p: b"\0" not in p))
def test_any_bytes_compile_or_are_refused(pattern: bytes) -> None:
    try:
        excludes = Excludes([pattern])
    except UsageError:
        return
    excludes.excluded(b"/a/b", b"b", False)
