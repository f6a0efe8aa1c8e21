"""A simulated disk with two truths: what programs see *now*, and what is *safe* from a power cut.

It implements `packnback.store.fs.FileSystem` and is held to it by the same contract test as the real one.
On top of that it knows what a power cut may leave behind (the crash model of the design):

- un-synced bytes may be lost, cut anywhere, replaced by zeros or by garbage, or be there all the same;
- every un-synced edit of a name (arrival or departure) may have happened or not, independently of every other
  edit in the same directory or elsewhere: nothing is ordered but by a sync;
- a move is two such edits;
- syncing a file makes its bytes safe, not its name; syncing a directory its names, not the bytes behind them.

Every operation that changes something is one step of the `Steps` that the disk shares with the simulated index.
When the power is cut at a step, the operation is half applied (half of the bytes appended, the new name of a
move there and the old one not yet gone), and after that every operation raises `PowerCut`.

Two ways to go on from there: `possible_states` yields the disks that may be found when power is back; assigning
a new `Steps` to `disk.steps` is the milder accident, a killed process on a machine that lives on: everything
is as the process left it, and still un-synced.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice, product
from typing import TypeAlias

from steps import PowerCut, Steps

from packnback.errors import Poisoned
from packnback.events import Watch
from packnback.store.fs import Buffer, check_path, parent_of

PathPredicate: TypeAlias = Callable[[str], bool]


def never(path: str) -> bool:
    """The predicate of a fault that does not occur."""
    return False


class SimDisk:
    """A whole disk in memory. See the module's docstring, and `packnback.store.fs.FileSystem`."""

    def __init__(
        self, steps: Steps | None = None, *, watch: Watch | None = None, space_left: int | None = None
    ) -> None:
        self.steps = steps if steps is not None else Steps()
        self.watch = watch if watch is not None else Watch()
        self.space_left = space_left
        """Bytes until ENOSPC; None for no limit. What is unlinked is given back."""
        self.drop_sync: PathPredicate = never
        """Fault: the sync of these files says that it succeeded and does nothing."""
        self.drop_dir_sync: PathPredicate = never
        self.fail_sync: PathPredicate = never
        """Fault: the sync of these files fails (EIO). As on Linux, what was dirty then is never written, and
        a later sync of the same file claims success."""
        self.fail_dir_sync: PathPredicate = never
        self.now_ns: Callable[[], int] = lambda: 0
        """The clock by which files are stamped."""
        self._root = _Directory()
        self._mutex = threading.RLock()

    # --- the port --------------------------------------------------------------------------------------

    def create(self, path: str) -> SimAppendFile:
        with self._mutex:
            self.steps.check()
            directory, name = self._place(path)
            if name in directory.now:
                raise _os_error(errno.EEXIST, path)
            file = _File(modified_ns=self.now_ns())
            self._step(f"create {path}", half=lambda: directory.edit(name, file))
            directory.edit(name, file)
            return SimAppendFile(self, file, path)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        if offset < 0 or (length is not None and length < 0):
            raise ValueError(f"negative range: {offset}, {length}")
        with self._mutex:
            self.steps.check()
            end = None if length is None else offset + length
            return bytes(self._file(path).data[offset:end])

    def size(self, path: str) -> int:
        with self._mutex:
            self.steps.check()
            return len(self._file(path).data)

    def modified_ns(self, path: str) -> int:
        with self._mutex:
            self.steps.check()
            return self._file(path).modified_ns

    def list(self, path: str) -> list[str]:
        with self._mutex:
            self.steps.check()
            return sorted(self._directory(path).now)

    def move(self, source: str, target: str) -> None:
        with self._mutex:
            self.steps.check()
            file = self._file(source)
            directory, name = self._place(target)
            if source == target or directory.now.get(name, file) is not file:
                raise _os_error(errno.EEXIST, target)
            self._step(f"move {source} {target}", half=lambda: directory.edit(name, file))
            directory.edit(name, file)
            old_directory, old_name = self._place(source)
            old_directory.edit(old_name, None)

    def unlink(self, path: str) -> None:
        with self._mutex:
            self.steps.check()
            file = self._file(path)
            directory, name = self._place(path)
            self._step(f"unlink {path}", half=lambda: directory.edit(name, None))
            directory.edit(name, None)
            if self.space_left is not None and file.links == 0:
                self.space_left += len(file.data)

    def make_dir(self, path: str) -> None:
        with self._mutex:
            self.steps.check()
            directory, name = self._place(path)
            if name in directory.now:
                raise _os_error(errno.EEXIST, path)
            made = _Directory()
            self._step(f"make_dir {path}", half=lambda: directory.edit(name, made))
            directory.edit(name, made)

    def sync_dir(self, path: str) -> None:
        with self._mutex:
            self.steps.check()
            directory = self._directory(path)
            self._step(f"sync_dir {path}")
            if self.fail_dir_sync(path):
                directory.sync_failed = True
                raise _os_error(errno.EIO, path)
            self.watch.counters.fsyncs += 1
            if not self.drop_dir_sync(path):
                directory.sync()

    # --- the power cut -----------------------------------------------------------------------------------

    def possible_states(self, limit: int, rng: random.Random) -> Iterator[SimDisk]:
        """The disks that may be found after a power cut now, at most `limit`; everything in them is safe.

        All of them when there are no more than `limit` (where a cut falls, and what garbage looks like, is
        drawn from `rng` even then). Otherwise draws, the first two being the extremes: everything happened,
        and nothing that was not synced did.
        """
        for tree, contents in self._outcomes(limit, rng):
            disk = SimDisk(watch=self.watch, space_left=self.space_left)
            disk._root = _settled(tree, contents, {})
            yield disk

    def count_states(self, limit: int) -> int:
        """How many different outcomes a power cut could have now; exact up to `limit`, else merely larger."""
        trees = _count_trees(self._root)
        return trees if trees > limit else sum(1 for _ in islice(self._all_outcomes(), limit + 1))

    def _outcomes(self, limit: int, rng: random.Random) -> Iterator[tuple[_Tree, dict[_File, bytes]]]:
        if _count_trees(self._root) <= limit:
            outcomes = list(islice(self._all_outcomes(), limit + 1))
            if len(outcomes) <= limit:
                for tree, fates in outcomes:
                    yield tree, {file: file.after(fate, rng) for file, fate in fates.items()}
                return
        for n in range(limit):
            keep = (1.0, 0.0)[n] if n < 2 else rng.choice((0.1, 0.5, 0.9))
            tree = _drawn_tree(self._root, keep, rng)
            yield tree, {file: file.after(_drawn_fate(file, keep, rng), rng) for file in _files_of(tree)}

    def _all_outcomes(self) -> Iterator[tuple[_Tree, dict[_File, str]]]:
        for tree in _all_trees(self._root):
            files = _files_of(tree)
            for fates in product(*(file.fates() for file in files)):
                yield tree, dict(zip(files, fates, strict=True))

    # --- for tests -----------------------------------------------------------------------------------------

    def files(self, path: str = "") -> dict[str, bytes]:
        """Every file below `path` as it is now, by its full path. Works on a dead machine: we look from outside."""
        with self._mutex:
            found: dict[str, bytes] = {}
            self._collect(self._directory(path), f"{path}/" if path else "", found)
            return found

    def _collect(self, directory: _Directory, prefix: str, found: dict[str, bytes]) -> None:
        for name, node in sorted(directory.now.items()):
            if isinstance(node, _File):
                found[prefix + name] = bytes(node.data)
            elif node.now:
                self._collect(node, f"{prefix}{name}/", found)

    def plant(self, path: str, data: bytes) -> None:
        """Puts `data` at `path`, safe, over whatever is there: bit rot, and whoever has root on this machine."""
        with self._mutex:
            directory, name = self._place(path)
            file = _File(data, self.now_ns())
            directory.edit(name, file)
            directory.pending.pop(name)

    # --- inside --------------------------------------------------------------------------------------------

    def _step(self, what: str, half: Callable[[], None] | None = None) -> None:
        try:
            self.steps.step(what)
        except PowerCut:
            if half is not None:  # the caller has checked that the machine was alive just before
                half()
            raise

    def _node(self, path: str) -> _Node:
        node: _Node = self._root
        for part in _parts(path):
            if not isinstance(node, _Directory):
                raise _os_error(errno.ENOTDIR, path)
            if part not in node.now:
                raise _os_error(errno.ENOENT, path)
            node = node.now[part]
        return node

    def _directory(self, path: str) -> _Directory:
        node = self._node(path)
        if not isinstance(node, _Directory):
            raise _os_error(errno.ENOTDIR, path)
        return node

    def _file(self, path: str) -> _File:
        node = self._node(path)
        if not isinstance(node, _File):
            raise _os_error(errno.EISDIR, path)
        return node

    def _place(self, path: str) -> tuple[_Directory, str]:
        return self._directory(parent_of(check_path(path))), path.rpartition("/")[2]


