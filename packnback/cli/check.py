"""``check``: whether the repository is whole, and its repair; and how findings are told to people.

A lost pack is a hundred lost objects, each needed by a year of snapshots. People are told a few of each kind and how
many there are; scripts, and people who ask for it with ``-v``, get all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packnback.cli import words
from packnback.cli.context import Context, current
from packnback.cli.history import CHAIN, unaccepted
from packnback.cli.location import Directory, maintenance
from packnback.cli.options import Command, family
from packnback.cli.phrases import shown_object
from packnback.cli.quantities import counted, parse_percent
from packnback.errors import StorageFailed, UsageError
from packnback.oserrors import reason_of

if TYPE_CHECKING:
    from packnback.gc.maintenance import Checked
    from packnback.store.damage import Finding
    from packnback.store.interface import Repository

app = family()

_OBJECT, _STRANGER = "object", "stranger"
_OF_EACH_KIND = 20
"""So many findings of a kind are told without ``-v``."""
_SNAPSHOTS_TOLD = 5
_NOUNS = {
    "snapshot": "snapshot file", "headers": "header file", "condemned": "condemned list", CHAIN: "chain gap",
    _STRANGER: "stray file",
}  # fmt: skip


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
    standing = document.get("remaining", document["damage"])
    _tell_findings(context, [finding for finding in document["damage"] if finding not in standing])
    if "repaired" in document:
        _tell_repaired(context, document["repaired"])
        if standing:
            output.line("What is wrong still:")
    _tell_findings(context, standing)
    kinds = {finding["kind"] for finding in standing}
    if "repaired" not in document and kinds - {CHAIN, _STRANGER, _OBJECT}:
        output.line("`packnback verify` (with a key) tells which files it means; `packnback check --repair` mends.")
    if _OBJECT in kinds:
        output.line("The next backup stores what still exists, and older snapshots get back pieces of large files.")
        output.line("Files that need what is missing then are lost in these snapshots: `packnback verify`, with a")
        output.line("key, tells which. To give up these: `packnback forget ID...`, `packnback compact --grace 0s`.")
    if _STRANGER in kinds:
        output.line("Stray files are in nobody's way, and no repair touches them: look at them, then delete them.")
    if CHAIN in kinds:
        output.line("A gap in a chain can only be mended with the file that is missing. When it is gone for good:")
        output.line("packnback accept-rollback --reason TEXT")
    if not document["damage"] and not standing and not _repaired_anything(document):
        output.remark("No damage found.")


def _repaired_anything(document: dict[str, Any]) -> bool:
    done = document.get("repaired", {})
    return bool(done.get("packs_quarantined") or done.get("files_quarantined"))


def _tell_repaired(context: Context, done: dict[str, Any]) -> None:
    output = context.output
    output.line(
        f"Repaired: {counted(len(done['packs_quarantined']), 'pack')} put aside,"
        f" {counted(done['objects_saved'], 'object')} saved,"
        f" {len(done['objects_lost'])} lost."
    )
    if done["objects_lost"]:
        output.line("The next backup of the same files stores them again.")
    for file in done["files_quarantined"]:
        output.line(f"Put aside: {file}")
    if any("/snapshots-" in file for file in done["files_quarantined"]):
        output.line("A snapshot that was put aside is not listed any more, but what it needs stays as long as the")
        output.line("file is there, and `packnback compact` deletes nothing at all until then. If there is a copy of")
        output.line("the repository, put the good file back. The client whose newest it was will raise an alarm.")


def _tell_findings(context: Context, findings: Sequence[dict[str, Any]]) -> None:
    """Some of each kind, how many there are, and how many snapshots they touch."""
    output = context.output
    if not findings:
        return
    kinds = Counter(finding["kind"] for finding in findings)
    everything = context.settings.verbose
    told: Counter[str] = Counter()
    for finding in findings:
        kind = finding["kind"]
        told[kind] += 1
        if everything or told[kind] <= _OF_EACH_KIND:
            output.line(f"{_shown(finding)}: {finding['why']}")
            if affected := finding["affects"]:
                output.line(f"  affects {_snapshots(affected, len(affected) if everything else _SNAPSHOTS_TOLD)}")
    if len(findings) > 1:
        touched = {affected for finding in findings for affected in finding["affects"]}
        more = "" if everything or max(kinds.values()) <= _OF_EACH_KIND else " (to see all: -v)"
        found = ", ".join(counted(number, _NOUNS.get(kind, kind)) for kind, number in kinds.items())
        output.line(f"In all: {found}{more}; {counted(len(touched), 'snapshot')} affected.")


def _shown(finding: dict[str, Any]) -> str:
    """An object goes by the digits that `verify` tells, too; a pack by the name of its file."""
    kind, what = finding["kind"], finding["what"]
    if kind == _STRANGER:
        return f"stray file {what}"
    if kind in ("object", "record"):
        object_id, between, pack = what.partition(" ")
        what = shown_object(object_id) + between + pack
    return f"damaged {kind} {what}"


def _snapshots(ids: Sequence[str], limit: int) -> str:
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return f"snapshot{'s' if len(ids) > 1 else ''} {', '.join(each[:12] for each in ids[:limit])}{more}"


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
            raise UsageError(f"{path}, line {number}: not an id, as `verify --bad` writes them")
        ids.append(object_id)
    return ids
