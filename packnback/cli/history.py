"""What a reader with a key looks at besides the snapshot itself: whether history is what it was.

Each client's headers form a chain, counted from 1: a gap means that snapshots were taken away. And this machine
remembers the newest snapshots that it has seen: if they are not there any more, or others in their place, the
repository was rolled back, unless it keeps their headers among those of snapshots that were released. Neither keeps
anybody from reading what is there; both are told, and are damage, until somebody has looked into them and said so
(`accept-rollback`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from packnback.cli import words
from packnback.cli.context import Context
from packnback.cli.location import maintenance
from packnback.errors import DiskFull, StorageFailed

if TYPE_CHECKING:
    from packnback.backup.pins import Finding
    from packnback.store.damage import Finding as Damage
    from packnback.store.interface import Repository, SnapshotInfo

CHAIN = "chain"
"""Findings of this kind are gaps in the chain of a client's snapshots."""
_GAP = re.compile(r"(?P<client>[0-9a-f]{32})-(?P<first>[0-9a-f]{16}): no header(, up to (?P<last>[0-9a-f]{16}))?")
_ACCEPT = "if that is right: packnback accept-rollback --reason TEXT"


def alarms_of(context: Context, repository: Repository) -> list[str]:
    """Compare with what was seen before, remember what is seen now, look at the chains: what is alarming, in words.

    It is complained of. The memory is not moved on over an alarm: it goes on until `accept-rollback`.
    """
    infos = repository.snapshots()
    alarms = _gaps(context, repository, infos)
    alarms += [f"{alarm} ({_ACCEPT})" for alarm in _rollbacks(context, repository, infos)]
    for alarm in alarms:
        context.reporter.complain(alarm)
    return alarms


def unaccepted(context: Context, repository_id: bytes, findings: Iterable[Damage]) -> list[Damage]:
    """The findings without the gaps in chains that somebody on this machine has looked into."""
    from packnback.backup.pins import AcceptedGaps
    from packnback.backup.state_file import state_directory

    findings = list(findings)
    gaps = {(f.what, f.why) for f in findings if f.kind == CHAIN}
    try:
        memory = AcceptedGaps(state_directory(), repository_id)
        accepted = memory.load()
        if mended := accepted - gaps:
            memory.strike(mended)
    except (DiskFull, StorageFailed) as error:
        _tell_forgetful(context, error)
        return findings
    return [f for f in findings if f.kind != CHAIN or (f.what, f.why) not in accepted]


def accept(context: Context, repository: Repository, reason: str) -> list[str]:
    """Believe the repository as it is: the newest snapshots that it has, and the gaps in their chains.

    What is accepted that was not before, in words: among it may be something that nobody was told of yet.
    """
    from packnback.backup.pins import AcceptedGaps, ReaderPins, newest
    from packnback.backup.state_file import state_directory

    place = state_directory(), repository.config.repository_id
    infos, findings = repository.snapshots(), maintenance(repository).gaps()
    gaps = [f for f in unaccepted(context, place[1], findings) if f.kind == CHAIN]
    alarms = [_broken(gap, infos) for gap in gaps] + _rollbacks(context, repository, infos)
    ReaderPins(*place).replace(newest(infos))
    AcceptedGaps(*place).replace({(f.what, f.why) for f in findings if f.kind == CHAIN}, reason, time.time_ns())
    return alarms


def _gaps(context: Context, repository: Repository, infos: Iterable[SnapshotInfo]) -> list[str]:
    """Breaks in the chains, headers kept of released snapshots included, and snapshot files that cannot be read."""
    return [
        f"the snapshot file {f.what} cannot be read: {f.why}"
        if f.kind == "snapshot"
        else f"{_broken(f, infos)} ({_ACCEPT})"
        for f in unaccepted(context, repository.config.repository_id, maintenance(repository).gaps())
    ]


def _broken(gap: Damage, infos: Iterable[SnapshotInfo]) -> str:
    """A finding of `store.check.chain_findings`, as people know clients and numbers."""
    found = _GAP.fullmatch(f"{gap.what}: {gap.why}")
    if found is None:
        return f"the chain of snapshots is broken at {gap.what}: {gap.why}"
    client = next((info.client for info in infos if info.client_id.hex() == found["client"]), found["client"])
    number = int(found["first"], 16)
    missing = f"number {number} is missing"
    if found["last"]:
        missing = f"numbers {number} to {int(found['last'], 16)} are missing"
    return f"the chain of snapshots of {client} is broken: {missing}"


def _rollbacks(context: Context, repository: Repository, infos: list[SnapshotInfo]) -> list[str]:
    from packnback.backup.pins import ReaderPins, ReaderVerdict, compare, newest, pin_repository
    from packnback.backup.state_file import state_directory

    config = repository.config
    try:
        pins = ReaderPins(state_directory(), config.repository_id)
        pin_repository(state_directory(), repository.location, config.owner_id, config.repository_id)
        released = {(r.client_id, r.sequence, r.id) for r in maintenance(repository).released()}
        findings = [f for f in compare(pins.load(), infos, released) if f.verdict is not ReaderVerdict.PRUNED]
        if not findings:
            pins.store(newest(infos))
    except (DiskFull, StorageFailed) as error:
        _tell_forgetful(context, error)
        return []
    names = {info.client_id: info.client for info in infos}
    return [_told(finding, names) for finding in findings]


def _tell_forgetful(context: Context, error: DiskFull | StorageFailed) -> None:
    """A rescue system may have nowhere to remember things. That must not keep anybody from his files."""
    told = "what this repository has now cannot be remembered here, nor compared with what it had"
    if context.settings.verbose:
        told += f": {words.reason(error)}"
    if told not in context.told:
        context.told.add(told)
        context.reporter.note(told)


def _told(finding: Finding, names: dict[bytes, str]) -> str:
    client = names.get(finding.client_id, finding.client_id.hex())
    now = f"its newest is number {finding.found_sequence}" if finding.found_sequence else "there is none now"
    return (
        f"snapshots of {client} that were here are not here any more: number {finding.seen_sequence} was seen,"
        f" {now}"
    )
