"""``init``, ``check``, ``stats``: what is done to a repository as a whole, without a key that opens anything."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packnback.cli import words
from packnback.cli.context import Context, configured, current
from packnback.cli.history import CHAIN, unaccepted
from packnback.cli.location import Directory, Ssh, maintenance
from packnback.cli.look import open_all
from packnback.cli.options import Command, family
from packnback.cli.quantities import counted, parse_percent, shown_size
from packnback.errors import AlreadyExists, FormatDamage, KeyCannot, StorageFailed, UsageError
from packnback.oserrors import reason_of

if TYPE_CHECKING:
    from packnback.crypto.bundle import OwnerBundle
    from packnback.gc.maintenance import Checked
    from packnback.store.damage import Finding
    from packnback.store.interface import Repository

app = family()

_OWNER_KEY_ADVICE = """\
The owner key does not belong on this machine: it reads every backup. Move it to a
safe place, and keep a second copy: without it no backup can ever be read. Backups
are made with the put key alone."""


@app.command("init", cls=Command)
def init(
    ctx: typer.Context,
    owner: Annotated[
        str | None, typer.Option("--owner", metavar="FILE", help="OWNER.pub or OWNER.key; its public part is used.")
    ] = None,
) -> None:
    """Make a repository. Without --owner, and without any key in the configuration directory, keys are made too."""
    from packnback.store.local import create_local

    context = current(ctx)
    location = context.location()
    if isinstance(location, Ssh):
        raise UsageError(
            f"a repository is made where it will be: log in to {location.host} and run"
            f" `packnback -r {location.path} init --owner OWNER.pub` there"
        )
    if os.path.lexists(os.path.join(location.path, "config")):
        raise AlreadyExists(location.path)
    bundle, made = _owner(context, owner)
    repository = create_local(location.path, bundle.raw, context.watch)
    repository.close()
    if context.output.json:
        context.output.document(
            {
                "repository": repository.config.repository_id.hex(),
                "path": location.path,
                "owner": bundle.owner_id.hex(),
                "keys_made": made,
            }
        )
    context.output.remark(f"Made the repository {location.path}.")
    if made:
        context.output.remark(f"Made the owner key {made[0]}")
        context.output.remark(f"and the put key    {made[1]}.")
        context.output.remark("\n" + _OWNER_KEY_ADVICE)


def _owner(context: Context, file: str | None) -> tuple[OwnerBundle, list[str]]:
    """The owner's public bundle, and the key files that had to be made for it."""
    from packnback.crypto.bundle import OwnerBundle
    from packnback.crypto.keys import OwnerKey

    if file is not None:
        key = context.load(file)
        if isinstance(key, OwnerBundle):
            return key, []
        if not isinstance(key, OwnerKey):
            raise KeyCannot(key.kind, ["owner", "public"], "make a repository")
        return key.bundle, []
    # The key that will make the backups decides who owns the repository; it needs no passphrase as a rule.
    for known in (configured("put.key"), configured("owner.key")):
        if os.path.lexists(known):
            found = context.load(known)
            return (found if isinstance(found, OwnerBundle) else found.bundle), []
    return _make_keys()


def _make_keys() -> tuple[OwnerBundle, list[str]]:
    import socket

    from packnback.crypto.keyfile import write_key
    from packnback.crypto.keys import OwnerKey

    paths = [configured("owner.key"), configured("put.key")]
    if not os.path.isabs(paths[0]):
        raise UsageError("there is no home directory to make keys in: set HOME or XDG_CONFIG_HOME, or name --owner")
    os.makedirs(os.path.dirname(paths[0]), mode=0o700, exist_ok=True)
    owner = OwnerKey.generate()
    put = owner.put_key(socket.gethostname() or "client")
    write_key(paths[0], owner)
    write_key(paths[1], put)
    return owner.bundle, paths


