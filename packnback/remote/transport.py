"""Reaching another machine: the system's ssh, with ``packnback serve`` at its far end.

ssh is told where to go, and which cipher to offer first where the processor has instructions for it: OpenSSH's own
first choice takes nearly twice the time for the same bytes (measured: 620 MB in 2.5 s of CPU at each end with
ChaCha20, in 1.4 s with AES-GCM), which on two cores is a large part of a whole backup. All others stay on offer, and
a cipher named in PACKNBACK_SSH is left alone. Keys, proxies and host keys are the business of ssh's configuration.

What ssh says on stderr is kept, and told when the connection fails; a shell at the far end that cannot find the
program answers 127, and ssh itself 255.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
from collections.abc import Sequence

from packnback.errors import RemoteFailed, UsageError
from packnback.events import Progress
from packnback.ids import KIB
from packnback.oserrors import reason_of
from packnback.remote.channel import Channel
from packnback.remote.destination import Destination

VARIABLE = "PACKNBACK_SSH"
CIPHERS = "Ciphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
_STDERR_KEPT = 16 * KIB
_END_S = 10.0
_STDERR_S = 0.5
"""A connection that ssh keeps for later (ControlPersist) may hold stderr open for ever."""
_NOT_FOUND = 127
_SSH_FAILED = 255


def ssh_command(destination: Destination, verbs: Sequence[str]) -> list[str]:
    """The words to run. Raises UsageError for a host or user that ssh would take for an option, and for a
    PACKNBACK_SSH that is none.
    """
    if destination.host.startswith("-") or (destination.user or "").startswith("-"):
        raise UsageError(f"{destination.url!r}: neither host nor user may begin with a dash")
    remote = f"packnback serve {shlex.quote(destination.path)} --allow {shlex.quote(','.join(verbs))}"
    words = _program()
    if _may_choose_cipher(words) and _has_aes():
        words += ["-o", CIPHERS]
    if destination.port is not None:
        words += ["-p", str(destination.port)]
    if destination.user is not None:
        words += ["-l", destination.user]
    return [*words, "-T", "--", destination.host, remote]


def _program() -> list[str]:
    """The words that start ssh. Raises UsageError when the variable holds none."""
    named = os.environ.get(VARIABLE) or "ssh"
    try:
        words = shlex.split(named)
    except ValueError as error:
        raise UsageError(f"{VARIABLE}={named!r}: {error}") from None
    if not words:
        raise UsageError(f"{VARIABLE} is set, but names no program")
    return words


def _may_choose_cipher(words: Sequence[str]) -> bool:
    """Whether this is OpenSSH, and nobody has chosen a cipher."""
    chosen = any(word.startswith("-c") or "ciphers" in word.lower() for word in words[1:])
    return os.path.basename(words[0]) == "ssh" and not chosen


def _has_aes() -> bool:
    """Whether the processor has instructions for AES (Linux tells)."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return re.search(r"^(flags|Features)\s*:.*\baes\b", file.read(1 << 16), re.MULTILINE) is not None
    except OSError:
        return False


class SshTransport:
    """A running ssh. `channel` leads to the far end's standard input and output."""

    def __init__(self, destination: Destination, verbs: Sequence[str], progress: Progress) -> None:
        command = ssh_command(destination, verbs)
        self._destination = destination
        self._host = destination.host
        self._progress = progress
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
            )
        except OSError as error:
            why = f"{command[0]}: {reason_of(error)}"
            raise RemoteFailed(destination.host, "no-ssh", why, destination.address) from error
        assert self._process.stdin and self._process.stdout
        self.channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno(), may_give_up=True)
        self._said = bytearray()
        self._listener = threading.Thread(target=self._listen, name="ssh-stderr", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stderr
        while data := self._process.stderr.read(4 * KIB):
            self._said += data
            del self._said[:-_STDERR_KEPT]

    def lost(self) -> RemoteFailed:
        """Why the connection has ended, as far as can be told."""
        try:
            status: int | None = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            status = None
        self._listener.join(_STDERR_S)
        why = {_NOT_FOUND: "not-installed", _SSH_FAILED: "ssh"}.get(status or 0, "connection-lost")
        return RemoteFailed(self._host, why, self.said or None, self._destination.address)

    @property
    def said(self) -> str:
        """What ssh, or the far end, has said on stderr."""
        return self._said.decode("utf-8", "replace").strip()

    def hang_up(self) -> None:
        """End the far side by closing its input; kill ssh if that does not help."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._listener.join(_STDERR_S)
        if self._process.returncode == 0 and self.said:
            self._progress.note(f"{self._host}: {self.said}")

    def release(self) -> None:
        """Close what is left, once nobody reads from it any more."""
        assert self._process.stdout and self._process.stderr
        self.channel.release()
        self._process.stdout.close()
        if not self._listener.is_alive():
            self._process.stderr.close()
