"""Records of key material: whoever prints one, in a log or a traceback, sees its class and nothing else."""

from __future__ import annotations

from msgspec import Struct


class Secret(Struct, frozen=True):
    """Base of what holds a key."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"
