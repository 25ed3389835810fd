"""Is this name called? A binary task from the source of the standard library.

Every name in the code, except keywords and the names that `def` and `class` define, is
an example; its label is whether the next token is an opening parenthesis. The features
are taken from the tokens up to the name, never from what follows. Like click data, the
task has many categories whose counts follow a power law, and here they mean something.

Files are split 90/5/5 into training, validation and test by their content, so no file
is in two parts. Categories are those of the training files in the order in which they
come up; the last row of each table stands for all others. Which examples there are
depends on the Python version, as its library does; the hash of the corpus says on
which they are. f-strings count as strings on every version.
"""

import dataclasses
import io
import keyword
import math
import os
import pathlib
import sys
import token
import tokenize
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.data.documents import Corpus, content_position
from experiments.data.embedded import read_standard_library

FEATURES = (
    "name",
    "previous_name",
    "previous_token",
    "token_before",  # the previous token
    "pair",  # the name with the one it is an attribute of, or with the previous token
    "definition",  # the innermost `def` or `class` around
    "line_start",  # first token of the statement
    "opener",  # the innermost open bracket and the token before it
    "prefix",
    "suffix",
    "indentation",
)
DENSE_FEATURES = (
    "name_length",
    "digits",
    "capitals",
    "underscores",
    "column",
    "position",  # tokens of the statement before the name
    "bracket_depth",
    "indentation",
)

PARTS = ("train", "validation", "test")

# Files by their position in [0, 1): validation ends here, test there.
_VALIDATION_END, _TEST_END = 0.05, 0.10

_AFFIX = 3  # characters of prefix and suffix
_DEEPEST = 15  # indentations from here on are one category

# Raised when the same corpus gives other examples.
_FORMAT = 1

_KEYWORDS = frozenset(keyword.kwlist)
_UNSEEN_KINDS = frozenset(
    (token.COMMENT, token.NL, token.ENCODING, token.TYPE_COMMENT, token.TYPE_IGNORE)
)
# Python 3.12 takes f-strings apart, 3.14 t-strings; here they are one token.
_STRING_STARTS, _STRING_ENDS = (
    frozenset(
        getattr(token, f"{letter}STRING_{side}")
        for letter in "FT"
        if hasattr(token, f"{letter}STRING_{side}")
    )
    for side in ("START", "END")
)
_NAMED_KINDS = {
    token.NUMBER: "<number>",
    token.STRING: "<string>",
    token.NEWLINE: "<line>",
    **dict.fromkeys(_STRING_STARTS, "<string>"),
}


class Occurrence(NamedTuple):
    """A name in the code, what stands before it, and whether it is called."""

    name: str
    previous_name: str  # "" where there is none, like all that follows
    previous_token: str
    token_before: str
    definition: str
    line_start: str  # "" for the first token itself
    opener: str
    column: int  # characters before it in its line
    position: int  # tokens before it in its statement
    bracket_depth: int
    indentation: int  # blocks around it
    called: bool


@dataclasses.dataclass(frozen=True, eq=False)
class NameCallRows:
    """The examples of one part.

    Attributes:
      ids: int32 `[n, T]`, rows of the tables of `FEATURES`.
      dense: float32 `[n, d]`, `DENSE_FEATURES`: log(1 + x) of counts, shares as they
        are.
      labels: float32 `[n]`, 1 where the name is called.
    """

    ids: np.ndarray
    dense: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class NameCalls:
    """The task.

    Attributes:
      train: examples of the training files, in their order.
      validation: examples of other files.
      test: examples of yet other files.
      rows: of each table; the last one stands for categories that the training files
        do not have, and does not occur in them.
      features: names of the tables.
      dense_features: names of the columns of `dense`.
      sha256: hash of the corpus.
    """

    train: NameCallRows
    validation: NameCallRows
    test: NameCallRows
    rows: tuple[int, ...]
    features: tuple[str, ...]
    dense_features: tuple[str, ...]
    sha256: str


def read_name_calls(cache_directory: str | pathlib.Path | None = None) -> NameCalls:
    """Builds the task from the library of the running Python.

    Args:
      cache_directory: keeps the arrays there and reads them when the same corpus comes
        again; created if need be. None builds them every time, in some seconds.

    Returns:
      The task; the same for the same library and version of Python.

    Raises:
      ValueError: this Python came without its sources; the cached file is damaged.
    """
    corpus = read_standard_library()
    if cache_directory is None:
        return build_name_calls(corpus)
    python = "{}{}".format(*sys.version_info)
    name = f"name_calls_v{_FORMAT}_py{python}_{corpus.sha256[:16]}.npz"
    path = pathlib.Path(cache_directory, name)
    if path.exists():
        return _load(path, corpus.sha256)
    calls = build_name_calls(corpus)
    _save(path, calls)
    return calls


def build_name_calls(corpus: Corpus) -> NameCalls:
    """Builds the task from a corpus of Python files.

    Files that are not Python (of this version) are left out.

    Args:
      corpus: the files.

    Returns:
      The task.

    Raises:
      ValueError: a part of the split has no examples.
    """
    parts: dict[str, list[Occurrence]] = {part: [] for part in PARTS}
    for text in corpus.texts:
        try:
            parts[part_of(text)] += occurrences(text)
        except (SyntaxError, tokenize.TokenError):
            continue
    for part, found in parts.items():
        if not found:
            raise ValueError(
                f"the {part} files hold no names: {len(corpus.texts)} files are too few"
            )
    columns = {part: _columns(found) for part, found in parts.items()}
    ids = {part: [] for part in PARTS}
    rows = []
    for feature in range(len(FEATURES)):
        seen: dict[object, int] = {}
        for value in columns["train"][feature]:
            seen.setdefault(value, len(seen))
        rows.append(len(seen) + 1)
        for part in PARTS:
            values = columns[part][feature]
            numbers = (seen.get(value, len(seen)) for value in values)
            ids[part].append(np.fromiter(numbers, np.int32, len(values)))
    tables = {
        part: NameCallRows(
            ids=np.stack(ids[part], axis=1),
            dense=_dense(found),
            labels=np.array([one.called for one in found], np.float32),
        )
        for part, found in parts.items()
    }
    return NameCalls(
        **tables,
        rows=tuple(rows),
        features=FEATURES,
        dense_features=DENSE_FEATURES,
        sha256=corpus.sha256,
    )


