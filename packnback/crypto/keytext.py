"""The text of a key file: something that can be printed, typed in again, and told from a damaged copy.

::

    packnback KIND key v1
    packnback KIND key v1 argon2id opslimit=PASSES memlimit=BYTES salt=32 HEX DIGITS      (protected)

is the first line; KIND is owner, put, list, restore or public. What follows is base64 (RFC 4648, with padding,
in lines of 64 characters; white space is not significant) of

    content │ H(first line ‖ "\\n" ‖ content)[:16]

where content is the body of `keybody`, or, in protected files,

    nonce 24 │ XChaCha20-Poly1305(Argon2id(passphrase, salt), nonce, AAD = first line, body)

The checksum covers the first line and stands outside the encryption: damage is recognised without the
passphrase, before any memory is spent on Argon2id, and is never mistaken for a wrong passphrase.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
from collections.abc import Callable

from msgspec import Struct

from packnback import errors
from packnback.crypto import aead
from packnback.crypto.derive import H
from packnback.crypto.keybody import KINDS, Key, decode_body, encode_body
from packnback.crypto.passphrase import DEFAULT_COST, SALT_LEN, Cost, fresh_salt, stretch
from packnback.ids import CHECKSUM_LEN

VERSION = 1
_LINE_LEN = 64
_FIRST_LINE = re.compile(
    rf"packnback (?P<kind>{'|'.join(KINDS)}) key v(?P<version>[1-9][0-9]{{0,2}})(?P<rest>( \S+)*)"
)
_PROTECTION = re.compile(
    rf" argon2id opslimit=(?P<passes>[1-9][0-9]{{0,9}}) memlimit=(?P<memory>[1-9][0-9]{{0,19}})"
    rf" salt=(?P<salt>[0-9a-f]{{{2 * SALT_LEN}}})"
)


class Protection(Struct, frozen=True):
    """How the key of a protected file is made from a passphrase."""

    cost: Cost
    salt: bytes

    def __str__(self) -> str:
        return f" argon2id opslimit={self.cost.passes} memlimit={self.cost.memory} salt={self.salt.hex()}"


def encode_key(key: Key, passphrase: bytes | None = None, *, cost: Cost = DEFAULT_COST) -> bytes:
    """The text of a key, ASCII. With a passphrase it is protected, always under a new salt and nonce.

    Raises UsageError for an empty passphrase, ValueError for a cost that would be refused on reading.
    """
    content = encode_body(key)
    first_line = f"packnback {key.kind} key v{VERSION}"
    if passphrase is not None:
        if not passphrase:
            raise errors.UsageError("the passphrase is empty")
        protection = Protection(cost, fresh_salt())
        first_line += str(protection)
        content = _encrypt(content, passphrase, protection, first_line.encode())
    packed = base64.b64encode(content + _checksum(first_line, content)).decode()
    lines = [first_line, *(packed[at : at + _LINE_LEN] for at in range(0, len(packed), _LINE_LEN))]
    return ("\n".join(lines) + "\n").encode()


def decode_key(text: bytes, path: str, passphrase: Callable[[], bytes] | None = None) -> Key:
    """The key in a text, with every check that can be made; `path` is what errors name.

    `passphrase` is called only for protected files, after they were found undamaged.
    Raises KeyDamaged, PassphraseNeeded or WrongPassphrase.
    """
    parts, content = _unpack(text, path)
    protection = _parse_protection(parts["rest"], path)
    if protection is not None:
        if passphrase is None:
            raise errors.PassphraseNeeded(path)
        opened = _decrypt(content, passphrase(), protection, parts[0].encode())
        if opened is None:
            raise errors.WrongPassphrase(path)
        content = opened
    try:
        return decode_body(parts["kind"], content)
    except errors.FormatDamage as damage:
        raise errors.KeyDamaged(path, f"{damage.what}: {damage.why}") from damage
    except errors.WrongOwner as foreign:
        raise errors.KeyDamaged(path, "its certificate is of another owner than its public keys") from foreign


def _unpack(text: bytes, path: str) -> tuple[re.Match[str], bytes]:
    """The first line and the content, after version and checksum were found right."""
    try:
        first_line, _, rest = text.decode("ascii").partition("\n")
    except UnicodeDecodeError as error:
        raise errors.KeyDamaged(path, "is not text") from error
    first_line, packed = first_line.rstrip(), "".join(rest.split())
    parts = _FIRST_LINE.fullmatch(first_line)
    if parts is None:
        raise errors.KeyDamaged(path, "is not a packnback key")
    if int(parts["version"]) != VERSION:
        raise errors.KeyDamaged(path, f"version {parts['version']} is unknown")
    try:
        raw = base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise errors.KeyDamaged(path, "is not base64") from error
    # b64decode ignores the unused bits of the last character; a flipped one is damage like any other.
    if base64.b64encode(raw).decode() != packed:
        raise errors.KeyDamaged(path, "is not base64")
    if len(raw) <= CHECKSUM_LEN:
        raise errors.KeyDamaged(path, "is too short")
    content, checksum = raw[:-CHECKSUM_LEN], raw[-CHECKSUM_LEN:]
    if not hmac.compare_digest(checksum, _checksum(first_line, content)):
        raise errors.KeyDamaged(path, "the checksum is wrong")
    return parts, content


def _parse_protection(words: str, path: str) -> Protection | None:
    """The protection that the end of the first line states, None for an unprotected file."""
    if not words:
        return None
    protected = _PROTECTION.fullmatch(words)
    if protected is None:
        raise errors.KeyDamaged(path, "is protected in an unknown way")
    cost = Cost(passes=int(protected["passes"]), memory=int(protected["memory"]))
    problem = cost.problem()
    if problem is not None:
        raise errors.KeyDamaged(path, problem)
    return Protection(cost, bytes.fromhex(protected["salt"]))


def _encrypt(body: bytes, passphrase: bytes, protection: Protection, aad: bytes) -> bytes:
    nonce = os.urandom(aead.NONCE_LEN)
    sealed = bytearray(aead.NONCE_LEN + len(body) + aead.TAG_LEN)
    sealed[: aead.NONCE_LEN] = nonce
    key = stretch(passphrase, protection.salt, protection.cost)
    aead.encrypt(key, nonce, aad, body, sealed, aead.NONCE_LEN)
    return bytes(sealed)


def _decrypt(content: bytes, passphrase: bytes, protection: Protection, aad: bytes) -> bytes | None:
    nonce = content[: aead.NONCE_LEN]
    if len(nonce) < aead.NONCE_LEN:
        return None
    key = stretch(passphrase, protection.salt, protection.cost)
    body = aead.decrypt(key, nonce, aad, content, aead.NONCE_LEN)
    return None if body is None else bytes(body)


def _checksum(first_line: str, content: bytes) -> bytes:
    return H(first_line.encode() + b"\n" + content)[:CHECKSUM_LEN]
