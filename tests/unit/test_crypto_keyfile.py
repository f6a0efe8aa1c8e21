"""Key files: a round trip for every kind, and no damaged one that loads."""

from __future__ import annotations

import base64
import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from crypto_vectors import DATA, FARM, GOLDENS, META, OWNER, PUT, STRANGER

from packnback import errors
from packnback.crypto import keyfile
from packnback.crypto.derive import H
from packnback.crypto.keybody import Key, encode_body
from packnback.crypto.keyfile import change_passphrase, read_key, write_key
from packnback.crypto.keytext import decode_key, encode_key
from packnback.crypto.passphrase import Cost, stretch
from packnback.ids import MIB

CHEAP = Cost(passes=1, memory=64 * MIB)
LONG_NAME = OWNER.put_key("x" * 255)
KEYS: dict[str, Key] = {
    "owner": OWNER,
    "put": PUT,
    "list": OWNER.list_key(),
    "restore": OWNER.restore_key(),
    "public": OWNER.bundle,
}
every_kind = pytest.mark.parametrize("kind", KEYS)


def never() -> bytes:
    pytest.fail("no passphrase should be asked for")


def text_of(first_line: str, content: bytes) -> bytes:
    """A key file with a right checksum, whatever it says."""
    checksum = H(first_line.encode() + b"\n" + content)[:16]
    return first_line.encode() + b"\n" + base64.b64encode(content + checksum) + b"\n"


def damaged(text: bytes, why: str | None = None, passphrase: Callable[[], bytes] | None = None) -> None:
    with pytest.raises(errors.KeyDamaged, match=why) as caught:
        decode_key(text, "some.key", passphrase)
    assert caught.value.path == "some.key"


# --- round trips -------------------------------------------------------------------------------------------