def part_of(text: str) -> str:
    """Which of `PARTS` a file belongs to, by its content alone."""
    position = content_position(text)
    if position >= _TEST_END:
        return "train"
    return "validation" if position < _VALIDATION_END else "test"


def occurrences(text: str) -> list[Occurrence]:
    """The names of a Python file.

    Args:
      text: source code.

    Returns:
      One entry for each name that is neither a keyword nor being defined, in order.

    Raises:
      SyntaxError: the text cannot be taken apart.
      tokenize.TokenError: the same.
    """
    found: list[Occurrence] = []
    waiting: Occurrence | None = None  # for the token that decides
    definitions, opened = [""], []
    defining = ""  # until its block or its line ends
    previous_name, previous, before, line_start = "", "", "", ""
    position = string_depth = 0
    lines = io.StringIO(text).readline
    for kind, string, (_, column), _, _ in tokenize.generate_tokens(lines):
        if kind in _STRING_ENDS:
            string_depth -= 1
            continue
        inside_string = string_depth > 0
        string_depth += kind in _STRING_STARTS
        if inside_string or kind in _UNSEEN_KINDS:
            continue
        if kind == token.INDENT:
            definitions.append(defining or definitions[-1])
            defining = ""
            continue
        if kind == token.DEDENT:
            definitions.pop()
            continue
        if waiting is not None:
            found.append(waiting._replace(called=string == "("))
            waiting = None
        if position == 0:
            defining = ""
        symbol = _NAMED_KINDS.get(kind, string)
        if kind == token.NAME and string not in _KEYWORDS:
            if previous in ("def", "class"):
                defining = string
            else:
                waiting = Occurrence(
                    string,
                    previous_name,
                    previous,
                    before,
                    defining or definitions[-1],
                    line_start,
                    opened[-1] if opened else "",
                    column,
                    position,
                    len(opened),
                    len(definitions) - 1,
                    False,
                )
            previous_name = string
        elif symbol in ("(", "[", "{"):
            opened.append(previous + symbol)
        elif symbol in (")", "]", "}") and opened:
            opened.pop()
        if kind == token.NEWLINE:
            position, line_start = 0, ""
        else:
            line_start = line_start or symbol
            position += 1
        before, previous = previous, symbol
    if waiting is not None:
        found.append(waiting)
    return found


def _columns(found: Sequence[Occurrence]) -> list[list]:
    """The categories of each of `FEATURES`."""
    names = [one.name for one in found]
    return [
        names,
        [one.previous_name for one in found],
        [one.previous_token for one in found],
        [one.token_before for one in found],
        [_pair(one) for one in found],
        [one.definition for one in found],
        [one.line_start for one in found],
        [one.opener for one in found],
        [name[:_AFFIX] for name in names],
        [name[-_AFFIX:] for name in names],
        [min(one.indentation, _DEEPEST) for one in found],
    ]


def _pair(one: Occurrence) -> tuple[str, str]:
    attribute = one.previous_token == "."
    return (one.token_before + "." if attribute else one.previous_token, one.name)


def _dense(found: Sequence[Occurrence]) -> np.ndarray:
    spelling: dict[str, tuple[float, ...]] = {}
    for one in found:
        if one.name not in spelling:
            spelling[one.name] = _spelling(one.name)
    counts = np.array(
        [
            (one.column, one.position, one.bracket_depth, one.indentation)
            for one in found
        ],
        np.float32,
    )
    spelled = np.array([spelling[one.name] for one in found], np.float32)
    return np.concatenate([spelled, np.log1p(counts)], axis=1)


def _spelling(name: str) -> tuple[float, ...]:
    size = len(name)
    return (
        math.log1p(size),
        sum(map(str.isdigit, name)) / size,
        sum(map(str.isupper, name)) / size,
        name.count("_") / size,
    )


def _save(path: pathlib.Path, calls: NameCalls) -> None:
    """Writes the arrays under another name first: nobody reads half a file."""
    arrays = {
        f"{part}_{field.name}": getattr(getattr(calls, part), field.name)
        for part in PARTS
        for field in dataclasses.fields(NameCallRows)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, rows=np.array(calls.rows), sha256=calls.sha256, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: pathlib.Path, sha256: str) -> NameCalls:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["sha256"]) != sha256:
                raise ValueError(f"it is of the corpus {arrays['sha256']}")
            parts = {
                part: NameCallRows(
                    **{
                        field.name: arrays[f"{part}_{field.name}"]
                        for field in dataclasses.fields(NameCallRows)
                    }
                )
                for part in PARTS
            }
            rows = tuple(arrays["rows"].tolist())
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"cannot read the cached examples {path}, delete the file: {error}"
        ) from error
    return NameCalls(
        **parts,
        rows=rows,
        features=FEATURES,
        dense_features=DENSE_FEATURES,
        sha256=sha256,
    )
