"""``list``, ``ls``, ``find``, ``cat``, ``diff``: looking into a repository without changing anything."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packnback.cli import words
from packnback.cli.context import Context, current
from packnback.cli.history import alarms_of
from packnback.cli.options import Command, family
from packnback.cli.output import path_fields, paths_fields, shown_path
from packnback.cli.quantities import rfc3339, shown_size
from packnback.errors import Damage, EnvelopeRejected, PathUnknown, UsageError

if TYPE_CHECKING:
    from packnback.crypto.keys import Reader
    from packnback.format.entry import Entry
    from packnback.format.metadata import Metadata
    from packnback.restore.diff import Change
    from packnback.restore.listing import Hole, Listing
    from packnback.restore.objects import ObjectReader
    from packnback.restore.snapshot import Snapshot
    from packnback.store.interface import Repository, SnapshotInfo

app = family()

SnapshotWord = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="An id or prefix, latest, or latest:CLIENT.")]

_TYPES = {
    ord("f"): "file", ord("d"): "dir", ord("l"): "symlink", ord("p"): "fifo",
    ord("c"): "char", ord("b"): "block", ord("s"): "socket",
}  # fmt: skip
_OPENED_AT_ONCE = 16
_MARKS = {"added": "+", "removed": "-", "type": "T", "content": "M", "metadata": "U"}


# --- list ------------------------------------------------------------------------------------------------


@app.command("list", cls=Command, short_help="List snapshots.")
def list_(
    ctx: typer.Context,
    everything: Annotated[
        bool, typer.Option("--all", help="Forgotten snapshots and unfinished ones, too.")
    ] = False,
) -> int:
    """List snapshots; without a key, what the repository itself knows of them."""
    context = current(ctx)
    key = context.reader_if_any()
    with context.reading("list") as repository:
        infos = [i for i in repository.snapshots() if everything or _state(i) == "live"]
        opened = open_all(repository, key, infos, context) if key else []
        damaged = key is not None and (len(opened) < len(infos) or alarms_of(context, repository))
    metadata = {snapshot.info.name: snapshot.metadata for snapshot in opened}
    rows = [_row(info, metadata.get(info.name)) for info in infos]
    if context.output.json:
        context.output.document(rows)
    elif rows:
        _tell_rows(context, rows, with_state=everything)
    else:
        context.output.remark("No snapshots.")
    return words.DAMAGED if damaged else words.DONE


def _state(info: SnapshotInfo) -> str:
    if info.forgotten_ns is not None:
        return "forgotten"
    return "partial" if info.partial else "live"


def open_all(
    repository: Repository, key: Reader, infos: Iterable[SnapshotInfo], context: Context
) -> list[Snapshot]:
    """What `open_each` gives, with a reader of its own."""
    from packnback.restore.objects import ObjectReader

    with ObjectReader(repository, key) as reader:
        return list(open_each(reader, infos, context))


def open_each(
    reader: ObjectReader, infos: Iterable[SnapshotInfo], context: Context, *, listings: bool = False
) -> Iterator[Snapshot]:
    """Those that can be opened; the others are complained of. With `listings`, they are about to be read, too."""
    from packnback.restore.snapshot import open_snapshot

    infos = list(infos)
    reader.repository.expect_snapshots(info.name for info in infos)
    for at in range(0, len(infos), _OPENED_AT_ONCE):
        opened = []
        for info in infos[at : at + _OPENED_AT_ONCE]:
            try:
                opened.append(open_snapshot(reader, info))
            except (Damage, EnvelopeRejected) as error:
                context.reporter.complain(words.words(error).message)
        if listings:
            from packnback.restore.listing import prefetch_tops

            prefetch_tops(reader, [snapshot.header.root for snapshot in opened])
        yield from opened


def _row(info: SnapshotInfo, metadata: Metadata | None) -> dict[str, Any]:
    return {
        "id": info.id.hex(),
        "client": info.client,
        "epoch": info.epoch,
        "sequence": info.sequence,
        "received": rfc3339(info.receipt.time_ns),
        "state": _state(info),
        "complete": info.complete,
        "time": rfc3339(info.time_ns),
        "bytes_added": info.receipt.bytes_added,
        "host": metadata.host if metadata else None,
        **(paths_fields(metadata.paths) if metadata else {"paths": None}),
        "tags": metadata.tags if metadata else None,
        "files": metadata.files if metadata else None,
        "bytes": metadata.bytes if metadata else None,
    }


def _tell_rows(context: Context, rows: list[dict[str, Any]], *, with_state: bool) -> None:
    """A table without columns that say nothing; what was added gives way to the paths, where these are known."""
    known = any(row["files"] is not None for row in rows)
    columns: dict[str, list[str]] = {
        "ID": [row["id"][:12] for row in rows],
        "CLIENT": [row["client"] for row in rows],
        "NO.": [str(row["sequence"]) for row in rows],
        "RECEIVED (UTC)": [row["received"][:16].replace("T", " ") for row in rows],
    }
    if known:
        columns["FILES"] = ["-" if row["files"] is None else str(row["files"]) for row in rows]
        columns["SIZE"] = ["-" if row["bytes"] is None else shown_size(row["bytes"]) for row in rows]
    if not known or context.settings.verbose:
        columns["ADDED"] = [shown_size(row["bytes_added"]) for row in rows]
    if with_state:
        columns["STATE"] = [row["state"] for row in rows]
    if known or not all(row["complete"] for row in rows):
        columns["PATHS"] = [_shown_paths(row) for row in rows]
    right = frozenset(i for i, title in enumerate(columns) if title in ("NO.", "FILES", "SIZE", "ADDED"))
    context.output.table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)], right)


def _shown_paths(row: dict[str, Any]) -> str:
    damaged = "" if row["complete"] else "(incomplete) "
    tags = "".join(f" {key}={value}" for key, value in (row["tags"] or {}).items())
    exact = [shown_path(base64.b64decode(path)) for path in row.get("paths_b64", ())]
    return damaged + " ".join(exact or row["paths"] or ["-"]) + tags


# --- looking into snapshots ------------------------------------------------------------------------------


@contextmanager
def reading(context: Context, *, contents: bool = False, action: str = "read") -> Iterator[ObjectReader]:
    """A reader of the repository's objects, with the repository open and locked against compaction."""
    from packnback.restore.objects import ObjectReader

    key = context.reader(action, contents=contents)
    with context.reading("get", "list") as repository, ObjectReader(repository, key) as reader:
        yield reader


