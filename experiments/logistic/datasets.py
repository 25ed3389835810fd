"""The data sets of the convex experiments, by name.

* `breast_cancer`: 569 x 30 (scikit-learn), standardised, with a constant column;
* `digits`: 1797 x 64 (scikit-learn), even (+1) against odd (-1) digits, pixels over 16,
  with a constant column;
* `synthetic`: Gaussian features whose scales go from 1 to 10 in equal ratios (mean
  square 1), labels drawn from a logistic model with Gaussian weights;
* `libsvm:PATH`, `csv:PATH`: files of `experiments.data`. Dense ones are standardised,
  all of them get a constant column, unless asked otherwise.
"""

import dataclasses
import os

import numpy as np

from experiments.data.binary_labels import sign_labels
from experiments.data.labelled_csv import read_labelled_csv
from experiments.data.libsvm import SparseRows, read_libsvm
from experiments.logistic.problem import (
    LogisticProblem,
    dense_problem,
    sparse_problem,
)

NAMES = ("breast_cancer", "digits", "synthetic", "libsvm:PATH", "csv:PATH")
LAYOUTS = ("auto", "dense", "sparse")

# A padded sparse entry costs a dense one, an index and a gather.
_DENSE_FROM = 0.25


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """Which data, and how they are prepared.

    Attributes:
      name: one of `NAMES`, with a path in place of PATH.
      rows: N of `synthetic`.
      features: d of `synthetic`.
      seed: of `synthetic`.
      standardize: whether columns get mean 0 and population variance 1 (constant ones
        become 0); None as the data set has it by default.
      constant_column: whether a column of ones is appended; None as by default.
      layout: of `libsvm:`; `auto` stores all zeros from a density of a quarter.
      label_column: of `csv:`; name or number, the last column if empty.
      l2: the penalty; None for 1/N.
      dtype: `float64` or `float32`.
    """

    name: str = "breast_cancer"
    rows: int = 7000
    features: int = 50
    seed: int = 0
    standardize: bool | None = None
    constant_column: bool | None = None
    layout: str = "auto"
    label_column: str = ""
    l2: float | None = None
    dtype: str = "float64"

    def __post_init__(self):
        kind, _, path = self.name.partition(":")
        if kind in ("libsvm", "csv"):
            if not path:
                raise ValueError(
                    f"dataset must name a file after {kind}:, got {self.name!r}"
                )
        elif self.name not in NAMES[:3]:
            raise ValueError(
                f"dataset must be one of {', '.join(NAMES)}, got {self.name!r}"
            )
        for field in ("rows", "features"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be >= 1, got {getattr(self, field)}")
        if self.layout not in LAYOUTS:
            raise ValueError(
                f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}"
            )
        if self.layout != "auto" and kind != "libsvm":
            raise ValueError(f"layout={self.layout!r} is for libsvm:PATH alone")
        if self.label_column and kind != "csv":
            raise ValueError(
                f"label_column={self.label_column!r} is for csv:PATH alone"
            )

    @property
    def kind(self) -> str:
        """The name without a path."""
        return self.name.partition(":")[0]

    @property
    def path(self) -> str:
        """The file, empty without one."""
        return self.name.partition(":")[2]

    @property
    def title(self) -> str:
        """A short name for titles and folders."""
        if self.path:
            return os.path.basename(self.path).partition(".")[0] or self.kind
        if self.kind == "synthetic":
            return f"synthetic_{self.rows}x{self.features}"
        return self.kind


