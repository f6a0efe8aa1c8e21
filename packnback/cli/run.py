"""One run of the program: arguments in, exit code out, and no traceback ever."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence

import click

from packnback import __version__
from packnback.cli import words
from packnback.cli.context import Context
from packnback.cli.interrupt import Interrupts
from packnback.cli.options import LazyGroup
from packnback.cli.output import Output, OutputClosed, OutputFailed, discard_stdout, escaped
from packnback.cli.phrases import Words
from packnback.errors import DiskFull, Locked, PacknbackError, RemoteFailed

DEBUG_VARIABLE = "PACKNBACK_DEBUG"
_ABOUT = "Deduplicating, encrypted backups whose clients can only write."

_NOTHING_LOST = "nothing that was stored before is lost; run it again"
_STOPPERS = (DiskFull, RemoteFailed, Locked)
"""What ends a command in the middle that had begun well."""

_FAMILIES = {
    "keys": ("key",),
    "repository": ("init", "stats"),
    "check": ("check",),
    "backup": ("backup", "accept-rollback"),
    "look": ("list", "ls", "find", "cat", "diff"),
    "restore": ("restore", "verify"),
    "prune": ("forget", "recover", "compact", "prune"),
    "serve": ("serve",),
}


def program() -> LazyGroup:
    """The whole command line."""
    modules = {name: f"packnback.cli.{family}" for family, names in _FAMILIES.items() for name in names}
    group = LazyGroup(modules, name="packnback", help=_ABOUT)
    version = click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version)
    version.help = "Show the version."
    group.params.append(version)
    return group


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"packnback {__version__}")
        ctx.exit()


def run(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` name; the exit code."""
    _leave_no_core()
    context = Context()
    context.output.json = _wants_json(arguments)
    interrupts = Interrupts(lambda: tell_interrupted(context))
    interrupts.listen()
    try:
        try:
            code = _outcome(arguments, context, interrupts)
        finally:
            interrupts.ended()
        context.output.flush()
    except OutputClosed:
        discard_stdout()
        return words.FAILED
    except OutputFailed as error:
        discard_stdout()
        return _complain(Words(f"cannot write the result: {error}"), words.FAILED)
    return code


def _leave_no_core() -> None:
    """A core file would put the secrets of this process on the disk, where they outlive it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _outcome(arguments: Sequence[str], context: Context, interrupts: Interrupts) -> int:
    output = context.output
    try:
        code = program().main(list(arguments), prog_name="packnback", standalone_mode=False, obj=context)
        return code if isinstance(code, int) else words.DONE
    except PacknbackError as error:
        return tell(error, context)
    except (OutputClosed, OutputFailed):
        raise
    except click.ClickException as error:
        return _tell_usage(error, output)
    except OSError as error:
        _show_traceback()
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        told = Words(where + (error.strerror or str(error)), context.when_stopped)
        return _tell("system-error", told, words.FAILED, output)
    except (KeyboardInterrupt, click.Abort):
        interrupts.obeyed()
        return tell_interrupted(context)
    except Exception as error:  # noqa: BLE001 - nobody shall see a traceback who did not ask for one
        _show_traceback()
        told = Words(
            f"internal error: {type(error).__name__}: {error}", f"{DEBUG_VARIABLE}=1 shows where; please report it"
        )
        return _tell("internal-error", told, words.FAILED, output)


def _show_traceback() -> None:
    if os.environ.get(DEBUG_VARIABLE):
        import traceback

        traceback.print_exc()


def tell(error: PacknbackError, context: Context) -> int:
    """Say what went wrong, as JSON or to a person; the exit code.

    What a command has said about being stopped half-way is a better hint than any that goes by the error alone.
    """
    hint = context.when_stopped if isinstance(error, _STOPPERS) else None
    if context.output.json:
        context.output.document(words.as_json(error, hint))
        return words.exit_code(error)
    told = words.words(error)
    return _complain(Words(told.message, hint or told.hint), words.exit_code(error))


def tell_interrupted(context: Context) -> int:
    """Say that somebody asked us to stop; the exit code."""
    told = Words("interrupted", context.when_stopped or _NOTHING_LOST)
    return _tell("interrupted", told, words.INTERRUPTED, context.output)


def _tell_usage(error: click.ClickException, output: Output) -> int:
    where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "packnback"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return words.USAGE
    return _tell("usage-error", Words(error.format_message(), f"see {where} --help"), words.USAGE, output)


def _tell(kind: str, told: Words, code: int, output: Output) -> int:
    if output.json:
        hint = {"hint": told.hint} if told.hint is not None else {}
        output.document({"error": {"kind": kind, "message": told.message, **hint}})
        return code
    return _complain(told, code)


def _complain(told: Words, code: int) -> int:
    lines = told.message.split("\n")
    print("packnback: " + "\n".join(escaped(line) for line in lines), file=sys.stderr)
    if told.hint:
        print(f"  ({escaped(told.hint)})", file=sys.stderr)
    return code


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether errors in the arguments themselves are wanted as JSON."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in ours