def open_word(reader: ObjectReader, word: str) -> Snapshot:
    """The verified snapshot that a word means."""
    from packnback.restore.snapshot import open_snapshot, resolve

    return open_snapshot(reader, resolve(word, reader.repository.snapshots()))


@contextmanager
def naming(snapshot: Snapshot) -> Iterator[None]:
    """Say in which snapshot a path was looked for."""
    try:
        yield
    except PathUnknown as error:
        raise PathUnknown(error.path, snapshot.info.id.hex()) from error


def path_of(argument: str) -> bytes:
    """A PATH as listings spell it. An empty one is a shell variable that was never set: it means nothing."""
    from packnback.restore.look import normalise

    if not argument:
        raise UsageError("an empty PATH means nothing; write / for everything")
    return normalise(os.fsencode(argument))


def listing_of(reader: ObjectReader, snapshot: Snapshot) -> Listing:
    """The listing below a snapshot's root."""
    from packnback.restore.listing import Listing

    return Listing(reader, snapshot.header.root)


@app.command("ls", cls=Command)
def ls(
    ctx: typer.Context,
    snapshot: SnapshotWord,
    path: Annotated[str, typer.Argument(metavar="[PATH]")] = "/",
    long: Annotated[bool, typer.Option("-l", help="Modes, owners, sizes and times, too.")] = False,
    recursive: Annotated[bool, typer.Option("-R", help="Everything below, too.")] = False,
) -> int:
    """List a directory of a snapshot."""
    from packnback.restore import look

    context = current(ctx)
    wanted = path_of(path)
    with reading(context) as reader:
        opened = open_word(reader, snapshot)
        told = _Entries(context, opened.metadata, long=long)
        with naming(opened):
            for item in look.ls(listing_of(reader, opened), wanted, recursive=recursive):
                told.add(item)
        return told.finish()


@app.command("find", cls=Command)
def find(
    ctx: typer.Context,
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="A shell pattern; with a slash: of paths.")],
    snapshot: Annotated[
        str | None, typer.Option("--snapshot", metavar="SNAPSHOT", help="Only in this one, not in all live ones.")
    ] = None,
    long: Annotated[bool, typer.Option("-l", help="Modes, owners, sizes and times, too.")] = False,
) -> int:
    """Find files by name."""
    from packnback.restore import look

    context = current(ctx)
    with reading(context) as reader:
        infos = [i for i in reader.repository.snapshots() if _state(i) == "live"]
        told: _Entries | None = None
        searched = 0
        for opened in [open_word(reader, snapshot)] if snapshot else open_each(reader, infos, context, listings=True):
            searched += 1
            told = _Entries(context, opened.metadata, long=long, of=opened, after=told, prefixed=snapshot is None)
            for item in look.find(listing_of(reader, opened), os.fsencode(pattern)):
                told.add(item)
        code = (told or _Entries(context, None, long=long)).finish()
        return code if snapshot or searched == len(infos) else words.DAMAGED


