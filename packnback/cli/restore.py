"""``restore`` and ``verify``: what needs a key that reads contents."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packnback.cli import words
from packnback.cli.context import current
from packnback.cli.look import SnapshotWord, open_word, reading
from packnback.cli.options import Command, family
from packnback.cli.output import path_fields, shown_path
from packnback.cli.quantities import shown_duration, shown_size
from packnback.errors import UsageError

if TYPE_CHECKING:
    from packnback.restore.report import RestoreResult

app = family()


@app.command("restore", cls=Command)
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

    from packnback.restore.options import Overwrite, RestoreOptions
    from packnback.restore.restore import restore as carry_out

    context = current(ctx)
    if overwrite not in list(Overwrite):
        raise UsageError(f"--overwrite takes never, changed or always, not {overwrite!r}")
    options = RestoreOptions(
        paths=[os.fsencode(path) for path in paths or ()],
        overwrite=Overwrite(overwrite),
        delete=delete,
        owners=not no_owner,
        dry_run=dry_run,
    )
    started = time.monotonic()
    with reading(context, contents=True, action="restore") as reader:
        opened = open_word(reader, snapshot)
        result = carry_out(reader, opened, to, options, context.watch)
    seconds = time.monotonic() - started
    context.reporter.close()
    if context.output.json:
        context.output.document(_document(opened.info.id, result, seconds))
    else:
        for problem in result.problems:
            context.output.line(f"/{shown_path(problem.path)}: {problem.reason}")
        verb = "Would restore" if dry_run else "Restored"
        context.output.remark(
            f"{verb} {result.files} files and {result.directories} directories,"
            f" {shown_size(result.bytes_restored)}, in {shown_duration(seconds)}."
        )
    if result.damaged:
        return words.DAMAGED
    return words.INCOMPLETE if result.incomplete else words.DONE


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
            {**path_fields(b"/" + problem.path), "kind": str(problem.kind), "reason": problem.reason}
            for problem in result.problems
        ],
    }
