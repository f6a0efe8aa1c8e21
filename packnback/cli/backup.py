"""``backup``, and ``accept-rollback`` for when it refuses: what a machine with a put key does."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packnback.cli import history, words
from packnback.cli.context import Context, configured, current
from packnback.cli.options import Command, family
from packnback.cli.output import path_fields, shown_path
from packnback.cli.quantities import parse_compression, parse_tag, rfc3339, shown_duration, shown_size, told_entries
from packnback.errors import NotAllowed, StorageFailed, UsageError, WrongOwner
from packnback.ids import short
from packnback.oserrors import reason_of

if TYPE_CHECKING:
    from packnback.backup.save import SaveResult
    from packnback.backup.stream_source import StreamSource
    from packnback.backup.walk import WalkOptions
    from packnback.crypto.keys import PutKey
    from packnback.store.interface import Repository

app = family()

_STDIN = 0


@app.command("backup", cls=Command)
def backup(
    ctx: typer.Context,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH...")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="Leave out what matches (as .gitignore).")
    ] = None,
    exclude_from: Annotated[
        list[str] | None, typer.Option("--exclude-from", metavar="FILE", help="Patterns from a file.")
    ] = None,
    exclude_caches: Annotated[
        bool, typer.Option("--exclude-caches", help="Leave out directories that are tagged as caches.")
    ] = False,
    exclude_if_present: Annotated[
        list[str] | None,
        typer.Option("--exclude-if-present", metavar="NAME", help="Leave out directories that hold this file."),
    ] = None,
    one_file_system: Annotated[
        bool, typer.Option("--one-file-system", "-x", help="Do not enter other file systems.")
    ] = False,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="K=V", help="Attach a tag.")] = None,
    compression: Annotated[str, typer.Option("--compression", metavar="none|zstd:N")] = "zstd:3",
    stdin: Annotated[
        str | None, typer.Option("--stdin", metavar="NAME", help="Back up what comes on stdin, as one file.")
    ] = None,
    exec_: Annotated[
        str | None,
        typer.Option("--exec", metavar="NAME", help="Back up what a command writes: --exec NAME -- COMMAND..."),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Read every file, changed or not.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look; store nothing.")] = False,
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="Wait for a lock.")] = 600.0,
) -> int:
    """Back up directories and files: one snapshot."""
    from packnback.backup.cache import cache_directory
    from packnback.backup.save import SaveOptions, save
    from packnback.cli.memory import keep_large_blocks

    context = current(ctx)
    keep_large_blocks()
    walk = _walk_options(exclude, exclude_from, exclude_caches, exclude_if_present, one_file_system)
    with ExitStack() as stack:
        stream = _stream(stack, paths or [], stdin, exec_, dry_run=dry_run)
        options = SaveOptions(
            paths=[] if stream else [os.fsencode(path) for path in paths or []],
            stream=stream,
            walk=walk,
            tags=dict(parse_tag(text) for text in tag or ()),
            compression=parse_compression(compression),
            dry_run=dry_run,
            cache_directory=None if no_cache else cache_directory(),
        )
        for path in paths or () if stream is None else ():
            if os.path.islink(path.rstrip("/")):
                context.reporter.complain(f"{path} is a symbolic link: the link is stored, not what it leads to")
        key = context.put_key()
        repository = stack.enter_context(context.repository("put", wait_s=wait))
        result = save(repository, key, options, context.watch)
    context.reporter.close()
    if context.output.json:
        context.output.document(_document(context, result))
    _tell(context, result, key)
    return words.INCOMPLETE if result.errors else words.DONE


def _walk_options(
    exclude: list[str] | None,
    exclude_from: list[str] | None,
    exclude_caches: bool,
    exclude_if_present: list[str] | None,
    one_file_system: bool,
) -> WalkOptions:
    from packnback.backup.exclude import Excludes, read_patterns
    from packnback.backup.walk import WalkOptions

    patterns = [os.fsencode(pattern) for pattern in exclude or ()]
    for name in exclude_from or ():
        try:
            with open(name, "rb") as file:
                patterns += read_patterns(file.read())
        except OSError as error:
            raise StorageFailed("read", name, reason_of(error)) from error
    return WalkOptions(
        excludes=Excludes(patterns),
        exclude_caches=exclude_caches,
        exclude_if_present=[os.fsencode(name) for name in exclude_if_present or ()],
        one_file_system=one_file_system,
    )


def _stream(
    stack: ExitStack, arguments: list[str], stdin: str | None, exec_: str | None, *, dry_run: bool
) -> StreamSource | None:
    """The stream to back up, or None when `arguments` are paths."""
    from packnback.backup.stream_source import CommandSource, DescriptorSource

    if stdin is not None and exec_ is not None:
        raise UsageError("--stdin and --exec exclude each other")
    if stdin is None and exec_ is None:
        if not arguments:
            raise UsageError("what is to be backed up? Name at least one PATH")
        if "" in arguments:  # a shell variable that was never set; it would mean the current directory
            raise UsageError("an empty PATH means nothing; write . for the current directory")
        return None
    if dry_run:
        raise UsageError("--dry-run cannot look at a stream")
    if stdin is not None:
        if arguments:
            raise UsageError("with --stdin there are no PATHs")
        return DescriptorSource(os.fsencode(stdin), _STDIN)
    if not arguments:
        raise UsageError("which command? Write --exec NAME -- COMMAND...")
    return stack.enter_context(CommandSource(os.fsencode(exec_ or ""), arguments))


def _document(context: Context, result: SaveResult) -> dict[str, Any]:
    from packnback.backup.state import Verdict

    published = result.published
    document: dict[str, Any] = {
        "snapshot": published.id.hex() if published else None,
        "sequence": published.sequence if published else None,
        "received": rfc3339(published.received_ns) if published else None,
        "files": result.files,
        "dirs": result.dirs,
        "others": result.others,
        "bytes": result.bytes,
        "files_unchanged": result.files_unchanged,
        "objects_new": result.objects_new,
        "bytes_stored": result.bytes_stored,
        "seconds": round(result.seconds, 3),
        "errors": [{**path_fields(path), "reason": reason} for path, reason in result.errors],
        "changed_while_read": [path_fields(path) for path in result.unsteady],
        "reinstalled": bool(published and published.found is Verdict.REINSTALLED),
    }
    if context.settings.verbose:
        document["timings"] = {stage: round(seconds, 3) for stage, seconds in result.timings.items()}
        document["counters"] = context.watch.counters.as_dict()
    return document


def _tell(context: Context, result: SaveResult, key: PutKey) -> None:
    from packnback.backup.state import Verdict

    output, published = context.output, result.published
    for path, reason in result.errors:
        output.problem(f"{shown_path(path)}: {reason}")
    if context.settings.verbose:
        for path in result.unsteady:
            output.problem(f"{shown_path(path)}: changed while it was read")
    size = shown_size(result.bytes)
    if published is None:
        output.line(f"Would back up {told_entries(result.files, result.dirs, result.others)}, {size}.")
        return
    if published.found is Verdict.REINSTALLED and published.continued is not None:
        received = rfc3339(published.continued.received_ns, fraction=False)
        context.reporter.complain(
            f"this machine remembered nothing of {key.name}; its snapshots go on after number"
            f" {published.continued.sequence}, received {received}"
        )
    if published.other_subject:
        context.reporter.note(
            f"the snapshot of {key.name} before this one was of other paths. Rules such as --keep-daily count the"
            " snapshots of a client together: what is backed up by itself should have a put key of its own name"
        )
    output.remark(f"Snapshot {short(published.id)}, number {published.sequence} of {key.name}:")
    stored = told_entries(result.files, result.dirs, result.others, unchanged=result.files_unchanged)
    output.remark(
        f"{stored}, {size};"
        f" {shown_size(result.bytes_stored)} stored, in {shown_duration(result.seconds)}."
    )
    if result.errors:
        output.remark(f"{len(result.errors)} of them could not be read; everything else is safe.")
    if context.settings.verbose:
        output.remark(f"header {published.id.hex()}")
        for stage, seconds in sorted(result.timings.items(), key=lambda item: -item[1]):
            output.remark(f"  {stage:<16} {seconds:8.2f} s")


@app.command("accept-rollback", cls=Command, short_help="Go on after an alarm that was looked into.")
def accept_rollback(
    ctx: typer.Context,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="What you found out; it is kept.")],
) -> None:
    """Go on after an alarm that you have looked into: this machine believes the repository as it is now."""
    from packnback.backup import pins
    from packnback.backup.state_file import state_directory
    from packnback.crypto.keys import PutKey

    context = current(ctx)
    if not reason.strip():
        raise UsageError("the reason is empty")
    path = _any_key(context)
    key = context.load(path) if path is not None else None
    with context.repository("put" if isinstance(key, PutKey) else "list") as repository:
        config = repository.config
        if key is not None and key.owner_id != config.owner_id:
            raise WrongOwner(key.owner_id.hex(), config.owner_id.hex())
        place = repository.location, config.owner_id, config.repository_id
        earlier = pins.repin_repository(state_directory(), *place)
        found = _accept_chain(repository, key, reason) if isinstance(key, PutKey) else None
    try:
        with context.reading("list") as repository:
            alarms = history.accept(context, repository, reason)
    except NotAllowed:
        # A machine that may only add backups has no reader's memory to mend.
        if found is None:
            raise
        alarms = []
    if earlier is not None:
        alarms.insert(0, f"repository {short(config.repository_id)} in the place of {short(earlier)}")
    if context.output.json:
        told = {"repository": config.repository_id.hex(), "accepted": found, "alarms": alarms}
        context.output.document(told)
    for alarm in alarms:
        context.output.line(f"Accepted: {alarm}")
    if found in (None, "go-on") and not alarms:
        context.output.remark("There was no alarm; the repository is believed as it is now.")
    else:
        context.output.remark("Accepted: the repository is believed as it is now, and backups go on from there.")


def _any_key(context: Context) -> str | None:
    """The key named, or one that there is. Where repositories stand, there is none as a rule: `check` needs none."""
    there = (path for path in map(configured, ("put.key", "owner.key")) if os.path.lexists(path))
    return context.key_named() or next(there, None)


def _accept_chain(repository: Repository, key: PutKey, reason: str) -> str:
    """Let the client's own chain go on from the repository's head; what the alarm was."""
    from packnback.backup.state import Chain
    from packnback.backup.state_file import state_directory

    chain = Chain(state_directory(), repository.config.repository_id, key.client_id)
    with repository.session(key.certificate.raw) as session:
        return chain.accept(session.head(), reason, time.time_ns()).value
