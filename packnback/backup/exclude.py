"""Exclude patterns: what ``--exclude`` and the lines of ``--exclude-from`` mean, compiled once.

A pattern is a glob over bytes. ``*`` and ``?`` stay within one name, ``[a-z]`` and ``[!a-z]`` are sets, in which
``[:alpha:]`` and the other classes of POSIX may stand (ASCII only), ``\\`` takes the next character literally.

- Without a slash it is held against the name of a file or directory at any depth: ``*.o``, ``.cache``.
- With a slash it is held against the absolute path. A leading slash anchors it at the root (``/var/tmp/*``);
  otherwise it may begin at any directory (``target/debug`` excludes ``/home/u/x/target/debug``).
- ``**`` as a whole component stands for any number of directories, none included. ``a/**`` is everything below
  ``a``, but not ``a``.
- A trailing slash restricts the pattern to directories.
- ``!`` in front takes matches back that an earlier pattern excluded; the last pattern that matches decides. What
  lies in an excluded directory cannot be taken back, because nobody looks there (as in gitignore).

In a file, blank lines and lines that begin with ``#`` say nothing; trailing white space does not count, unless it is
a blank behind a backslash. ``\\#`` and ``\\!`` begin a pattern with that character.

A path that was asked for by name is never excluded itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from msgspec import Struct

from packnback.errors import UsageError


class _Rule(Struct, frozen=True):
    takes_back: bool
    whole_path: bool
    """Held against the path rather than against the name."""
    regex: bytes


class _Run(Struct, frozen=True):
    """Rules that stand next to each other and decide alike, as one regex per subject."""

    takes_back: bool
    name: re.Pattern[bytes] | None
    path: re.Pattern[bytes] | None

    def matches(self, path: bytes, name: bytes) -> bool:
        return bool((self.name and self.name.fullmatch(name)) or (self.path and self.path.fullmatch(path)))


class Excludes:
    """A compiled list of patterns. Falsy when there are none, so that the walk need not ask."""

    def __init__(self, patterns: Iterable[bytes] = ()) -> None:
        """Raises UsageError for a pattern that means nothing."""
        self.patterns: Sequence[bytes] = tuple(patterns)
        rules = [_rule(pattern) for pattern in self.patterns]
        runs = [_run(back, list(run)) for back, run in groupby(rules, key=lambda rule: rule.takes_back)]
        self._last_first = runs[::-1]

    def __bool__(self) -> bool:
        return bool(self._last_first)

    def excluded(self, path: bytes, name: bytes, is_directory: bool) -> bool:
        """Whether `path` (absolute; `name` is its last component) is to be left out."""
        if is_directory:
            path, name = path + b"/", name + b"/"
        for run in self._last_first:
            if run.matches(path, name):
                return not run.takes_back
        return False


def read_patterns(data: bytes) -> list[bytes]:
    """The patterns in a file's contents."""
    lines = map(_stripped, data.split(b"\n"))
    return [line for line in lines if line and not line.startswith(b"#")]


def _stripped(line: bytes) -> bytes:
    """Without white space at its end, up to what a backslash takes literally."""
    stripped = line.rstrip()
    backslashes = len(stripped) - len(stripped.rstrip(b"\\"))
    return line[: len(stripped) + backslashes % 2]


def _run(takes_back: bool, rules: Sequence[_Rule]) -> _Run:
    names = [rule.regex for rule in rules if not rule.whole_path]
    paths = [rule.regex for rule in rules if rule.whole_path]
    return _Run(takes_back, _alternation(names), _alternation(paths))


def _alternation(regexes: Sequence[bytes]) -> re.Pattern[bytes] | None:
    return re.compile(b"|".join(b"(?:%b)" % regex for regex in regexes), re.DOTALL) if regexes else None


def _rule(pattern: bytes) -> _Rule:
    takes_back = pattern.startswith(b"!")
    glob = pattern[1:] if takes_back else pattern
    directories_only = glob.endswith(b"/")
    glob = glob.rstrip(b"/") if glob.strip(b"/") else b""
    # Paths are absolute: nothing in them is called so.
    if not glob or not {b".", b".."}.isdisjoint(glob.split(b"/")):
        raise UsageError(f"the exclude pattern {_shown(pattern)} matches nothing")
    whole_path = b"/" in glob
    regex = _path_regex(glob) if whole_path else _component(glob)
    regex += b"/" if directories_only else b"/?"
    try:
        re.compile(regex)
    except re.error as error:
        raise UsageError(f"the exclude pattern {_shown(pattern)} is not a glob: {error.msg}") from None
    return _Rule(takes_back, whole_path, regex)


def _shown(pattern: bytes) -> str:
    return repr(pattern.decode("utf-8", "backslashreplace"))


def _path_regex(glob: bytes) -> bytes:
    anchored = glob.startswith(b"/")
    components = [component for component in glob.split(b"/") if component]
    regex = b"/" if anchored else b"(?:.*/)?"
    last = len(components) - 1
    for i, component in enumerate(components):
        if component != b"**":
            regex += _component(component) + (b"/" if i < last else b"")
        elif i < last:
            regex += b"(?:[^/]+/)*"
        else:
            regex += b".+?"
    return regex


_GLOB_PIECE = re.compile(
    rb"(?P<star>\*+)|(?P<any>\?)|\[(?P<set>[!^]?\]?(?:\[:[a-z]*:\]|\\.|[^\]\\])*)\]|\\(?P<escaped>.)|(?P<plain>.)",
    re.DOTALL,
)
_SET_PIECE = re.compile(rb"\[:(?P<class>[a-z]*):\]|(?P<dash>-)|\\(?P<escaped>.)|(?P<plain>.)", re.DOTALL)
_CLASSES = {
    b"alnum": rb"0-9A-Za-z",
    b"alpha": rb"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"!-~",
    b"lower": rb"a-z",
    b"print": rb" -~",
    b"punct": rb"!-/:-@\[-`{-~",
    b"space": rb" \t\n\v\f\r",
    b"upper": rb"A-Z",
    b"xdigit": rb"0-9A-Fa-f",
}


def _component(glob: bytes) -> bytes:
    """The regex of one component; an unclosed bracket stands for itself, as in the shell."""
    regex = b""
    for piece in _GLOB_PIECE.finditer(glob):
        if piece["star"]:
            regex += b"[^/]*"
        elif piece["any"]:
            regex += b"[^/]"
        elif piece["set"] is not None:
            regex += _set(piece["set"])
        else:
            regex += re.escape(piece["escaped"] or piece["plain"])
    return regex


def _set(inside: bytes) -> bytes:
    """The regex of a set, of what stands between its brackets. Raises UsageError for a class that there is not."""
    negated = inside[:1] in (b"!", b"^")
    members = b""
    for piece in _SET_PIECE.finditer(inside, int(negated)):
        if piece["class"] is not None:
            if piece["class"] not in _CLASSES:
                raise UsageError(f"{_shown(piece[0])} in an exclude pattern is no class of characters")
            members += _CLASSES[piece["class"]]
        else:
            members += piece["dash"] or re.escape(piece["escaped"] or piece["plain"])
    return b"(?!/)[%b%b]" % (b"^" if negated else b"", members)