@app.command("cat", cls=Command)
def cat(
    ctx: typer.Context, snapshot: SnapshotWord, path: Annotated[str, typer.Argument(metavar="PATH")]
) -> None:
    """Write the contents of a file to stdout."""
    from packnback.restore import look

    context = current(ctx)
    wanted = path_of(path)
    with reading(context, contents=True, action="read the contents of files") as reader:
        opened = open_word(reader, snapshot)
        listing = listing_of(reader, opened)
        with naming(opened):
            for piece in look.cat(listing, wanted, opened.header.domain_id):
                context.output.data(piece)


@app.command("diff", cls=Command)
def diff(
    ctx: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
) -> int:
    """What changed from snapshot A to snapshot B. + added, - removed, M content, U metadata, T type."""
    from packnback.restore.diff import diff as compare
    from packnback.restore.listing import Hole

    context = current(ctx)
    changes: list[dict[str, Any]] = []
    damaged = False
    with reading(context) as reader:
        before, after = (listing_of(reader, open_word(reader, word)) for word in (a, b))
        for item in compare(before, after):
            if isinstance(item, Hole):
                damaged = True
                note_hole(context, item)
            elif context.output.json:
                changes.append(_change(item))
            else:
                context.output.line(f"{_MARKS[item.what]} /{shown_path(item.path)}")
    if context.output.json:
        context.output.document(changes)
    return words.DAMAGED if damaged else words.DONE


def _change(change: Change) -> dict[str, Any]:
    return {
        **path_fields(b"/" + change.path),
        "change": change.what,
        "size_before": change.before.size if change.before else None,
        "size_after": change.after.size if change.after else None,
    }


def note_hole(context: Context, hole: Hole) -> None:
    """Say that a part of a listing could not be read."""
    context.reporter.complain(f"/{shown_path(hole.path)}: {words.reason(hole.problem)}")


class _Entries:
    """Entries on their way to the output: line by line, or gathered into the one JSON document."""

    def __init__(
        self,
        context: Context,
        metadata: Metadata | None,
        *,
        long: bool,
        of: Snapshot | None = None,
        after: _Entries | None = None,
        prefixed: bool = False,
    ) -> None:
        self._context = context
        self._users = metadata.users if metadata else {}
        self._groups = metadata.groups if metadata else {}
        self._long = long
        self._snapshot = of.info.id.hex() if of else None
        self._prefixed = prefixed
        self._gathered: list[dict[str, Any]] = after._gathered if after else []
        self._damaged: bool = after._damaged if after else False

    def add(self, item: Any) -> None:
        """One entry found, or a hole in the listing."""
        from packnback.restore.listing import Hole

        if isinstance(item, Hole):
            self._damaged = True
            note_hole(self._context, item)
        elif self._context.output.json:
            snapshot = {"snapshot": self._snapshot} if self._snapshot else {}
            self._gathered.append({**snapshot, **entry_fields(item.path, item.entry)})
        else:
            prefix = f"{self._snapshot[:12]}  " if self._prefixed and self._snapshot else ""
            line = self._line(item.path, item.entry) if self._long else "/" + shown_path(item.path)
            self._context.output.line(prefix + line)

    def finish(self) -> int:
        """The document, if JSON was asked for; the exit code."""
        if self._context.output.json:
            self._context.output.document(self._gathered)
        return words.DAMAGED if self._damaged else words.DONE

    def _line(self, path: bytes, entry: Entry) -> str:
        from packnback.format.entry import FORMAT_OF

        mode = stat.filemode(entry.mode | FORMAT_OF[entry.type])
        user = self._users.get(entry.uid, str(entry.uid))
        group = self._groups.get(entry.gid, str(entry.gid))
        when = rfc3339(entry.mtime_ns, fraction=False)[:16].replace("T", " ") + "Z"
        target = f" -> {shown_path(entry.target)}" if entry.target else ""
        return f"{mode} {user:<8} {group:<8} {entry.size:>12} {when} /{shown_path(path)}{target}"


def entry_fields(path: bytes, entry: Entry) -> dict[str, Any]:
    """An entry as JSON."""
    fields: dict[str, Any] = {
        **path_fields(b"/" + path),
        "type": _TYPES[entry.type],
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
    }
    if entry.target:
        fields |= path_fields(entry.target, "target")
    return fields
