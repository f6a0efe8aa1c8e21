"""How the command line is put together: options that every command shares, and commands that load when used.

The shared options may stand before or after the command. They leave their values in the run's `Settings`
instead of being passed to the command, so that no command has to repeat them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click
import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from packnback.cli.context import current


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if value not in (None, False) and param.name is not None:
        setattr(current(ctx).settings, param.name, value)
    return value


def shared_options(*, everything_shown: bool) -> list[click.Parameter]:
    """The options that every command takes; after a command only the two that matter most are in its help."""

    def option(*names: str, shown: bool = everything_shown, **rest: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=_keep, hidden=not shown, **rest)

    return [
        option(
            "-r", "--repo", "repository", shown=True, metavar="REPO",
            help="A directory, or ssh://[user@]host[:port]/path.  [env: PACKNBACK_REPO]",
        ),
        option("-k", "--key", "key", shown=True, metavar="FILE", help="The key file.  [env: PACKNBACK_KEY]"),
        option(
            "--passphrase-file", "passphrase_file", metavar="FILE",
            help="Read the key's passphrase from a file.  [env: PACKNBACK_PASSPHRASE_COMMAND, a command]",
        ),
        option("--json", "json", is_flag=True, help="Print exactly one JSON document."),
        option("-q", "--quiet", "quiet", is_flag=True, help="Say only what is asked for, and errors."),
        option("-v", "--verbose", "verbose", is_flag=True, help="Say more."),
        option(
            "--progress", "progress", type=click.Choice(["auto", "json", "none"]),
            help="auto: a bar on a terminal; json: lines on stderr.",
        ),
    ]  # fmt: skip


class Command(TyperCommand):
    """A command that also takes the shared options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(shared_options(everything_shown=False))

    def invoke(self, ctx: click.Context) -> Any:
        """All options have been seen: put them into effect, then run."""
        context = current(ctx)
        context.begin()
        try:
            return super().invoke(ctx)
        finally:
            context.reporter.close()


class Subcommands(TyperGroup):
    """A command with commands of its own, such as ``key``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(shared_options(everything_shown=False))


class LazyGroup(click.Group):
    """The program itself: a command's module is imported when the command is used, all of them for ``--help``."""

    def __init__(self, modules: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._modules = modules
        self.params.extend(shared_options(everything_shown=True))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; a mistyped name is told which one it resembles."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            close = get_close_matches(args[0], self._modules, n=1)
            if not close:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which somebody would meet them."""
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, from its module's `app`."""
        if cmd_name not in self._modules:
            return None
        app: typer.Typer = import_module(self._modules[cmd_name]).app
        return get_group(app).get_command(ctx, cmd_name)


def family() -> typer.Typer:
    """An empty family of commands; its module decorates functions with ``@app.command(cls=Command)``."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