@app.command("check", cls=Command)
def check(
    ctx: typer.Context,
    read_data: Annotated[bool, typer.Option("--read-data", help="Read every byte and compare checksums.")] = False,
    sample: Annotated[
        str,
        typer.Option(
            "--sample", metavar="PERCENT",
            help="With --read-data: only so many of the packs, those first that were read longest ago.",
        ),
    ] = "100",
    repair: Annotated[
        bool, typer.Option("--repair", help="Save what is good in damaged packs, and put them aside.")
    ] = False,
    bad: Annotated[
        str | None, typer.Option("--bad", metavar="FILE", help="With --repair: ids that `verify --bad` wrote.")
    ] = None,
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="Wait for a lock.")] = 600.0,
) -> int:  # fmt: skip
    """Is the repository whole? No key is needed."""
    from packnback.gc.maintenance import CheckOptions
    from packnback.store.local import mend_index, mend_layout

    context = current(ctx)
    if bad and not repair:
        raise UsageError("--bad goes with --repair")
    percent = parse_percent(sample)
    if percent != 100 and not read_data:
        raise UsageError("--sample goes with --read-data: without it, no data are read at all")
    bad_ids = _read_ids(bad) if bad else []
    options = CheckOptions(read_data, percent, repair, bad_ids, wait)
    verbs = ("check", "compact") if repair else ("check",)
    location = context.location()
    mended = None
    if isinstance(location, Directory):
        if repair and (made := mend_layout(location.path, wait)):
            context.reporter.note(f"made {counted(made, 'directory')} that the repository lacked")
        mended = mend_index(location.path, wait)
    with context.repository(*verbs) as repository:
        checked = maintenance(repository).check(options)
        accepted = _set_accepted_aside(context, repository, checked)
    context.reporter.close()
    if mended is not None:
        checked.report.repaired.insert(0, mended)
    _tell_check(context, _checked(checked))
    if accepted:
        context.output.remark(f"{counted(accepted, 'gap')} in chains of snapshots, accepted earlier.")
    return words.DAMAGED if checked.standing else words.DONE


def _set_accepted_aside(context: Context, repository: Repository, checked: Checked) -> int:
    """Take out what somebody has looked into already, and nothing can mend; how many."""
    report = checked.report
    told = unaccepted(context, repository.config.repository_id, report.damage)
    accepted = {(f.kind, f.what, f.why) for f in report.damage} - {(f.kind, f.what, f.why) for f in told}
    report.damage = told
    checked.remaining = [f for f in checked.remaining if (f.kind, f.what, f.why) not in accepted]
    return len(accepted)


def _checked(checked: Checked) -> dict[str, Any]:
    report, done, names = checked.report, checked.repaired, checked.names
    document: dict[str, Any] = {
        "packs": report.packs,
        "objects": report.objects,
        "snapshots": report.snapshots,
        "damage": [_finding(f, names) for f in report.damage],
        "index_rebuilt": report.repaired,
    }
    if done is not None:
        document["repaired"] = {
            "packs_quarantined": done.packs,
            "objects_saved": done.objects_saved,
            "objects_lost": [i.hex() for i in done.objects_lost],
            "files_quarantined": done.files,
        }
        document["remaining"] = [_finding(f, names) for f in checked.remaining]
    return document


def _finding(finding: Finding, names: dict[str, str]) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "what": finding.what,
        "why": finding.why,
        "affects": [names[name] for name in finding.affects if name in names],
    }


def _tell_check(context: Context, document: dict[str, Any]) -> None:
    output = context.output
    if output.json:
        output.document(document)
        return
    output.remark(", ".join(counted(document[f"{thing}s"], thing) for thing in ("pack", "object", "snapshot")))
    if document["index_rebuilt"]:
        output.line("The index was damaged, and has been made anew; it holds nothing that could be lost.")
    _tell_findings(context, document["damage"])
    if "repaired" in document:
        done = document["repaired"]
        output.line(
            f"Repaired: {counted(len(done['packs_quarantined']), 'pack')} put aside,"
            f" {counted(done['objects_saved'], 'object')} saved,"
            f" {len(done['objects_lost'])} lost."
        )
        if done["objects_lost"]:
            output.line("The next backup of the same files stores them again.")
        for file in done["files_quarantined"]:
            output.line(f"Put aside: {file}")
        if document["remaining"]:
            output.line("What is wrong still:")
            _tell_findings(context, document["remaining"])
    elif any(finding["kind"] != CHAIN for finding in document["damage"]):
        output.line("`packnback verify` (with a key) tells which files it means; `packnback check --repair` mends.")
    elif not document["damage"]:
        output.line("No damage found.")
    if any(finding["kind"] == CHAIN for finding in document.get("remaining", document["damage"])):
        output.line("A gap in a chain can only be mended with the file that is missing. When it is gone for good:")
        output.line("packnback accept-rollback --reason TEXT")


