"""Running packnback as its users do: another process, arguments, exit codes, streams."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 120


@dataclass(frozen=True)
class Done:
    """What came of a run."""

    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        assert self.out.endswith(b"\n"), self.out
        assert self.out.count(b"\n") == 1, self.out
        return json.loads(self.out)

    @property
    def text(self) -> str:
        """Stdout as text."""
        return self.out.decode()


def _interruptible() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # background jobs of a shell, and nohup, ignore them
        signal.signal(number, signal.SIG_DFL)


class Program:
    """packnback in a home directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.home.mkdir(exist_ok=True)
        self.environment = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
        }

    def start(self, arguments: Sequence[str | bytes | Path], **rest: Any) -> subprocess.Popen[bytes]:
        """Start it and return at once. It can be interrupted, even if whoever runs the tests cannot."""
        program = rest.pop("program", (sys.executable, "-m", "packnback"))
        command = [*rest.pop("prefix", ()), *program, *arguments]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {**self.environment, **rest.pop("environment", {})}
        options = {**streams, "preexec_fn": _interruptible, **rest}
        return subprocess.Popen(command, cwd=self.home, env=environment, **options)

    def __call__(
        self,
        *arguments: str | bytes | Path,
        code: int = 0,
        stdin: bytes = b"",
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> Done:
        """Run it to its end. Whatever happens, nobody sees a traceback."""
        process = self.start(
            arguments, stdin=subprocess.PIPE, environment=environment or {}, prefix=prefix, start_new_session=True
        )
        try:
            out, err = process.communicate(stdin, timeout=TIMEOUT_S)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        done = Done(process.returncode, out, err.decode(errors="replace"))
        assert "Traceback" not in done.err, done.err
        assert "internal error" not in done.err + out.decode(errors="replace"), done
        assert done.code == code, (arguments, done)
        return done


def without_privileges() -> list[str] | None:
    """What to put before a command so that permission bits apply to it; None where that cannot be done."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return None
    prefix = [setpriv, "--bounding-set=-all", "--inh-caps=-all"]
    return prefix if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0 else None


def assert_shape(value: Any, shape: Any, where: str = "result") -> None:
    """`value` has the keys and types of `shape`; more keys are welcome.

    A shape is a type, a tuple of types, a dict of shapes (a key that ends in ``?`` may be absent), or a list with
    the shape of each element.
    """
    if isinstance(shape, dict):
        assert isinstance(value, dict), f"{where}: {value!r}"
        for key, inner in shape.items():
            if key.endswith("?"):
                if key[:-1] in value:
                    assert_shape(value[key[:-1]], inner, f"{where}.{key[:-1]}")
            else:
                assert key in value, f"{where} has no {key}: {value!r}"
                assert_shape(value[key], inner, f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), f"{where}: {value!r}"
        for index, item in enumerate(value):
            assert_shape(item, shape[0], f"{where}[{index}]")
    else:
        assert isinstance(value, shape), f"{where}: {value!r}"
        assert shape is not int or not isinstance(value, bool), f"{where}: {value!r}"
