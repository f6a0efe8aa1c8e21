"""What is backed up, and how it changes: four trees that every machine makes alike.

========  ============================================================================================
small     60,000 files of 0 to 16 KiB in 11,000 directories, some links, copies and awkward names
random    one file of 2 GiB that neither compresses nor repeats
text      one file of 1 GiB: prose, then a log
vm        an image of 1.5 GiB: files aligned to 4 KiB (3/5), runs of zeros (a quarter), random stretches
========  ============================================================================================

Between two backups, `small` is changed like a working directory: 1 % of the files edited, 0.5 % removed, 0.5 % new,
one directory renamed; `vm` like a disk: 1 % of its 4 KiB blocks rewritten all over it, and 20 insertions, which a
disk does not have but a mailbox does. Changes are made in place, so that what is untouched keeps inode and times.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.contents import RandomBytes, Words

EPOCH_S = 1_700_000_000
BLOCK = 4096
_MIB = 1 << 20
_SMALL_MAX = 16 << 10


@dataclass(frozen=True)
class Corpus:
    """A tree to back up. `make(directory, scale)` fills an empty directory, `change` alters it in place."""

    name: str
    make: Callable[[Path, float], None]
    change: Callable[[Path], None] | None = None


def pristine(corpus: Corpus, scale: float, base: Path) -> Path:
    """The directory of a corpus, made unless an earlier run made it whole."""
    done = base / f"{corpus.name}-{scale:g}"
    if not done.is_dir():
        making = done.with_name(done.name + ".part")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        corpus.make(making, scale)
        making.rename(done)
    return done


# --- many small files ------------------------------------------------------------------------------------------


def make_files(top: Path, count: int, seed: str, largest: int = _SMALL_MAX) -> None:
    """`count` files of 0 to `largest` bytes, five or six to a directory: sources, notes, and one in ten random."""
    draw = random.Random(seed)
    noise, prose = RandomBytes(seed), Words(seed).text(8 * _MIB)
    folder = top
    for number in range(count):
        if number % 6 == 0 or draw.random() < 0.02:
            folder = _new_folder(top, folder, number, draw)
        short = draw.random() < 0.55
        size = min(int(draw.expovariate(5 / largest)), largest) if short else draw.randint(largest // 2, largest)
        if draw.random() < 0.1:
            content = noise.take(size)
        else:
            # Lines of the same language, and one that no other file has.
            at = draw.randrange(len(prose) - largest)
            content = (b"%016x\n" % draw.getrandbits(64) + prose[at : at + size])[:size]
        name = f"f{number:06d}.txt" if number % 997 else f"näme with späce {number}"
        _put(folder / name, content, number, 0o755 if number % 50 == 0 else 0o644)
        if number % 200 == 0:
            (folder / f"link-{number}").symlink_to(f"../{name}")
        if number % 3000 == 0:
            os.link(folder / name, folder / f"{name}.again")
    (top / "empty").mkdir()
    _settle_times(top)


def _new_folder(top: Path, folder: Path, number: int, draw: random.Random) -> Path:
    """Deeper, beside, or further up: depth goes to and fro like in a tree of sources."""
    depth = len(folder.relative_to(top).parts)
    keep = draw.randint(max(0, depth - 2), depth) if depth < 7 else draw.randint(1, 4)
    parent = top.joinpath(*folder.relative_to(top).parts[:keep])
    new = parent / f"d{number:06d}"
    new.mkdir()
    return new


def _make_small(top: Path, scale: float) -> None:
    make_files(top, round(60_000 * scale), "small")


def _change_small(top: Path) -> None:
    draw, prose = random.Random("small changed"), Words("small changed").text(_MIB)
    files = sorted(p for p in top.rglob("f*.txt") if p.is_file() and not p.is_symlink())
    picked = draw.sample(files, len(files) // 50)
    edited, removed, beside = picked[: len(picked) // 2], picked[len(picked) // 2 : -len(picked) // 4], picked[:: 4]
    for number, path in enumerate(edited):
        content, word = path.read_bytes(), b"edited %016x\n" % draw.getrandbits(64)
        at = draw.randrange(len(content) + 1)
        _put(path, content[:at] + word + content[at + draw.choice((0, len(word))) :], 200_000 + number)
    for path in removed:
        path.unlink()
    for number, path in enumerate(beside):
        at = draw.randrange(len(prose) - _SMALL_MAX)
        _put(path.with_name(f"new-{number}.txt"), prose[at : at + draw.randint(1, _SMALL_MAX)], 300_000 + number)
    folder = draw.choice(sorted(p for p in top.rglob("d*") if p.is_dir() and len(list(p.iterdir())) >= 5))
    folder.rename(folder.with_name(folder.name + "-renamed"))


# --- one large file --------------------------------------------------------------------------------------------


def make_random(top: Path, size: int, seed: str) -> None:
    """One file of `size` random bytes."""
    noise = RandomBytes(seed)
    with open(top / "random.bin", "wb") as file:
        for at in range(0, size, _MIB):
            file.write(noise.take(min(_MIB, size - at)))
    os.utime(top / "random.bin", (EPOCH_S, EPOCH_S))


def _make_random(top: Path, scale: float) -> None:
    make_random(top, round((2 << 30) * scale), "random")


def _make_text(top: Path, scale: float) -> None:
    size, words, done = round((1 << 30) * scale), Words("text"), 0
    with open(top / "text.txt", "wb") as file:
        while done < size:
            piece = words.text(_MIB) if done < size // 2 else words.log(_MIB)
            done += file.write(piece[: size - done])
    os.utime(top / "text.txt", (EPOCH_S, EPOCH_S))


def _make_vm(top: Path, scale: float) -> None:
    size, draw, noise, words = round((3 << 29) * scale), random.Random("vm"), RandomBytes("vm"), Words("vm")
    made = dict.fromkeys(("files", "zeros", "random"), 0)
    with open(top / "disk.img", "wb") as file:
        while (done := file.tell()) < size:
            # Whatever is furthest behind its share comes next.
            kind = min(made, key=lambda k: made[k] / _VM_SHARES[k])
            if kind == "files":
                piece = words.text(min(int(draw.lognormvariate(9.5, 1.6)), 8 * _MIB))
                piece += noise.take(len(piece) // 3)  # code compresses worse than prose
                piece += bytes(-len(piece) % BLOCK)
            else:
                length = BLOCK * draw.randint(1, 1024)
                piece = bytes(length) if kind == "zeros" else noise.take(length)
            made[kind] += len(piece)
            file.write(piece[: size - done])
    os.utime(top / "disk.img", (EPOCH_S, EPOCH_S))


_VM_SHARES = {"files": 0.60, "zeros": 0.25, "random": 0.15}


def _change_vm(top: Path) -> None:
    path, draw, noise = top / "disk.img", random.Random("vm changed"), RandomBytes("vm changed")
    image = bytearray(path.read_bytes())
    blocks = len(image) // BLOCK
    for block in draw.sample(range(blocks), blocks // 100):
        new = noise.take(BLOCK) if block & 1 else (b"block %08d rewritten\n" % block * BLOCK)[:BLOCK]
        image[block * BLOCK : (block + 1) * BLOCK] = new
    for at in sorted((draw.randrange(len(image)) for _ in range(20)), reverse=True):
        image[at:at] = noise.take(draw.randrange(1, 9999) | 1)
    with open(path, "r+b") as file:
        file.write(image)
    os.utime(path, (EPOCH_S + 9999, EPOCH_S + 9999))


def _put(path: Path, content: bytes, number: int, mode: int = 0o644) -> None:
    path.write_bytes(content)
    path.chmod(mode)
    time_ns = (EPOCH_S + 7 * number) * 10**9 + number * 1_234_567 % 10**9
    os.utime(path, ns=(time_ns, time_ns))


def _settle_times(top: Path) -> None:
    for folder, _, _ in os.walk(top, topdown=False):
        os.utime(folder, (EPOCH_S, EPOCH_S))


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus("small", _make_small, _change_small),
        Corpus("random", _make_random),
        Corpus("text", _make_text),
        Corpus("vm", _make_vm, _change_vm),
    )
}
