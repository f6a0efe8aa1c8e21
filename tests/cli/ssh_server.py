"""The real OpenSSH server on loopback, with a host key, a configuration and authorised keys of its own."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

SSHD = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
MISSING = "the OpenSSH server is not installed (Debian: openssh-server)"
START_S = 20.0


class SshServer:
    """sshd on a free port, as this user. `authorize` makes a key; `command` is how a client uses it."""

    def __init__(self, home: Path) -> None:
        assert SSHD is not None
        self.home = home
        home.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # where sshd drops its privileges
        self.port = _free_port()
        self._keygen("host_key")
        self.bin = home / "bin"
        self.bin.mkdir()
        self._install()
        config = home / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {home}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {home}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"SetEnv PATH={self.bin}:/usr/bin:/bin HOME={home}\n"
        )
        (home / "authorized_keys").touch(mode=0o600)
        host_key = (home / "host_key.pub").read_text()
        (home / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        self._process = subprocess.Popen([SSHD, "-D", "-E", str(home / "log"), "-f", str(config)])
        self._wait_until_it_answers()

    def _install(self) -> None:
        """A `packnback` for the far side's PATH."""
        path = os.pathsep.join(p for p in sys.path if p)
        program = self.bin / "packnback"
        program.write_text(
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(path)} exec {shlex.quote(sys.executable)} -m packnback "$@"\n'
        )
        program.chmod(0o755)

    def _keygen(self, name: str) -> None:
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.home / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("sshd does not answer: " + (self.home / "log").read_text())

    def authorize(self, name: str, forced: str | None = None, options: str = "restrict") -> None:
        """Make the key `name`; with `forced`, whatever its holder asks for, that command is run."""
        self._keygen(name)
        public = (self.home / f"{name}.pub").read_text()
        command = f'{options},command="{forced}" ' if forced is not None else ""
        with open(self.home / "authorized_keys", "a", encoding="ascii") as file:
            file.write(command + public)

    def command(self, key: str) -> str:
        """For PACKNBACK_SSH."""
        options = {
            "IdentityFile": f"{self.home}/{key}",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": f"{self.home}/known_hosts",
            "BatchMode": "yes",
        }
        return "ssh -F none " + " ".join(f"-o {name}={shlex.quote(value)}" for name, value in options.items())

    def url(self, path: Path) -> str:
        """The location of a repository behind this server."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{path}"

    def stop(self) -> None:
        """End it, and wait for it."""
        self._process.terminate()
        self._process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
