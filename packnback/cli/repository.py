"""``init`` and ``stats``: a repository as a whole."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packnback.cli import words
from packnback.cli.context import Context, configured, current
from packnback.cli.location import maintenance
from packnback.cli.look import open_all
from packnback.cli.options import Command, family
from packnback.cli.quantities import counted, shown_size
from packnback.errors import AlreadyExists, KeyCannot, UsageError
from packnback.ids import short
from packnback.remote.destination import Destination

if TYPE_CHECKING:
    from packnback.crypto.bundle import OwnerBundle
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
    from packnback.store.local import config_at, create_local

    context = current(ctx)
    location = context.location()
    if isinstance(location, Destination):
        raise UsageError(
            f"a repository is made where it will be: log in to {location.host} and run"
            f" `packnback -r {location.path} init --owner OWNER.pub` there"
        )
    if os.path.lexists(os.path.join(location.path, "config")):
        config_at(location.path)  # a damaged one is told as such: it is not the repository that has to make room
        raise AlreadyExists(location.path)
    bundle, made = _owner(context, owner)
    snapshots = os.path.join(location.path, "snapshots")
    again = os.path.isdir(snapshots) and bool(os.listdir(snapshots))
    repository = create_local(location.path, bundle.raw, context.watch)
    repository.close()
    if context.output.json:
        context.output.document(
            {
                "repository": repository.config.repository_id.hex(),
                "path": location.path,
                "owner": bundle.owner_id.hex(),
                "keys_made": made,
                "config_remade": again,
            }
        )
    if again:
        identity = short(repository.config.repository_id)
        context.output.remark(f"Made the lost config of {location.path} again: it is repository {identity}, as its")
        context.output.remark("snapshots say. Nothing else was changed.")
    else:
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
