"""``key``: making, showing and protecting key files. No secret is ever printed."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packnback.cli import passphrase
from packnback.cli.context import Context, current
from packnback.cli.options import Command, Subcommands, family
from packnback.errors import KeyCannot, UsageError

if TYPE_CHECKING:
    from packnback.crypto.keyfile import Key

app = family()
_key = typer.Typer(cls=Subcommands, help="Make, show and protect key files.", rich_markup_mode=None)
app.add_typer(_key, name="key", no_args_is_help=True)


Protect = Annotated[bool, typer.Option("--passphrase", help="Protect the new file with a passphrase.")]
NewPassphraseFile = Annotated[
    str | None,
    typer.Option("--new-passphrase-file", metavar="FILE", help="Protect it with the passphrase in a file."),
]
From = Annotated[str | None, typer.Option("--from", metavar="OWNER.key", help="The owner key.")]


@_key.command("new", cls=Command)
def new(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="OWNER.key")],
    protect: Protect = False,
    new_passphrase_file: NewPassphraseFile = None,
) -> None:
    """Make an owner key: whoever has it reads everything, and nobody else does."""
    from packnback.crypto.keys import OwnerKey

    context = current(ctx)
    # There is no older key whose passphrase --passphrase-file, or the command, could mean.
    source = new_passphrase_file or context.settings.passphrase_file
    _write(context, file, OwnerKey.generate(), protect, source, by_command=True)
    context.output.remark("Keep a copy of it offline. Without it no backup can be read, by anyone.")


@_key.command("put", cls=Command)
def put(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="PUT.key")],
    client: Annotated[str, typer.Option("--client", metavar="NAME", help="The machine that will use it.")],
    owner: From = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="NAME", help="Deduplicate with the other machines of a group.")
    ] = None,
    epoch: Annotated[
        int, typer.Option("--epoch", metavar="N", help="Raise it after a machine was broken into.")
    ] = 1,
    protect: Protect = False,
    new_passphrase_file: NewPassphraseFile = None,
) -> None:
    """Make the key of one machine, which adds backups and opens nothing. The same arguments, the same key."""
    context = current(ctx)
    if "@" in client:
        raise UsageError(f"--client {client}: no @ in a name: `serve --client NAME@EPOCH` puts one before the epoch")
    key = context.owner_key(owner, "make put keys").put_key(client, epoch, group)
    _write(context, file, key, protect, new_passphrase_file)


@_key.command("list", cls=Command)
def list_(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="LIST.key")],
    owner: From = None,
    protect: Protect = False,
    new_passphrase_file: NewPassphraseFile = None,
) -> None:
    """Make a key that reads names and sizes only."""
    context = current(ctx)
    key = context.owner_key(owner, "make list keys").list_key()
    _write(context, file, key, protect, new_passphrase_file)


@_key.command("restore", cls=Command)
def restore(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="RESTORE.key")],
    owner: From = None,
    protect: Protect = False,
    new_passphrase_file: NewPassphraseFile = None,
) -> None:
    """Make a key that reads everything, and makes no other key."""
    context = current(ctx)
    key = context.owner_key(owner, "make restore keys").restore_key()
    _write(context, file, key, protect, new_passphrase_file)


@_key.command("public", cls=Command)
def public(
    ctx: typer.Context, file: Annotated[str, typer.Argument(metavar="OWNER.pub")], owner: From = None
) -> None:
    """Write the public part of an owner key: what `init` needs on a machine that holds no secret."""
    context = current(ctx)
    _write(context, file, context.owner_key(owner, "give its public part").bundle, False, None)


@_key.command("show", cls=Command)
def show(ctx: typer.Context, file: Annotated[str, typer.Argument(metavar="FILE")]) -> None:
    """Say what a key file is: kind, fingerprint, client, epoch; never a secret."""
    context = current(ctx)
    facts = _facts(file, context.load(file))
    if context.output.json:
        context.output.document(facts)
    for name, value in facts.items():
        context.output.line(f"{name + ':':<13}{value}")


@_key.command("passphrase", cls=Command)
def passphrase_(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the passphrase away.")] = False,
    new_passphrase_file: NewPassphraseFile = None,
) -> None:
    """Set, change or remove the passphrase of a key file."""
    from packnback.crypto.keyfile import change_passphrase, read_key

    context = current(ctx)
    if remove and new_passphrase_file:
        raise UsageError("--remove and --new-passphrase-file exclude each other")
    known = passphrase.source_for(file, context.settings.passphrase_file)
    if known is not None:
        known = cache(known)  # it is needed twice, and asked for once
    key = read_key(file, known)
    if key.kind == "public":
        raise KeyCannot("public", ["owner", "put", "list", "restore"], "be protected: there is no secret in it")
    chosen = None if remove else _chosen(file, new_passphrase_file)
    change_passphrase(file, known, chosen)
    if context.output.json:
        context.output.document({**_facts(file, key), "protected": not remove})
    context.output.remark(f"{file} is {'no longer' if remove else 'now'} protected by a passphrase.")


def _write(
    context: Context, path: str, key: Key, protect: bool, passphrase_file: str | None, *, by_command: bool = False
) -> None:
    from packnback.crypto.keyfile import write_key

    chosen = None
    if protect and not passphrase_file and by_command and (command := os.environ.get(passphrase.COMMAND_VARIABLE)):
        chosen = passphrase.from_command(command)
    elif protect or passphrase_file:
        chosen = _chosen(path, passphrase_file)
    write_key(path, key, chosen)
    facts = {**_facts(path, key), "protected": chosen is not None}
    if context.output.json:
        context.output.document(facts)
    context.output.remark(f"Wrote the {key.kind} key {path} (fingerprint {facts['fingerprint']}).")


def _chosen(path: str, passphrase_file: str | None) -> bytes:
    return passphrase.from_file(passphrase_file) if passphrase_file else passphrase.choose(path)


def _facts(path: str, key: Key) -> dict[str, Any]:
    from packnback.crypto.keys import PutKey

    facts: dict[str, Any] = {"path": path, "kind": key.kind, "fingerprint": key.fingerprint}
    facts["owner"] = key.owner_id.hex()
    if isinstance(key, PutKey):
        facts |= {"client": key.name, "epoch": key.epoch, "domain": key.domain_id.hex()}
    return facts
