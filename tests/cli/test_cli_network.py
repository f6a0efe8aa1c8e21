"""The program on a directory that it takes for one of the network: two runs of ``compact``, a day apart."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_program import Program

DAY_NS = 25 * 3_600 * 10**9
PROGRAM = """
import sys, time
from packnback.store import local
local.is_remote = lambda path: True
now_ns, ahead_ns = time.time_ns, int(sys.argv.pop(1))
time.time_ns = lambda: now_ns() + ahead_ns
from packnback.cli.main import main
sys.exit(main())
"""


class Elsewhere(Program):
    """packnback on a machine that has mounted the repository, some time from now."""

    ahead_ns = 0

    def start(self, arguments: Sequence[str | bytes | Path], **rest: Any) -> Any:
        shifted = [sys.executable, "-c", PROGRAM, str(self.ahead_ns)]
        return super().start(arguments, **rest, program=shifted)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Elsewhere:
    program = Elsewhere(tmp_path / "home")
    program.environment["PACKNBACK_REPO"] = str(tmp_path / "repo")
    return program


def test_compact_says_that_it_has_to_be_run_again(elsewhere: Elsewhere, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(os.urandom(2 << 20))
    elsewhere("init")
    first = elsewhere("backup", source, "--json").json["snapshot"]
    (source / "a").unlink()
    (source / "b").write_bytes(b"b")
    elsewhere("backup", source)
    assert not (tmp_path / "repo" / "index").exists()
    elsewhere("forget", first[:8])
    told = elsewhere("compact", "--grace", "0").text
    assert "wait for being deleted" in told and "again a day later (after " in told
    waiting = elsewhere("compact", "--json").json
    assert waiting["condemned"] > 0 and waiting["bytes_condemned"] > 2 << 20 and waiting["due"].endswith("Z")
    assert waiting["packs_deleted"] == 0 and waiting["held_up_by"] == []
    assert elsewhere("stats", "--json").json["packs_condemned"] == waiting["condemned"]
    elsewhere("check", "--read-data")
    elsewhere.ahead_ns = DAY_NS
    for path in (tmp_path / "repo" / "condemned").iterdir():
        os.utime(path, ns=(0, path.stat().st_mtime_ns - DAY_NS))
    done = elsewhere("compact", "--json").json
    assert done["packs_deleted"] == waiting["condemned"] and done["bytes_freed"] == waiting["bytes_condemned"]
    assert done["condemned"] == 0 and done["due"] is None
    elsewhere("restore", "latest", "--to", tmp_path / "restored")
    elsewhere("check", "--read-data")


def test_an_index_in_the_cache_directory_that_kills_its_reader_is_thrown_away(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(os.urandom(2 << 20))
    elsewhere("init")
    elsewhere("backup", tmp_path / "source")
    [data] = elsewhere.home.rglob("index/data.mdb")
    raw = data.read_bytes()
    data.write_bytes(raw[:8192] + bytes(len(raw) - 8192))
    document = elsewhere("--json", "check").json
    assert document["damage"] == [] and document["index_rebuilt"]
    assert elsewhere("--json", "check").json["index_rebuilt"] == []