@every_kind
def test_written_keys_read_back(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.key"
    write_key(str(path), KEYS[kind])
    assert read_key(str(path), never) == KEYS[kind]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["a.key"]
    assert path.read_text().splitlines()[0] == f"packnback {kind} key v1"
    assert max(map(len, path.read_text().splitlines())) <= 64


@every_kind
def test_protected_keys_read_back(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "a.key")
    write_key(path, KEYS[kind], b"secret", cost=CHEAP)
    assert read_key(path, lambda: b"secret") == KEYS[kind]
    with pytest.raises(errors.PassphraseNeeded):
        read_key(path)
    with pytest.raises(errors.WrongPassphrase):
        read_key(path, lambda: b"Secret")
    body = base64.b64decode(Path(path).read_text().partition("\n")[2])
    assert encode_body(KEYS[kind])[:32] not in body


def test_key_files_are_the_pinned_ones() -> None:
    assert {kind: H(encode_key(key)).hex() for kind, key in KEYS.items()} == GOLDENS["key_files_blake3"]
    assert encode_key(OWNER).decode() == GOLDENS["owner_key_file"]
    protected = GOLDENS["protected_owner_key_file"].encode()
    assert decode_key(protected, "old", lambda: b"correct horse") == OWNER


def test_the_longest_name_fits() -> None:
    assert decode_key(encode_key(LONG_NAME), "p") == LONG_NAME
    assert len(encode_key(LONG_NAME)) < keyfile.SIZE_LIMIT


def test_protecting_a_key_is_never_the_same_twice() -> None:
    first, second = (encode_key(OWNER, b"secret", cost=CHEAP).splitlines() for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_the_default_cost_is_the_one_that_is_documented() -> None:
    first_line = encode_key(OWNER, b"secret").splitlines()[0]
    assert b"argon2id opslimit=3 memlimit=268435456 salt=" in first_line


def test_white_space_is_not_significant() -> None:
    """A key that was typed in from paper, or went through an editor of another system."""
    text = encode_key(PUT)
    first_line, _, rest = text.partition(b"\n")
    joined = b"".join(rest.split())
    for variant in (
        text.replace(b"\n", b"\r\n"),
        text.rstrip(),
        first_line + b" \n\n" + joined,
        first_line + b"\n  " + b" ".join(joined[at : at + 4] for at in range(0, len(joined), 4)),
    ):
        assert decode_key(variant, "p") == PUT


# --- damage ------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("protected", [False, True], ids=["plain", "protected"])
def test_every_flipped_byte_is_found(kind: str, protected: bool) -> None:
    """Before a passphrase is asked for; a line end may turn into other white space, which says nothing."""
    text = encode_key(KEYS[kind], b"secret" if protected else None, cost=CHEAP)
    for at in range(len(text)):
        for bit in (0x01, 0x10, 0x80):
            changed = bytearray(text)
            changed[at] ^= bit
            if changed.split() == text.split():
                continue
            damaged(bytes(changed), None, never)


@every_kind
def test_every_truncation_is_found(kind: str) -> None:
    text = encode_key(KEYS[kind])
    for length in range(len(text) - 1):
        damaged(text[:length])


@pytest.mark.parametrize("text", [b"", b"\n", b"packnback", b"\xff\xfe", b"-----BEGIN KEY-----\nAAAA\n"])
def test_what_is_no_key_at_all(text: bytes) -> None:
    damaged(text, "not a packnback key|not text")


def test_bytes_after_the_key_are_damage() -> None:
    damaged(encode_key(OWNER) + b"AAAA\n")
    damaged(encode_key(OWNER) + encode_key(OWNER))


def test_a_key_is_not_of_another_kind() -> None:
    for kind, key in KEYS.items():
        for other in KEYS:
            if other != kind:
                damaged(text_of(f"packnback {other} key v1", encode_body(key)))


def test_unknown_versions_kinds_and_protections() -> None:
    body = encode_body(OWNER)
    damaged(text_of("packnback owner key v2", body), "version 2")
    damaged(text_of("packnback root key v1", body), "not a packnback key")
    damaged(text_of("packnback owner key v1 scrypt n=1", body), "unknown way")


def test_unused_bits_of_base64_are_not_a_second_spelling() -> None:
    first_line, packed = encode_key(OWNER.list_key()).decode().split("\n", 1)
    joined = "".join(packed.split())
    assert joined.endswith("="), "the test needs a body that base64 pads"
    at = len(joined.rstrip("=")) - 1
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    sibling = alphabet[alphabet.index(joined[at]) ^ 1]
    assert base64.b64decode(joined[:at] + sibling + joined[at + 1 :]) == base64.b64decode(joined)
    damaged(f"{first_line}\n{joined[:at]}{sibling}{joined[at + 1 :]}\n".encode(), "base64")


def with_flip(body: bytes, at: int) -> bytes:
    changed = bytearray(body)
    changed[at] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("at", [8, 40, 72, 1255, 1256, 1288, 2471])
def test_a_flipped_receiver_bit_in_a_put_key_is_found_even_with_a_right_checksum(at: int) -> None:
    damaged(text_of("packnback put key v1", with_flip(encode_body(PUT), at)), "owner|bundle")


@pytest.mark.parametrize("at", [2472 + 5 * 32, 2472 + 6 * 32 - 1])
def test_a_signing_seed_that_is_not_the_certified_one_is_found(at: int) -> None:
    damaged(text_of("packnback put key v1", with_flip(encode_body(PUT), at)), "seed")


def test_every_byte_of_the_certificate_in_a_put_key_counts() -> None:
    body = encode_body(PUT)
    for at in range(2472 + 6 * 32, len(body)):
        damaged(text_of("packnback put key v1", with_flip(body, at)))


def test_a_put_key_with_the_certificate_of_another_is_found() -> None:
    at = 2472 + 6 * 32
    for other in (FARM, STRANGER.put_key("web1")):
        damaged(text_of("packnback put key v1", encode_body(PUT)[:at] + encode_body(other)[at:]))


@pytest.mark.parametrize("kind", ["list", "restore"])
def test_secrets_that_do_not_belong_to_the_bundle_are_found(kind: str) -> None:
    body = encode_body(KEYS[kind])
    for start in range(2472, len(body), 160):
        for at in (start + 1, start + 30, start + 32, start + 63):  # X25519 secret, d of the ML-KEM seed
            damaged(text_of(f"packnback {kind} key v1", with_flip(body, at)), "belong")


# --- passphrases -------------------------------------------------------------------------------------------


def protected_text(passes: object, memory: object, salt: str = "00" * 16) -> bytes:
    line = f"packnback owner key v1 argon2id opslimit={passes} memlimit={memory} salt={salt}"
    return text_of(line, bytes(24 + 32 + 16))


@pytest.mark.parametrize(
    ("passes", "memory"),
    [(2**32 - 1, 64 * MIB), (17, 64 * MIB), (1, 64 * MIB - 1024), (1, 8192), (1, 4096 * MIB + 1024), (1, 2**64)],
)
def test_costs_outside_the_limits_are_refused_before_a_passphrase_is_asked_for(passes: int, memory: int) -> None:
    damaged(protected_text(passes, memory), "outside", never)


@pytest.mark.parametrize(
    ("passes", "memory", "salt"),
    [(0, 64 * MIB, "00" * 16), ("-1", 64 * MIB, "00" * 16), (1, "064", "00" * 16), (1, 64 * MIB, "00" * 15)],
)
def test_protections_that_do_not_parse(passes: object, memory: object, salt: str) -> None:
    damaged(protected_text(passes, memory, salt), "unknown way", never)


def test_content_shorter_than_a_nonce_is_no_key() -> None:
    line = f"packnback owner key v1 argon2id opslimit=1 memlimit={64 * MIB} salt={'00' * 16}"
    for length in (1, 23, 24, 39):
        with pytest.raises(errors.WrongPassphrase):
            decode_key(text_of(line, bytes(length)), "p", lambda: b"x")


def test_costs_outside_the_limits_cannot_be_written() -> None:
    for cost in (Cost(17, 64 * MIB), Cost(1, 32 * MIB), Cost(0, 64 * MIB), Cost(1, 64 * MIB + 1)):
        with pytest.raises(ValueError, match="outside"):
            stretch(b"secret", bytes(16), cost)
        with pytest.raises(ValueError, match="outside"):
            encode_key(OWNER, b"secret", cost=cost)


def test_an_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError):
        write_key(str(tmp_path / "a.key"), OWNER, b"")
    assert os.listdir(tmp_path) == []


def test_setting_changing_and_removing_a_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    write_key(str(path), OWNER)
    plain = path.read_bytes()
    change_passphrase(str(path), never, b"one", cost=CHEAP)
    assert read_key(str(path), lambda: b"one") == OWNER
    change_passphrase(str(path), lambda: b"one", b"two", cost=Cost(2, 65 * MIB))
    assert b"opslimit=2 memlimit=68157440" in path.read_bytes()
    with pytest.raises(errors.WrongPassphrase):
        read_key(str(path), lambda: b"one")
    change_passphrase(str(path), lambda: b"two", None)
    assert path.read_bytes() == plain
    assert os.listdir(tmp_path) == ["a.key"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_changing_a_passphrase_inherits_neither_cost_nor_salt(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    write_key(str(path), OWNER, b"one", cost=CHEAP)
    before = path.read_text().splitlines()[0]
    change_passphrase(str(path), lambda: b"one", b"one")
    after = path.read_text().splitlines()[0]
    assert "opslimit=3 memlimit=268435456" in after
    assert before.rpartition("salt=")[2] != after.rpartition("salt=")[2]


def test_a_wrong_old_passphrase_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    write_key(str(path), OWNER, b"one", cost=CHEAP)
    before = path.read_bytes()
    with pytest.raises(errors.WrongPassphrase):
        change_passphrase(str(path), lambda: b"no", b"two", cost=CHEAP)
    assert path.read_bytes() == before


def test_changing_through_a_symbolic_link_replaces_its_target(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "a.key", tmp_path / "link.key"
    write_key(str(target), OWNER)
    link.symlink_to(target)
    change_passphrase(str(link), None, b"one", cost=CHEAP)
    assert link.is_symlink()
    assert read_key(str(target), lambda: b"one") == OWNER


# --- files -------------------------------------------------------------------------------------------------


def test_nothing_is_ever_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_text("something else")
    (tmp_path / "dangling.key").symlink_to(tmp_path / "nowhere")
    for name in ("a.key", "dangling.key"):
        with pytest.raises(errors.AlreadyExists):
            write_key(str(tmp_path / name), OWNER)
    assert path.read_text() == "something else"
    assert sorted(os.listdir(tmp_path)) == ["a.key", "dangling.key"]


def test_missing_key(tmp_path: Path) -> None:
    for attempt in (lambda p: read_key(p), lambda p: change_passphrase(p, None, b"x")):
        with pytest.raises(errors.KeyMissing):
            attempt(str(tmp_path / "a.key"))


def test_places_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(errors.StorageFailed):
        read_key(str(tmp_path))
    with pytest.raises(errors.StorageFailed):
        write_key(str(tmp_path / "no such directory" / "a.key"), OWNER)


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(errors.KeyDamaged, match="large"):
        read_key(str(path))


def test_a_key_with_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    path = str(tmp_path / ("k" * 255))
    write_key(path, PUT)
    change_passphrase(path, None, b"one", cost=CHEAP)
    assert read_key(path, lambda: b"one") == PUT


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_key("a.key", OWNER)
    change_passphrase("a.key", None, b"one", cost=CHEAP)
    assert os.listdir(tmp_path) == ["a.key"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def no_link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_link)
    path = str(tmp_path / "a.key")
    write_key(path, OWNER)
    assert read_key(path) == OWNER
    with pytest.raises(errors.AlreadyExists):
        write_key(path, STRANGER)
    assert read_key(path) == OWNER
    assert os.listdir(tmp_path) == ["a.key"]


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, errors.StorageFailed), (errno.ENOSPC, errors.DiskFull)])
def test_a_failed_sync_leaves_nothing_new_and_the_old_key_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    path = str(tmp_path / "a.key")
    write_key(path, OWNER)

    def no_sync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", no_sync)
    with pytest.raises(error):
        write_key(str(tmp_path / "b.key"), OWNER)
    with pytest.raises(error):
        change_passphrase(path, None, b"one", cost=CHEAP)
    assert os.listdir(tmp_path) == ["a.key"]
    assert read_key(path, never) == OWNER


def test_the_order_of_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not synced has no final name yet, and success waits for the directory."""
    done: list[str] = []

    def watched(name: str) -> None:
        original = getattr(os, name)

        def call(*arguments: object) -> object:
            done.append("sync directory" if name == "fsync" and is_directory(arguments[0]) else name)
            return original(*arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "link", "rename", "unlink"):
        watched(name)
    write_key(str(tmp_path / "a.key"), OWNER)
    assert done == ["fsync", "link", "unlink", "sync directory"]
    done.clear()
    change_passphrase(str(tmp_path / "a.key"), None, b"one", cost=CHEAP)
    assert done == ["fsync", "rename", "sync directory"]


class PowerCut(BaseException):
    """Nothing runs after it, clean-up least of all: every later operation raises it, too."""


class Machine:
    """Counts the operations on files, and loses its power before the `last`. What was not synced is lost then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
        self.left, self.dead = last, False
        self.synced: set[int] = set()
        for name in ("open", "fsync", "link", "rename", "unlink"):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if self.left == 0 or self.dead:
                self.dead = True
                raise PowerCut
            self.left -= 1
            result = original(*arguments, **options)
            if name == "fsync":
                assert isinstance(arguments[0], int)
                self.synced.add(os.fstat(arguments[0]).st_ino)
            return result

        return call

    def after(self, directory: Path) -> None:
        for path in directory.iterdir():
            if path.stat().st_ino not in self.synced:
                path.write_bytes(b"")


def powered_down(tmp_path: Path, last: int, act: Callable[[], None], untouched: Sequence[Path] = ()) -> bool:
    """Do it on a machine that stops before operation number `last`; whether it came to its end."""
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(patch, last)
        machine.synced.update(path.stat().st_ino for path in untouched)
        with suppress(PowerCut):
            act()
        finished = not machine.dead
    if not finished:
        machine.after(tmp_path)
    return finished


def test_a_power_cut_anywhere_while_a_passphrase_changes_never_loses_the_key(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    loaded_with = []
    for last in range(50):
        for leftover in tmp_path.iterdir():
            leftover.unlink()
        write_key(str(path), OWNER, b"old", cost=CHEAP)
        finished = powered_down(
            tmp_path, last, lambda: change_passphrase(str(path), lambda: b"old", b"new", cost=CHEAP), [path]
        )
        try:
            assert read_key(str(path), lambda: b"old") == OWNER
            loaded_with.append("old")
        except errors.WrongPassphrase:
            assert read_key(str(path), lambda: b"new") == OWNER
            loaded_with.append("new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        if finished:
            break
    assert finished and loaded_with == sorted(loaded_with, reverse=True)
    assert {"old", "new"} == set(loaded_with) and loaded_with[-1] == "new"


def test_a_power_cut_anywhere_while_a_key_is_written_leaves_a_whole_one_or_none(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    there = []
    for last in range(50):
        for leftover in tmp_path.iterdir():
            leftover.unlink()
        finished = powered_down(tmp_path, last, lambda: write_key(str(path), OWNER))
        there.append(path.exists())
        if path.exists():
            assert read_key(str(path)) == OWNER
        if finished:
            break
    assert finished and there == sorted(there) and there[-1] and not there[0]


def is_directory(descriptor: object) -> bool:
    assert isinstance(descriptor, int)
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def test_what_reads_back_differently_is_not_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "a.key")
    write_key(path, OWNER)
    before = Path(path).read_bytes()
    original = keyfile._read

    def flipped(name: str) -> bytes:
        text = original(name)
        return text if name == path else text[:-2] + b"?\n"

    monkeypatch.setattr(keyfile, "_read", flipped)
    with pytest.raises(errors.KeyDamaged, match="reads back"):
        change_passphrase(path, None, b"one", cost=CHEAP)
    with pytest.raises(errors.KeyDamaged, match="reads back"):
        write_key(str(tmp_path / "b.key"), OWNER)
    assert Path(path).read_bytes() == before


def test_every_kind_holds_exactly_its_secrets() -> None:
    """I9 in small: what a put or list key file holds, byte for byte."""
    data, meta = OWNER.secrets[DATA], OWNER.secrets[META]
    for kind, absent in {
        "put": (OWNER.seed, data.x25519, data.mlkem_seed, data.psk_root, meta.x25519, meta.id_root),
        "list": (OWNER.seed, data.x25519, data.mlkem_seed, data.psk_root, data.id_root),
        "restore": (OWNER.seed, PUT.sign_seed, PUT.cut),
        "public": (OWNER.seed, meta.x25519),
    }.items():
        body = encode_body(KEYS[kind])
        assert not any(secret in body for secret in absent), kind