def load_problem(config: DatasetConfig) -> LogisticProblem:
    """Reads or draws the data and prepares them.

    Raises:
      ValueError: for a file that cannot be used, labels that are not of two classes,
        or `standardize` on sparse rows.
      ImportError: without scikit-learn, which the bundled sets and `libsvm:` need.
    """
    kind, given = config.kind, {"standardize": config.kind in ("breast_cancer", "csv")}
    if kind == "breast_cancer":
        features, labels = breast_cancer()
    elif kind == "digits":
        features, labels = digits()
    elif kind == "synthetic":
        given["constant"] = False
        features, labels = synthetic(
            config.rows, config.features, config.seed, config.dtype
        )
    elif kind == "csv":
        table = read_labelled_csv(config.path, config.label_column)
        features, labels = table.features, sign_labels(table.labels, config.path)
    else:
        rows = read_libsvm(config.path)
        dense_enough = rows.density >= _DENSE_FROM
        if config.layout == "sparse" or (config.layout == "auto" and not dense_enough):
            return _sparse(rows, config)
        given["standardize"] = True
        features, labels = rows.dense(), sign_labels(rows.labels, config.path)
    if _choose(config.standardize, given["standardize"]):
        features = standardized(features)
    if _choose(config.constant_column, given.get("constant", True)):
        ones = np.ones((len(features), 1), features.dtype)
        features = np.concatenate([features, ones], axis=1)
    return dense_problem(
        features, labels, l2=config.l2, dtype=config.dtype, name=config.title
    )


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """569 x 30 features as measured, and labels: +1 benign, -1 malignant."""
    from sklearn.datasets import load_breast_cancer

    features, target = load_breast_cancer(return_X_y=True)
    return features, sign_labels(target, "breast_cancer")


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1797 x 64 pixels in [0, 1], and labels: +1 even, -1 odd digits."""
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    return pixels / 16.0, np.where(target % 2 == 0, 1.0, -1.0)


def synthetic(
    rows: int = 7000,
    features: int = 50,
    seed: int = 0,
    dtype: str = "float64",
    *,
    block_rows: int = 8192,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Samples of a logistic model with features of unequal scale.

    .. math::

      x_{ij} = s_j \epsilon_{ij}, \quad s_j \propto 10^{j / (d - 1)}, \quad
      \overline{s^2} = 1, \quad w \sim \mathcal{N}(0, I), \quad
      P(y_i = 1) = \frac{1}{1 + e^{-x_i^\top w}}.

    Drawn in float64 and in blocks, so that float32 data need little more memory than
    they occupy; labels and values do not depend on the type or the block.

    Args:
      rows: N.
      features: d.
      seed: of NumPy's default generator, which draws features, then weights, then
        labels.
      dtype: of the features.
      block_rows: rows in float64 at a time.

    Returns:
      features (N, d) and labels float64 (N,), -1 or +1.
    """
    scales = np.logspace(0, 1, features)
    scales /= np.sqrt(np.mean(scales**2))
    starts = range(0, rows, block_rows)

    def blocks(generator):
        for start in starts:
            size = (min(block_rows, rows - start), features)
            yield start, generator.standard_normal(size) * scales

    generator = np.random.default_rng(seed)
    table = np.empty((rows, features), dtype)
    for start, block in blocks(generator):
        table[start : start + len(block)] = block
    w = generator.standard_normal(features)
    chances = np.empty(rows)
    # Drawn a second time: the weights come after features that were rounded to dtype.
    for start, block in blocks(np.random.default_rng(seed)):
        chances[start : start + len(block)] = 1.0 / (1.0 + np.exp(-(block @ w)))
    labels = np.where(generator.random(rows) < chances, 1.0, -1.0)
    return table, labels


def standardized(features: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and population variance 1; constant ones become 0."""
    centred = features - features.mean(axis=0)
    # Once more: a mean far above the deviation is rounded too coarsely.
    centred -= centred.mean(axis=0)
    deviation = centred.std(axis=0)
    # A constant column is left with rounding errors that must not be blown up.
    scale = np.abs(features).max(axis=0, initial=0.0)
    constant = deviation <= 1e-12 * scale
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, deviation))


def _choose(asked: bool | None, default: bool) -> bool:
    return default if asked is None else asked


def _sparse(rows: SparseRows, config: DatasetConfig) -> LogisticProblem:
    if config.standardize:
        raise ValueError(
            f"standardize would fill the zeros of the sparse {config.path} (density "
            f"{rows.density:.3g}); give layout=dense if it fits into memory"
        )
    labels = sign_labels(rows.labels, config.path)
    columns, values = rows.padded()
    width = rows.num_features
    if _choose(config.constant_column, True):
        ones = np.ones((len(labels), 1))
        columns = np.concatenate([columns, (ones * width).astype(np.int32)], axis=1)
        values = np.concatenate([values, ones], axis=1)
        width += 1
    return sparse_problem(
        columns,
        values,
        labels,
        width,
        l2=config.l2,
        dtype=config.dtype,
        name=config.title,
    )
