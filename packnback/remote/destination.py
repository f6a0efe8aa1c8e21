"""Where a repository on another machine is, as its user has written it."""

from __future__ import annotations

from msgspec import Struct


class Destination(Struct, frozen=True):
    """``ssh://[user@]host[:port]/path``: a repository behind ``packnback serve`` on another machine."""

    url: str
    host: str
    path: str
    user: str | None = None
    port: int | None = None

    @property
    def address(self) -> str:
        """What ssh is given by hand to reach the host."""
        import shlex

        words = ["-p", str(self.port)] if self.port is not None else []
        return shlex.join([*words, f"{self.user}@{self.host}" if self.user is not None else self.host])
