"""Where the program starts. ``--version`` answers from here, before anything else is imported."""

from __future__ import annotations

import atexit
import gc
import os
import sys

from packnback import __version__

INTERRUPTED = 130
"""As `words.INTERRUPTED`, which is not loaded yet when this may be needed."""


def start() -> None:
    """The program: `main`, and out. Does not return.

    An interpreter takes 20 ms to take itself apart, a sixth of a short command. By now everything is closed and
    written, and the memory is the system's to take back. Only who left a thread behind waits for it, as ever, unless
    it was interrupted: then it may wait for something that never comes.
    """
    code = main()
    threading = sys.modules.get("threading")
    if threading is not None and threading.active_count() > 1 and code != INTERRUPTED:
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # it was closed when we started (``>&-``)
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1
    os._exit(code)


def main() -> int:
    """Run the program on ``sys.argv``; the exit code (see `packnback.cli.words`)."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        try:
            print(f"packnback {__version__}", flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or what is still in the buffer makes the exit complain
            return 1
        except OSError as error:
            print(f"packnback: cannot write the result: {error.strerror}", file=sys.stderr)
            return 1
        return 0
    try:
        collect_seldom()
        occupy_standard_descriptors()
        from packnback.cli.run import run
    except KeyboardInterrupt:
        if "--json" in arguments:
            print('{"error": {"kind": "interrupted", "message": "interrupted"}}')
        return INTERRUPTED
    try:
        return run(arguments)
    except KeyboardInterrupt:  # after the command ended
        return INTERRUPTED


def collect_seldom() -> None:
    """Look for cycles after so many new objects that it costs nothing, and seldom through all of them.

    Importing makes many objects and a backup of many files holds a window of them, none of them in cycles: looking
    at them again and again cost 6 % of the time.
    """
    gc.set_threshold(100_000, 50, 100)


def occupy_standard_descriptors() -> None:
    """Let none of the descriptors 0, 1 and 2 be closed (``packnback … >&-``).

    The next file to be opened would get the number: what is printed would end up in a pack, and what is backed up
    as standard input would be a key. Reading and writing fail instead; only complaints may go nowhere.
    """
    for fd, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest number that is free, which is this one
    # Python has none of what was closed when it started.
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
