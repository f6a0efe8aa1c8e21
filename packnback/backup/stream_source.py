"""Backups of a stream: standard input, or what a command writes.

A snapshot of half a database dump is worse than none, so whether the stream was complete is asked before anything
is committed; for a command, that is its exit status.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from packnback.errors import CommandFailed, UsageError
from packnback.format.entry import NAME_LIMIT


class StreamSource(Protocol):
    """A stream that becomes the one file of a snapshot."""

    name: bytes
    """The file's name at the root of the snapshot."""

    def read(self, view: memoryview) -> int:
        """Fill the beginning of `view`; 0 at the end. Raises OSError."""

    def finish(self) -> None:
        """Raise unless the stream that has ended was a complete one."""


class DescriptorSource:
    """A stream from an open descriptor, such as standard input. It ends when its writer closes it."""

    def __init__(self, name: bytes, fd: int) -> None:
        """Raises UsageError for a name that cannot stand at the root."""
        self.name = check_stream_name(name)
        self._fd = fd

    def read(self, view: memoryview) -> int:
        """Fill the beginning of `view`."""
        return os.readv(self._fd, [view])

    def finish(self) -> None:
        """Every end of a descriptor is a proper one."""


class CommandSource:
    """What a command writes to its standard output. A context manager: leaving it early stops the command.

    The command is started by the first `read`: it may have effects, and everything else that can fail comes before.
    """

    def __init__(self, name: bytes, command: Sequence[str]) -> None:
        """Raises UsageError for a bad name."""
        self.name = check_stream_name(name)
        self._command = command
        self._shown = shlex.join(command)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        assert self._process.stdout is not None
        self._process.stdout.close()
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()

    def read(self, view: memoryview) -> int:
        """Fill the beginning of `view`. Raises CommandFailed if the command cannot be started."""
        process = self._started()
        assert process.stdout is not None
        return os.readv(process.stdout.fileno(), [view])

    def finish(self) -> None:
        """Wait for the command. Raises CommandFailed unless it exits with 0."""
        status = self._started().wait()
        if status:
            raise CommandFailed(self._shown, status)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            pipe = subprocess.PIPE
            try:
                self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=pipe, bufsize=0)
            except OSError as error:
                # As the shell tells it: 127 not found, 126 found but not to be run.
                raise CommandFailed(self._shown, 127 if isinstance(error, FileNotFoundError) else 126) from error
        return self._process


def check_stream_name(name: bytes) -> bytes:
    """`name`, if it can be a file at the root of a snapshot; else UsageError."""
    if not 0 < len(name) <= NAME_LIMIT or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise UsageError(f"{os.fsdecode(name)!r} cannot be the name of a file at the root of a snapshot")
    return name
