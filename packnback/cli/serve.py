"""``serve``: the far end of an ssh pipe. Nothing but the protocol goes to stdout, and to stderr nothing at all:
both lead to the client, who is told over the protocol what he may know.
"""

from __future__ import annotations

import os
import traceback
from typing import Annotated

import typer

from packnback.cli import words
from packnback.cli.options import Command, family
from packnback.cli.quantities import parse_size
from packnback.errors import PacknbackError, UsageError

app = family()

DEBUG_VARIABLE = "PACKNBACK_DEBUG"


@app.command("serve", cls=Command, short_help="Serve a repository: a forced command of ssh.")
def serve(
    root: Annotated[str, typer.Argument(metavar="REPO", help="The directory.")],
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="VERB,...", help="put, list, get, forget, compact, check. Default: nothing."),
    ] = None,
    client: Annotated[
        str | None,
        typer.Option("--client", metavar="NAME[@EPOCH]", help="Serve this client only, from this epoch on."),
    ] = None,
    quota: Annotated[
        str | None, typer.Option("--quota", metavar="SIZE", help="Bytes that each client may store.")
    ] = None,
) -> int:
    """Serve a repository on stdin and stdout, as the forced command of an ssh key."""
    from packnback.cli.memory import keep_large_blocks
    from packnback.remote.channel import Channel
    from packnback.remote.intake import Bounds
    from packnback.remote.server import IDLE_S, Role
    from packnback.remote.serving import serve as carry_out

    keep_large_blocks()
    name, epoch = _client(client)
    bounds = Bounds(name, epoch, parse_size(quota) if quota is not None else None)
    role = Role(_verbs(allow or []), bounds)
    channel = Channel(0, 1, IDLE_S)
    try:
        carry_out(os.path.abspath(root), role, channel)
    except PacknbackError as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        return words.exit_code(error)
    finally:
        channel.detach()
    return words.DONE


def _verbs(allow: list[str]) -> frozenset[str]:
    from packnback.remote.server import VERBS

    verbs = [verb for part in allow for verb in part.split(",") if verb]
    for verb in verbs:
        if verb not in VERBS:
            raise UsageError(f"--allow takes {', '.join(VERBS)}, not {verb!r}")
    return frozenset(verbs)


def _client(text: str | None) -> tuple[str | None, int]:
    """(name, lowest epoch). A name may hold ``@`` itself, so only digits behind the last one are an epoch."""
    if text is None:
        return None, 1
    name, at, epoch = text.rpartition("@")
    if not at or not (epoch.isascii() and epoch.isdigit()):
        name, epoch = text, "1"
    if not name or not 0 < int(epoch) < 1 << 32:
        raise UsageError(f"--client takes NAME or NAME@EPOCH, not {text!r}")
    return name, int(epoch)
