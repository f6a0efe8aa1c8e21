"""`check`: is the truth whole, and is the index what the truth makes of it? No key is needed.

Structure first: a second index is built from nothing and compared, row by row, with the one in use. Where they
differ, either files were damaged since the index in use had read them, or the index is; it is rebuilt in both
cases, but only the second is damage of the index. What is damaged for good is told from the fresh index: files
that cannot be parsed, objects that are missing, gaps in a client's chain, files that do not belong here. Reading
every record and its checksum is `packnback.store.scrub`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import groupby, zip_longest
from operator import itemgetter

from msgspec import Struct, field

from packnback.errors import IndexDamage
from packnback.format import rows
from packnback.store import catalog, layout
from packnback.store.damage import Finding, missing_below, snapshots_needing
from packnback.store.index import Index, ReadTxn
from packnback.store.interface import SnapshotInfo
from packnback.store.objects import next_number
from packnback.store.receipts import newest_receipt
from packnback.store.reconcile import known_names, reconcile
from packnback.store.repository import LocalRepository
from packnback.store.truth import Truth

_KIND_OF_DIRECTORY = {
    "packs": "pack",
    "snapshots": "snapshot",
    "forgotten": "marker",
    "headers": "headers",
    "condemned": "condemned",
}
_OTHER_NAMES = "the names of files"
"""How two indexes differ of which only one knows what has just been added."""
_ATTEMPTS = 100


class CheckReport(Struct):
    """What was found. `damage` is lost or unreadable truth; `repaired` is what was wrong with the index."""

    packs: int = 0
    objects: int = 0
    snapshots: int = 0
    damage: list[Finding] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)


def check_structure(repository: LocalRepository) -> CheckReport:
    """Compare index and truth; see the module's docstring. The caller holds the lock, and has reconciled."""
    report = CheckReport()
    with repository.ports.scratch_index() as fresh:
        difference = _settled_difference(repository, fresh)
        if difference is not None:
            behind = _damaged_since(repository.ports.index, fresh)
            repository.rebuild()
            if not behind:
                report.repaired.append(difference)
        with fresh.read() as txn:
            report.packs, report.objects = txn.count("packs"), txn.count("objects")
            infos = catalog.snapshots(txn)
            report.snapshots = len(infos)
            report.damage += file_findings(txn)
            report.damage += missing_findings(txn, infos)
            report.damage += chain_findings(txn)
    report.damage += stranger_findings(repository.truth)
    return report


def _settled_difference(repository: LocalRepository, fresh: Index) -> str | None:
    """`index_difference`, after both were brought up to the directories while sessions go on adding to them."""
    for _ in range(_ATTEMPTS):
        reconcile(repository.truth, fresh, alone=True)
        repository.reconcile()
        difference = index_difference(repository.ports.index, fresh)
        if difference != _OTHER_NAMES:
            break
    return difference


def index_difference(live: Index, fresh: Index) -> str | None:
    """The first difference between two indexes, pack numbers read as names, or None.

    Of ``meta`` only what is derived from the directories counts.
    """
    try:
        with live.read() as a, fresh.read() as b:
            if known_names(a) != known_names(b):
                return _OTHER_NAMES
            if newest_receipt(a) != newest_receipt(b):
                return "table meta, the newest receipt"
            next_number(a)  # each index numbers packs in its own way, but has to be readable
            names = {id(a): _pack_names(a), id(b): _pack_names(b)}
            for table in rows.TABLES:
                if table in ("meta", "packs", "pack_names"):
                    continue
                if table == "objects":
                    different = _different_object(a, b, _renumbering(names[id(a)], names[id(b)]))
                    if different:
                        return f"table {table}, row {different.hex()}"
                    continue
                pairs = zip_longest(_readable(a, table, names[id(a)]), _readable(b, table, names[id(b)]))
                for mine, theirs in pairs:
                    if mine != theirs:
                        return f"table {table}, row {(mine or theirs or (b'',))[0].hex()}"
            mine_packs, their_packs = ({v[0]: v[1] for v in names[id(t)].values()} for t in (a, b))
            if mine_packs != their_packs:
                return "table packs"
    except IndexDamage as damage:
        # The fresh one was made a moment ago: it is not the one to doubt.
        return f"table {damage.path}, {damage.why}" if damage.path in rows.TABLES else damage.why
    return None


def _damaged_since(live: Index, fresh: Index) -> bool:
    """Whether files are damaged now that were good when the index in use had read them."""
    try:
        with live.read() as a:
            known = set(catalog.damaged_files(a))
    except IndexDamage:
        return False
    with fresh.read() as b:
        return not set(catalog.damaged_files(b)) <= known


def _pack_names(txn: ReadTxn) -> dict[int, tuple[bytes, rows.PackRow]]:
    """Number → (name, row). Raises IndexDamage unless the two tables of packs say the same."""
    decoded = ((rows.number_of(key), rows.decode_pack(key, value)) for key, value in txn.scan("packs"))
    found = {number: (row.name, row) for number, row in decoded}
    numbers = {key: rows.decode_number(key, value) for key, value in txn.scan("pack_names")}
    if numbers != {name: number for number, (name, _) in found.items()}:
        raise IndexDamage("pack_names", "does not fit the packs")
    return found


