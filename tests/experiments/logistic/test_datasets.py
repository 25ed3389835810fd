"""Data sets: sizes, preparation, and the recipe of the synthetic one."""

import numpy as np
import pytest

from experiments.logistic.datasets import (
    DatasetConfig,
    breast_cancer,
    load_problem,
    standardized,
    synthetic,
)
from experiments.logistic.problem import DenseSamples, SparseSamples


def test_bundled_sets_are_prepared(x64):
    pytest.importorskip("sklearn")
    cancer = load_problem(DatasetConfig("breast_cancer"))
    x = np.asarray(cancer.data.features)
    assert x.shape == (569, 31) and cancer.l2 == 1 / 569
    np.testing.assert_allclose(x[:, :30].mean(0), 0, atol=1e-13)
    np.testing.assert_allclose(x[:, :30].std(0), 1, rtol=1e-13)
    np.testing.assert_array_equal(x[:, 30], 1)
    assert (np.asarray(cancer.data.labels) == 1).sum() == 357  # benign

    digits = load_problem(DatasetConfig("digits", l2=0.5))
    x = np.asarray(digits.data.features)
    assert x.shape == (1797, 65) and digits.l2 == 0.5
    assert x.min() == 0 and x.max() == 1 and (x[:, 64] == 1).all()
    assert np.asarray(digits.data.labels)[:4].tolist() == [1, -1, 1, -1]  # 0, 1, 2, 3


def test_options_of_the_bundled_sets(x64):
    pytest.importorskip("sklearn")
    raw = DatasetConfig("breast_cancer", standardize=False, constant_column=False)
    x = np.asarray(load_problem(raw).data.features)
    np.testing.assert_array_equal(x, breast_cancer()[0])


def test_synthetic_is_its_recipe(x64):
    generator = np.random.default_rng(5)
    x = generator.standard_normal((90, 4))
    scales = np.logspace(0, 1, 4)
    x *= scales / np.sqrt(np.mean(scales**2))
    w = generator.standard_normal(4)
    y = np.where(generator.random(90) < 1 / (1 + np.exp(-x @ w)), 1, -1)
    problem = load_problem(DatasetConfig("synthetic", rows=90, features=4, seed=5))
    np.testing.assert_allclose(problem.data.features, x, rtol=1e-14)
    np.testing.assert_array_equal(problem.data.labels, y)
    assert problem.name == "synthetic_90x4"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_synthetic_depends_on_neither_block_nor_type(dtype):
    features, labels = synthetic(500, 6, 1)
    for block_rows in (1, 7, 500):
        x, y = synthetic(500, 6, 1, dtype, block_rows=block_rows)
        assert x.dtype == dtype
        np.testing.assert_array_equal(x, features.astype(dtype))
        np.testing.assert_array_equal(y, labels)


def test_standardized_leaves_constant_columns_at_zero():
    generator = np.random.default_rng(0)
    table = np.stack([np.full(99, 0.1), generator.normal(1e6, 1e-3, 99)], axis=1)
    found = standardized(table)
    np.testing.assert_array_equal(found[:, 0], 0)
    np.testing.assert_allclose(found[:, 1].std(), 1, rtol=1e-12)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-12)


def write_libsvm(path, density):
    generator = np.random.default_rng(0)
    table = np.round(generator.normal(size=(30, 8)), 3)
    table[generator.random(table.shape) >= density] = 0.0
    table[0, 7] = 1.5
    labels = np.where(np.arange(30) % 3 == 0, 2, 1)
    lines = [
        f"{label} " + " ".join(f"{1 + i}:{v}" for i, v in enumerate(row) if v)
        for label, row in zip(labels, table, strict=True)
    ]
    path.write_text("\n".join(lines))
    return table, np.where(labels == 2, 1, -1)


def test_sparse_file_keeps_its_zeros(x64, tmp_path):
    pytest.importorskip("sklearn")
    table, labels = write_libsvm(tmp_path / "a.svm", 0.15)
    name = f"libsvm:{tmp_path}/a.svm"
    problem = load_problem(DatasetConfig(name))
    assert isinstance(problem.data, SparseSamples) and problem.name == "a"
    assert problem.num_features == 9
    np.testing.assert_array_equal(problem.data.labels, labels)
    dense = load_problem(DatasetConfig(name, layout="dense", standardize=False))
    assert isinstance(dense.data, DenseSamples)
    np.testing.assert_array_equal(dense.data.features[:, :8], table)
    w = np.random.default_rng(1).normal(size=9)
    np.testing.assert_allclose(problem.value(w), dense.value(w), rtol=1e-14)
    np.testing.assert_allclose(problem.gradient(w), dense.gradient(w), atol=1e-15)
    bare = load_problem(DatasetConfig(name, constant_column=False))
    assert bare.num_features == 8
    with pytest.raises(ValueError, match="standardize would fill the zeros .*a.svm"):
        load_problem(DatasetConfig(name, standardize=True))


def test_dense_libsvm_file_is_standardized(x64, tmp_path):
    pytest.importorskip("sklearn")
    table, _ = write_libsvm(tmp_path / "a.svm", 0.9)
    problem = load_problem(DatasetConfig(f"libsvm:{tmp_path}/a.svm"))
    expected = np.concatenate([standardized(table), np.ones((30, 1))], axis=1)
    np.testing.assert_array_equal(problem.data.features, expected)
    sparse = DatasetConfig(f"libsvm:{tmp_path}/a.svm", layout="sparse")
    assert isinstance(load_problem(sparse).data, SparseSamples)


def test_csv_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("kind,a,b\nx,1,5\ny,3,5\nx,5,5\n")
    name = f"csv:{path}"
    problem = load_problem(DatasetConfig(name, label_column="kind", dtype="float32"))
    np.testing.assert_array_equal(problem.data.labels, [-1, 1, -1])
    expected = np.float32(np.sqrt(1.5))
    np.testing.assert_allclose(
        problem.data.features, [[-expected, 0, 1], [0, 0, 1], [expected, 0, 1]]
    )
    with pytest.raises(ValueError, match="a.csv, line 2, column 1 .kind.: 'x' is not"):
        load_problem(DatasetConfig(name, dtype="float32"))
    path.write_text("1,0\n2,1\n3,2\n")
    with pytest.raises(ValueError, match="a.csv: the labels must be of two .* got 3"):
        load_problem(DatasetConfig(name, dtype="float32"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "mnist"}, "dataset must be one of breast_cancer, .* got 'mnist'"),
        ({"name": "digits:x"}, "dataset must be one of .* got 'digits:x'"),
        ({"name": "csv:"}, "dataset must name a file after csv:, got 'csv:'"),
        ({"name": "libsvm"}, "dataset must name a file after libsvm:, got 'libsvm'"),
        ({"rows": 0}, "rows must be >= 1, got 0"),
        ({"features": -2}, "features must be >= 1, got -2"),
        ({"layout": "csr"}, "layout must be one of auto, dense, sparse, got 'csr'"),
        ({"layout": "sparse"}, "layout='sparse' is for libsvm:PATH alone"),
        ({"label_column": "y"}, "label_column='y' is for csv:PATH alone"),
    ],
)
def test_bad_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DatasetConfig(**change)
