"""Names and calls: the examples by hand, no look ahead, files in one part each."""

import io
import itertools
import sysconfig
import token
import tokenize

import numpy as np
import pytest

from experiments.data import name_calls
from experiments.data.documents import Corpus, digest
from experiments.data.embedded import read_standard_library

SOURCE = '''\
import os.path as path, sys
from json import dumps

LIMIT = 3

@decorate(level=2)
class Box(Base, metaclass=Meta):
    """Not code: call(x)"""

    def area(self, scale=LIMIT):  # comment(1)
        if self.side is None and not (scale):
            return [dumps (item)[0] for item in range(4)]
        print(
            self.side
            (scale), end="x" "y")
        return lambda x: x @ self.side ** (2)

    async def later(self): return await self.area()
    other = area

total = sum(Box().area() for _ in "ab")
'''


def _corpus(texts):
    files = [f"{number:03}.py" for number in range(len(texts))]
    return Corpus(texts, files, digest(files, [text.encode() for text in texts]))


def _for_part(part, text):
    """The text with a comment that puts it into a part."""
    for number in itertools.count():
        candidate = f"{text}# {number}\n"
        if name_calls.part_of(candidate) == part:
            return candidate


def _small(test=SOURCE):
    parts = ("train", SOURCE), ("train", "y = g(h)\n"), ("validation", "z = f(y)\n")
    return _corpus([_for_part(*part) for part in (*parts, ("test", test))])


@pytest.fixture(scope="module")
def library():
    """A share of the standard library, and its task."""
    texts = read_standard_library().texts[::8]
    corpus = _corpus(texts)
    return corpus, name_calls.build_name_calls(corpus)


# The examples.


def test_the_names_and_which_are_called():
    found = name_calls.occurrences(SOURCE)
    assert [one.name for one in found if one.called] == [
        *("decorate", "dumps", "range", "print"),
        *("side", "area", "sum", "Box", "area"),
    ]
    names = [one.name for one in found]
    assert names[:8] == "os path path sys json dumps LIMIT decorate".split()
    assert {"Box", "area"} <= set(names) and "later" not in names
    assert not {"class", "comment", "call", "None", "lambda"} & set(names)
    # `area` where it is defined is no example: it is one later, twice called.
    assert names.count("area") == 3 and names.count("Box") == 1


def test_what_stands_before_a_name():
    found = name_calls.occurrences(SOURCE)
    item = next(one for one in found if one.name == "item")
    assert item == name_calls.Occurrence(
        name="item",
        previous_name="dumps",
        previous_token="(",
        token_before="dumps",
        definition="area",
        line_start="return",
        opener="dumps(",
        column=27,
        position=4,
        bracket_depth=2,
        indentation=3,
        called=False,
    )
    first = found[0]
    assert (first.name, first.previous_name, first.token_before) == ("os", "", "")
    assert (first.previous_token, first.line_start, first.position) == (
        "import",
        "import",
        1,
    )
    by_name = {one.name: one for one in found}
    assert by_name["LIMIT"].definition == by_name["scale"].definition == "area"
    assert by_name["other"].definition == by_name["Base"].definition == "Box"
    assert by_name["total"].definition == by_name["_"].definition == ""
    assert by_name["end"].opener == "print(" and by_name["end"].previous_token == ","
    assert by_name["other"].line_start == "" and by_name["other"].position == 0
    assert by_name["total"].previous_token == "<line>"
    assert (by_name["x"].previous_token, by_name["x"].token_before) == (":", "x")


def test_a_one_line_definition_ends_with_its_line():
    found = name_calls.occurrences("def f(): return a\nb\nclass C: c = 1\nd\n")
    assert [(one.name, one.definition) for one in found] == [
        ("a", "f"),
        ("b", ""),
        ("c", "C"),
        ("d", ""),
    ]


def test_f_strings_are_strings_on_every_version():
    text = 'x = f"{call(y)} {f\'{z}\'}" + rf"({w})" + t\n'
    found = name_calls.occurrences(text)
    assert [one.name for one in found] == ["x", "t"]
    assert found[1].position == 6 and found[1].token_before == "<string>"
    assert found[1].bracket_depth == 0


# No look ahead.


def _name_ends(text):
    """Line and column behind each name that is an example."""
    ends, before = [], ""
    for one in tokenize.generate_tokens(io.StringIO(text).readline):
        if one.type == token.NAME and one.string not in name_calls._KEYWORDS:
            if before not in ("def", "class"):
                ends.append(one.end)
        if one.type not in (token.COMMENT, token.NL, token.INDENT, token.DEDENT):
            before = one.string
    return ends


