"""Over ssh, as its users run it: the real OpenSSH on loopback, forced commands, and what each role may do."""

from __future__ import annotations

import filecmp
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_program import Done, Program
from ssh_server import MISSING, SSHD, SshServer

LOOPBACK = shlex.join([sys.executable, str(Path(__file__).with_name("loopback.py"))])
needs_sshd = pytest.mark.skipif(SSHD is None, reason=MISSING)


@dataclass
class Far:
    """A machine that backs up to another one. Keys: put (write-only), read, keeper, owner (no forced command)."""

    program: Program
    server: SshServer
    repository: Path
    source: Path

    def __call__(self, role: str, *arguments: str | Path, code: int = 0) -> Done:
        environment = {"PACKNBACK_SSH": self.server.command(role), "PACKNBACK_REPO": self.server.url(self.repository)}
        return self.program(*arguments, code=code, environment=environment)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    top = tmp_path_factory.mktemp("far")
    program = Program(top / "home")
    repository, source = top / "backup", top / "source"
    program("-r", repository, "init")
    (source / "sub").mkdir(parents=True)
    for i in range(300):
        (source / "sub" / f"file{i}").write_bytes(bytes([i % 256]) * (i * 37))
    (source / "large").write_bytes(bytes(range(256)) * 20_000)
    server = SshServer(top / "sshd")
    serve = f"packnback serve {repository}"
    name = program("key", "show", "--json", top / "home/.config/packnback/put.key").json["client"]
    server.authorize("put", f"{serve} --allow put --client {name}")
    server.authorize("stranger", f"{serve} --allow put --client somebody-else")
    server.authorize("read", f"{serve} --allow list,get")
    server.authorize("keeper", f"{serve} --allow list,forget,compact,check")
    server.authorize("nothing", serve)
    server.authorize("small", f"{serve} --allow put --quota 1K")
    server.authorize("older", "printf 'packnback-wire 9\\n'")
    server.authorize("noisy", "echo Welcome to this machine")
    server.authorize("absent", "no-such-program-here")
    server.authorize("owner")
    server._keygen("unknown")
    yield Far(program, server, repository, source)
    server.stop()


def same(left: Path, right: Path) -> bool:
    compared = filecmp.dircmp(left, right)
    if compared.left_only or compared.right_only or compared.funny_files:
        return False
    _, mismatch, problems = filecmp.cmpfiles(left, right, compared.common_files, shallow=False)
    return not mismatch and not problems and all(same(left / d, right / d) for d in compared.common_dirs)


@needs_sshd
def test_back_up_list_and_restore(far: Far, tmp_path: Path) -> None:
    first = far("put", "backup", "--json", far.source).json
    assert first["errors"] == [] and first["snapshot"]
    (far.source / "changed").write_text("new\n")
    second = far("put", "backup", "--json", far.source).json
    assert second["bytes_stored"] < first["bytes_stored"]
    rows = far("read", "list", "--json").json
    assert [row["id"] for row in rows][-2:] == [first["snapshot"], second["snapshot"]]
    assert rows[-1]["files"] == 302
    far("read", "restore", "latest", "--to", tmp_path / "out")
    assert same(far.source, tmp_path / "out" / far.source.relative_to("/"))
    assert far("read", "cat", "latest", str(far.source / "changed")).out == b"new\n"
    assert "file299" in far("read", "ls", "-R", "latest").text
    assert "file12" in far("read", "find", "file12").text
    assert "changed" in far("read", "diff", first["snapshot"], second["snapshot"]).text
    assert far("read", "verify", "--json").json["bad"] == []
    assert far("read", "stats", "--json", "--snapshots").json["snapshots"] == len(rows)


