"""Where the program starts. ``--version`` answers from here, before anything else is imported."""

from __future__ import annotations

import sys

from packnback import __version__


def main() -> int:
    """Run the program on ``sys.argv``; the exit code (see `packnback.cli.words`)."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"packnback {__version__}")
        return 0
    try:
        from packnback.cli.run import run

        return run(arguments)
    except KeyboardInterrupt:  # before the command began, or after it ended
        return 130