class SimAppendFile:
    """See `packnback.store.fs.AppendFile`."""

    def __init__(self, disk: SimDisk, file: _File, path: str) -> None:
        self._disk = disk
        self._file = file
        self._path = path
        self._poisoned = False

    def append(self, buffers: Sequence[Buffer]) -> None:
        disk, data = self._disk, b"".join(buffers)
        with disk._mutex:
            self._check()
            self._file.modified_ns = disk.now_ns()
            half = data[: len(data) // 2]
            disk._step(f"append {self._path} {len(data)}", half=lambda: self._file.data.extend(half))
            if disk.space_left is not None:
                fits = min(len(data), disk.space_left)
                disk.space_left -= fits
                self._file.data += data[:fits]
                if fits < len(data):
                    self._poisoned = True
                    raise _os_error(errno.ENOSPC, self._path)
            else:
                self._file.data += data

    def sync(self) -> None:
        disk = self._disk
        with disk._mutex:
            self._check()
            disk._step(f"sync {self._path}")
            if disk.fail_sync(self._path):
                self._poisoned = self._file.sync_failed = True
                raise _os_error(errno.EIO, self._path)
            disk.watch.counters.fsyncs += 1
            if not disk.drop_sync(self._path):
                self._file.sync()

    def close(self) -> None:
        """Harmless on a dead machine, too: the kernel closes what a process leaves open."""

    def _check(self) -> None:
        self._disk.steps.check()
        if self._poisoned:
            raise Poisoned(self._path)


class _File:
    """An inode. `safe` bytes from the start survive a power cut for certain."""

    __slots__ = ("data", "links", "modified_ns", "safe", "sync_failed")

    def __init__(self, data: bytes = b"", modified_ns: int = 0) -> None:
        self.data = bytearray(data)
        self.modified_ns = modified_ns
        self.safe = len(data)
        self.links = 0
        self.sync_failed = False

    def sync(self) -> None:
        if not self.sync_failed:
            self.safe = len(self.data)

    def fates(self) -> tuple[str, ...]:
        """What may become of the bytes that are not safe."""
        unsafe = len(self.data) - self.safe
        if unsafe == 0:
            return ("kept",)
        return ("kept", "lost", "zeros", "garbage", "cut") if unsafe > 1 else ("kept", "lost", "zeros", "garbage")

    def after(self, fate: str, rng: random.Random) -> bytes:
        """The contents after this fate."""
        safe, unsafe = bytes(self.data[: self.safe]), bytes(self.data[self.safe :])
        if fate == "kept":
            return safe + unsafe
        if fate == "lost":
            return safe
        if fate == "zeros":
            return safe + bytes(len(unsafe))
        if fate == "garbage":
            return safe + rng.randbytes(len(unsafe))
        if fate == "cut":
            return safe + unsafe[: rng.randrange(1, len(unsafe))]
        raise ValueError(fate)


class _Directory:
    """Names as they are `now`. `pending` has, for each name edited since the last sync, every value that a
    power cut may leave there, the safe one first; None is absence.
    """

    __slots__ = ("now", "pending", "sync_failed")

    def __init__(self) -> None:
        self.now: dict[str, _Node] = {}
        self.pending: dict[str, list[_Node | None]] = {}
        self.sync_failed = False

    def edit(self, name: str, node: _Node | None) -> None:
        old = self.now.get(name)
        values = self.pending.setdefault(name, [old])
        if all(node is not value for value in values):
            values.append(node)
        if isinstance(old, _File):
            old.links -= 1
        if isinstance(node, _File):
            node.links += 1
        if node is None:
            self.now.pop(name, None)
        else:
            self.now[name] = node

    def sync(self) -> None:
        if not self.sync_failed:
            self.pending.clear()

    def possible(self) -> dict[str, list[_Node | None]]:
        """For every name, the values that a power cut may leave there."""
        return {**{name: [node] for name, node in self.now.items()}, **self.pending}


_Node: TypeAlias = _File | _Directory
_Tree: TypeAlias = "dict[str, _File | _Tree]"
"""One outcome for the names of a directory and of everything below it."""


@lru_cache(maxsize=4096)
def _parts(path: str) -> tuple[str, ...]:
    """The components of a legal path."""
    return tuple(check_path(path).split("/")) if path else ()


def _os_error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)


