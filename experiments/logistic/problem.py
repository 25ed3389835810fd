r"""L2-regularised logistic regression as a sum of per-sample losses.

.. math::

  F(w) = \frac{1}{N} \sum_i F_i(w), \quad
  F_i(w) = \log(1 + e^{-y_i x_i^\top w}) + \frac{\lambda}{2} \|w\|^2,

with labels :math:`y_i = \pm 1`. The penalty stands in every term, so that variances and
means over samples are those of one function. A constant column, where there is one, is
penalised like the others.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class DenseSamples(NamedTuple):
    """Samples with all their features.

    Attributes:
      features: X, (N, d).
      labels: y, (N,), -1 or +1.
    """

    features: jax.Array
    labels: jax.Array


class SparseSamples(NamedTuple):
    """Samples with at most k features that are not zero.

    Attributes:
      columns: int32 (N, k), from 0; where the value is 0 any column will do.
      values: (N, k).
      labels: y, (N,), -1 or +1.
    """

    columns: jax.Array
    values: jax.Array
    labels: jax.Array


Samples = DenseSamples | SparseSamples


def predictions(w: jax.Array, samples: Samples) -> jax.Array:
    """The linear predictions :math:`x_i^T w`, (B,)."""
    if isinstance(samples, DenseSamples):
        return jnp.matmul(samples.features, w, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(samples.values * w[samples.columns], axis=-1)


def logistic_losses(w: jax.Array, samples: Samples, l2: float | jax.Array) -> jax.Array:
    r"""The losses :math:`F_i(w)` of some samples.

    Args:
      w: weights (d,).
      samples: B of them.
      l2: :math:`\lambda`.

    Returns:
      (B,), in nats.
    """
    fit = jax.nn.softplus(-samples.labels * predictions(w, samples))
    return fit + 0.5 * l2 * jnp.sum(jnp.square(w))


def mean_loss(w: jax.Array, samples: Samples, l2: float | jax.Array) -> jax.Array:
    """The mean of `logistic_losses`; F(w) if the samples are all there are."""
    return jnp.mean(logistic_losses(w, samples, l2))


_value = jax.jit(mean_loss)
_gradient = jax.jit(jax.grad(mean_loss))


class Evaluation(NamedTuple):
    r"""The whole objective at a point, in float64.

    Attributes:
      value: F(w).
      grad_norm: :math:`\|\nabla F(w)\|_\infty`.
    """

    value: float
    grad_norm: float


@jax.jit
def _evaluate(w, samples, l2):
    w, samples = in_float64((w, samples))
    value, gradient = jax.value_and_grad(mean_loss)(w, samples, l2)
    return value, jnp.max(jnp.abs(gradient), initial=0.0)


def in_float64(tree):
    """Floating leaves in float64, the others as they are; needs 64-bit types."""
    return jax.tree.map(
        lambda leaf: (
            leaf.astype(jnp.promote_types(leaf.dtype, jnp.float64))
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
        ),
        tree,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LogisticProblem:
    r"""One data set with its penalty; see the module for the objective.

    Attributes:
      data: all samples; a pytree whose leaves have the leading axis N.
      num_features: d, of the weights.
      l2: :math:`\lambda`.
      name: for titles.
    """

    data: Samples
    num_features: int
    l2: float
    name: str = "logistic regression"

    def __post_init__(self):
        if not self.num_samples:
            raise ValueError(f"{self.name}: data must hold at least one sample, got 0")
        if self.num_features < 1:
            raise ValueError(f"num_features must be >= 1, got {self.num_features}")
        if not 0.0 <= self.l2 < float("inf"):
            raise ValueError(f"l2 must be >= 0 and finite, got {self.l2}")

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.data.labels)

    @property
    def dtype(self) -> jnp.dtype:
        """The type of the data, and so of the weights."""
        return self.data.labels.dtype

    def initial_params(self) -> jax.Array:
        """The weights that every method starts from: zero, (d,)."""
        return jnp.zeros(self.num_features, self.dtype)

    def per_sample_loss(self, w: jax.Array, batch: Samples) -> jax.Array:
        """The losses of a batch, (B,); see `logistic_losses`."""
        return logistic_losses(w, batch, self.l2)

    def value(self, w: jax.Array) -> jax.Array:
        """F(w), in the problem's type."""
        return _value(w, self.data, self.l2)

    def gradient(self, w: jax.Array) -> jax.Array:
        """The gradient of F at w, (d,), in the problem's type."""
        return _gradient(w, self.data, self.l2)

    def evaluate(self, w: jax.Array) -> Evaluation:
        """F and its gradient's largest entry in float64, whatever the problem's type.

        A float32 sum over all samples would hide gaps below 1e-7.
        """
        with jax.enable_x64(True):
            value, grad_norm = _evaluate(w, self.data, self.l2)
        return Evaluation(float(value), float(grad_norm))


def dense_problem(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    l2: float | None = None,
    dtype: str = "float64",
    name: str = "logistic regression",
) -> LogisticProblem:
    """A problem with all features stored.

    Args:
      features: (N, d).
      labels: (N,), -1 or +1.
      l2: the penalty; 1/N by default.
      dtype: `float64`, which needs 64-bit types enabled, or `float32`.
      name: for titles.

    Raises:
      ValueError: for labels other than -1 and +1, or `float64` without 64-bit types.
    """
    kind = _checked_dtype(dtype)
    signs = _checked_labels(labels, len(features))
    data = DenseSamples(jnp.asarray(features, kind), jnp.asarray(signs, kind))
    return LogisticProblem(data, features.shape[1], _penalty(l2, len(signs)), name)


def sparse_problem(
    columns: np.ndarray,
    values: np.ndarray,
    labels: np.ndarray,
    num_features: int,
    *,
    l2: float | None = None,
    dtype: str = "float64",
    name: str = "logistic regression",
) -> LogisticProblem:
    """A problem of padded rows; arguments as of `dense_problem` and `SparseSamples`.

    Raises:
      ValueError: as `dense_problem`, and for a column outside [0, num_features).
    """
    kind = _checked_dtype(dtype)
    signs = _checked_labels(labels, len(columns))
    low, high = columns.min(initial=0), columns.max(initial=0)
    if low < 0 or high >= num_features:
        raise ValueError(
            f"columns must lie in [0, num_features={num_features}), got {low} to {high}"
        )
    data = SparseSamples(
        jnp.asarray(columns, jnp.int32),
        jnp.asarray(values, kind),
        jnp.asarray(signs, kind),
    )
    return LogisticProblem(data, num_features, _penalty(l2, len(signs)), name)


def _penalty(l2: float | None, num_samples: int) -> float:
    return 1.0 / max(1, num_samples) if l2 is None else float(l2)


def _checked_dtype(dtype: str) -> np.dtype:
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise ValueError("dtype='float64' needs 64-bit types: jax.enable_x64(True)")
    return np.dtype(dtype)


def _checked_labels(labels: np.ndarray, rows: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (rows,):
        raise ValueError(
            f"labels must have the shape ({rows},) of the rows, got {labels.shape}"
        )
    if not np.isin(labels, (-1, 1)).all():
        found = np.unique(labels[~np.isin(labels, (-1, 1))])
        raise ValueError(f"labels must be -1 or +1, got {found[0]}")
    return labels
