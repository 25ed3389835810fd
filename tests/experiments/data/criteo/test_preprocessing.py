import dataclasses
import functools
import gzip
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.data.criteo import preprocessing as module
from experiments.data.criteo.dense_features import log1p_dense, transform_dense
from experiments.data.criteo.kaggle import read_kaggle
from experiments.data.criteo.preprocessed import open_preprocessed
from experiments.data.criteo.preprocessing import PreprocessConfig, preprocess
from experiments.data.criteo.text_files import read_blocks
from experiments.data.criteo.vocabulary import VocabularyConfig

ALL = VocabularyConfig("all")


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "out" / "kaggle")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks that end inside parts and parts that end inside blocks."""
    monkeypatch.setattr(module, "_ROWS_AT_A_TIME", 20)
    small = functools.partial(read_blocks, block_bytes=3000)
    monkeypatch.setattr(module, "read_blocks", small)


def rows_of(folder):
    parts = [part.read() for part in folder.parts]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "train"},
        {"kind": "all", "max_ind_range": 50},
        {"kind": "frequency", "min_count": 3, "separate_missing": True},
        {"kind": "hash", "hash_rows": 40, "hash_seed": 1},
    ],
)
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_same_rows_as_in_memory(write, lines, output, settings, rate):
    path = write(lines(130, seed=1))
    options = {key: value for key, value in settings.items() if key != "kind"}
    expected = read_kaggle(
        path, vocabulary=settings["kind"], sub_sample_rate=rate, seed=7, **options
    )
    config = PreprocessConfig(VocabularyConfig(**settings), rate, seed=7)
    folder = preprocess(path, output, config)
    dense, ids, labels = rows_of(folder)
    np.testing.assert_array_equal(dense, log1p_dense(expected.dense))
    np.testing.assert_array_equal(ids, expected.ids)
    np.testing.assert_array_equal(labels, expected.labels)
    manifest = folder.manifest
    assert manifest["day_count"] == expected.day_count.tolist()
    assert manifest["rows"] == len(labels)
    assert sum(manifest["positives"]) == labels.sum()
    assert folder.counts == tuple(expected.counts)
    assert folder.vocabulary().sha256 == expected.vocabulary.sha256
    assert manifest["vocabulary_sha256"] == expected.vocabulary.sha256


def test_golden_text(golden_dir, output):
    text = str(golden_dir / "dlrm" / "criteo_small.tsv")
    folder = preprocess(text, output, PreprocessConfig(ALL))
    dense, ids, labels = rows_of(folder)
    golden = golden_dir / "dlrm" / "criteo_small.npz"
    with np.load(golden, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(ids, arrays["X_cat"])
        np.testing.assert_array_equal(labels, arrays["y"])
        np.testing.assert_array_equal(dense, log1p_dense(arrays["X_int"]))
        assert list(folder.counts) == arrays["counts"].tolist()
        assert folder.manifest["day_count"] == arrays["day_count"].tolist()


def test_days_in_files(tmp_path, write, lines, arrays, output):
    days = [lines(n, seed=n) for n in (31, 45, 7)]
    paths = [write(day, f"day_{i}") for i, day in enumerate(days)]
    zipped = tmp_path / "day_1.gz"
    zipped.write_bytes(gzip.compress(pathlib.Path(paths[1]).read_bytes()))
    folder = preprocess([paths[0], str(zipped), paths[2]], output, PreprocessConfig())
    assert folder.manifest["day_count"] == [31, 45, 7]
    raw = arrays(days[0] + days[1]).ids
    for column in (0, 25):
        seen = list(dict.fromkeys(raw[:, column].tolist()))
        assert folder.counts[column] == len(seen) + 1
        rows = folder.parts[1].read().ids[:, column]
        assert rows.tolist() == [seen.index(i) for i in raw[31:, column].tolist()]


def test_shifted_logarithm_takes_the_minimum_of_training(write, lines, arrays, output):
    text = lines(70, seed=2)
    fields = text[65].split(b"\t")
    text[65] = b"\t".join([fields[0], b"-99", *fields[2:]])  # in the last part
    config = PreprocessConfig(dense_transform="log_shift")
    folder = preprocess(write(text), output, config)
    assert folder.manifest["dense_minimum"] == -3
    expected = transform_dense(arrays(text).dense, "log_shift", minimum=-3)
    np.testing.assert_array_equal(rows_of(folder)[0], expected)


@pytest.mark.parametrize("randomize", ["day", "total"])
def test_shuffled_rows_stay_together(write, lines, output, tmp_path, randomize):
    path = write(lines(140, seed=3))
    plain = preprocess(path, str(tmp_path / "plain"), PreprocessConfig())
    config = PreprocessConfig(randomize=randomize, rows_in_memory=9)
    mixed = preprocess(path, output, config)
    assert mixed.manifest["day_count"] == [20] * 7

    def keys(folder):
        dense, ids, labels = rows_of(folder)
        rows = zip(dense, ids, labels, strict=True)
        return [(*d.tolist(), *i.tolist(), int(y)) for d, i, y in rows]

    before, after = keys(plain), keys(mixed)
    assert before[120:] == after[120:] and before[:120] != after[:120]
    assert sorted(before) == sorted(after)
    # Within its day every row stays, or some leave it.
    stays = [
        sorted(before[i : i + 20]) == sorted(after[i : i + 20])
        for i in range(0, 120, 20)
    ]
    assert all(stays) if randomize == "day" else not any(stays)
    assert [p.name for p in pathlib.Path(output).parent.iterdir()] == ["kaggle"]
    again = preprocess(path, str(tmp_path / "again"), config)
    assert keys(again) == after


def test_bad_lines(write, lines, output):
    text = lines(50, seed=4)
    path = write([*text[:9], b"bad", *text[9:]])
    with pytest.raises(ValueError, match="train.txt, line 10: expected 40 fields"):
        preprocess(path, output, PreprocessConfig())
    assert not pathlib.Path(output).exists()
    folder = preprocess(path, output, PreprocessConfig(on_bad_line="skip"))
    assert folder.manifest["rows"] == 50
    assert folder.manifest["skipped_lines"]["count"] == 1
    assert "line 10" in folder.manifest["skipped_lines"]["messages"][0]


def test_folder_is_used_again_only_for_the_same(write, lines, output, monkeypatch):
    text = lines(40, seed=5)
    path = write(text)
    first = preprocess(path, output, PreprocessConfig())
    with monkeypatch.context() as patch:
        patch.setattr(module, "_first_pass", None)  # nothing is done again
        again = preprocess(path, output, PreprocessConfig())
    assert again.manifest == first.manifest
    content = pathlib.Path(output, "manifest.json").read_text()
    for config, message in (
        (PreprocessConfig(seed=4), "config.seed is 123 there, 4 here"),
        (PreprocessConfig(ALL), "config.vocabulary.kind is 'train' there, 'all' here"),
    ):
        with pytest.raises(ValueError, match=f"preprocessed differently: {message}"):
            preprocess(path, output, config)
    write(text[:30])
    with pytest.raises(ValueError, match="source.names_and_sizes_sha256 is"):
        preprocess(path, output, PreprocessConfig())
    assert pathlib.Path(output, "manifest.json").read_text() == content


def test_foreign_folders_are_left_alone(write, lines, output):
    path = write(lines(20))
    folder = pathlib.Path(output)
    folder.mkdir(parents=True)
    (folder / "mine").write_text("x")
    with pytest.raises(ValueError, match="kaggle is no preprocessed folder"):
        preprocess(path, output, PreprocessConfig())
    assert (folder / "mine").read_text() == "x"
    with pytest.raises(ValueError, match="mine is a file, expected a folder"):
        preprocess(path, str(folder / "mine"), PreprocessConfig())
    (folder / "mine").unlink()
    preprocess(path, output, PreprocessConfig())  # an empty folder is filled
    (folder / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ValueError, match="of format version 99, this reads 1"):
        open_preprocessed(output)


def test_files_that_change_meanwhile(write, lines, output, monkeypatch):
    text = lines(60, seed=6)
    path = write(text)
    counted = module._first_pass

    for changed in (text[:50], text + text[:9]):

        def change(*arguments, changed=changed):
            found = counted(*arguments)
            write(changed)
            return found

        write(text)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_first_pass", change)
            with pytest.raises(ValueError, match="changed while it was read"):
                preprocess(path, output, PreprocessConfig(ALL))
        assert not list(pathlib.Path(output).parent.iterdir())


def test_refuses_settings(write, lines, output):
    for settings, message in (
        ({"sub_sample_rate": -1.0}, "sub_sample_rate must lie in"),
        ({"dense_transform": "sqrt"}, "dense_transform must be one of"),
        ({"randomize": "hour"}, "randomize must be one of"),
        ({"rows_in_memory": 0}, "rows_in_memory must be >= 1, got 0"),
        ({"on_bad_line": "warn"}, "on_bad_line must be"),
    ):
        with pytest.raises(ValueError, match=message):
            PreprocessConfig(**settings)
    path = write(lines(3))
    with pytest.raises(ValueError, match="there is no file .*absent"):
        preprocess(path + "absent", output, PreprocessConfig())
    with pytest.raises(ValueError, match="need different files"):
        preprocess([path, path], output, PreprocessConfig())
    with pytest.raises(ValueError, match="empty: no row is left for training"):
        preprocess(write([], "empty"), output, PreprocessConfig())
    assert dataclasses.asdict(PreprocessConfig())["vocabulary"]["kind"] == "train"


# The growth of resident memory over a file after a short one has been preprocessed.
MEMORY = """
import sys, threading
from experiments.data.criteo import PreprocessConfig, VocabularyConfig, preprocess

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def most(path):
    found, done = [], threading.Event()
    def watch():
        while not done.wait(0.02):
            found.append(resident())
    watcher = threading.Thread(target=watch)
    watcher.start()
    config = PreprocessConfig(randomize="total", rows_in_memory=20_000)
    preprocess(path, path + ".out", config)
    done.set()
    watcher.join()
    return max(found)

before = most(sys.argv[1])
print(most(sys.argv[2]) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_flat_in_the_size_of_the_file(tmp_path, lines):
    part, target = b"".join(line + b"\n" for line in lines(4000)), 160 << 20
    for stem, size in (("short", 40 << 20), ("long", target)):
        with open(tmp_path / stem, "wb") as file:
            for _ in range(-(-size // len(part))):
                file.write(part)
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, *(str(tmp_path / s) for s in ("short", "long"))],
        cwd=pathlib.Path(__file__).resolve().parents[4],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < target // 50