def _insert(text, end, what):
    lines = text.splitlines(keepends=True)
    row, column = end
    lines[row - 1] = lines[row - 1][:column] + what + lines[row - 1][column:]
    return "".join(lines)


def test_the_next_token_changes_the_label_alone():
    found = name_calls.occurrences(SOURCE)
    ends = _name_ends(SOURCE)
    assert len(found) == len(ends) > 40
    for number, (one, end) in enumerate(zip(found, ends, strict=True)):
        # A token between a name and its bracket, or a bracket where there is none.
        edited = _insert(SOURCE, end, " + 1 * " if one.called else "(0)")
        after = name_calls.occurrences(edited)
        assert after[:number] == found[:number]
        assert after[number] == one._replace(called=not one.called)


def test_an_edit_behind_a_name_leaves_its_features():
    plain = name_calls.build_name_calls(_small())
    ends = _name_ends(SOURCE)
    for number in (0, 7, 20, 33, len(ends) - 1):
        called = plain.test.labels[number] == 1
        edited = _insert(SOURCE, ends[number], " .a" if called else "()")
        calls = name_calls.build_name_calls(_small(test=edited))
        upto = slice(0, number + 1)
        np.testing.assert_array_equal(calls.test.ids[upto], plain.test.ids[upto])
        np.testing.assert_array_equal(calls.test.dense[upto], plain.test.dense[upto])
        changed = calls.test.labels[upto] != plain.test.labels[upto]
        assert changed[-1] and not changed[:-1].any()


# The arrays.


def test_tables_hold_what_training_files_have():
    calls = name_calls.build_name_calls(
        _small(test="y = g(unknown)\nsplendid = g(h)\n")
    )
    first = name_calls.occurrences(SOURCE)
    known = dict.fromkeys([*(one.name for one in first), "y", "g", "h"])
    numbers = {name: number for number, name in enumerate(known)}
    assert calls.features[0] == "name" and calls.rows[0] == len(known) + 1
    expected = [numbers[one.name] for one in first]
    assert calls.train.ids[: len(first), 0].tolist() == expected
    last = calls.rows[0] - 1
    expected = [numbers["y"], numbers["g"], last, last, numbers["g"], numbers["h"]]
    assert calls.test.ids[:, 0].tolist() == expected
    assert calls.test.labels.tolist() == [0, 1, 0, 0, 1, 0]


def test_affixes_and_pairs():
    text = "abcdef.ghijkl(xy)\nabcxyz = 1\nuvwdef = ghijkl\n"
    calls = name_calls.build_name_calls(
        _corpus([_for_part(part, text) for part in name_calls.PARTS])
    )
    column = dict(zip(calls.features, calls.train.ids.T.tolist(), strict=True))
    assert column["name"] == [0, 1, 2, 3, 4, 1]
    assert column["prefix"] == [0, 1, 2, 0, 3, 1]
    assert column["suffix"] == [0, 1, 2, 3, 0, 1]
    # The attribute of a name and the bare name are two categories.
    assert column["pair"] == [0, 1, 2, 3, 4, 5]
    assert column["indentation"] == [0] * 6


def test_dense_features_are_logarithms_and_shares():
    calls = name_calls.build_name_calls(_small(test="f(\n    Ab_12c)\n"))
    row = dict(zip(calls.dense_features, calls.test.dense[1], strict=True))
    expected = {
        "name_length": np.log(7),
        "digits": 2 / 6,
        "capitals": 1 / 6,
        "underscores": 1 / 6,
        "column": np.log(5),
        "position": np.log(3),
        "bracket_depth": np.log(2),
        "indentation": 0.0,
    }
    assert row == pytest.approx(expected, rel=1e-6)


def test_types_and_ranges(library):
    _, calls = library
    assert calls.features == name_calls.FEATURES and len(calls.rows) == 11
    assert calls.dense_features == name_calls.DENSE_FEATURES
    for part in name_calls.PARTS:
        rows = getattr(calls, part)
        size = len(rows.labels)
        assert rows.ids.shape == (size, 11) and rows.ids.dtype == np.int32
        assert rows.dense.shape == (size, 8) and rows.dense.dtype == np.float32
        assert rows.labels.dtype == np.float32 and set(rows.labels) == {0.0, 1.0}
        assert np.isfinite(rows.dense).all() and rows.dense.min() >= 0
        assert rows.ids.min() >= 0 and (rows.ids < calls.rows).all()
    # Every row but the last occurs in training, and that one never.
    for feature, size in enumerate(calls.rows):
        assert len(np.unique(calls.train.ids[:, feature])) == size - 1
        assert calls.train.ids[:, feature].max() == size - 2


