"""What all tests share: the simulated machine on the import path, hypothesis profiles, ``--nightly``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the crash sweeps looked at: a number that shrinks is a test that has gone blind."""
    sweep = sys.modules.get("sweep")
    tallies = sweep.TALLIES if sweep is not None else []
    if tallies:
        terminalreporter.section("crash sweeps")
        for tally in tallies:
            terminalreporter.line(str(tally))
        total = sum(tally.crash_points for tally in tallies), sum(tally.states for tally in tallies)
        terminalreporter.line(f"together: {total[0]} crash points, {total[1]} states")