def _count_trees(directory: _Directory) -> int:
    total = 1
    for values in directory.possible().values():
        total *= sum(_count_trees(value) if isinstance(value, _Directory) else 1 for value in values)
    return total


def _all_trees(directory: _Directory) -> Iterator[_Tree]:
    possible = directory.possible()
    choices: list[list[_File | _Tree | None]] = []
    for values in possible.values():
        outcomes: list[_File | _Tree | None] = []
        for value in values:
            if isinstance(value, _Directory):
                outcomes.extend(_all_trees(value))
            else:
                outcomes.append(value)
        choices.append(outcomes)
    for chosen in product(*choices):
        yield {name: node for name, node in zip(possible, chosen, strict=True) if node is not None}


def _drawn_tree(directory: _Directory, keep: float, rng: random.Random) -> _Tree:
    """Each name as it is now with probability `keep`, else one of the values that it had before."""
    tree: _Tree = {}
    for name, values in directory.possible().items():
        node = directory.now.get(name)
        if len(values) > 1 and rng.random() >= keep:
            node = values[0] if keep == 0.0 else rng.choice([value for value in values if value is not node])
        if node is not None:
            tree[name] = _drawn_tree(node, keep, rng) if isinstance(node, _Directory) else node
    return tree


def _drawn_fate(file: _File, keep: float, rng: random.Random) -> str:
    fates = file.fates()
    if len(fates) == 1 or rng.random() < keep:
        return "kept"
    return "lost" if keep == 0.0 else rng.choice(fates[1:])


def _files_of(tree: _Tree) -> list[_File]:
    """The files that the tree names, each once."""
    found: dict[_File, None] = {}
    waiting = [tree]
    while waiting:
        for node in waiting.pop().values():
            if isinstance(node, dict):
                waiting.append(node)
            else:
                found[node] = None
    return list(found)


def _settled(tree: _Tree, contents: dict[_File, bytes], made: dict[_File, _File]) -> _Directory:
    """A directory in which everything is safe; two names of one file stay two names of one file."""
    directory = _Directory()
    for name, node in tree.items():
        if isinstance(node, dict):
            directory.now[name] = _settled(node, contents, made)
            continue
        if node not in made:
            made[node] = _File(contents[node], node.modified_ns)
        made[node].links += 1
        directory.now[name] = made[node]
    return directory
