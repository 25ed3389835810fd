import pathlib
import sysconfig

import pytest

from experiments.config import DataConfig
from experiments.data import embedded
from experiments.data.pipeline import build_text_data


def test_the_corpus_is_the_library_without_its_tests():
    corpus = embedded.read_standard_library()
    assert len(corpus.texts) == len(corpus.files) > 400
    assert sum(map(len, corpus.texts)) > 5e6
    assert corpus.files == sorted(corpus.files)
    assert {"argparse.py", "json/decoder.py"} <= set(corpus.files)
    for name in corpus.files:
        assert not {"test", "tests", "site-packages"} & set(pathlib.Path(name).parts)
        assert "_sysconfigdata" not in name
    assert corpus == embedded.read_standard_library()


def test_a_change_of_text_or_name_changes_the_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ValueError, match="data.source='stdlib' finds no Python source"):
        embedded.read_standard_library()
    (tmp_path / "a.py").write_bytes(b"x = 1\r\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("y = 2\n")
    corpus = embedded.read_standard_library()
    assert corpus.texts == ["x = 1\n"] and corpus.files == ["a.py"]
    (tmp_path / "a.py").write_text("x = 1\n")
    assert embedded.read_standard_library().sha256 == corpus.sha256
    (tmp_path / "a.py").write_text("x = 2\n")
    changed = embedded.read_standard_library().sha256
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({corpus.sha256, changed, embedded.read_standard_library().sha256}) == 3


def test_it_trains_and_validates_without_files_or_extras():
    data = build_text_data(
        DataConfig(), rows=16, evaluation_rows=8, evaluation_batches=2, seed=0
    )
    assert next(data.train)["tokens"].shape == (16, 64)
    assert all(batch["weights"].all() for batch in data.validation())
    facts = data.metadata
    share = facts["validation"]["bytes"] / facts["train"]["bytes"]
    assert 0.005 < share < 0.2
    assert data.bytes_per_token == pytest.approx(1.0, abs=1e-3)


def test_a_validation_path_is_refused():
    with pytest.raises(ValueError, match="validation_path has no meaning for .*'x'"):
        build_text_data(
            DataConfig(validation_path="x"),
            rows=1,
            evaluation_rows=1,
            evaluation_batches=1,
            seed=0,
        )
