"""The walk: order, what is left out, what is reported, and what a hostile directory can do to it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from packnback.backup import walk
from packnback.backup.exclude import Excludes
from packnback.backup.roots import resolve
from packnback.backup.walk import CACHE_TAG, CACHE_TAG_SIGNATURE, Part, Walk, WalkOptions, split
from packnback.errors import NothingToBackUp
from packnback.format.listing import path_key

Errors = list[tuple[bytes, str]]


def parts_of(paths: Sequence[bytes], errors: Errors, **options: object) -> Iterator[Part]:
    def report(path: bytes, reason: str) -> None:
        errors.append((path, reason))

    roots = resolve(paths, report)
    return iter(Walk(roots, WalkOptions(**options), lambda name: False, report))  # type: ignore[arg-type]


def listed(paths: Sequence[bytes], errors: Errors | None = None, **options: object) -> list[bytes]:
    """Paths of all children, in the order of the walk."""
    found: Errors = [] if errors is None else errors
    paths_found = [
        b"/".join((b"" if not part.path else b"/" + part.path, name))
        for part in parts_of(paths, found, **options)
        for name, _ in part.children
    ]
    assert errors is not None or not found
    return paths_found


def make(root: Path, *files: str) -> bytes:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(name.encode())
    return os.fsencode(root)


def below(root: bytes, paths: Sequence[bytes]) -> list[bytes]:
    return [path[len(root) + 1 :] for path in paths if path.startswith(root + b"/")]


def test_parts_come_in_the_order_of_listings(tmp_path: Path) -> None:
    root = make(tmp_path, "a/b/c", "a/b-x", "a-b/x", "a.b", "a/", "z/y/x/w", "b")
    parts = [part.path for part in parts_of([root], [])]
    assert parts == sorted(parts, key=path_key)
    assert below(root, listed([root])) == [
        *(b"a", b"a-b", b"a.b", b"b", b"z"),
        *(b"a/b", b"a/b-x", b"a/b/c", b"a-b/x", b"z/y", b"z/y/x", b"z/y/x/w"),
    ]


def test_directories_above_a_root_are_implicit_and_hold_nothing_else(tmp_path: Path) -> None:
    root = make(tmp_path, "one/keep/file", "one/other", "two/file", "three")
    parts = list(parts_of([root + b"/one/keep", root + b"/three"], []))
    by_path = {part.source: part for part in parts}
    top = by_path[b"/"]
    assert [name for name, _ in top.children] == [root.split(b"/")[1]]
    assert top.implicit == {root.split(b"/")[1]}
    assert [name for name, _ in by_path[root].children] == [b"one", b"three"]
    assert by_path[root].implicit == {b"one"}
    assert dict(by_path[root].children)[b"one"].st_ino == (tmp_path / "one").stat().st_ino
    assert [name for name, _ in by_path[root + b"/one"].children] == [b"keep"]
    assert by_path[root + b"/one"].implicit == frozenset()
    assert [name for name, _ in by_path[root + b"/one/keep"].children] == [b"file"]
    assert root + b"/two" not in by_path


def test_nested_and_repeated_paths_collapse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path, "d/e/f", "d/g")
    monkeypatch.chdir(tmp_path)
    asked = [b"d/e", root + b"/d", b"./d//e/../", b"d/e/f"]
    assert listed(asked) == listed([root + b"/d"])
    roots = resolve(asked, lambda path, reason: None)
    assert roots.paths == (root + b"/d/e", root + b"/d", root + b"/d/e/f")


def test_the_root_of_the_file_system() -> None:
    roots = resolve([b"//", b"/etc"], lambda path, reason: None)
    assert roots.tree is None
    first = next(iter(Walk(roots, WalkOptions(), lambda name: False, lambda path, reason: None)))
    assert first.path == b""
    assert b"etc" in dict(first.children)


def test_missing_paths_are_reported_unless_all_are(tmp_path: Path) -> None:
    root = make(tmp_path, "here")
    errors: Errors = []
    assert below(root, listed([root + b"/here", root + b"/gone"], errors)) == [b"here"]
    assert errors == [(root + b"/gone", "No such file or directory")]
    with pytest.raises(NothingToBackUp) as caught:
        listed([root + b"/gone", root + b"/gone too"], errors)
    assert caught.value.paths == [f"{tmp_path}/gone", f"{tmp_path}/gone too"]


def test_links_are_not_followed_but_lead_to_a_root(tmp_path: Path) -> None:
    root = make(tmp_path, "real/dir/file")
    (tmp_path / "link").symlink_to("real")
    assert below(root, listed([root + b"/link"])) == [b"link"]
    assert below(root, listed([root + b"/link/dir"])) == [b"link", b"link/dir", b"link/dir/file"]
    above = {part.source: part for part in parts_of([root + b"/link/dir"], [])}[root]
    assert stat.S_ISDIR(dict(above.children)[b"link"].st_mode)


def test_a_path_behind_a_link_inside_another_root_is_reported(tmp_path: Path) -> None:
    root = make(tmp_path, "real/dir/file", "tree/x")
    (tmp_path / "tree/link").symlink_to("../real")
    errors: Errors = []
    found = below(root, listed([root + b"/tree", root + b"/tree/link/dir"], errors))
    assert found == [b"tree", b"tree/link", b"tree/x"]
    assert [path for path, _ in errors] == [root + b"/tree/link/dir"]


def test_excluded_directories_are_not_entered(tmp_path: Path) -> None:
    root = make(tmp_path, "a/x.o", "a/x.c", "target/deep/file", "b/target/file")
    excludes = Excludes([b"*.o", b"target/"])
    assert below(root, listed([root], excludes=excludes)) == [b"a", b"b", b"a/x.c"]
    asked_for = below(root, listed([root + b"/target"], excludes=excludes))
    assert asked_for == [b"target", b"target/deep", b"target/deep/file"]


def test_caches_keep_only_their_tag(tmp_path: Path) -> None:
    root = make(tmp_path, "cache/big", "cache/sub/file", "fake/file", "fifo/file")
    (tmp_path / "cache" / CACHE_TAG.decode()).write_bytes(CACHE_TAG_SIGNATURE + b"\n# by a test")
    (tmp_path / "fake" / CACHE_TAG.decode()).write_bytes(b"Signature: of something else")
    os.mkfifo(tmp_path / "fifo" / CACHE_TAG.decode())
    everything = listed([root])
    found = below(root, listed([root], exclude_caches=True))
    assert found == [
        *(b"cache", b"fake", b"fifo", b"cache/CACHEDIR.TAG"),
        *(b"fake/CACHEDIR.TAG", b"fake/file", b"fifo/CACHEDIR.TAG", b"fifo/file"),
    ]
    assert root + b"/cache/big" in everything


def test_exclude_if_present(tmp_path: Path) -> None:
    root = make(tmp_path, "a/.nobackup", "a/file", "a/d/file", "b/file")
    found = below(root, listed([root], exclude_if_present=(b".nobackup", b"other")))
    assert found == [b"a", b"b", b"a/.nobackup", b"b/file"]


def test_one_file_system_keeps_mount_points(tmp_path: Path) -> None:
    root = make(tmp_path, "tree/sub/file", "tree/file")
    tree = root + b"/tree"
    assert below(tree, listed([tree], one_file_system=True)) == [b"file", b"sub", b"sub/file"]
    # To a walk whose roots stand elsewhere, every directory below a root is a mount point.
    elsewhere = replace(resolve([tree], lambda path, reason: None), devices=frozenset({-1}))
    parts = list(Walk(elsewhere, WalkOptions(one_file_system=True), lambda name: False, lambda p, r: None))
    assert parts[-1].source == tree
    assert [name for name, _ in parts[-1].children] == [b"file", b"sub"]


def test_every_path_that_was_asked_for_opens_its_file_system() -> None:
    if not os.path.ismount("/proc"):
        pytest.skip("no other file system to be found")
    both = resolve([b"/", b"/proc"], lambda path, reason: None)
    assert both.devices == {os.lstat("/").st_dev, os.lstat("/proc").st_dev}
    assert resolve([b"/"], lambda path, reason: None).devices == {os.lstat("/").st_dev}


def test_a_directory_replaced_by_a_link_is_not_followed(tmp_path: Path) -> None:
    root = make(tmp_path, "victim/secret", "tree/sub/own", "tree/zz/file")
    errors: Errors = []
    walked = parts_of([root + b"/tree"], errors)
    found = []
    for part in walked:
        found += [part.source + b"/" + name for name, _ in part.children]
        if part.source == root + b"/tree":
            (tmp_path / "tree/sub").rename(tmp_path / "away")
            (tmp_path / "tree/sub").symlink_to(tmp_path / "victim")
            (tmp_path / "tree/zz").rename(tmp_path / "away2")
            (tmp_path / "victim").rename(tmp_path / "tree/zz")
    assert not any(path.endswith(b"secret") for path in found)
    assert sorted(path for path, _ in errors) == [root + b"/tree/sub", root + b"/tree/zz"]


def test_what_vanishes_is_no_error(tmp_path: Path) -> None:
    root = make(tmp_path, "tree/sub/file", "tree/zub/file")
    errors: Errors = []
    found = []
    for part in parts_of([root + b"/tree"], errors):
        found.append(part.source)
        if part.source == root + b"/tree":
            (tmp_path / "tree/sub").rename(tmp_path / "away")
    assert root + b"/tree/sub" not in found
    assert root + b"/tree/zub" in found
    assert errors == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_directory_is_reported(tmp_path: Path) -> None:
    root = make(tmp_path, "closed/file", "open")
    (tmp_path / "closed").chmod(0)
    errors: Errors = []
    assert below(root, listed([root], errors)) == [b"closed", b"open"]
    assert errors == [(root + b"/closed", "Permission denied")]
    (tmp_path / "closed").chmod(0o700)


def test_a_failing_directory_is_reported_and_the_walk_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path, "bad/file", "good/file")
    real, bad = os.listdir, (tmp_path / "bad").stat().st_ino

    def failing(fd: int) -> list[str]:
        if os.fstat(fd).st_ino == bad:
            raise OSError(5, "Input/output error")
        return real(fd)

    monkeypatch.setattr(os, "listdir", failing)
    errors: Errors = []
    assert below(root, listed([root], errors)) == [b"bad", b"good", b"good/file"]
    assert errors == [(root + b"/bad", "Input/output error")]


def test_names_that_are_not_text_survive(tmp_path: Path) -> None:
    names = [b"\xff\xfe", b"a\nb", "ä".encode(), b"\x01"]
    for name in names:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb"):
            pass
    root = os.fsencode(tmp_path)
    assert below(root, listed([root])) == sorted(names)


def test_descriptors_do_not_leak(tmp_path: Path) -> None:
    root = make(tmp_path, *(f"{i}/{j}/file" for i in range(5) for j in range(5)))
    before = len(os.listdir("/proc/self/fd"))
    listed([root])
    walked = parts_of([root], [])
    next(walked)
    del walked
    assert len(os.listdir("/proc/self/fd")) == before


NAMES = st.lists(st.binary(min_size=1, max_size=4), unique=True).map(sorted)


@given(NAMES, st.integers(1, 5), st.integers(0, 5))
def test_splitting_keeps_all_names_and_its_limits(names: list[bytes], least: int, more: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "PART_MIN", least)
        patch.setattr(walk, "PART_LIMIT", least + more)
        stretches = list(split(names, lambda name: name[0] % 2 == 0))
    assert [name for stretch in stretches for name in stretch] == names
    assert all(len(stretch) <= least + more for stretch in stretches) or len(names) <= least
    assert all(len(stretch) >= least for stretch in stretches[:-1])


def test_splitting_forgets_what_lies_before_a_cut() -> None:
    names = [b"%06d" % i for i in range(20000)]

    def starts(name: bytes) -> bool:
        return name[-3:] == b"777" and int(name) % 2000 == 777

    ends = {stretch[0] for stretch in split(names, starts)}
    changed = {stretch[0] for stretch in split([b"000000a", *names[5:]], starts)}
    assert len(ends) > 5
    assert ends - changed == {b"000000"}
