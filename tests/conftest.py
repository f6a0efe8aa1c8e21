"""What all tests share: the simulated machine on the import path, hypothesis profiles, ``--nightly``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

for folder in ("sim", "unit", "cli"):
    sys.path.insert(0, str(Path(__file__).parent / folder))

_SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("dev", max_examples=15, deadline=None, suppress_health_check=_SLOW_IS_FINE)
# The same examples in every run: a red build must mean that the change broke something. Nightly explores.
settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile(
    "nightly", max_examples=1500, deadline=None, print_blob=True, suppress_health_check=_SLOW_IS_FINE
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the long tests too")


def pytest_configure(config: pytest.Config) -> None:
    default = "nightly" if config.getoption("--nightly") else "ci"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", default))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--nightly"):
        return
    skip = pytest.mark.skip(reason="needs --nightly")
    for item in items:
        if "nightly" in item.keywords:
            item.add_marker(skip)


_tallies: list[tuple[str, int, int]] = []
"""What each sweep looked at: (in words, crash points, states). With xdist, what the workers have told."""


def _tallied() -> list[tuple[str, int, int]]:
    sweep = sys.modules.get("sweep")
    return [(str(t), t.crash_points, t.states) for t in (sweep.TALLIES if sweep is not None else ())]


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tallies"] = _tallied()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    _tallies.extend(tuple(tally) for tally in getattr(node, "workeroutput", {}).get("tallies", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the crash sweeps looked at: a number that shrinks is a test that has gone blind."""
    tallies = sorted(_tallies + _tallied())
    if tallies:
        terminalreporter.section("crash sweeps")
        for words, _, _ in tallies:
            terminalreporter.line(words)
        points, states = sum(t[1] for t in tallies), sum(t[2] for t in tallies)
        terminalreporter.line(f"together: {points} crash points, {states} states")
