import pathlib

import numpy as np
import pytest

from experiments.data.criteo.batches import stream_batches
from experiments.data.criteo.preprocessed import open_preprocessed
from experiments.data.criteo.preprocessing import PreprocessConfig, preprocess


@pytest.fixture
def folder(write, lines, tmp_path):
    # Seven parts: 19, 19, 18, 18, 18, 18, 18.
    path = write(lines(128, seed=1))
    return preprocess(path, str(tmp_path / "out"), PreprocessConfig())


def ids_of(source):
    (batch,) = stream_batches(source, batch_size=len(source), epochs=1)
    return batch["ids"]


def test_sides(folder):
    whole = np.concatenate([part.read().ids for part in folder.parts])
    np.testing.assert_array_equal(ids_of(folder.rows("train")), whole[:110])
    np.testing.assert_array_equal(ids_of(folder.rows("test")), whole[110:119])
    np.testing.assert_array_equal(ids_of(folder.rows("validation")), whole[119:])
    other = folder.rows("validation", halves="validation_first")
    np.testing.assert_array_equal(ids_of(other), whole[110:119])
    with pytest.raises(ValueError, match="side must be one of train, .* got 'dev'"):
        folder.rows("dev")


def test_vocabulary_is_checked_against_the_manifest(folder, tmp_path):
    vocabulary = folder.vocabulary()
    assert tuple(vocabulary.counts) == folder.counts
    path = pathlib.Path(folder.folder, "vocabulary.npz")
    arrays = dict(np.load(path, allow_pickle=False))
    arrays["dict_3"] = arrays["dict_3"][::-1]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="is not the vocabulary that the manifest"):
        folder.vocabulary()


def test_torn_folders_are_named(folder):
    path = pathlib.Path(folder.folder, "day_3_sparse.npy")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="day_3_sparse.npy is torn"):
        open_preprocessed(folder.folder)
    path.unlink()
    with pytest.raises(ValueError, match="cannot read .*day_3_sparse.npy"):
        open_preprocessed(folder.folder)


def test_row_counts_are_checked_against_the_manifest(folder):
    path = pathlib.Path(folder.folder, "manifest.json")
    path.write_text(path.read_text().replace("19", "20"))
    with pytest.raises(ValueError, match="day_0 has 19 rows, the manifest names 20"):
        open_preprocessed(folder.folder)


def test_positions_do_not_fit_another_folder(folder, write, lines, tmp_path):
    config = PreprocessConfig(seed=1)
    other = preprocess(write(lines(128, seed=2)), str(tmp_path / "other"), config)
    state = stream_batches(folder.rows("train"), batch_size=4).get_state()
    stream_batches(folder.rows("train"), batch_size=4).set_state(state)
    with pytest.raises(ValueError, match="in other data or another order: source"):
        stream_batches(other.rows("train"), batch_size=4).set_state(state)
