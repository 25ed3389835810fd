"""DLRM: dense features, embedded categories and their dot products (arXiv:1906.00091).

Shapes: B samples, T tables, D the common width, F = T + 1 interacting vectors (more
where a table contributes several).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.categorical import CategoricalTables
from models.click_batch import BatchRules, assemble_batch
from models.click_model import ClickConfig, build_click_model, require_choice
from models.embeddings import TableConfig, output_width
from models.layers.mlp import apply_mlp, init_mlp, mlp_flops, mlp_params
from models.model import Batch, Model, Params
from optim_jax import MatrixAxes

INTERACTIONS = ("dot", "cat")
POOLING_WEIGHTS = ("none", "fixed", "learned")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class DLRMConfig(ClickConfig):
    """Shape and loss of a DLRM, checked when made.

    Attributes:
      tables: one entry for each categorical feature; T may be 0.
      bottom: widths of the perceptron of the dense features, `bottom[0]` of them; its
        last width is D, the width of every table.
      top: widths of the perceptron after the interaction, whose own width is computed;
        the last one is 1.
      interaction: `dot`, the products of all pairs beside the dense vector; `cat`, the
        vectors themselves.
      interaction_itself: `dot` only: each vector's product with itself too.
      weighted_pooling: `learned`: a trained factor for each row of each table, 1 at
        first; `fixed`: factors of 1 that stay so, numerically `none`. Both go with
        full tables only.
      loss: `bce`, `wbce` or `mse`, see `ClickLoss`.
      loss_weights: of labels 0 and 1 in `wbce`.
      loss_threshold: clips probabilities where it lies in (0, 1).
      compute_dtype: of the perceptrons' products, except those of their last layers;
        everything else is float32.

    Raises:
      TypeError: a table is not a `TableConfig`.
      ValueError: a field is out of range, or fields do not fit each other.
    """

    tables: tuple[TableConfig, ...]
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    interaction: str = "dot"
    interaction_itself: bool = False
    weighted_pooling: str = "none"
    loss: str = "bce"
    loss_weights: tuple[float, float] = (1.0, 1.0)
    loss_threshold: float = 0.0
    compute_dtype: str = "float32"

    def __post_init__(self):
        self.read_fields(bottom=2, top=1)
        require_choice("interaction", self.interaction, INTERACTIONS)
        require_choice("weighted_pooling", self.weighted_pooling, POOLING_WEIGHTS)
        require_choice("compute_dtype", self.compute_dtype, DTYPES)
        if self.top[-1] != 1:
            raise ValueError(f"top must end in 1 (the logit), got {self.top}")
        for index, table in enumerate(self.tables):
            if table.dim != self.bottom[-1]:
                raise ValueError(
                    f"bottom must end in the width of every table, but it ends in "
                    f"{self.bottom[-1]} and tables[{index}].dim={table.dim}"
                )
            if self.weighted_pooling != "none" and table.method != "full":
                raise ValueError(
                    f"weighted_pooling={self.weighted_pooling!r} goes with full tables "
                    f"only, but tables[{index}].method={table.method!r}"
                )

    @property
    def categorical(self) -> CategoricalTables:
        """The tables as pure functions."""
        return CategoricalTables(self.tables, self.weighted_pooling == "learned")

    @property
    def num_vectors(self) -> int:
        """F, the number of interacting vectors."""
        return 1 + sum(map(output_width, self.tables)) // self.bottom[-1]

    @property
    def interaction_width(self) -> int:
        """Inputs of the top perceptron."""
        if self.interaction == "cat":
            return self.num_vectors * self.bottom[-1]
        pairs, _ = _lower_triangle(self.num_vectors, self.interaction_itself)
        return self.bottom[-1] + len(pairs)

    @property
    def top_widths(self) -> tuple[int, ...]:
        """Of the top perceptron, input included."""
        return (self.interaction_width, *self.top)


def _lower_triangle(count: int, itself: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows i and columns j < i (or j <= i), row by row."""
    return np.tril_indices(count, 0 if itself else -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pair_products(vectors: jax.Array, itself: bool) -> jax.Array:
    """Products of vectors i and j of each sample: `[B, F, D]` to `[B, pairs]`.

    All F x F products are one small product of matrices a sample. That and choosing
    half of them takes less time than half the products by themselves.
    """
    batch, count, _ = vectors.shape
    i, j = _lower_triangle(count, itself)
    gram = jnp.einsum("bid,bjd->bij", vectors, vectors, precision="highest")
    return _columns(gram.reshape(batch, count * count), i * count + j)


def _columns(matrix: jax.Array, places: np.ndarray) -> jax.Array:
    return matrix.at[:, places].get(mode="promise_in_bounds")


def _pair_products_forward(
    vectors: jax.Array, itself: bool
) -> tuple[jax.Array, jax.Array]:
    return _pair_products(vectors, itself), vectors


def _pair_products_backward(
    itself: bool, vectors: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array]:
    # The transpose of choosing entries is a scatter, several times as slow as the
    # products. Here every entry of the symmetric matrix chooses its cotangent.
    batch, count, _ = vectors.shape
    i, j = _lower_triangle(count, itself)
    place = np.zeros((count, count), np.int32)
    place[i, j] = place[j, i] = np.arange(len(i))
    factor = np.ones((count, count)) + (1 if itself else -1) * np.eye(count)
    chosen = _columns(cotangent, place.reshape(-1)).reshape(batch, count, count)
    symmetric = chosen * jnp.asarray(factor, cotangent.dtype)
    return (jnp.einsum("bij,bjd->bid", symmetric, vectors, precision="highest"),)


_pair_products.defvjp(_pair_products_forward, _pair_products_backward)


def interact(
    x: jax.Array, embeddings: jax.Array, op: str = "dot", itself: bool = False
) -> jax.Array:
    """What the top perceptron sees of the dense vector and the embeddings.

    Differentiable backwards any number of times, not forwards (`jax.jvp`).

    Args:
      x: `[B, D]`, vector 0.
      embeddings: `[B, T, D]`, vectors 1 … T; T may be 0.
      op: `dot`: x beside the products of vectors i and j for all j < i, i outer, j
        inner; `cat`: all vectors one after another.
      itself: `dot` only: j <= i.

    Returns:
      `[B, D + F (F - 1) / 2]`, `[B, D + F (F + 1) / 2]` with `itself`, or `[B, F D]`
      for `cat`.

    Raises:
      ValueError: for another `op`.
    """
    require_choice("op", op, INTERACTIONS)
    batch, count, width = embeddings.shape
    flat = jnp.concatenate([x, embeddings.reshape(batch, count * width)], axis=1)
    return _interact_flat(flat, width, op, itself)


def _interact_flat(vectors: jax.Array, width: int, op: str, itself: bool) -> jax.Array:
    """As `interact`, of the vectors `[B, F D]` one after another."""
    batch, total = vectors.shape
    count = total // width
    if op == "cat" or count + itself == 1:
        return vectors
    products = _pair_products(vectors.reshape(batch, count, width), itself)
    return jnp.concatenate([vectors[:, :width], products], axis=1)


def make_batch(
    config: Any,
    dense: Any,
    ids: Any,
    *,
    offsets: Any = None,
    lengths: Any = None,
    id_weights: Any = None,
    labels: Any = None,
    weights: Any = None,
) -> dict[str, Any]:
    """A batch of NumPy arrays for a model of this config (or of `BatchRules`).

    Arguments and errors are those of `models.click_batch.assemble_batch`.
    """
    rules = config if isinstance(config, BatchRules) else config.batch_rules
    return assemble_batch(
        rules,
        dense,
        ids,
        offsets=offsets,
        lengths=lengths,
        id_weights=id_weights,
        labels=labels,
        weights=weights,
    )


def count_params(config: DLRMConfig) -> dict[str, int]:
    """Parameters of `tables`, `bottom`, `top`, and the `total`."""
    counts = {
        "tables": config.categorical.num_params,
        "bottom": mlp_params(config.bottom),
        "top": mlp_params(config.top_widths),
    }
    return counts | {"total": sum(counts.values())}


def forward_flops(config: DLRMConfig) -> int:
    """Operations of one sample, forward: perceptrons and interaction, no lookups.

    Of the F x F products only half are needed, and so counted.
    """
    flops = mlp_flops(config.bottom) + mlp_flops(config.top_widths)
    if config.interaction == "dot":
        flops += config.num_vectors**2 * config.bottom[-1]
    return flops


def matrix_rules(config: DLRMConfig) -> tuple[tuple[str, MatrixAxes], ...]:
    """Says what every leaf of the perceptrons is; the last top layer is the head."""
    last = len(config.top) - 1
    return (
        (rf"^top/layer_{last}/kernel$", MatrixAxes("head")),
        (r"^(bottom|top)/layer_\d+/kernel$", MatrixAxes("hidden")),
        (r"^(bottom|top)/layer_\d+/bias$", MatrixAxes("bias")),
    )


@functools.lru_cache
def dlrm(config: DLRMConfig) -> Model:
    """Builds the pure functions of a DLRM; its batches come from `make_batch`.

    `apply` returns logits `[B]`, before the clipping of `loss_threshold`;
    `config.click_loss.probability` turns them into predictions.

    Args:
      config: shape and loss.

    Returns:
      The model, with `row_ids` and `loss_from_rows`. Parameters are
      `tables/<t>/<leaf>`, `bottom/layer_<i>/{kernel,bias}` and `top/…`. The same
      config gives the same object.
    """
    tables = config.categorical
    dtype = jnp.bfloat16 if config.compute_dtype == "bfloat16" else None

    @jax.jit
    def init(key: jax.Array) -> Params:
        of_tables, of_bottom, of_top = jax.random.split(key, 3)
        return {
            "tables": tables.init(of_tables),
            "bottom": init_mlp(of_bottom, config.bottom),
            "top": init_mlp(of_top, config.top_widths),
        }

    def logits_from_rows(rows: Any, params: Params, batch: Batch) -> jax.Array:
        x = apply_mlp(params["bottom"], batch["dense"], relu_last=True, dtype=dtype)
        pooled = tables.pool(rows, params.get("tables", {}), batch)
        features = _interact_flat(
            jnp.concatenate([x, *pooled], axis=1),
            config.bottom[-1],
            config.interaction,
            config.interaction_itself,
        )
        logits = apply_mlp(params["top"], features, relu_last=False, dtype=dtype)
        return logits[:, 0]

    return build_click_model(
        config,
        tables,
        init=init,
        logits_from_rows=logits_from_rows,
        matrix_rules=matrix_rules(config),
        forward_flops=forward_flops(config),
    )
