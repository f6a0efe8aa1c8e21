"""A small real repository to break: made once by the real client, copied for every test, read by the real restore.

What a damage must cost is worked out here from bytes alone (`lost_objects`, `files_needing`): which records differ
from what they were, and which files' extents point to them. No code that looks for damage has a part in it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from smallclient import OWNER

from packnback.backup.save import SaveOptions, SaveResult, save
from packnback.cli.run import run
from packnback.crypto.keys import PutKey
from packnback.format import pack as pack_format
from packnback.format.pack import Footer
from packnback.format.record import HEADER_LEN
from packnback.ids import KIB, ObjectClass
from packnback.restore.listing import Listing, decode_group
from packnback.restore.locate import file_extents
from packnback.restore.look import join
from packnback.restore.objects import ObjectReader
from packnback.restore.report import RestoreResult
from packnback.restore.restore import restore
from packnback.restore.snapshot import open_snapshot
from packnback.store.local import open_local
from packnback.store.repository import LocalRepository

PUT = OWNER.put_key("web1")
DATA_PACK, PAGE = 500 * KIB, 600
"""Sizes that make many packs and pages of a small tree."""


def make_tree(top: Path, seed: int = 1) -> None:
    """Large files (whose objects every backup makes again) and small ones (bundled) in several directories."""
    rng = random.Random(seed)
    for number in range(6):
        directory = top / f"d{number}"
        directory.mkdir(parents=True)
        (directory / "large.bin").write_bytes(rng.randbytes(rng.randrange(600, 900) * KIB))
        for name in range(8):
            (directory / f"small{name}").write_bytes(rng.randbytes(rng.randrange(1, 4000)))


@dataclass(frozen=True)
class Found:
    """A pack file: its bytes and what its footer says."""

    path: Path
    data: bytes
    footer: Footer
    trailer: pack_format.Trailer

    @property
    def name(self) -> bytes:
        return bytes.fromhex(self.path.stem)

    @property
    def object_class(self) -> ObjectClass:
        return self.footer.object_class


def read_pack(path: Path) -> Found:
    data = path.read_bytes()
    trailer = pack_format.decode_trailer(data[-pack_format.TRAILER_LEN :], len(data))
    end = trailer.footer_offset + trailer.footer_length
    return Found(path, data, pack_format.decode_footer(data[trailer.footer_offset : end], trailer), trailer)


@dataclass(frozen=True)
class Repo:
    """A repository and the client's memory, below one directory, and the tree that was backed up."""

    home: Path
    tree: Path

    @property
    def path(self) -> Path:
        return self.home / "repo"

    def copy(self, home: Path) -> Repo:
        """A copy to break, of the same tree."""
        shutil.copytree(self.home, home, ignore=shutil.ignore_patterns("tree", "ballast", "lock.mdb"))
        return Repo(home, self.tree)

    @contextmanager
    def opened(self) -> Iterator[LocalRepository]:
        repository = open_local(str(self.path))
        try:
            with repository.reading():
                yield repository
        finally:
            repository.close()

    def backup(self, key: PutKey = PUT, tree: Path | None = None) -> SaveResult:
        """Back the tree up with the real client."""
        repository = open_local(str(self.path))
        try:
            paths = [os.fsencode(tree or self.tree)]
            return save(repository, key, SaveOptions(paths=paths, state_directory=os.fsencode(self.home / "state")))
        finally:
            repository.close()

    def restore(self, to: Path, sequence: int = 0) -> RestoreResult:
        """Restore the snapshot with this number (0: the newest) by the real restore, ids verified."""
        with self.opened() as repository, ObjectReader(repository, OWNER) as reader:
            infos = repository.snapshots()
            info = infos[-1] if not sequence else next(i for i in infos if i.sequence == sequence)
            return restore(reader, open_snapshot(reader, info), str(to))

    def packs(self, object_class: ObjectClass | None = None) -> list[Found]:
        found = [read_pack(path) for path in sorted(self.path.glob("packs/*/*.pack"))]
        return [pack for pack in found if object_class in (None, pack.object_class)]

    def snapshots(self) -> list[Path]:
        """Snapshot files, oldest first."""
        return sorted((self.path / "snapshots").iterdir())

    def needs(self, sequence: int = 0) -> dict[str, set[bytes]]:
        """Path of each file, relative to the tree → the data objects that it needs."""
        below = os.fsencode(self.tree).lstrip(b"/") + b"/"
        needed: dict[str, set[bytes]] = {}
        with self.opened() as repository, ObjectReader(repository, OWNER) as reader:
            infos = repository.snapshots()
            info = infos[-1] if not sequence else next(i for i in infos if i.sequence == sequence)
            for group in Listing(reader, info.root).groups():
                assert hasattr(group, "block"), "the listing is read before it is damaged"
                for entry in decode_group(group):
                    path = join(group.path, entry.name)
                    if path.startswith(below) and entry.extents:
                        ids = {e.id for e in file_extents(reader, entry) if e.id is not None}
                        needed[path[len(below) :].decode()] = ids
        return needed


