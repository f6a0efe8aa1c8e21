"""Results on stdout: one JSON document, or lines for people. Everything that a command prints goes through here.

Paths are bytes. In JSON a path that is not UTF-8 stands as ``path`` with U+FFFD and, exactly, as ``path_b64``.
For people a path is written byte for byte into pipes and files; on a terminal, where a hostile name could move
the cursor or set a title, whatever cannot be printed is escaped.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from shutil import get_terminal_size
from typing import Any

from packnback.oserrors import reason_of

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What JSON leaves as it is, and a terminal may take for a command, or turn round."""


class OutputClosed(Exception):
    """Whoever read our stdout has gone (``packnback ls … | head``)."""


class OutputFailed(Exception):
    """Stdout cannot be written to; the message says why."""


class Output:
    """Where results go."""

    def __init__(self) -> None:
        self.json = False
        self.quiet = False
        self._terminal = sys.stdout.isatty()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="surrogateescape")

    def document(self, value: Any) -> None:
        """The one JSON document."""
        # A surrogate is half of nothing: bytes of a name that is not UTF-8 have no other form in JSON than U+FFFD.
        text = _SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False))
        self._write(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")

    def line(self, text: str = "") -> None:
        """A line of a result for people; nothing when JSON was asked for."""
        if not self.json:
            self._write((escaped(text) if self._terminal else text) + "\n")

    def remark(self, text: str = "") -> None:
        """A line that ``-q`` leaves out: what was done, where the result itself is something else."""
        if not self.quiet:
            self.line(text)

    def problem(self, text: str) -> None:
        """A line on stderr about something that is not as it should be; JSON documents say it themselves."""
        if not self.json:
            print(f"packnback: {escaped(text)}", file=sys.stderr)

    def table(self, header: list[str], rows: Iterable[list[str]], right: frozenset[int] = frozenset()) -> None:
        """Columns for people; those in `right` are flush right, the last one is never padded.

        On a terminal a row is one line: what does not fit is left out at its end.
        """
        cells = [header, *rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        for row in cells:
            padded = [
                cell.rjust(width) if i in right else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            text = "  ".join(padded).rstrip()
            self.line(_cut(escaped(text), get_terminal_size().columns) if self._terminal else text)

    def data(self, content: bytes | bytearray | memoryview) -> None:
        """Raw bytes, such as the contents of a file."""
        try:
            sys.stdout.buffer.write(content)
        except BrokenPipeError:
            raise OutputClosed from None
        except OSError as error:
            raise OutputFailed(reason_of(error)) from error

    def flush(self) -> None:
        """Hand over what is buffered. Raises OutputClosed, OutputFailed."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise OutputClosed from None
        except OSError as error:
            raise OutputFailed(reason_of(error)) from error

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
        except BrokenPipeError:
            raise OutputClosed from None
        except OSError as error:
            raise OutputFailed(reason_of(error)) from error


def discard_stdout() -> None:
    """Let what is still buffered go nowhere, so that closing stdout at exit says nothing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _cut(text: str, columns: int) -> str:
    """`text` in at most so many columns, as far as a character is one column wide."""
    return text if len(text) <= columns else text[: max(columns - 1, 0)] + "…"


def shown_path(path: bytes) -> str:
    """A path for people; bytes that are not UTF-8 survive the way to stdout."""
    return path.decode("utf-8", "surrogateescape")


def escaped(text: str) -> str:
    """`text` with everything that does not print as ``\\x1b``, ``\\u200f`` and the like."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        code -= 0xDC00
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def path_fields(path: bytes, name: str = "path") -> dict[str, str]:
    """``{"path": …}``, and ``path_b64`` beside it when the path is not UTF-8."""
    try:
        return {name: path.decode("utf-8")}
    except UnicodeDecodeError:
        return {name: path.decode("utf-8", "replace"), f"{name}_b64": base64.b64encode(path).decode()}


def paths_fields(paths: Sequence[bytes]) -> dict[str, list[str]]:
    """``{"paths": […]}``, and ``paths_b64`` with all of them beside it when one is not UTF-8."""
    fields = {"paths": [path.decode("utf-8", "replace") for path in paths]}
    if any("path_b64" in path_fields(path) for path in paths):
        fields["paths_b64"] = [base64.b64encode(path).decode() for path in paths]
    return fields