MATRIX = {
    "put": {"backup"},
    "read": {"list", "ls", "restore", "verify", "stats"},
    "keeper": {"list", "forget", "recover", "compact", "prune", "check", "stats", "check --repair"},
    "nothing": set(),
    "owner": {
        "backup", "list", "ls", "restore", "verify", "stats", "forget", "recover", "compact", "prune", "check",
        "check --repair",
    },
}  # fmt: skip
COMMANDS: dict[str, list[str]] = {
    "list": ["list"],
    "ls": ["ls", "latest"],
    "restore": ["restore", "latest", "--to", "out", "--dry-run"],
    "verify": ["verify", "latest"],
    "stats": ["stats"],
    "forget": ["forget", "--keep-newest", "100"],
    "recover": ["recover", "latest"],
    "compact": ["compact", "--wait", "30"],
    "prune": ["prune", "--keep-newest", "100", "--wait", "30"],
    "check": ["check", "--read-data"],
    "check --repair": ["check", "--repair"],
}


@needs_sshd
@pytest.mark.parametrize("role", MATRIX)
def test_the_matrix_of_roles(far: Far, role: str) -> None:
    """Whatever a client asks for in its own command line, its key's forced command decides."""
    far("owner", "backup", far.source)
    far(role, "backup", far.source, code=0 if "backup" in MATRIX[role] else 7)
    for name, arguments in COMMANDS.items():
        done = far(role, *arguments, code=0 if name in MATRIX[role] else 7)
        if done.code:
            assert "does not allow" in done.err and "authorized_keys" in done.err


@needs_sshd
def test_forget_and_recover_from_elsewhere(far: Far) -> None:
    one = far("put", "backup", "--json", far.source).json["snapshot"]
    far("put", "backup", far.source)
    [verdict] = far("keeper", "forget", "--json", one).json
    assert verdict["id"] == one and not verdict["keep"]
    assert one not in [row["id"] for row in far("read", "list", "--json").json]
    assert far("keeper", "recover", "--json", one).json == [{"id": one, "recovered": True}]
    assert one in [row["id"] for row in far("read", "list", "--json").json]


@needs_sshd
def test_another_client_and_too_much(far: Far) -> None:
    assert "another client" in far("stranger", "backup", far.source, code=7).err
    (far.source / "more").write_bytes(b"something that is not stored yet")
    assert "quota" in far("small", "backup", far.source, code=1).err
    (far.source / "more").unlink()


@needs_sshd
@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("older", "different versions"),
        ("noisy", "Welcome to this machine"),
        ("absent", "not installed"),
        ("unknown", "ermission denied"),
    ],
)
def test_what_goes_wrong_is_said_in_plain_words(far: Far, role: str, said: str) -> None:
    assert said in far(role, "backup", far.source, code=1).err
    error = json.loads(far(role, "--json", "backup", far.source, code=1).out)["error"]
    assert error["kind"] in ("remote-version", "protocol-violation", "remote-failed")


@pytest.mark.parametrize(
    ("named", "code", "said"),
    [
        ("/no/such/ssh", 1, "PACKNBACK_SSH"),
        (" ", 2, "names no program"),
        ("ssh 'x", 2, "PACKNBACK_SSH"),
        ("sh -c 'exit 1' --", 1, "was lost"),
        ("sh -c 'exit 127' --", 1, "not installed"),
        ("sh -c 'echo no route >&2; exit 255' --", 1, "no route"),
        ("sh -c 'exit 255' --", 1, "try `ssh -p 2222 me@far` by hand"),
    ],
)
def test_what_stands_for_ssh(tmp_path: Path, named: str, code: int, said: str) -> None:
    program = Program(tmp_path / "home")
    done = program("-r", "ssh://me@far:2222/r", "list", code=code, environment={"PACKNBACK_SSH": named})
    assert said in done.err


@needs_sshd
def test_no_repository_there(far: Far) -> None:
    environment = {"PACKNBACK_SSH": far.server.command("owner"), "PACKNBACK_REPO": far.server.url(Path("/no/such"))}
    done = far.program("backup", far.source, code=1, environment=environment)
    assert f"no repository at {far.server.url(Path('/no/such'))}" in done.err