def _tell_findings(context: Context, findings: Iterable[dict[str, Any]]) -> None:
    for finding in findings:
        context.output.line(f"damaged {finding['kind']} {finding['what']}: {finding['why']}")
        for affected in finding["affects"]:
            context.output.line(f"  affects snapshot {affected[:12]}")


def _read_ids(path: str) -> list[bytes]:
    """The ids in a file that ``verify --bad`` wrote: 64 hexadecimal digits first on each line."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.readlines()
    except OSError as error:
        raise StorageFailed("read", path, reason_of(error)) from error
    ids = []
    for number, line in enumerate(lines, 1):
        found = line.split()
        if not found or found[0].startswith("#"):
            continue
        try:
            object_id = bytes.fromhex(found[0])
        except ValueError:
            object_id = b""
        if len(object_id) != 32:
            raise FormatDamage("list of bad objects", "not an id", f"{path}, line {number}")
        ids.append(object_id)
    return ids


@app.command("stats", cls=Command, short_help="Sizes, waste, and what is saved.")
def stats(
    ctx: typer.Context,
    per_snapshot: Annotated[bool, typer.Option("--snapshots", help="What each snapshot alone holds, too.")] = False,
) -> int:
    """Sizes; with a key also how much deduplication and compression save."""
    context = current(ctx)
    key = context.reader_if_any()
    with context.reading("list") as repository:
        sizes = maintenance(repository).stats()
        infos = repository.snapshots()
        opened = open_all(repository, key, infos, context) if key is not None else []
        damaged = key is not None and len(opened) < len(infos)
        logical = sum(each.metadata.bytes for each in opened) if key is not None and not damaged else None
        alone = _held_alone(repository) if per_snapshot else None
    document = {
        "packs": sizes.packs,
        "objects": sizes.objects,
        "snapshots": sizes.snapshots,
        "bytes_total": sizes.bytes_total,
        "bytes_live": sizes.bytes_live,
        "bytes_waste": sizes.bytes_waste,
        "bytes_logical": logical,
        "packs_condemned": sizes.packs_condemned,
        "bytes_condemned": sizes.bytes_condemned,
    }
    output = context.output
    if output.json:
        output.document(document if alone is None else {**document, "per_snapshot": alone})
        return words.DAMAGED if damaged else words.DONE
    held = counted(sizes.snapshots, "snapshot"), counted(sizes.packs, "pack"), counted(sizes.objects, "object")
    output.line(", ".join(held))
    output.line(f"stored    {shown_size(sizes.bytes_total):>10}")
    output.line(f"in use    {shown_size(sizes.bytes_live):>10}")
    output.line(f"waste     {shown_size(sizes.bytes_waste):>10}")
    if sizes.packs_condemned:
        output.line(f"condemned {shown_size(sizes.bytes_condemned):>10} ({sizes.packs_condemned} packs)")
    if logical is not None:
        ratio = f", {logical / sizes.bytes_live:.1f} times what is in use" if sizes.bytes_live else ""
        output.line(f"restored  {shown_size(logical):>10} (all snapshots together{ratio})")
    if alone:
        output.line()
        cells = [[row["id"][:12], row["client"], shown_size(row["bytes_alone"])] for row in alone]
        output.table(["SNAPSHOT", "CLIENT", "HELD ALONE"], cells, frozenset({2}))
    return words.DAMAGED if damaged else words.DONE


def _held_alone(repository: Repository) -> list[dict[str, Any]]:
    """For each snapshot, the bytes of the records that would go with it."""
    alone = maintenance(repository).held_alone()
    return [
        {"id": info.id.hex(), "client": info.client, "bytes_alone": alone.get(info.name, 0)}
        for info in repository.snapshots()
    ]
