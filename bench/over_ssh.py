"""How much slower a first backup is over ssh on loopback than into a directory, and what an unchanged one costs.

Run as ``python -m bench.over_ssh [--kinds mixed,small,text,vm,random] [--megabytes 1000] [--files 50000]
[--delay-ms 50] [--repeat 3]``. Needs OpenSSH's server, which is started with keys of its own on a free port. Local
and remote runs take turns, as everywhere in this directory. What is sent is what is left after compression, so the
kind of data decides how much of a run ssh is: random data is its worst, and ``mixed`` a quarter of each.

For random data there is a third figure: a backup into a directory while ssh carries the same bytes to ``/dev/null``
beside it. Whatever program sends a backup through ssh has to do both, and a server's work, and to connect before.

With ``--delay-ms`` an unchanged backup of many small files is measured through a proxy that holds every byte back by
half of that in each direction.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from bench.corpora import CORPORA, pristine
from packnback.remote.transport import CIPHERS

TESTS = Path(__file__).parent.parent / "tests" / "cli"
sys.path.insert(0, str(TESTS))

from ssh_server import SSHD, SshServer  # noqa: E402  it stands beside the tests

_FULL_MIB = {"small": 380, "random": 2048, "text": 1024, "vm": 1536}
_MIXED = "mixed"


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="mixed,small,text,vm,random")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--delay-ms", type=float, default=50.0)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    if SSHD is None:
        print("sshd is not installed (Debian: openssh-server)", file=sys.stderr)
        return 1
    top = Path(tempfile.mkdtemp(prefix="packnback-over-ssh-"))
    try:
        for kind in options.kinds.split(",") if options.megabytes else ():
            _compare(top, kind, options.megabytes, options.repeat)
        if options.files:
            _unchanged(top, options.files, options.delay_ms)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    return 0


def _packnback(top: Path, *arguments: str | Path, more: Mapping[str, str] | None = None) -> tuple[float, Any]:
    """(seconds, the JSON document)."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"HOME": str(top / "home"), "PATH": path, "LANG": "C.UTF-8", **(more or {})}
    command = [sys.executable, "-m", "packnback", "--json", *map(str, arguments)]
    os.sync()
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return time.perf_counter() - began, json.loads(done.stdout)


def _compare(top: Path, kind: str, megabytes: int, repeat: int) -> None:
    """First backups into a directory and over ssh."""
    source = _tree(top, kind, megabytes)
    (top / "home").mkdir(exist_ok=True)
    server = SshServer(top / f"sshd-{kind}")
    server.authorize("key")
    took: dict[str, list[float]] = {"local": [], "ssh": []}
    if kind == "random":
        took["local beside ssh"] = []
    try:
        for turn in range(repeat):
            for name in took:
                repository = top / f"{kind}-{name}-{turn}"
                _packnback(top, "-r", repository, "init")
                where = server.url(repository) if name == "ssh" else str(repository)
                os.sync()
                began = time.perf_counter()
                with _stream(server, source / "random.bin") if name == "local beside ssh" else nullcontext():
                    _packnback(top, "-r", where, "backup", source, more={"PACKNBACK_SSH": server.command("key")})
                took[name].append(time.perf_counter() - began)
                shutil.rmtree(repository)
    finally:
        server.stop()
    shutil.rmtree(source)
    local, *others = ((name, statistics.median(times)) for name, times in took.items())
    for name, seconds in others:
        print(f"first backup, {megabytes} MiB of {kind}: local {local[1]:.2f} s, {name} {seconds:.2f} s", end=" ")
        print(f"({100 * local[1] / seconds:.0f} % of the local speed)")
    print(took, flush=True)


def _tree(top: Path, kind: str, megabytes: int) -> Path:
    """A tree of so many MiB."""
    if kind != _MIXED:
        return pristine(CORPORA[kind], megabytes / _FULL_MIB[kind], top)
    mixed = top / _MIXED
    for each, full in _FULL_MIB.items():
        (mixed / each).mkdir(parents=True)
        CORPORA[each].make(mixed / each, megabytes / len(_FULL_MIB) / full)
    return mixed


@contextmanager
def _stream(server: SshServer, file: Path) -> Iterator[None]:
    """Let ssh carry a file to nowhere; it has when this ends."""
    options = ["-o", CIPHERS, "-p", str(server.port)]
    command = [*shlex.split(server.command("key")), *options, "127.0.0.1", "cat >/dev/null"]
    with file.open("rb") as data, subprocess.Popen(command, stdin=data) as process:
        yield
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _unchanged(top: Path, files: int, delay_ms: float) -> None:
    """An unchanged backup over a slow line: what counts is how often it waits."""
    source, repository = top / "small", top / "far"
    for number in range(files):
        directory = source / f"{number // 100:04}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number % 100:02}").write_bytes(b"%d" % number)
    (top / "home").mkdir(exist_ok=True)
    _packnback(top, "-r", repository, "init")
    more = {
        "PACKNBACK_SSH": shlex.join([sys.executable, str(TESTS / "loopback.py")]),
        "LOOPBACK_DELAY_S": str(delay_ms / 2000),
    }
    for name in ("first", "unchanged"):
        wall, told = _packnback(top, "-v", "-r", f"ssh://far{repository}", "backup", source, more=more)
        trips = told["counters"]["round_trips"]
        print(f"{name} backup of {told['files']} files, {delay_ms:g} ms: {wall:.2f} s, {trips} round trips")


if __name__ == "__main__":
    sys.exit(main())
