"""Read a suspicious index where it can do no harm: in a process of its own.

LMDB follows the page numbers that it finds. On a damaged file that ends in SIGBUS, SIGSEGV or an assertion's
SIGABRT, none of which Python can catch; here it ends a child, and the signal is the finding.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress

from packnback import errors
from packnback.ids import MIB
from packnback.oserrors import reason_of
from packnback.store.index import TABLES, ReadTxn, WriteTxn

_DAMAGED = 4
_PROBE = b"probe"
_TIMEOUT_S = 3600.0


def probe(directory: str, timeout_s: float = _TIMEOUT_S) -> str | None:
    """Read every row of the index in `directory` in a child process; why it is damaged, or None.

    Waits for a write transaction that another process has open. A child that takes longer than `timeout_s`
    goes round in circles, or the disk does not answer: that is damage too.
    """
    command = [sys.executable, "-m", __name__, os.path.abspath(directory)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        child = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return f"not read within {timeout_s:g} s"
    except OSError as error:
        raise errors.StorageFailed("run", sys.executable, reason_of(error)) from error
    if child.returncode == 0:
        return None
    if child.returncode < 0:
        return f"reading it ended in {signal.Signals(-child.returncode).name}"
    if child.returncode == _DAMAGED:
        return child.stdout.decode(errors="replace").strip()
    last_words = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
    raise errors.StorageFailed("probe", directory, last_words[0] if last_words else f"exit {child.returncode}")


def _main(directory: str) -> int:
    """The child: exit 0 when all is well, `_DAMAGED` with the reason on stdout when it is not."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _read_everything(directory)
    except errors.IndexDamage as damage:
        print(damage.why)
        return _DAMAGED
    return 0


def _read_everything(directory: str) -> None:
    from packnback.store.lmdb_index import LmdbIndex  # which imports this module

    index = LmdbIndex.open(directory, ballast_bytes=0, check_size=False)
    with index.read() as txn:
        for table in TABLES:
            _read_table(txn, table, directory)
    with suppress(_Enough):
        index.write(_look_for_room)
    # A commit is what reads the tree of free pages.
    index.write(lambda txn: txn.put("meta", _PROBE, b""))
    index.write(lambda txn: txn.delete("meta", _PROBE))
    index.close()


def _read_table(txn: ReadTxn, table: str, directory: str) -> None:
    """Its rows are as many as it says, in strictly ascending order: pages that form a ring end here."""
    expected, found, last = txn.count(table), 0, b""
    for key, _value in txn.scan(table):
        found += 1
        if key <= last or found > expected:
            raise errors.IndexDamage(directory, f"table {table}: row {found} of {expected} is out of order")
        last = key
    if found != expected:
        raise errors.IndexDamage(directory, f"table {table}: {found} of {expected} rows")


class _Enough(Exception):
    """Aborts the transaction: nothing is to be written."""


def _look_for_room(txn: WriteTxn) -> None:
    """LMDB reads its list of free pages when something large wants a place."""
    txn.put("meta", _PROBE, bytes(MIB))
    raise _Enough


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
