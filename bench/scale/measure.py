"""What the engine's operations cost on a repository of holes: CPU seconds, peak memory, and how both grow.

Each operation runs in a process of its own, on the repository as the one before has left it. CPU is user + system
time, which other work on the machine disturbs little. Of memory two peaks are told: the whole resident set, in
which LMDB's mapped file counts as far as it is cached, and its anonymous part, which is what has to be found.

    python bench/scale/measure.py DIRECTORY --objects 50000 500000

makes ``DIRECTORY/50000`` and so on unless they are there; operations that change a repository work on a copy of
its snapshots, markers and index, in which the packs are hard links.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from grow import Random, grow

from packnback.cli.main import collect_seldom
from packnback.format import record as record_format
from packnback.gc.compact import compact
from packnback.gc.compaction import CompactOptions
from packnback.gc.forget import forget
from packnback.ids import Kind, ObjectClass
from packnback.store.check import check_structure
from packnback.store.index import ReadTxn
from packnback.store.local import open_local
from packnback.store.repository import LocalRepository
from packnback.store.sizes import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "sim"))
from smallclient import SmallClient

SAMPLE_S = 0.02


def _client(repository: LocalRepository) -> SmallClient:
    return SmallClient(repository.config.repository_id, "scale")


def _objects(txn: ReadTxn, step: int) -> list[bytes]:
    return [key for number, (key, _) in enumerate(txn.scan("objects")) if number % step == 0]


def op_open(repository: LocalRepository) -> str:
    """Open with nothing to do; after `rebuild` removed the index: reconcile from nothing."""
    with repository.reading():
        return f"{repository.ports.watch.counters.footers_read} footers"


def op_list(repository: LocalRepository) -> str:
    """Open and list."""
    with repository.reading():
        return f"{len(repository.snapshots())} snapshots"


def op_has(repository: LocalRepository) -> str:
    """Ask for 100,000 ids in batches of 1,000, as a backup does."""
    client = _client(repository)
    with repository.session(client.certificate) as session:
        with repository.ports.index.read() as txn:
            known = txn.count("objects")
            ids = _objects(txn, max(1, known // 50_000))
        ids += Random(7).ids(client.key.domain_id[:8], 50_000)
        before = time.process_time()
        found = sum(sum(session.has(sorted(ids[i::100]))) for i in range(100))
        return f"{found} of {len(ids)}, {time.process_time() - before:.2f} s in has()"


def op_commit(repository: LocalRepository) -> str:
    """A backup in which 1 % of all data objects are new, in their pages."""
    client = _client(repository)
    with repository.ports.index.read() as txn:
        new = txn.count("objects") // 100
    with repository.session(client.certificate) as session:
        for object_class in ObjectClass:
            session.put([client.envelope(object_class)[0]])
        pages, random = [], Random(int.from_bytes(os.urandom(4), "big"))
        for _ in range(max(1, new // 500)):
            ids = random.ids(client.key.domain_id[:8], 500)
            session.put(_fake(client, Kind.DATA, 0, object_id, b"") for object_id in ids)
            [page] = random.ids(client.key.domain_id[:8], 1)
            session.put([_fake(client, Kind.PAGE, 1, page, b"".join(ids))])
            pages.append(page)
        session.flush()
        [root] = random.ids(client.key.domain_id[:8], 1)
        session.put([_fake(client, Kind.TABLE, 2, root, b"".join(sorted(pages)))])
        before = time.process_time()
        session.commit(client.snapshot(root, session.head(), time_ns=time.time_ns()))
        return f"{len(pages) * 500} new objects, {time.process_time() - before:.2f} s in commit()"


def _fake(client: SmallClient, kind: int, level: int, object_id: bytes, refs: bytes) -> bytes:
    _, envelope_id, _ = client.envelope(ObjectClass.DATA if kind == Kind.DATA else ObjectClass.META)
    header = record_format.encode_header(kind, level, len(refs) // 32, 64, object_id, envelope_id)
    return record_format.finish(header, refs, bytes(64))


def op_forget(repository: LocalRepository) -> str:
    """Forget the oldest tenth."""
    with repository.reading():
        infos = repository.snapshots()
        names = [info.name for info in infos[: max(1, len(infos) // 10)]]
        return f"{len(forget(repository, names, force=True))} forgotten"


def op_compact(repository: LocalRepository) -> str:
    """Release what was forgotten, drop dead packs."""
    done = compact(repository, CompactOptions(grace_ns=0, max_waste=1.0, force=True))
    return f"{len(done.released)} released, {done.packs_deleted} packs deleted, {done.objects_dropped} objects"


def op_check(repository: LocalRepository) -> str:
    """Check the structure."""
    with repository.reading():
        report = check_structure(repository)
        return f"{report.objects} objects, {len(report.damage)} damaged, repaired {report.repaired}"


def op_stats(repository: LocalRepository) -> str:
    """Sizes."""
    with repository.reading():
        return f"{stats(repository).objects_live} live"


OPERATIONS: dict[str, Callable[[LocalRepository], str]] = {
    "rebuild": op_open,
    "open": op_open,
    "list": op_list,
    "stats": op_stats,
    "has": op_has,
    "commit": op_commit,
    "check": op_check,
    "forget": op_forget,
    "compact": op_compact,
    "compact again": op_compact,
}


def run_here(operation: str, path: str) -> None:
    """The child: do it, and tell what was said on stdout."""
    collect_seldom()
    repository = open_local(path)
    before, began = os.times(), time.monotonic()
    said = OPERATIONS[operation](repository)
    after = os.times()
    repository.close()
    cpu = after.user + after.system - before.user - before.system
    print(json.dumps({"said": said, "cpu_s": round(cpu, 3), "wall_s": round(time.monotonic() - began, 2)}))


def run_apart(operation: str, path: str) -> dict[str, object]:
    """Run one operation in a process of its own, watching its memory."""
    command = [sys.executable, __file__, path, "--run", operation]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks = {"VmHWM": 0, "RssAnon": 0}
    while child.poll() is None:
        _sample(child.pid, peaks)
        time.sleep(SAMPLE_S)
    said = child.stdout.read() if child.stdout else ""
    if child.returncode:
        raise SystemExit(f"{operation} failed")
    return {**json.loads(said), "rss_mib": peaks["VmHWM"] >> 10, "anonymous_mib": peaks["RssAnon"] >> 10}


def _sample(pid: int, peaks: dict[str, int]) -> None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return  # it has just ended
    for line in lines:
        name, _, value = line.partition(":")
        if name in peaks:
            peaks[name] = max(peaks[name], int(value.split()[0]))


def measure(directory: str, objects: int, snapshots: int, only: list[str]) -> None:
    source, work = f"{directory}/{objects}-{snapshots}", f"{directory}/work"
    if not os.path.exists(source):
        grow(source, objects, snapshots)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, work, copy_function=_link, ignore=shutil.ignore_patterns("index"))
    print(f"{objects} objects, {snapshots} snapshots", flush=True)
    for operation in OPERATIONS:
        if operation == "rebuild":
            shutil.rmtree(f"{work}/index", ignore_errors=True)
        if operation in only or operation == "rebuild":
            found = run_apart(operation, work)
            print(
                f"  {operation:14} {found['cpu_s']:9.3f} s CPU {found['wall_s']:9.2f} s"
                f" {found['rss_mib']:6} MiB ({found['anonymous_mib']} anonymous)  {found['said']}",
                flush=True,
            )
    shutil.rmtree(work)


def _link(source: str, target: str) -> None:
    if source.endswith(".pack"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--objects", type=int, nargs="+", default=[50_000, 500_000])
    parser.add_argument("--snapshots", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=list(OPERATIONS), default=list(OPERATIONS))
    parser.add_argument("--run", choices=list(OPERATIONS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run:
        run_here(chosen.run, chosen.directory)
        return
    os.makedirs(chosen.directory, exist_ok=True)
    for objects in chosen.objects:
        measure(chosen.directory, objects, chosen.snapshots, chosen.only)


if __name__ == "__main__":
    main()
