"""The lower bounds of pyproject.toml as exact versions, one a line: what `make test-oldest` installs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
_BOUND = re.compile(r"(?P<name>[a-z0-9-]+)(>=|==)(?P<version>[0-9.]+)(,<[0-9.]+)?")


def oldest() -> dict[str, str]:
    """Version by name. A dependency without a lower bound is an error: nobody could say what was tried."""
    found = {}
    for each in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]:
        bound = _BOUND.fullmatch(each)
        if bound is None:
            raise ValueError(f"no lower bound: {each}")
        found[bound["name"]] = bound["version"]
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in oldest().items()))
