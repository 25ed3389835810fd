# All tests that import `datasets` from our side stand here: the import is slow.
import itertools
import json
import sys

import pytest

datasets = pytest.importorskip("datasets")

from experiments.data.documents import IndexedDocuments, Shard  # noqa: E402
from experiments.data.huggingface import (  # noqa: E402
    StreamedDocuments,
    open_huggingface,
)


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.mark.parametrize("check", ["epoch", "resume", "shards"])
def test_a_data_set_on_disk(corpus, checks, check):
    checks[check](corpus("huggingface"))


@pytest.fixture
def streamed(corpus, tmp_path, monkeypatch):
    """A Hub name that streams local shards."""
    c4 = corpus("jsonl")
    c4.source, c4.path = "huggingface", "allenai/c4:en"
    load = datasets.load_dataset

    def load_dataset(name, /, *, split, streaming=False, **arguments):
        assert name == "allenai/c4" and arguments == {"name": "en"} and streaming
        files = sorted(str(path) for path in tmp_path.glob("c4-*"))
        assert split == "train"
        return load("json", data_files=files, split=split, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return c4


@pytest.mark.parametrize("check", ["epoch", "resume", "static_shards"])
def test_a_stream_of_the_hub(streamed, checks, check):
    checks[check](streamed)


def test_a_stream_is_shared_and_stops_anywhere(streamed):
    source = open_huggingface("allenai/c4:en", "text", 1, "data.path", "train")
    assert isinstance(source, StreamedDocuments)
    for count in (2, 3, 4):
        shares = [list(source.open(0, Shard(p, count))) for p in range(count)]
        assert sorted(sum(shares, [])) == sorted(streamed.texts)
    everything = list(source.open(0, Shard()))
    for stop in (0, 1, 29, 30, 31, 90):
        stopped = source.open(0, Shard())
        assert list(itertools.islice(stopped, stop)) == everything[:stop]
        state = json.loads(json.dumps(stopped.get_state()))
        resumed = source.open(0, Shard())
        next(resumed)
        resumed.set_state(state)
        assert list(resumed) == everything[stop:]


def test_folders_splits_and_columns(tmp_path):
    train = datasets.Dataset.from_dict({"text": ["a", None, "b"], "id": [0, 1, 2]})
    rest = datasets.Dataset.from_dict({"text": ["c"], "id": [3]})
    both = datasets.DatasetDict(train=train, validation=rest)
    both.save_to_disk(str(tmp_path / "both"))
    folder = str(tmp_path / "both")
    source = open_huggingface(folder, "text", 0, "data.path", "train")
    assert isinstance(source, IndexedDocuments)
    assert list(source.open(None, Shard())) == ["a", None, "b"]
    other = open_huggingface(folder, "text", 0, "data.validation_path", "validation")
    assert list(other.open(None, Shard())) == ["c"]
    assert source.sha256 != other.sha256 and source.files != other.files
    with pytest.raises(ValueError, match="no split 'test'; there are train, validatio"):
        open_huggingface(folder, "text", 0, "data.path", "test")
    with pytest.raises(ValueError, match="no column 'body' .*there are text, id"):
        open_huggingface(folder, "body", 0, "data.path", "train")
    source = open_huggingface(folder, "id", 0, "data.path", "train")
    with pytest.raises(ValueError, match="record 0: field 'id' is a int, not text"):
        next(source.open(None, Shard()))


def test_no_network_points_to_local_files(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = "data.path='allenai/c4:en': .* point data.path to local files with"
    with pytest.raises(ValueError, match=message):
        open_huggingface("allenai/c4:en", "text", 0, "data.path", "train")


def test_an_unreadable_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"data.path='{tmp_path}': cannot be read"):
        open_huggingface(str(tmp_path), "text", 0, "data.path", "train")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ImportError, match="'datasets' of the `data` extra: pip install"
    ):
        open_huggingface("allenai/c4", "text", 0, "data.path", "train")