@needs_sshd
def test_serve_says_nothing_on_stderr_that_a_client_should_not_know(far: Far) -> None:
    done = far.program("serve", far.repository / "nothing", stdin=b"junk", code=1)
    assert str(far.repository) not in done.err + done.out.decode("utf-8", "replace")


def test_a_reader_tells_pruned_from_rolled_back(tmp_path: Path) -> None:
    """The newest snapshot is forgotten and released: no alarm. The whole repository is put back in time: alarm."""
    program, source, repository = Program(tmp_path / "home"), tmp_path / "source", tmp_path / "repository"
    source.mkdir()
    environment = {
        "PACKNBACK_SSH": LOOPBACK,
        "PACKNBACK_REPO": f"ssh://far{repository}",
        "PATH": f"{Path(sys.executable).parent}:{program.environment['PATH']}",
    }
    program("-r", repository, "init")
    program("backup", source, environment=environment)
    shutil.copytree(repository, tmp_path / "earlier")
    newest = program("backup", "--json", source, environment=environment).json["snapshot"]
    assert len(program("list", "--json", environment=environment).json) == 2
    program("forget", newest, environment=environment)
    program("compact", "--grace", "0", environment=environment)
    assert len(program("list", "--json", environment=environment).json) == 1
    shutil.rmtree(repository)
    shutil.copytree(tmp_path / "earlier", repository)
    done = program("list", environment=environment, code=4)
    assert "number 2 was seen" in done.err


def test_a_repository_that_was_served_gets_its_lost_config_back(tmp_path: Path) -> None:
    """`serve` leaves a file of its own, which does not make the directory somebody else's."""
    program, source, repository = Program(tmp_path / "home"), tmp_path / "source", tmp_path / "repository"
    source.mkdir()
    (source / "file").write_text("content")
    environment = {
        "PACKNBACK_SSH": LOOPBACK,
        "PACKNBACK_REPO": f"ssh://far{repository}",
        "PATH": f"{Path(sys.executable).parent}:{program.environment['PATH']}",
    }
    program("-r", repository, "init")
    program("backup", source, environment=environment)
    config = (repository / "config").read_bytes()
    (repository / "config").unlink()
    program("-r", repository, "init")
    assert (repository / "config").read_bytes() == config
    program("backup", source, environment=environment)


# --- round trips --------------------------------------------------------------------------------------------------

ROUND_TRIPS_MAX = 40


def check_round_trips(tmp_path: Path, directories: int) -> None:
    """An unchanged backup over a slow line: what counts is how often it waits, not how many files there are."""
    program, source = Program(tmp_path / "home"), tmp_path / "source"
    program("-r", tmp_path / "repository", "init")
    for i in range(directories):
        (source / f"{i:03}").mkdir(parents=True)
        for j in range(100):
            (source / f"{i:03}" / f"{j:02}").write_bytes(b"%d %d" % (i, j))
    environment = {
        "PACKNBACK_SSH": LOOPBACK,
        "PACKNBACK_REPO": f"ssh://far{tmp_path}/repository",
        "LOOPBACK_DELAY_S": "0.025",
        "PATH": f"{Path(sys.executable).parent}:{program.environment['PATH']}",
    }
    command = ("backup", "--json", "-v", source)
    first = program(*command, environment=environment).json
    second = program(*command, environment=environment).json
    assert second["files"] == first["files"] == directories * 100
    assert second["counters"]["round_trips"] <= ROUND_TRIPS_MAX, second["counters"]
    third = program(*command, "--no-cache", environment=environment).json
    assert third["counters"]["round_trips"] <= 2 * ROUND_TRIPS_MAX, third["counters"]


def test_round_trips_of_an_unchanged_backup(tmp_path: Path) -> None:
    check_round_trips(tmp_path, 40)


@pytest.mark.nightly
def test_round_trips_of_an_unchanged_backup_of_50_000_files(tmp_path: Path) -> None:
    check_round_trips(tmp_path, 500)
