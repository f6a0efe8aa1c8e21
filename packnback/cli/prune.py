"""``forget``, ``recover``, ``compact``, ``prune``: what makes room again. No key is needed, and none helps."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packnback.cli import words
from packnback.cli.context import Context, current
from packnback.cli.location import maintenance, reading
from packnback.cli.options import Command, family
from packnback.cli.quantities import counted, parse_age, parse_percent, parse_tag, rfc3339, shown_size
from packnback.errors import DamageBlocks, UsageError
from packnback.ids import short

if TYPE_CHECKING:
    from packnback.gc.compaction import Compacted, CompactOptions
    from packnback.gc.retention import Policy, Verdict
    from packnback.store.interface import Repository, SnapshotInfo

app = family()

_ASKED = "named on the command line"
_ALREADY = "it was already"

Within = Annotated[str | None, typer.Option("--keep-within", metavar="AGE", help="All that are younger, such as 7d.")]
Newest = Annotated[int, typer.Option("--keep-newest", metavar="N", min=0, help="The newest N.")]
Hourly = Annotated[int, typer.Option("--keep-hourly", metavar="N", min=0, help="The first of each of N hours.")]
Daily = Annotated[int, typer.Option("--keep-daily", metavar="N", min=0, help="… of each of N days.")]
Weekly = Annotated[int, typer.Option("--keep-weekly", metavar="N", min=0, help="… of each of N weeks.")]
Monthly = Annotated[int, typer.Option("--keep-monthly", metavar="N", min=0, help="… of each of N months.")]
Yearly = Annotated[int, typer.Option("--keep-yearly", metavar="N", min=0, help="… of each of N years.")]
Client = Annotated[str | None, typer.Option("--client", metavar="NAME", help="Only snapshots of this client.")]
Tag = Annotated[
    list[str] | None, typer.Option("--tag", metavar="K=V", help="Only snapshots with this tag (needs a list key).")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Force = Annotated[bool, typer.Option("--force", help="Go on against the clock guard, and take a client's last one.")]
Grace = Annotated[str, typer.Option("--grace", metavar="AGE", help="Release what was forgotten longer ago.")]
MaxWaste = Annotated[str, typer.Option("--max-waste", metavar="PERCENT", help="Leave at most this much waste.")]


@app.command("forget", cls=Command)
def forget(
    ctx: typer.Context,
    snapshots: Annotated[list[str] | None, typer.Argument(metavar="[SNAPSHOT]...")] = None,
    within: Within = None,
    newest: Newest = 0,
    hourly: Hourly = 0,
    daily: Daily = 0,
    weekly: Weekly = 0,
    monthly: Monthly = 0,
    yearly: Yearly = 0,
    client: Client = None,
    tag: Tag = None,
    dry_run: DryRun = False,
    force: Force = False,
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="Wait for a lock.")] = 600.0,
) -> None:
    """Forget snapshots, by name or by policy. `recover` undoes it within the grace period."""
    context = current(ctx)
    policy = _policy(within, newest, hourly, daily, weekly, monthly, yearly)
    if snapshots and (not policy.empty or client or tag):
        raise UsageError("either name snapshots, or give a policy")
    if not snapshots:
        _refuse_empty(policy)
    with context.reading("list", "forget", wait_s=wait) as repository:
        if snapshots:
            judged = _named(repository, snapshots)
        else:
            judged = _by_policy(context, repository, policy, client, tag)
        _carry_out(repository, judged, dry_run=dry_run, force=force)
    rows = [_verdict_row(info, verdict) for info, verdict in judged]
    if context.output.json:
        context.output.document(rows)
    done = not dry_run and any(info.forgotten_ns is None for info, _ in judged)
    undo = "Undo it with `packnback recover`; `packnback compact` gives back space after a week."
    _tell_verdicts(context, judged, dry_run=dry_run, undo=undo if done else None)


@app.command("recover", cls=Command, short_help="Take `forget` back.")
def recover(ctx: typer.Context, snapshots: Annotated[list[str], typer.Argument(metavar="SNAPSHOT...")]) -> None:
    """Take `forget` back, as long as nothing has been released."""
    context = current(ctx)
    with context.reading("list", "forget") as repository:
        infos = _resolve_all(repository, snapshots)
        recovered = set(maintenance(repository).recover([info.name for info in infos]))
    if context.output.json:
        context.output.document([{"id": i.id.hex(), "recovered": i.name in recovered} for i in infos])
    for info in infos:
        done = "recovered" if info.name in recovered else "was not forgotten"
        context.output.remark(f"{short(info.id)}  {info.client}: {done}")


@app.command("compact", cls=Command, short_help="Give back the space of what was forgotten.")
def compact(
    ctx: typer.Context,
    grace: Grace = "7d",
    max_waste: MaxWaste = "10",
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Go on against the clock guard or missing objects.")] = False,
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="Wait for a lock.")] = 10.0,
) -> int:
    """Release what was forgotten long enough ago, and give back the space."""
    context = current(ctx)
    options = _compact_options(grace, max_waste, dry_run=dry_run, force=force, wait=wait)
    with context.repository("list", "compact") as repository:
        with reading(repository):
            names = {info.name: info.id.hex() for info in repository.snapshots()}
        done = maintenance(repository).compact(options)
    context.reporter.close()
    if context.output.json:
        context.output.document(_compacted(done, names))
    _tell_compacted(context, done, dry_run=dry_run)
    return words.DAMAGED if done.rotten else words.DONE


@app.command("prune", cls=Command)
def prune(
    ctx: typer.Context,
    within: Within = None,
    newest: Newest = 0,
    hourly: Hourly = 0,
    daily: Daily = 0,
    weekly: Weekly = 0,
    monthly: Monthly = 0,
    yearly: Yearly = 0,
    client: Client = None,
    tag: Tag = None,
    grace: Grace = "7d",
    max_waste: MaxWaste = "10",
    dry_run: DryRun = False,
    force: Force = False,
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="Wait for a lock.")] = 10.0,
) -> int:
    """Forget by policy, then compact."""
    context = current(ctx)
    policy = _policy(within, newest, hourly, daily, weekly, monthly, yearly)
    _refuse_empty(policy)
    options = _compact_options(grace, max_waste, dry_run=dry_run, force=force, wait=wait)
    with context.repository("list", "forget", "compact", wait_s=wait) as repository:
        with reading(repository):
            judged = _by_policy(context, repository, policy, client, tag)
            _carry_out(repository, judged, dry_run=dry_run, force=force)
            names = {info.name: info.id.hex() for info in repository.snapshots()}
        _say_what_stands(context, judged, dry_run=dry_run)
        try:
            done = maintenance(repository).compact(options)
        except DamageBlocks:
            if not dry_run:
                _take_back(repository, judged)
            raise
    context.reporter.close()
    if context.output.json:
        verdicts = [_verdict_row(info, verdict) for info, verdict in judged]
        context.output.document({"forget": verdicts, "compact": _compacted(done, names)})
    undo = None if dry_run else f"`packnback recover` takes it back, for {grace} after it was forgotten."
    _tell_verdicts(context, judged, dry_run=dry_run, undo=undo, released=set(done.released))
    _tell_compacted(context, done, dry_run=dry_run)
    return words.DAMAGED if done.rotten else words.DONE


def _say_what_stands(
    context: Context, judged: Iterable[tuple[SnapshotInfo, Verdict]], *, dry_run: bool
) -> None:
    """Should compaction not come to its end, or not begin: what was forgotten before is forgotten."""
    forgotten = sum(not verdict.keep for _, verdict in judged)
    if forgotten and not dry_run:
        context.when_stopped = (
            f"{counted(forgotten, 'snapshot')} had been forgotten by then (`packnback recover` takes that back);"
            " run it again to have their space back"
        )


def _take_back(repository: Repository, judged: Iterable[tuple[SnapshotInfo, Verdict]]) -> None:
    """Damage stops deletion: then what was about to be deleted is not forgotten either, nor does its time run."""
    fresh = [info.name for info, verdict in judged if not verdict.keep and info.forgotten_ns is None]
    if fresh:
        with reading(repository):
            maintenance(repository).recover(fresh)


# --- deciding --------------------------------------------------------------------------------------------


def _policy(
    within: str | None, newest: int, hourly: int, daily: int, weekly: int, monthly: int, yearly: int
) -> Policy:
    from packnback.gc.retention import Policy

    within_ns = parse_age(within) if within is not None else None
    return Policy(within_ns, newest, hourly, daily, weekly, monthly, yearly)


def _compact_options(grace: str, max_waste: str, *, dry_run: bool, force: bool, wait: float) -> CompactOptions:
    from packnback.gc.compaction import CompactOptions

    return CompactOptions(parse_age(grace), parse_percent(max_waste) / 100, force, dry_run, wait)


def _resolve_all(repository: Repository, named: Iterable[str]) -> list[SnapshotInfo]:
    from packnback.restore.snapshot import resolve

    infos = repository.snapshots()
    return list({info.name: info for info in (resolve(word, infos) for word in named)}.values())


def _named(repository: Repository, named: Iterable[str]) -> list[tuple[SnapshotInfo, Verdict]]:
    from packnback.gc.retention import Verdict

    infos = _resolve_all(repository, named)
    return [(info, Verdict(False, [_ASKED if info.forgotten_ns is None else _ALREADY])) for info in infos]


def _refuse_empty(policy: Policy) -> None:
    if policy.empty:
        raise UsageError("no rule says what to keep: give at least one of the --keep options")


def _by_policy(
    context: Context, repository: Repository, policy: Policy, client: str | None, tags: Sequence[str] | None
) -> list[tuple[SnapshotInfo, Verdict]]:
    from packnback.gc.forget import judge

    infos = repository.snapshots()
    clients = sorted({info.client for info in infos})
    if client is not None and clients and client not in clients:  # a slip in a cron job would prune nothing, for ever
        raise UsageError(f"there are no snapshots of {client}; there are some of: {', '.join(clients)}")
    chosen = _filter(context, repository, client, tags)
    infos = [info for info in infos if chosen(info)]
    return judge(infos, policy, maintenance(repository).clock(force=True))


def _filter(
    context: Context, repository: Repository, client: str | None, tags: Sequence[str] | None
) -> Callable[[SnapshotInfo], bool]:
    """Which snapshots the policy is about: by name of client, and by tags, which only a key can read."""
    if not tags:
        return lambda info: client is None or info.client == client
    from packnback.restore.objects import ObjectReader
    from packnback.restore.snapshot import open_snapshot

    wanted = dict(parse_tag(tag) for tag in tags)
    tagged = set()
    with ObjectReader(repository, context.reader("read tags")) as reader:
        for info in repository.snapshots():
            if info.forgotten_ns is None and wanted.items() <= open_snapshot(reader, info).metadata.tags.items():
                tagged.add(info.name)
    return lambda info: info.name in tagged and client in (None, info.client)


def _carry_out(
    repository: Repository, judged: Iterable[tuple[SnapshotInfo, Verdict]], *, dry_run: bool, force: bool
) -> None:
    names = [info.name for info, verdict in judged if not verdict.keep]
    if dry_run:
        maintenance(repository).clock(force=force)
    elif names:
        maintenance(repository).forget(names, force=force)


# --- telling ---------------------------------------------------------------------------------------------


def _verdict_row(info: SnapshotInfo, verdict: Verdict) -> dict[str, Any]:
    return {"id": info.id.hex(), "client": info.client, "keep": verdict.keep, "reasons": verdict.reasons}


def _tell_verdicts(
    context: Context,
    judged: Sequence[tuple[SnapshotInfo, Verdict]],
    *,
    dry_run: bool,
    undo: str | None,
    released: Container[str] = frozenset(),
) -> None:
    """What became of each snapshot, and, if there is something to be undone, how."""
    if not judged:
        context.output.remark("No snapshots.")
    goes = "would go" if dry_run else "forgotten"
    for info, verdict in judged:
        if verdict.keep and context.output.quiet:
            continue
        mark = "stays" if verdict.keep else goes
        context.output.line(f"{short(info.id)}  {info.client}  {mark}: {', '.join(verdict.reasons)}")
    if undo and any(not verdict.keep and info.name not in released for info, verdict in judged):
        context.output.remark(undo)


def _compacted(done: Compacted, names: dict[str, str]) -> dict[str, Any]:
    return {
        "released": [names.get(name, name) for name in done.released],
        "objects_dropped": done.objects_dropped,
        "packs_rewritten": done.packs_rewritten,
        "packs_deleted": done.packs_deleted,
        "bytes_freed": done.bytes_freed,
        "bytes_written": done.bytes_written,
        "bytes_total": done.bytes_total,
        "bytes_live": done.bytes_live,
        "packs_rotten": done.rotten,
        "condemned": done.condemned,
        "bytes_condemned": done.bytes_condemned,
        "due": None if done.due_ns is None else rfc3339(done.due_ns),
        "held_up_by": done.held_up_by,
    }


def _tell_compacted(context: Context, done: Compacted, *, dry_run: bool) -> None:
    would = "Would release" if dry_run else "Released"
    context.output.remark(
        f"{would} {counted(len(done.released), 'snapshot')} and {counted(done.objects_dropped, 'object')}:"
        f" {shown_size(done.bytes_freed)} freed, {shown_size(done.bytes_written)} written."
    )
    context.output.remark(f"{shown_size(done.bytes_total)} stored, {shown_size(done.bytes_live)} in use.")
    if done.condemned:
        waits = "would wait" if dry_run else "wait"
        when = f" (after {rfc3339(done.due_ns, fraction=False)})" if done.due_ns is not None else ""
        context.output.remark(
            f"{done.condemned} packs ({shown_size(done.bytes_condemned)}) {waits} for being deleted, because other"
            f" machines can write here. Run `packnback compact` again a day later{when} to have their space back."
        )
    for holder in done.held_up_by:
        context.output.remark(
            f"Packs that are due stay: a {holder} on another machine began before they were. Run this again later."
        )
    for pack in done.rotten:
        context.output.line(f"pack {pack[:12]} was left alone, as it is damaged; run `packnback check --read-data`")
