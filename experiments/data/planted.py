r"""Click data drawn from a known model, so that the best possible loss is known.

Feature f has :math:`N_f` categories whose popularity follows a power law. A category
has a direct effect :math:`u_f` and a vector :math:`v_f` that interacts with those of
the other features; with dense features x the log-odds of a click are

.. math::

  z = b_0 + w \cdot x + \sum_f u_f[i_f]
    + \gamma \sqrt{\frac{d}{K (K - 1) / 2}} \sum_{g < f} \langle v_f[i_f],
      v_g[i_g] \rangle .

Which category is popular is drawn at random, so buckets of ids (remainders,
quotients) are random groups of categories. The generator is this project's choice.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# One stream for each thing that is drawn: a world does not depend on its samples, nor
# a feature on how many others there are.
_FEATURE_STREAM, _DENSE_STREAM, _SAMPLE_STREAM = 101, 202, 303

_DENSE_SCALE = 0.3  # standard deviation of the dense weights


@dataclasses.dataclass(frozen=True, eq=False)
class PlantedWorld:
    """The model that clicks are drawn from; see `make_world`.

    Attributes:
      seed: that everything was drawn with.
      bias: :math:`b_0`.
      gamma: strength of the interactions.
      rank: length d of the vectors.
      effects: u, float64 `[N_f]` for each feature.
      vectors: v, float64 `[N_f, rank]` for each feature.
      dense_weights: w, float64 `[num_dense]`.
      categories: for each feature, the id of the category of each popularity rank,
        `[N_f]`, the most popular first.
      cumulative: for each feature, the probability of all ranks up to each, `[N_f]`.
    """

    seed: int
    bias: float
    gamma: float
    rank: int
    effects: tuple[np.ndarray, ...]
    vectors: tuple[np.ndarray, ...]
    dense_weights: np.ndarray
    categories: tuple[np.ndarray, ...]
    cumulative: tuple[np.ndarray, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """Categories of each feature."""
        return tuple(len(effects) for effects in self.effects)

    def popularity(self, feature: int) -> np.ndarray:
        """Probability of each id of a feature, float64 `[N_f]`."""
        mass = np.empty(self.rows[feature])
        mass[self.categories[feature]] = np.diff(self.cumulative[feature], prepend=0.0)
        return mass

    def logits(self, ids: Any, dense: Any = None) -> np.ndarray:
        """True log-odds of a click.

        Args:
          ids: integers `[n, K]`.
          dense: `[n, num_dense]`; may be None without dense features.

        Returns:
          float64 `[n]`.
        """
        ids = np.asarray(ids)
        z = np.full(len(ids), self.bias)
        if len(self.dense_weights):
            z += np.asarray(dense, np.float64) @ self.dense_weights
        count = len(self.rows)
        total, pairs = np.zeros((len(ids), self.rank)), np.zeros(len(ids))
        for feature in range(count):
            z += self.effects[feature][ids[:, feature]]
            vectors = self.vectors[feature][ids[:, feature]]
            # Every pair with an earlier feature at once.
            pairs += np.einsum("nd,nd->n", vectors, total)
            total += vectors
        if count > 1:
            z += self.gamma * math.sqrt(self.rank / (count * (count - 1) / 2)) * pairs
        return z


class PlantedSample(NamedTuple):
    """Rows of a world."""

    ids: np.ndarray  # int64 [n, K]
    dense: np.ndarray  # float32 [n, num_dense]
    labels: np.ndarray  # float32 [n], 0 or 1
    p_star: np.ndarray  # float64 [n], the true probability of label 1


def make_world(
    seed: int,
    *,
    rows: Sequence[int],
    zipf: float,
    sigma_u: float,
    gamma: float,
    num_dense: int,
    bias: float,
    rank: int = 4,
) -> PlantedWorld:
    r"""Draws a world.

    Args:
      seed: of everything, >= 0.
      rows: categories :math:`N_f` of each feature; at least one feature.
      zipf: exponent s >= 0 of the popularity, :math:`p(r) \propto (r + 1)^{-s}` for
        rank r from 0.
      sigma_u: standard deviation of the sum of the direct effects over the features.
      gamma: strength of the interactions; one feature has none.
      num_dense: dense features, standard normal, with weights of standard deviation
        0.3.
      bias: :math:`b_0`.
      rank: length d of the vectors, whose entries have variance 1 / d.

    Returns:
      The world.

    Raises:
      ValueError: an argument is out of range.
    """
    rows = tuple(rows)
    if not rows or min(rows) < 1:
        raise ValueError(f"rows must be one or more numbers >= 1, got {rows}")
    for name, value, low in (
        ("seed", seed, 0),
        ("zipf", zipf, 0),
        ("sigma_u", sigma_u, 0),
        ("num_dense", num_dense, 0),
        ("rank", rank, 1),
    ):
        if not low <= value < math.inf:
            raise ValueError(f"{name} must be >= {low} and finite, got {value}")
    for name, value in (("gamma", gamma), ("bias", bias)):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    effects, vectors, categories, cumulative = [], [], [], []
    for feature, size in enumerate(rows):
        generator = _stream(seed, _FEATURE_STREAM, feature)
        effects.append(sigma_u * generator.standard_normal(size) / math.sqrt(len(rows)))
        vectors.append(generator.standard_normal((size, rank)) / math.sqrt(rank))
        categories.append(generator.permutation(size))
        mass = np.arange(1, size + 1, dtype=np.float64) ** -zipf
        cumulative.append(np.cumsum(mass / mass.sum()))
    generator = _stream(seed, _DENSE_STREAM)
    return PlantedWorld(
        seed=seed,
        bias=float(bias),
        gamma=float(gamma),
        rank=rank,
        effects=tuple(effects),
        vectors=tuple(vectors),
        dense_weights=_DENSE_SCALE * generator.standard_normal(num_dense),
        categories=tuple(categories),
        cumulative=tuple(cumulative),
    )


def sample(world: PlantedWorld, n: int, split: int) -> PlantedSample:
    """Draws independent rows.

    Args:
      world: to draw from.
      n: number of rows, >= 1.
      split: number >= 0 of the set (0 training, 1 test by this project's habit);
        different splits of a world are independent.

    Returns:
      The rows.

    Raises:
      ValueError: `n` or `split` is out of range.
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    if split < 0:
        raise ValueError(f"split must be >= 0, got {split}")
    generator = _stream(world.seed, _SAMPLE_STREAM, split)
    ids = np.empty((n, len(world.rows)), np.int64)
    for feature, size in enumerate(world.rows):
        ranks = np.searchsorted(
            world.cumulative[feature], generator.random(n), side="right"
        )
        # The last sum may round below 1.
        ids[:, feature] = world.categories[feature][np.minimum(ranks, size - 1)]
    dense = generator.standard_normal((n, len(world.dense_weights)))
    p_star = _sigmoid(world.logits(ids, dense))
    labels = generator.random(n) < p_star
    return PlantedSample(
        ids, dense.astype(np.float32), labels.astype(np.float32), p_star
    )


def four_feature_world() -> PlantedWorld:
    """Four interacting features, 5,020 categories, four dense features.

    On 50,000 rows of split 1 the Bayes log loss is 0.51535.
    """
    return make_world(
        0,
        rows=(2000, 2000, 1000, 20),
        zipf=0.6,
        sigma_u=1.0,
        gamma=0.6,
        num_dense=4,
        bias=-1.0,
    )


def one_feature_world() -> PlantedWorld:
    """A single feature of 1,000 categories, for which `oracle_log_loss` is exact.

    The Bayes log loss is 0.467586; no model of the remainder by 254 gets below
    0.549662.
    """
    return make_world(
        0, rows=(1000,), zipf=0.8, sigma_u=1.5, gamma=0.0, num_dense=0, bias=-1.0
    )


def bayes_log_loss(p_star: Any) -> float:
    """The least expected log loss on rows with these probabilities, in nats.

    Args:
      p_star: true probabilities, in [0, 1].

    Returns:
      Their mean binary entropy.
    """
    return float(np.mean(_entropy(np.asarray(p_star, np.float64))))


def realized_log_loss(p_star: Any, labels: Any) -> float:
    """Log loss of the true probabilities on the labels that were drawn, in nats.

    Args:
      p_star: `[n]`, strictly between 0 and 1 where the label does not agree.
      labels: `[n]`, 0 or 1.

    Returns:
      The mean.
    """
    p_star = np.asarray(p_star, np.float64)
    likelihood = np.where(np.asarray(labels) == 1, p_star, 1.0 - p_star)
    return float(-np.mean(np.log(likelihood)))


def expected_log_loss(logits: Any, p_star: Any, weights: Any = None) -> float:
    r"""Log loss of predictions, averaged over the labels that might be drawn.

    :math:`-p^* \log \hat p - (1 - p^*) \log(1 - \hat p)`, which is free of the noise
    of the labels and never below `bayes_log_loss`.

    Args:
      logits: predictions `[n]`, finite.
      p_star: true probabilities `[n]`.
      weights: `[n]`, such as the popularity of the ids; None means 1.

    Returns:
      The weighted mean, in nats.

    Raises:
      ValueError: the shapes differ.
    """
    z = np.asarray(logits, np.float64)
    p_star = np.asarray(p_star, np.float64)
    if z.shape != p_star.shape:
        raise ValueError(
            f"logits and p_star must have one shape, got {z.shape} and {p_star.shape}"
        )
    losses = np.maximum(z, 0.0) - z * p_star + np.log1p(np.exp(-np.abs(z)))
    return float(np.average(losses, weights=weights))


def oracle_log_loss(world: PlantedWorld, buckets: Any = None) -> float:
    """The least log loss of any model that sees only a bucket of the id, in nats.

    A closed form: the entropy of the mean probability in each bucket, averaged over
    the buckets by their popularity.

    Args:
      world: of one feature and no dense ones.
      buckets: the bucket of each id, integers `[N]`; None keeps all ids apart, which
        gives the Bayes log loss, and zeros give the entropy of the base rate.

    Returns:
      The loss of the whole distribution, without sampling noise.

    Raises:
      ValueError: the world has other features; `buckets` has another shape.
      TypeError: `buckets` are not integers.
    """
    if len(world.rows) != 1 or len(world.dense_weights):
        raise ValueError(
            "the closed form is that of one feature and no dense ones; the world has "
            f"{len(world.rows)} features and {len(world.dense_weights)} dense ones"
        )
    size = world.rows[0]
    buckets = np.arange(size) if buckets is None else np.asarray(buckets)
    if buckets.dtype.kind not in "iu":
        raise TypeError(f"buckets must be integers, got dtype {buckets.dtype}")
    if buckets.shape != (size,):
        raise ValueError(f"buckets must have shape ({size},), got {buckets.shape}")
    mass = world.popularity(0)
    p_star = _sigmoid(world.logits(np.arange(size)[:, None]))
    _, index = np.unique(buckets, return_inverse=True)
    bucket_mass = np.bincount(index, mass)
    bucket_rate = np.bincount(index, mass * p_star) / bucket_mass
    return float(np.average(_entropy(bucket_rate), weights=bucket_mass))


def _stream(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


def _entropy(p: np.ndarray) -> np.ndarray:
    q = 1.0 - p
    # 0 log 0 is 0.
    return -(p * np.log(np.where(p > 0, p, 1.0)) + q * np.log(np.where(q > 0, q, 1.0)))
