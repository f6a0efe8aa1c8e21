"""``restore`` and ``verify``: what needs a key that reads contents."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from packnback.cli import words
from packnback.cli.context import current
from packnback.cli.history import alarms_of
from packnback.cli.look import SnapshotWord, naming, open_word, path_of, reading
from packnback.cli.options import Command, family
from packnback.cli.output import path_fields, shown_path
from packnback.cli.quantities import counted, rfc3339, shown_duration, shown_size, told_entries
from packnback.errors import StorageFailed, UsageError
from packnback.ids import short
from packnback.oserrors import reason_of

if TYPE_CHECKING:
    from packnback.cli.context import Context
    from packnback.restore.report import Problem, RestoreResult
    from packnback.restore.snapshot import Snapshot
    from packnback.restore.verify import Affected, VerifyResult

app = family()

_OBJECTS_TOLD = 20
"""So many damaged objects are told without ``-v``; paths are told always: they are what people look for."""
_TROUBLES: dict[str, str] = {
    "damage": "damaged or lost in the repository", "exists": "that stood there already", "refused": "refused",
    "failed": "that could not be written", "attribute": "without all of their attributes",
}  # fmt: skip
_AGAIN = "what is there so far is whole; run it again with --overwrite changed"


@app.command("restore", cls=Command, short_help="Bring a snapshot back, or parts of it.")
def restore(
    ctx: typer.Context,
    snapshot: SnapshotWord,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="Where to; made if need be.")],
    paths: Annotated[list[str] | None, typer.Argument(metavar="[PATH]...")] = None,
    overwrite: Annotated[
        str,
        typer.Option(
            "--overwrite", metavar="never|changed|always", help="What to do with files that stand there already."
        ),
    ] = "never",
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove from restored directories what the snapshot does not have.")
    ] = False,
    no_owner: Annotated[bool, typer.Option("--no-owner", help="Files belong to whoever runs this.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> int:
    """Bring a snapshot back, or some paths of it, below a directory. Paths keep their full names there."""
    import time

    from packnback.cli.memory import keep_large_blocks
    from packnback.restore.options import Overwrite, RestoreOptions
    from packnback.restore.restore import restore as carry_out

    context = current(ctx)
    keep_large_blocks()
    if overwrite not in list(Overwrite):
        raise UsageError(f"--overwrite takes never, changed or always, not {overwrite!r}")
    options = RestoreOptions(
        paths=[path_of(path) for path in paths or ()],
        overwrite=Overwrite(overwrite),
        delete=delete,
        owners=not no_owner,
        dry_run=dry_run,
    )
    if not to:
        raise UsageError("--to is empty: a variable that was never set?")
    started = time.monotonic()
    with reading(context, contents=True, action="restore") as reader:
        opened = open_word(reader, snapshot)
        alarms = alarms_of(context, reader.repository)
        context.when_stopped = _AGAIN
        with naming(opened):
            result = carry_out(reader, opened, to, options, context.watch)
    seconds = time.monotonic() - started
    context.reporter.close()
    if context.output.json:
        context.output.document({**_document(opened.info.id, result, seconds), "alarms": alarms})
    else:
        for problem in result.problems:
            context.output.problem(f"/{shown_path(problem.path)}: {_why(problem)}")
        _tell_restored(context, opened, result, seconds, dry_run=dry_run)
    if result.damaged or alarms:
        return words.DAMAGED
    return words.INCOMPLETE if result.incomplete else words.DONE


def _tell_restored(
    context: Context, snapshot: Snapshot, result: RestoreResult, seconds: float, *, dry_run: bool
) -> None:
    """What was restored, and from when: nobody should have to guess what ``latest`` was."""
    info = snapshot.info
    received = rfc3339(info.receipt.time_ns, fraction=False)
    context.output.remark(f"Snapshot {short(info.id)}, number {info.sequence} of {info.client}, received {received}:")
    verb = "would be restored" if dry_run else "restored"
    what = told_entries(result.files, result.directories, result.others)
    kept = f", {result.unchanged} unchanged" if result.unchanged else ""
    gone = f", {result.deleted} deleted" if result.deleted else ""
    size = shown_size(result.bytes_restored)
    context.output.remark(f"{what} {verb}, {size}{kept}{gone}, in {shown_duration(seconds)}.")
    kinds = Counter(str(problem.kind) for problem in result.problems)
    told = [f"{kinds[kind]} {what}" for kind, what in _TROUBLES.items() if kinds[kind]]
    if told:
        context.output.line(f"Not as backed up (listed above): {', '.join(told)}.")


def _why(problem: Problem | Affected) -> str:
    if problem.cause is None:
        return problem.reason
    return words.reason(problem.cause) + getattr(problem, "rest", "")


def _document(snapshot_id: bytes, result: RestoreResult, seconds: float) -> dict[str, Any]:
    return {
        "snapshot": snapshot_id.hex(),
        "files": result.files,
        "dirs": result.directories,
        "others": result.others,
        "bytes": result.bytes_restored,
        "unchanged": result.unchanged,
        "deleted": result.deleted,
        "seconds": round(seconds, 3),
        "errors": [
            {**path_fields(b"/" + problem.path), "kind": str(problem.kind), "reason": _why(problem)}
            for problem in result.problems
        ],
    }


def _by_path(affected: list[Affected]) -> dict[str, list[bytes]]:
    """For each path and what is wrong with it, the snapshots; a file is in many."""
    found: dict[str, list[bytes]] = {}
    for each in affected:
        found.setdefault(f"/{shown_path(each.path)}: {_why(each)}", []).append(each.snapshot)
    return found


@app.command("verify", cls=Command, short_help="Decrypt and check everything (with a key).")
def verify(
    ctx: typer.Context,
    snapshots: Annotated[list[str] | None, typer.Argument(metavar="[SNAPSHOT]...")] = None,
    bad: Annotated[
        str | None, typer.Option("--bad", metavar="FILE", help="Write bad ids to FILE, for `check --repair`.")
    ] = None,
) -> int:
    """Decrypt everything and compare it with its id: all live snapshots, or those named."""
    from packnback.restore.snapshot import resolve
    from packnback.restore.verify import verify as carry_out

    context = current(ctx)
    with ExitStack() as stack:
        reader = stack.enter_context(reading(context, contents=True, action="verify"))
        file = stack.enter_context(_create(bad)) if bad is not None else None
        infos = reader.repository.snapshots()
        if snapshots:
            chosen = list({i.name: i for i in (resolve(word, infos) for word in snapshots)}.values())
        else:
            chosen = [info for info in infos if info.forgotten_ns is None]
        alarms = alarms_of(context, reader.repository)
        result = carry_out(reader, chosen, context.watch)
        if file is not None:
            file.writelines(f"{object_id.hex()}\n" for object_id in sorted(result.bad))
    context.reporter.close()
    _tell_verified(context, result, alarms)
    return words.DAMAGED if result.damaged or alarms else words.DONE


def _create(path: str) -> TextIO:
    """A file for ids. It is opened before hours of reading, not after them. Raises StorageFailed."""
    try:
        return open(path, "w", encoding="ascii")
    except OSError as error:
        raise StorageFailed("write", path, reason_of(error)) from error


def _tell_verified(context: Context, result: VerifyResult, alarms: list[str]) -> None:
    output = context.output
    if output.json:
        output.document(
            {
                "snapshots": result.snapshots,
                "objects": result.objects,
                "bytes": result.bytes_verified,
                "bad": [{"id": i.hex(), "reason": words.reason(e)} for i, e in sorted(result.bad.items())],
                "snapshots_bad": [
                    {"id": i.hex(), "reason": words.reason(e)} for i, e in sorted(result.snapshots_bad.items())
                ],
                "affected": [
                    {"snapshot": a.snapshot.hex(), **path_fields(b"/" + a.path), "reason": _why(a)}
                    for a in result.affected
                ],
                "alarms": alarms,
            }
        )
        return
    bad = list(result.bad.values())
    told = bad if context.settings.verbose else bad[:_OBJECTS_TOLD]
    for error in (*told, *result.snapshots_bad.values()):
        output.line(words.reason(error))
    if len(told) < len(bad):
        output.line(f"… and {counted(len(bad) - len(told), 'object')} more (to see all: -v)")
    for where, snapshots in _by_path(result.affected).items():
        more = f" and in {counted(len(snapshots) - 1, 'other snapshot')}" if len(snapshots) > 1 else ""
        output.line(f"{where} ({short(snapshots[-1])}{more})")
    what = f"{counted(result.snapshots, 'snapshot')}, {counted(result.objects, 'object')}"
    found = "what is here is whole, but something is missing (see above)" if alarms else "all is well"
    if not result.snapshots and not result.damaged:
        output.remark("There are no snapshots to verify.")
        return
    if result.damaged:
        touched = {affected.snapshot for affected in result.affected} | set(result.snapshots_bad)
        paths = counted(len({affected.path for affected in result.affected}), "path")
        found = f"damage found: {counted(len(bad), 'object')}, {paths}, in {counted(len(touched), 'snapshot')}"
    output.remark(f"{what}, {shown_size(result.bytes_verified)} verified: {found}.")
