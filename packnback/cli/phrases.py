"""What is said of each class of error: the message, and a hint on what to do where there is something to be done.

A table of functions, in the order of the tree of errors; `packnback.cli.words` is who asks it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from packnback import errors
from packnback.cli.quantities import rfc3339, shown_duration, shown_size
from packnback.errors import PacknbackError

_CHECK = "run `packnback check --read-data` to see what else is concerned"
_GENERATE_PUT = "make one where the owner key is: packnback key put put.key --from owner.key --client NAME"

_TAG_DIGITS = 16


class Words(Struct, frozen=True):
    """What a person is told."""

    message: str
    hint: str | None = None


Writer = Callable[[Any], Words]
WRITERS: dict[type[PacknbackError], Writer] = {}


def _for(cls: type[PacknbackError]) -> Callable[[Writer], Writer]:
    def register(writer: Writer) -> Writer:
        WRITERS[cls] = writer
        return writer

    return register


# --- exit 1 ----------------------------------------------------------------------------------------------


@_for(errors.NotARepository)
def _(e: errors.NotARepository) -> Words:
    if e.path.startswith("ssh://"):
        hint = "check the path; if authorized_keys there forces a command, it is the path in that one that counts"
        return Words(f"there is no repository at {e.path}", hint)
    hint = f"is its disk mounted, and the path right? To make a new one: packnback -r {e.path} init"
    return Words(f"there is no repository at {e.path}", hint)


@_for(errors.AlreadyExists)
def _(e: errors.AlreadyExists) -> Words:
    return Words(f"{e.path} exists already", "nothing was changed; choose another name, or move it away")


@_for(errors.UnsupportedVersion)
def _(e: errors.UnsupportedVersion) -> Words:
    return Words(
        f"the {e.what} is of version {e.found}; this program knows version {e.supported}",
        "nothing was changed; use a newer packnback",
    )


@_for(errors.WrongRepository)
def _(e: errors.WrongRepository) -> Words:
    return Words(
        f"{e.location} holds another repository than before (now {e.found[:12]}, earlier {e.expected[:12]})",
        "if it was replaced on purpose, look into it, then run: packnback accept-rollback --reason TEXT",
    )


@_for(errors.DiskFull)
def _(e: errors.DiskFull) -> Words:
    return Words(f"the disk is full: {e.path}", "what was stored before is safe; free some space and run it again")


@_for(errors.StorageFailed)
def _(e: errors.StorageFailed) -> Words:
    hint = "is its disk mounted? If this is a copy that lacks empty directories: packnback check --repair"
    return Words(f"cannot {e.operation} {e.path}: {e.reason}", hint if e.operation == "list" else None)


@_for(errors.StateUnusable)
def _(e: errors.StateUnusable) -> Words:
    return Words(
        f"this machine cannot remember what it has seen of the repository: cannot {e.operation} {e.path}: {e.reason}",
        "mend that, or name another place: XDG_STATE_HOME=DIR",
    )


@_for(errors.Unreadable)
def _(e: errors.Unreadable) -> Words:
    return Words(
        f"the disk does not give {e.path} back: {e.reason}",
        "other files may be fine: look at the disk's health first, then run `packnback check --read-data`",
    )


@_for(errors.BlobMissing)
def _(e: errors.BlobMissing) -> Words:
    return Words(f"the file {e.name} is not in the repository any more", "run the command again")


@_for(errors.Poisoned)
def _(e: errors.Poisoned) -> Words:
    return Words(
        f"an earlier write to {e.path} could not be made durable, so nothing more is written",
        "look at the disk and the system's log, then run it again: what is lost is only what was being written",
    )


@_for(errors.SnapshotUnknown)
def _(e: errors.SnapshotUnknown) -> Words:
    if e.unfinished:
        return Words(
            f"there is no snapshot {e.wanted} yet, only what backups have stored that did not come to their end",
            "`packnback list --all` tells its ids: it can be restored by them",
        )
    return Words(f"there is no snapshot {e.wanted}", "see `packnback list` (and `packnback list --all`)")


@_for(errors.SnapshotAmbiguous)
def _(e: errors.SnapshotAmbiguous) -> Words:
    return Words(f"{e.wanted} fits several snapshots: {', '.join(e.candidates)}", "give more digits")


@_for(errors.PathUnknown)
def _(e: errors.PathUnknown) -> Words:
    if e.snapshot is None:
        return Words(f"{e.path} does not exist")
    digits = e.snapshot[:12]
    return Words(f"{e.path} is not in snapshot {digits}", f"paths start at the root: see `packnback ls {digits} -R`")


@_for(errors.NothingToBackUp)
def _(e: errors.NothingToBackUp) -> Words:
    return Words(f"nothing to back up: {', '.join(e.paths)} cannot be found", "no snapshot was made")


@_for(errors.CommandFailed)
def _(e: errors.CommandFailed) -> Words:
    known = {126: " (it cannot be run)", 127: " (not found)"}.get(e.status, "")
    ended = f"ended with status {e.status}{known}" if e.status >= 0 else f"was ended by signal {-e.status}"
    return Words(f"the command {e.command} {ended}", "no snapshot was made of its output")


@_for(errors.ClockRefused)
def _(e: errors.ClockRefused) -> Words:
    return Words(
        f"the clock says {rfc3339(e.now_ns, fraction=False)},"
        f" but the repository's newest entry is of {rfc3339(e.newest_ns, fraction=False)}",
        "set the clock right. If it is right: forget, compact and prune take --force; if it is the newest entry that"
        " was stamped by a wrong clock, `forget --force` it, then `compact --force --grace 0`, then back up",
    )


_REFUSALS = {
    "chain": Words("the snapshot does not continue this client's chain", "run it again"),
    "last snapshot": Words(
        "this would leave a client without any undamaged snapshot", "if that is what you want, add --force"
    ),
    "empty policy": Words("no rule says what to keep", "give at least one of the --keep options"),
    "sessions": Words("this client has too many backups under way already", "wait until one of them has ended"),
    "too many at once": Words("so many cannot be named over ssh in one go", "run it where the repository is"),
    "contradiction": Words(
        "another backup by a key of the same group has stored something else under an id of this one",
        "run it again; if it happens again, the key of a client in this group was stolen or is misused",
    ),
    "ml-kem": Words(
        "this machine's Python package `cryptography` was built without ML-KEM",
        "install cryptography 48 or later as it comes from PyPI, or one that is linked with OpenSSL 3.5 or later",
    ),
    "memory": Words("there is not enough memory to open this key", "close other programs, or use another machine"),
}


@_for(errors.Refused)
def _(e: errors.Refused) -> Words:
    known = _REFUSALS.get(e.reason, Words(f"refused: {e.reason}"))
    return Words(f"{known.message}: {e.detail}", known.hint) if e.detail else known


_ALARMS = {
    "rollback": "the repository has gone back to an earlier state: its newest snapshot of {client} is number {found},"
    " this machine has made number {known}",
    "in-use-elsewhere": "the key of {client} is in use elsewhere: the repository has its snapshot number {found},"
    " this machine has made number {known} only",
    "fork": "the repository holds another snapshot number {found} of {client} than the one made here",
}


@_for(errors.ChainAlarm)
def _(e: errors.ChainAlarm) -> Words:
    message = _ALARMS.get(e.state, "the repository's chain of {client} is not as remembered ({found}, {known})")
    return Words(
        message.format(client=e.client, found=e.found_sequence, known=e.known_sequence),
        "no snapshot was made. Find out why (a restored disk, a cloned machine, another user or HOME on this one,"
        " a stolen key?);"
        " to go on: packnback accept-rollback --reason TEXT",
    )


@_for(errors.StateDamaged)
def _(e: errors.StateDamaged) -> Words:
    return Words(
        f"what this machine remembers of the repository cannot be read: {e.path}: {e.why}",
        "the repository is not concerned. Compare `packnback list` with what you know, then move this file away",
    )


@_for(errors.ClientTimeRefused)
def _(e: errors.ClientTimeRefused) -> Words:
    facts = ", ".join(f"{name.removesuffix('_ns')} {rfc3339(ns, fraction=False)}" for name, ns in e.facts().items())
    return Words(f"this machine's clock and the repository's are too far apart ({facts})", "set the clock right")


@_for(errors.ProtocolViolation)
def _(e: errors.ProtocolViolation) -> Words:
    return Words(
        f"the other end sent what the protocol does not allow ({e.what}: {e.why})",
        "nothing was lost; is it the same version of packnback, and nothing else that prints there?",
    )


@_for(errors.QuotaExceeded)
def _(e: errors.QuotaExceeded) -> Words:
    return Words(
        f"the quota of this client is used up: {shown_size(e.used)} of {shown_size(e.quota)}",
        "what was stored before is safe; ask whoever runs the repository",
    )


_REMOTE_WHYS = {
    "ssh": Words("ssh could not connect to {host}", "try `ssh {address}` by hand"),
    "no-ssh": Words(
        "the program that connects to {host} cannot be started", "install ssh, or name it in PACKNBACK_SSH"
    ),
    "not-installed": Words("packnback is not installed on {host}", "or not where ssh finds it there"),
    "connection-lost": Words("the connection to {host} was lost", "nothing that was stored is lost; run it again"),
    "idle": Words("{host} ended the connection, as nothing came for too long", "run it again"),
    "internal": Words("packnback on {host} failed", "see what it said there"),
}


@_for(errors.RemoteFailed)
def _(e: errors.RemoteFailed) -> Words:
    known = _REMOTE_WHYS.get(e.why, Words("the connection to {host} failed", "run it again"))
    detail = f": {e.detail}" if e.detail else ""
    hint = (known.hint or "").format(host=e.host, address=e.address or e.host)
    return Words(known.message.format(host=e.host) + detail, hint)


@_for(errors.RemoteVersion)
def _(e: errors.RemoteVersion) -> Words:
    return Words(
        f"the two ends speak different versions of the protocol (here {e.ours}, there {e.theirs})",
        "install the same version of packnback on both",
    )


@_for(errors.StaleSequence)
def _(e: errors.StaleSequence) -> Words:
    return Words(
        f"other snapshots of this client took number {e.sequence} and more at the same time (now {e.head_sequence})",
        "run it again when no other backup of this client is running",
    )


# --- exit 2 ----------------------------------------------------------------------------------------------


@_for(errors.UsageError)
def _(e: errors.UsageError) -> Words:
    return Words(e.message)


# --- exit 4 ----------------------------------------------------------------------------------------------


@_for(errors.FormatDamage)
def _(e: errors.FormatDamage) -> Words:
    place = f" ({e.where})" if e.where else ""
    return Words(f"damaged {e.what}: {e.why}{place}", _CHECK)


@_for(errors.PackDamage)
def _(e: errors.PackDamage) -> Words:
    place = f" at byte {e.offset}" if e.offset is not None else ""
    return Words(f"pack {e.pack[:12]} is damaged{place}: {e.why}", _CHECK)


def shown_object(object_id: str) -> str:
    """Digits of an id that tell one object from another: all of a domain begin with the same 16."""
    return object_id[_TAG_DIGITS : _TAG_DIGITS + 12]


@_for(errors.ObjectMissing)
def _(e: errors.ObjectMissing) -> Words:
    needed = f", which {e.needed_by[:12]} needs" if e.needed_by else ""
    return Words(f"object {shown_object(e.id.hex())} is missing{needed}", _CHECK)


@_for(errors.ObjectDamage)
def _(e: errors.ObjectDamage) -> Words:
    place = f" (in pack {e.pack[:12]})" if e.pack else ""
    return Words(f"object {shown_object(e.id.hex())} is damaged{place}: {e.why}", _CHECK)


@_for(errors.SnapshotDamage)
def _(e: errors.SnapshotDamage) -> Words:
    return Words(f"snapshot {e.snapshot[:12]} is damaged: {e.why}", "other snapshots are not concerned; " + _CHECK)


@_for(errors.ConfigDamage)
def _(e: errors.ConfigDamage) -> Words:
    return Words(
        f"{e.path} is damaged: {e.why}",
        "the snapshots are not lost: copy this file from a copy of the repository; or, with nothing in its place,"
        " `packnback init --owner OWNER.pub` makes it again from what the snapshots say",
    )


@_for(errors.DamageBlocks)
def _(e: errors.DamageBlocks) -> Words:
    shown = "".join(f"\n  {line}" for line in e.detail[:10])
    more = f"\n  … and {len(e.detail) - 10} more" if len(e.detail) > 10 else ""
    hint = "see `packnback check`; mend it with `packnback check --repair`"
    if e.what == "incomplete snapshots":
        hint = (
            "the next backup may bring back what is missing; to give up the snapshots that lack it then:"
            " `packnback forget ID...`, `packnback compact --grace 0s`"
        )
    if e.what == "snapshots that were put aside":
        hint = "what only they need would be lost for good: to give them up, delete these files, or add --force"
    return Words(f"nothing is deleted while damage stands ({e.what}):{shown}{more}", hint)


@_for(errors.IndexDamage)
def _(e: errors.IndexDamage) -> Words:
    return Words(f"the index {e.path} is damaged: {e.why}", "nothing is lost; `packnback check` builds it anew")


# --- exit 5 ----------------------------------------------------------------------------------------------


@_for(errors.KeyMissing)
def _(e: errors.KeyMissing) -> Words:
    return Words(f"there is no key at {e.path}", "name one with --key FILE, or in PACKNBACK_KEY")


@_for(errors.KeyDamaged)
def _(e: errors.KeyDamaged) -> Words:
    return Words(f"the key {e.path} cannot be used: {e.why}", "use another copy of it")


@_for(errors.WrongPassphrase)
def _(e: errors.WrongPassphrase) -> Words:
    return Words(f"this is not the passphrase of {e.path}")


@_for(errors.PassphraseNeeded)
def _(e: errors.PassphraseNeeded) -> Words:
    return Words(
        f"the key {e.path} needs a passphrase, and there is nobody to ask",
        "use --passphrase-file FILE, or set PACKNBACK_PASSPHRASE_COMMAND",
    )


@_for(errors.PassphraseSourceFailed)
def _(e: errors.PassphraseSourceFailed) -> Words:
    return Words(f"no passphrase from {e.source}: {e.why}")


@_for(errors.WrongOwner)
def _(e: errors.WrongOwner) -> Words:
    return Words(
        f"the key belongs to another owner ({e.key_owner[:12]}) than the repository ({e.repository_owner[:12]})",
        "use the key of this repository's owner, or the repository of this key's",
    )


_ACTIONS = {"open data": "read the contents of files", "open meta": "read names"}


@_for(errors.KeyCannot)
def _(e: errors.KeyCannot) -> Words:
    needed = " or ".join(f"{'an' if kind == 'owner' else 'a'} {kind} key" for kind in e.need)
    if e.have == "put" and "restore" in e.need:
        return Words(
            "this key can add backups but not read them; use the owner key",
            f"name {needed} with --key FILE; it need not be on the machine that is backed up",
        )
    have = f"{'an' if e.have == 'owner' else 'a'} {e.have} key"
    hint = _GENERATE_PUT if e.need == ["put"] else f"it takes {needed}"
    return Words(f"{have} cannot {_ACTIONS.get(e.action, e.action)}", hint)


@_for(errors.EnvelopeRejected)
def _(e: errors.EnvelopeRejected) -> Words:
    return Words(f"this key does not open envelope {e.envelope.hex()[:12]}: {e.why}", _CHECK)


# --- exit 6, 7 -------------------------------------------------------------------------------------------


@_for(errors.Locked)
def _(e: errors.Locked) -> Words:
    waited = f", after waiting {shown_duration(e.waited_s)}" if e.waited_s else ""
    return Words(f"{e.path} is in use by {e.holder}{waited}", "run it again later, or wait for it: --wait SECONDS")


_WHYS = {
    "epoch lower than before": "its key is of an earlier epoch than one that the repository has seen",
    "foreign domain": "it is not of this client's domain",
    "role": "this connection is for other things",
    "another client": "this connection is for another client than the one of this put key",
}
_WAYS = {
    "epoch lower than before": "make a put key of the current epoch: packnback key put … --epoch N",
    "role": "use a key of ssh whose line in authorized_keys there says --allow {verb}",
    "another client": "`packnback key show` tells whose key it is; --client in authorized_keys there, who is served",
}
"""What to do about some of them."""


@_for(errors.NotAllowed)
def _(e: errors.NotAllowed) -> Words:
    why = _WHYS.get(e.why, e.why)
    return Words(f"the repository does not allow `{e.verb}`: {why}", _WAYS.get(e.why, "").format(verb=e.verb) or None)