class Cli:
    """`packnback --json …` in this process: (exit code, document)."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, repo: Repo | Path, *arguments: str) -> tuple[int, Any]:
        path = repo.path if isinstance(repo, Repo) else repo
        self._capture.readouterr()
        code = run(["-r", str(path), "--json", *arguments])
        captured = self._capture.readouterr()
        assert "Traceback" not in captured.err and "internal error" not in captured.out, captured
        return code, json.loads(captured.out)


def contents(top: Path) -> dict[str, bytes]:
    """Regular files by path below `top`."""
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def restored(tree: Path, to: Path) -> dict[str, bytes]:
    """What a restore of `tree` below `to` has written, by path below the tree."""
    return contents(to / str(tree).lstrip("/"))


def lost_objects(before: Found, after: bytes | None) -> set[bytes]:
    """The objects of a pack that cannot be had of what it has become. Bytes are compared, nothing is parsed.

    A reader takes nothing from a pack whose magic, footer or trailer is damaged: it would not know whose records it
    reads.
    """
    everything = {row.id for row in before.footer.records}
    start, end = len(pack_format.MAGIC), before.trailer.footer_offset
    if after is None or len(after) != len(before.data):
        return everything
    if after[:start] != before.data[:start] or after[end:] != before.data[end:]:
        return everything

    def differs(row: pack_format.RecordRow | pack_format.EnvelopeRow) -> bool:
        span = slice(row.offset, row.offset + row.length)
        return before.data[span] != after[span]

    envelopes = {number for number, row in enumerate(before.footer.envelopes) if differs(row)}
    return {row.id for row in before.footer.records if row.envelope in envelopes or differs(row)}


def files_needing(needs: dict[str, set[bytes]], lost: set[bytes]) -> set[str]:
    return {path for path, ids in needs.items() if ids & lost}


# --- ways of damaging --------------------------------------------------------------------------------------------

Damage = Callable[[bytes, bytes], bytes | None]
"""(contents, contents of another file of the same kind) → what is left, None for no file at all."""


def delete(data: bytes, other: bytes) -> None:
    return None


def truncate(data: bytes, other: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes, other: bytes) -> bytes:
    return flip_at(data, len(data) // 2)


def zero_tail(data: bytes, other: bytes) -> bytes:
    length = min(len(data), max(1, len(data) // 8))
    return data[:-length] + bytes(length)


def replace(data: bytes, other: bytes) -> bytes:
    return other


DAMAGES: list[Damage] = [delete, truncate, flip, zero_tail, replace]


def flip_at(data: bytes, at: int, bit: int = 4) -> bytes:
    return data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]


def damage_body(damage: Damage, pack: Found, other: Found) -> bytes | None:
    """Damage the records of a pack and leave its footer alone, as far as that can be."""
    end = pack.trailer.footer_offset
    tail = pack.data[end:]
    if damage is delete:
        return None
    if damage is truncate:
        return pack.data[: end // 2]
    if damage is replace:
        return other.data
    if damage is flip:
        row = pack.footer.records[0]
        return flip_at(pack.data, row.offset + HEADER_LEN + row.length // 2)
    last = pack.footer.records[-1]
    length = last.length // 2
    return pack.data[: end - length] + bytes(length) + tail


def damage_footer(damage: Damage, pack: Found, other: Found) -> bytes | None:
    """Damage footer and trailer, and leave the records alone."""
    body, tail = pack.data[: pack.trailer.footer_offset], pack.data[pack.trailer.footer_offset :]
    changed = damage(tail, other.data[other.trailer.footer_offset :])
    return body + (changed or b"")


def write(path: Path, data: bytes | None) -> None:
    """Leave `data` at `path`, in a new file as every disk accident would not: LMDB has the old one mapped."""
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)