def test_names_follow_a_power_law(library):
    _, calls = library
    assert 0.1 < calls.train.labels.mean() < 0.25
    counts = np.sort(np.bincount(calls.train.ids[:, 0]))[::-1]
    assert counts[0] > 0.02 * counts.sum() and np.median(counts) <= 3
    ranks = np.arange(1, len(counts) + 1)
    slope = np.polyfit(np.log(ranks[10:1000]), np.log(counts[10:1000]), 1)[0]
    assert -1.5 < slope < -0.6


# Files.


def test_each_file_is_in_one_part(library):
    corpus, calls = library
    sizes = dict.fromkeys(name_calls.PARTS, 0)
    for text in corpus.texts:
        sizes[name_calls.part_of(text)] += len(name_calls.occurrences(text))
    assert sizes == {part: len(getattr(calls, part).labels) for part in sizes}
    # Copies stay together, wherever they stand and whatever else there is.
    doubled = _corpus([*corpus.texts[::-1], *corpus.texts[:20]])
    extra = dict.fromkeys(name_calls.PARTS, 0)
    for text in corpus.texts[:20]:
        extra[name_calls.part_of(text)] += len(name_calls.occurrences(text))
    again = name_calls.build_name_calls(doubled)
    for part in name_calls.PARTS:
        assert len(getattr(again, part).labels) == sizes[part] + extra[part]


def test_parts_are_ninety_five_five():
    parts = [name_calls.part_of(f"# {number}\n") for number in range(20_000)]
    shares = [parts.count(part) / 20_000 for part in name_calls.PARTS]
    np.testing.assert_allclose(shares, [0.9, 0.05, 0.05], atol=0.01)


def test_files_of_another_python_are_left_out():
    small = _small()
    broken = ["def f(:\n  x\n y\n", "x = (\n"]
    calls = name_calls.build_name_calls(_corpus([*small.texts, *broken]))
    assert len(calls.train.labels) == len(
        name_calls.build_name_calls(small).train.labels
    )
    with pytest.raises(ValueError, match="the train files hold no names: 2 files are"):
        name_calls.build_name_calls(_corpus(broken))


# The cache.


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """A standard library of four files."""
    folder = tmp_path / "library"
    folder.mkdir()
    for name, text in zip("abcd", _small().texts, strict=True):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(folder)})
    return folder


def _assert_same(ours, theirs):
    for part in name_calls.PARTS:
        for name in ("ids", "dense", "labels"):
            one = getattr(getattr(ours, part), name)
            two = getattr(getattr(theirs, part), name)
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)
    for name in ("rows", "features", "dense_features", "sha256"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_the_task_is_the_same_every_time(small_library):
    one = name_calls.read_name_calls()
    _assert_same(one, name_calls.read_name_calls())
    assert one.sha256 == read_standard_library().sha256
    assert [path.name for path in small_library.parent.iterdir()] == ["library"]


def test_the_cache_is_read_back(small_library, tmp_path, monkeypatch):
    cache = tmp_path / "deep" / "cache"
    built = name_calls.read_name_calls(cache)
    _assert_same(built, name_calls.read_name_calls())
    (file,) = cache.iterdir()

    def fail(corpus):
        raise AssertionError("built again")

    with monkeypatch.context() as patch:
        patch.setattr(name_calls, "build_name_calls", fail)
        _assert_same(name_calls.read_name_calls(cache), built)
    # Another corpus is another file.
    (small_library / "a.py").write_text(_for_part("train", "q = w(e)\n"))
    other = name_calls.read_name_calls(cache)
    assert other.sha256 != built.sha256 and len(list(cache.iterdir())) == 2
    # A file under a name that is not its own, and half a file.
    (other_file,) = set(cache.iterdir()) - {file}
    content = other_file.read_bytes()
    other_file.write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="it is of the corpus " + built.sha256):
        name_calls.read_name_calls(cache)
    other_file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot read the cached examples .*delete"):
        name_calls.read_name_calls(cache)


@pytest.mark.slow
def test_the_whole_library(tmp_path):
    calls = name_calls.read_name_calls(tmp_path)
    sizes = [len(getattr(calls, part).labels) for part in name_calls.PARTS]
    assert sum(sizes) > 300_000 and min(sizes) > 5_000
    assert calls.rows[0] > 15_000 and max(calls.rows) > 40_000
    _assert_same(calls, name_calls.read_name_calls(tmp_path))
    _assert_same(calls, name_calls.read_name_calls())
