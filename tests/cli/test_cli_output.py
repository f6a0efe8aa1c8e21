"""What may reach a terminal, and what a path looks like in JSON."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packnback.cli.location import Directory, parse
from packnback.cli.output import Output, escaped, path_fields, shown_path
from packnback.errors import UsageError
from packnback.remote.destination import Destination


@given(st.binary(max_size=40))
def test_nothing_that_moves_a_cursor_gets_through(path: bytes) -> None:
    assert all(character.isprintable() or character == "\t" for character in escaped(shown_path(path)))


def test_escapes() -> None:
    assert escaped("a\x1b[2Jb") == "a\\x1b[2Jb"
    assert escaped(shown_path(b"caf\xe9")) == "caf\\xe9"
    assert escaped("\u202e") == "\\u202e"
    assert escaped("Grüße") == "Grüße"


@given(st.binary(max_size=40))
def test_a_path_in_json_can_be_had_back(path: bytes) -> None:
    fields = path_fields(path)
    if "path_b64" in fields:
        assert base64.b64decode(fields["path_b64"]) == path
        assert "\ufffd" in fields["path"]
    else:
        assert fields["path"].encode() == path


def test_locations() -> None:
    assert parse("/srv/backup/") == Directory("/srv/backup")
    assert parse("ssh://host/srv/b") == Destination("ssh://host/srv/b", "host", "/srv/b")
    assert parse("ssh://me@host:2222/b") == Destination("ssh://me@host:2222/b", "host", "/b", "me", 2222)
    assert parse("ssh://[::1]/b").host == "::1"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    ["", "ssh://", "ssh://host", "ssh:///path", "ssh:host/path", "ssh://host:0/p", "ssh://host:70000/p",
     "ssh://-oProxyCommand=x/p", "ssh://-l@host/p", "ssh://a b/p", "ssh://host:x/p"],
)  # fmt: skip
def test_what_is_no_location(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_row_of_a_table_is_one_line_of_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    output = Output()
    output._terminal = terminal
    output.table(["NO.", "PATHS"], [["1", "/home /a\nb"], ["12", "/srv /home /var/lib /etc"]], frozenset({0}))
    written = capsys.readouterr().out
    if terminal:
        assert written == "NO.  PATHS\n  1  /home /a\\x0ab\n 12  /srv /home /va…\n"
    else:
        assert written == "NO.  PATHS\n  1  /home /a\nb\n 12  /srv /home /var/lib /etc\n"
