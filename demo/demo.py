"""The whole main job, shown: keys, a repository, two backups, a restore, and a comparison.

    python demo/demo.py [SRC]

SRC is backed up (default: the sources of Python's standard library). Everything happens in a temporary directory,
which is removed at the end. Each command is shown as it is run; so this is also a transcript to learn from.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

EXCLUDED = ("__pycache__", "site-packages", "dist-packages")


def main() -> int:
    source = os.path.realpath(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_paths()["stdlib"])
    if not os.path.isdir(source):
        print(f"{source} is not a directory", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="packnback-demo-") as place:
        return demonstrate(source, Demo(place))


class Demo:
    """Runs packnback in a place of its own, with no influence of this user's configuration."""

    def __init__(self, place: str) -> None:
        self.place = place
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PACKNBACK_", "XDG_"))}
        self.environment = {**kept, "HOME": place, "PACKNBACK_REPO": os.path.join(place, "repository")}

    def run(self, *arguments: str, expect: int = 0) -> str:
        """Show a command, run it, show what it says. Ends the demo if it does not end as expected."""
        print(f"\n$ packnback {shlex.join(arguments)}")
        done = self._run(arguments)
        print((done.stdout + done.stderr).rstrip())
        if done.returncode != expect:
            sys.exit(f"this should have ended with {expect}, not with {done.returncode}")
        return done.stdout

    def json(self, *arguments: str) -> object:
        """What a command says as JSON."""
        return json.loads(self._run((*arguments, "--json")).stdout)

    def _run(self, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "packnback", *arguments]
        return subprocess.run(command, cwd=self.place, env=self.environment, capture_output=True, text=True)


def demonstrate(source: str, demo: Demo) -> int:
    excludes = [f"--exclude={name}" for name in EXCLUDED]
    print(f"Backing up {source} into a repository below {demo.place}.")
    demo.run("key", "new", "owner.key")
    demo.run("key", "put", "put.key", "--from", "owner.key", "--client", "demo")
    demo.run("key", "public", "owner.pub", "--from", "owner.key")
    demo.run("init", "--owner", "owner.pub")

    began = time.monotonic()
    demo.run("-k", "put.key", "backup", source, *excludes)
    first_s = time.monotonic() - began
    began = time.monotonic()
    demo.run("-k", "put.key", "backup", source, *excludes)
    second_s = time.monotonic() - began

    print("\nThe machine that makes backups cannot read them:")
    demo.run("-k", "put.key", "restore", "latest", "--to", "stolen", expect=5)
    print("\nThe owner can:")
    demo.run("-k", "owner.key", "list")
    began = time.monotonic()
    demo.run("-k", "owner.key", "restore", "latest", "--to", "restored")
    restore_s = time.monotonic() - began
    demo.run("check", "--read-data")

    restored = demo.place + "/restored" + source
    differences = [why for why in (_difference(source, restored),) if why] + compare(source, restored)
    files, size = measure(restored)
    stats = demo.json("-k", "owner.key", "stats")
    assert isinstance(stats, dict)
    print(f"\n{files} files of {size / 1e6:.1f} MB became {stats['bytes_total'] / 1e6:.1f} MB in the repository.")
    print(f"First backup {first_s:.1f} s, second {second_s:.1f} s, restore {restore_s:.1f} s (with starting Python).")
    for difference in differences[:20]:
        print(f"DIFFERENT: {difference}")
    if differences:
        return 1
    print("Restored files were compared with their originals: contents, types, modes and times are the same.")
    return 0


def measure(top: str) -> tuple[int, int]:
    """(number of files, bytes) below a directory."""
    sizes = [path.lstat().st_size for path in Path(top).rglob("*") if path.is_file() and not path.is_symlink()]
    return len(sizes), sum(sizes)


def compare(source: str, restored: str) -> list[str]:
    """Everything below `source` that is not the same below `restored`, and the reverse."""
    differences = []
    names = sorted(set(_names(source)) | set(_names(restored)))
    for name in names:
        path, copy = os.path.join(source, name), os.path.join(restored, name)
        if not os.path.lexists(path) or not os.path.lexists(copy):
            differences.append(f"{path} is on one side only")
        elif why := _difference(path, copy):
            differences.append(f"{path}: {why}")
        elif os.path.isdir(path) and not os.path.islink(path):
            differences += compare(path, copy)
    return differences


def _names(directory: str) -> list[str]:
    return [name for name in os.listdir(directory) if name not in EXCLUDED]


def _difference(path: str, copy: str) -> str | None:
    a, b = os.lstat(path), os.lstat(copy)
    if a.st_mode != b.st_mode:
        return f"mode {a.st_mode:o}, restored {b.st_mode:o}"
    if os.geteuid() == 0 and (a.st_uid, a.st_gid) != (b.st_uid, b.st_gid):
        return f"owner {a.st_uid}:{a.st_gid}, restored {b.st_uid}:{b.st_gid}"
    if a.st_mtime_ns != b.st_mtime_ns:
        return f"time {a.st_mtime_ns}, restored {b.st_mtime_ns}"
    if stat.S_ISLNK(a.st_mode):
        return None if os.readlink(path) == os.readlink(copy) else "link target"
    if stat.S_ISREG(a.st_mode) and Path(path).read_bytes() != Path(copy).read_bytes():
        return "contents"
    return None


if __name__ == "__main__":
    sys.exit(main())
