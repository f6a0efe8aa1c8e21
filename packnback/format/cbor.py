"""CBOR (RFC 8949) as packnback reads and writes it: one way to write a value, and no other is accepted.

Everything decoded here may come from an attacker. A document is accepted only if it decodes without tags,
indefinite lengths, duplicate keys or nesting beyond 16, and then encodes to the very same bytes; that one
comparison also refuses trailing bytes and integers that are longer than they need to be.

Decoded values take more memory than their encoding: an empty list 72 bytes for one. Compressed and deduplicated,
millions of them cost an attacker nothing, so large documents are weighed before they are decoded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import cbor2

from packnback.errors import FormatDamage, UnsupportedVersion
from packnback.ids import MIB

DEPTH_LIMIT = 16
"""At most so many arrays and maps inside one another."""

WEIGHT_LIMIT = 128 * MIB
"""Bytes of memory that the items of a large document may take, the contents of byte strings not counted."""
UNWEIGHED = 1 * MIB
"""Documents up to this size are not weighed: the heaviest take 72 MiB, and nearly all honest ones are smaller."""
_WEIGHTS = (40, 40, 48, 64, 72, 240, 72, 40)
"""What an item of each major type (RFC 8949 §3.1) takes in CPython, its place in a list included."""
_ARGUMENT_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}


def _refuse(*_: object) -> NoReturn:
    raise ValueError("tagged value")


# The tags that the library would interpret by itself; any other one goes to `tag_hook`.
_KNOWN = (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)
_TAGS = dict.fromkeys(_KNOWN, _refuse)


def encode(value: Any) -> bytes:
    """`value` (None, bool, int, bytes, str, list, dict) as CBOR; dicts keep their order."""
    return cbor2.dumps(value)


def decode(data: bytes, what: str) -> Any:
    """The value that `data` encodes; `what` names the structure in errors.

    Raises FormatDamage for anything that `encode` would not have written, but for numbers that are no
    integers and simple values: whoever takes the value apart asks for the exact type of each item, because
    ``True``, ``1.0`` and the simple value 1 all equal the integer 1.
    """
    if len(data) > UNWEIGHED:
        _check_weight(data, what)
    try:
        value = cbor2.loads(
            data,
            max_depth=DEPTH_LIMIT - 1,  # the library counts the outermost container as 0
            allow_indefinite=False,
            allow_duplicate_keys=False,
            semantic_decoders=_TAGS,
            tag_hook=_refuse,
        )
        same = cbor2.dumps(value) == data
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise FormatDamage(what, f"not CBOR: {error}") from None
    if not same:
        raise FormatDamage(what, "not in its one accepted encoding")
    return value


def _check_weight(data: bytes, what: str) -> None:
    """Refuse a document of very many items. Ends early for what is no CBOR: that is for the decoder to tell."""
    at, weight, end = 0, 0, len(data)
    while at < end:
        major, argument = data[at] >> 5, data[at] & 31
        at += 1
        if argument < 24:  # CPython keeps such integers for everybody, but of the negative ones only five
            weight += 8 if major == 0 else _WEIGHTS[major]
        elif (width := _ARGUMENT_WIDTHS.get(argument)) is None:
            return
        else:
            argument = int.from_bytes(data[at : at + width], "big")
            at += width
            weight += _WEIGHTS[major]
        if major in (2, 3):
            at += argument
            weight += 4 * argument if major == 3 else 0  # one character of the rarer kinds makes all of them as wide
        if weight > WEIGHT_LIMIT:
            raise FormatDamage(what, "so many items that decoding them would exhaust the memory")


def expect(condition: bool, what: str, why: str) -> None:
    """Raise FormatDamage(what, why) unless `condition` holds: the decoders' one way to refuse."""
    if not condition:
        raise FormatDamage(what, why)


def is_uint(value: object, limit: int = 1 << 63) -> bool:
    """Whether `value` is an int (not a bool) in [0, limit)."""
    return type(value) is int and 0 <= value < limit


def expect_version(value: object, what: str, supported: int = 1) -> None:
    """Refuse any version but `supported`: UnsupportedVersion for another one, FormatDamage for what is none."""
    if not is_uint(value):
        raise FormatDamage(what, "version")
    if value != supported:
        raise UnsupportedVersion(what, value, supported)  # type: ignore[arg-type]


def all_of_type(values: Iterable[object], wanted: type) -> bool:
    """Whether every one of `values` is of exactly that type."""
    return set(map(type, values)) <= {wanted}


def uint_list(value: object, what: str, limit: int = 1 << 63) -> list[int]:
    """`value` as a list of ints in [0, limit), or FormatDamage."""
    if type(value) is not list or not all_of_type(value, int):
        raise FormatDamage(what, "not a list of integers")
    if value and (min(value) < 0 or max(value) >= limit):
        raise FormatDamage(what, "integer out of range")
    return value