def _renumbering(
    names: dict[int, tuple[bytes, rows.PackRow]], others: dict[int, tuple[bytes, rows.PackRow]]
) -> array[int]:
    """At the number of a pack in one index, its number in the other; 0, which is none, where it has none.

    An array, as each row asks for another one of them: a dict of that many would not stay in the processor's cache.
    """
    numbers = {name: number for number, (name, _) in others.items()}
    found = array("I", [0]) * (max(names, default=0) + 1)
    for number, (name, _) in names.items():
        found[number] = numbers.get(name, 0)
    return found


def _different_object(live: ReadTxn, fresh: ReadTxn, numbers: array[int]) -> bytes:
    """The first key whose rows differ but for the numbering of packs, or nothing. (There are millions.)"""
    split = rows.split_object
    for (key, value), (other_key, other) in zip_longest(
        live.scan("objects"), fresh.scan("objects"), fillvalue=(b"", b"")
    ):
        if key != other_key:
            return key or other_key
        number, row = split(key, value)
        # The fresh one's row needs no check of its own: it has to say the same.
        if row != other[4:-4] or number >= len(numbers) or numbers[number] != rows.pack_of_object(other):
            return key
    return b""


def _readable(
    txn: ReadTxn, table: str, names: dict[int, tuple[bytes, rows.PackRow]]
) -> Iterator[tuple[bytes, object]]:
    """Rows with pack numbers replaced by names; in ``more``, ordered by them."""
    if table == "more":
        located = ((*rows.split_more_key(key), rows.decode_more(key, value)) for key, value in txn.scan(table))
        yield from _by_name(located, names)
    elif table == "usage":
        used = ((*rows.split_usage_key(key), rows.decode_usage(key, value)) for key, value in txn.scan(table))
        yield from _by_name(used, names)
    else:
        for key, value in txn.scan(table):
            yield key, rows.unseal(table, key, value)


def _by_name(
    numbered: Iterable[tuple[bytes, int, object]], names: dict[int, tuple[bytes, rows.PackRow]]
) -> Iterator[tuple[bytes, object]]:
    """Rows (key, pack number, value) with names for numbers; rows of one key ordered by name."""
    for key, group in groupby(numbered, key=lambda row: row[0]):
        yield from sorted(((key + _name(names, number), value) for _, number, value in group), key=itemgetter(0))


def _name(names: dict[int, tuple[bytes, rows.PackRow]], number: int) -> bytes:
    if number not in names:
        raise IndexDamage("packs", f"pack {number} is missing")
    return names[number][0]


def file_findings(txn: ReadTxn) -> list[Finding]:
    """Files that cannot be parsed. A damaged snapshot touches itself; what a pack touches, its objects tell."""
    return [
        Finding(
            _KIND_OF_DIRECTORY[directory],
            name,
            why,
            (name,) if directory == layout.SNAPSHOTS else (),
            bytes.fromhex(name) if directory == layout.PACKS else b"",
        )
        for directory, name, why in catalog.damaged_files(txn)
    ]


def missing_findings(txn: ReadTxn, infos: list[SnapshotInfo]) -> list[Finding]:
    """Absent objects that some snapshot needs, and snapshots whose objects contradict each other."""
    missing: set[bytes] = set()
    findings = []
    for info in infos:
        if not info.complete:
            below = missing_below(txn, info.root)
            missing |= below
            if not below:
                why = "kinds or levels of the objects below its root contradict each other"
                findings.append(Finding("snapshot", info.name, why, (info.name,)))
    needed = snapshots_needing(txn, infos, missing)
    findings += [
        Finding("object", object_id.hex(), "missing", needed[object_id])
        for object_id in sorted(missing)
    ]
    return findings


def chain_findings(txn: ReadTxn) -> list[Finding]:
    """Gaps in the chain of each client: a number without a header, live or kept, or a wrong previous hash."""
    chains: dict[bytes, dict[int, tuple[bytes, bytes]]] = {}
    for key, value in txn.scan("released"):
        client_id, sequence, _ = rows.split_released_key(key)
        kept = rows.decode_released(key, value)
        chains.setdefault(client_id, {})[sequence] = (kept.id, kept.prev)
    for key, value in txn.scan("snapshots"):
        row = rows.decode_snapshot(key, value)
        if row.status == rows.GOOD:
            chains.setdefault(row.client_id, {})[row.sequence] = (row.id, row.prev)
    findings = []
    for client_id, chain in sorted(chains.items()):
        before, expected = bytes(32), 1
        for sequence in sorted(chain):  # not all numbers up to the last: whoever signs it can make that 2 ** 63
            snapshot_id, prev = chain[sequence]
            if sequence > expected:
                why = "no header" if sequence == expected + 1 else f"no header, up to {sequence - 1:016x}"
                findings.append(Finding("chain", f"{client_id.hex()}-{expected:016x}", why))
            elif prev != before:
                findings.append(Finding("chain", f"{client_id.hex()}-{sequence:016x}", "does not continue the chain"))
            before, expected = snapshot_id, sequence + 1
    return findings


def stranger_findings(truth: Truth) -> list[Finding]:
    """Files in ``packs/`` that cannot be packs: somebody else's, or packs under a changed name."""
    findings = []
    for directory in layout.PACK_DIRECTORIES:
        for name in truth.blobs.list(directory):
            if layout.pack_name(directory, name) is None and not layout.is_foreign(name):
                findings.append(Finding("stranger", f"{directory}/{layout.known_as(name)}", "not a pack's name"))
    return findings
