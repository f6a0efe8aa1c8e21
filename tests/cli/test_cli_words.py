"""Every error that there is has words, a kind, an exit code, and a form in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from packnback import errors
from packnback.cli import main, words
from packnback.cli.phrases import WRITERS

EXAMPLES: dict[str, Any] = {
    "str": "fact", "str | None": "fact", "int": 7, "int | None": 7, "float": 1.5, "bytes": b"\x01" * 32,
    "list[str]": ["one", "two"],
}  # fmt: skip


def all_errors(root: type[errors.PacknbackError] = errors.PacknbackError) -> Iterator[type[errors.PacknbackError]]:
    for cls in root.__subclasses__():
        if cls.DECLARED and cls.__module__ == errors.__name__:
            yield cls
        yield from all_errors(cls)


def example(cls: type[errors.PacknbackError]) -> errors.PacknbackError:
    return cls(**{name: EXAMPLES[kind] for name, kind in cls.DECLARED.items()})


CLASSES = sorted(set(all_errors()), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_has_words(cls: type[errors.PacknbackError]) -> None:
    assert cls in WRITERS, f"{cls.__name__} has no words"
    error = example(cls)
    told = words.words(error)
    assert told.message
    assert cls.__name__ not in told.message
    assert words.exit_code(error) in {1, 2, 4, 5, 6, 7}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_has_a_form_in_json(cls: type[errors.PacknbackError]) -> None:
    error = example(cls)
    document = json.loads(json.dumps(words.as_json(error)))["error"]
    assert document["kind"] == words.kind(error)
    assert document["message"] == words.words(error).message
    assert cls.DECLARED.keys() <= document.keys()


def test_kinds_are_stable_and_different() -> None:
    kinds = [words.kind(example(cls)) for cls in CLASSES]
    assert len(set(kinds)) == len(kinds)
    assert words.kind(errors.NotARepository("x")) == "not-a-repository"
    assert words.kind(errors.WrongPassphrase("x")) == "wrong-passphrase"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DiskFull("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.ObjectMissing(b"x" * 32), 4),
        (errors.KeyMissing("x"), 5),
        (errors.Locked("x", "pid 1"), 6),
        (errors.NotAllowed("put", "x"), 7),
    ],
)
def test_the_branch_decides_the_exit_code(error: errors.PacknbackError, code: int) -> None:
    assert words.exit_code(error) == code


def test_a_put_key_is_told_from_other_keys_that_will_not_do() -> None:
    told = words.words(errors.KeyCannot("put", ["owner", "restore"], "restore"))
    assert told.message == "this key can add backups but not read them; use the owner key"
    assert "list key cannot" in words.words(errors.KeyCannot("list", ["owner", "restore"], "open data")).message


def test_the_exit_code_of_an_interrupt_is_one() -> None:
    assert main.INTERRUPTED == words.INTERRUPTED
