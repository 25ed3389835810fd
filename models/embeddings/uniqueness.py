"""Whether a table still tells its ids apart."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.embeddings.lookup import embedding_bag
from models.embeddings.table_config import TableConfig

_MOST_IDS = 10**6  # enumerated; of larger tables a sample
_SAMPLE = 1_000  # ids whose pairwise distances are taken
_CHUNK = 2**16  # ids embedded at a time


class Uniqueness(NamedTuple):
    """What `check_unique` found."""

    unique: bool  # no two of the ids are within tol
    distinct: int  # how many embeddings differ in some bit
    checked: int  # how many ids were embedded; all of them up to 10**6
    clash: tuple[int, int] | None  # two ids within tol
    min_distance: float  # smallest Euclidean distance within a sample of 1,000 ids


def check_unique(
    config: TableConfig, params: dict[str, Any], tol: float = 0.0, *, seed: int = 0
) -> Uniqueness:
    """Embeds all ids one by one and looks for two that cannot be told apart.

    Complementary partitions with continuous random parts make all embeddings distinct
    with probability one; training guarantees nothing.

    Args:
      config: the table. Of more than 10**6 rows, a random 10**6 ids are checked.
      params: all its leaves.
      tol: Euclidean distance, >= 0, up to which two embeddings count as one. Far below
        the usual distance between two ids; the time grows with the number of pairs
        whose projections on one line are within it.
      seed: of the samples.

    Returns:
      A `Uniqueness`. `min_distance` is over the ids of the sample only, so it is an
      upper bound of the smallest distance; infinite for a table of one row.

    Raises:
      ValueError: `tol` is negative or not finite; a leaf does not fit the config.
    """
    if not 0.0 <= tol < np.inf:
        raise ValueError(f"tol must be finite and >= 0, got {tol}")
    generator = np.random.default_rng(seed)
    ids = np.arange(min(config.rows, _MOST_IDS))
    if config.rows > _MOST_IDS:
        ids = np.sort(generator.choice(config.rows, _MOST_IDS, replace=False))
    vectors = _embed(config, params, ids)
    lines = _project(vectors, generator)
    distinct, clash = _copies(vectors, lines)
    if clash is None and tol > 0.0:
        clash = _close_pair(vectors, lines, tol)
    sample = generator.choice(len(ids), min(len(ids), _SAMPLE), replace=False)
    return Uniqueness(
        unique=clash is None,
        distinct=distinct,
        checked=len(ids),
        clash=None if clash is None else (int(ids[clash[0]]), int(ids[clash[1]])),
        min_distance=_smallest_distance(vectors[sample]),
    )


def _embed(config: TableConfig, params: dict[str, Any], ids: np.ndarray) -> np.ndarray:
    """Embeddings `[len(ids), width]`, all chunks of one shape."""
    chunk = min(len(ids), _CHUNK)
    padded = np.pad(ids, (0, -len(ids) % chunk), constant_values=config.rows)
    parts = [
        np.asarray(_embed_ids(config, params, jnp.asarray(part)))
        for part in padded.reshape(-1, chunk)
    ]
    return np.concatenate(parts)[: len(ids)]


@functools.partial(jax.jit, static_argnums=0)
def _embed_ids(
    config: TableConfig, params: dict[str, Any], ids: jax.Array
) -> jax.Array:
    return embedding_bag(config, params, ids)


def _project(vectors: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Products with a random unit vector; equal rows have exactly equal products."""
    direction = generator.standard_normal(vectors.shape[1])
    direction /= np.linalg.norm(direction)
    # Not a BLAS product: that may add up equal rows in different orders.
    line = np.zeros(len(vectors))
    for column, weight in zip(vectors.T, direction, strict=True):
        line += weight * column
    return line


def _copies(
    vectors: np.ndarray, line: np.ndarray
) -> tuple[int, tuple[int, int] | None]:
    """Number of distinct rows, and the first row that repeats an earlier one."""
    order = np.argsort(line, kind="stable")
    is_first = np.diff(line[order], prepend=-np.inf) != 0
    first = order[is_first][np.cumsum(is_first) - 1]
    if not np.array_equal(vectors[order], vectors[first]):
        # Different rows with the same product: next to impossible, but not wrong.
        _, index, group = np.unique(
            vectors, axis=0, return_index=True, return_inverse=True
        )
        order, first = np.arange(len(vectors)), index[group.ravel()]
        is_first = order == first
    copies, originals = order[~is_first], first[~is_first]
    if not len(copies):
        return len(vectors), None
    place = np.argmin(copies)
    return int(is_first.sum()), (int(originals[place]), int(copies[place]))


def _close_pair(
    vectors: np.ndarray, line: np.ndarray, tol: float
) -> tuple[int, int] | None:
    """Two rows within `tol`, if there are any: such rows are close on any line."""
    order = np.argsort(line)
    line, vectors = line[order], vectors[order].astype(np.float64)
    reach = tol + 1e-12 * np.abs(line).max()
    for step in range(1, len(line)):
        near = np.flatnonzero(line[step:] - line[:-step] <= reach)
        if not len(near):
            return None
        apart = np.linalg.norm(vectors[near + step] - vectors[near], axis=1)
        if apart.min() <= tol:
            place = near[np.argmin(apart)]
            a, b = sorted((int(order[place]), int(order[place + step])))
            return a, b
    return None


def _smallest_distance(vectors: np.ndarray) -> float:
    vectors = vectors.astype(np.float64)
    smallest = np.inf
    for place in range(len(vectors) - 1):
        apart = vectors[place + 1 :] - vectors[place]
        smallest = min(smallest, float(np.linalg.norm(apart, axis=1).min()))
    return smallest
