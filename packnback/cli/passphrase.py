"""Where passphrases come from: a file, a command, or a person at the terminal.

In this order: ``--passphrase-file``, ``PACKNBACK_PASSPHRASE_COMMAND`` (split like a shell would, but no shell
runs it), a prompt. One newline at the end belongs to the file or the command, not to the passphrase. A
passphrase never stands in an argument or in a message.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable

from packnback import errors
from packnback.oserrors import reason_of

COMMAND_VARIABLE = "PACKNBACK_PASSPHRASE_COMMAND"
_ATTEMPTS = 3


def source_for(key_path: str, passphrase_file: str | None) -> Callable[[], bytes] | None:
    """What `crypto.keyfile.read_key` calls when the key at `key_path` is protected; None: nobody to ask."""
    if passphrase_file is not None:
        return lambda: from_file(passphrase_file)
    if command := os.environ.get(COMMAND_VARIABLE):
        return lambda: from_command(command)
    if sys.stdin.isatty():
        return lambda: _ask(f"Passphrase of {key_path}: ")
    return None


def from_file(path: str) -> bytes:
    """The passphrase in a file. Raises PassphraseSourceFailed."""
    try:
        with open(path, "rb") as file:
            return _checked(file.read(1 << 16), path)
    except OSError as error:
        raise errors.PassphraseSourceFailed(path, reason_of(error)) from error


def from_command(command: str) -> bytes:
    """The passphrase that a command prints. Raises PassphraseSourceFailed, which does not quote arguments."""
    import subprocess  # here: few have such a command, and all would wait for it to load

    try:
        words = shlex.split(command)
        ran = subprocess.run(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)
    except (OSError, ValueError, IndexError) as error:
        why = reason_of(error) if isinstance(error, OSError) else "it is not a command"
        raise errors.PassphraseSourceFailed(COMMAND_VARIABLE, why) from None
    if ran.returncode != 0:
        raise errors.PassphraseSourceFailed(COMMAND_VARIABLE, f"status {ran.returncode}")
    return _checked(ran.stdout, COMMAND_VARIABLE)


def choose(key_path: str) -> bytes:
    """A new passphrase, asked for twice. Raises PassphraseNeeded without a terminal, UsageError."""
    if not sys.stdin.isatty():
        raise errors.PassphraseNeeded(key_path)
    for _ in range(_ATTEMPTS):
        first = _ask(f"New passphrase for {key_path}: ")
        if not first:
            raise errors.UsageError("the passphrase is empty")
        if first == _ask("The same again: "):
            return first
        print("They differ.", file=sys.stderr)
    raise errors.UsageError("the two passphrases differ")


def _ask(prompt: str) -> bytes:
    import getpass

    return getpass.getpass(prompt).encode("utf-8", "surrogateescape")


def _checked(passphrase: bytes, source: str) -> bytes:
    passphrase = passphrase.removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase:
        raise errors.PassphraseSourceFailed(source, "it is empty")
    return passphrase
