"""Deep & Cross networks: bounded-degree polynomials of all features.

Version 1 (arXiv:1708.05123) crosses with a vector a layer, version 2 (2008.13535) with
a matrix, whole, of low rank, or a mixture of such. N is the width of the crossed
features: the dense ones, raw or after a perceptron, and every pooled embedding.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from models.categorical import CategoricalTables
from models.click_model import (
    ClickConfig,
    build_click_model,
    require_choice,
    require_integer,
)
from models.cross import (
    KINDS,
    cross_low_rank,
    cross_matrix,
    cross_mixture,
    cross_params,
    cross_vector,
)
from models.embeddings import TableConfig, output_width
from models.layers.mlp import apply_mlp, init_mlp, mlp_flops, mlp_params
from models.model import Batch, Model, Params
from optim_jax import MatrixAxes

HEADS = ("parallel", "stacked")


@dataclasses.dataclass(frozen=True)
class DCNConfig(ClickConfig):
    """Shape and loss of a Deep & Cross network, checked when made.

    Attributes:
      tables: one entry for each categorical feature, of any widths.
      bottom: widths of the perceptron of the dense features, `bottom[0]` of them; a
        single width leaves them as they are.
      cross_layers: number of cross layers, >= 0.
      deep: `parallel`: widths of the perceptron beside the cross layers, whose outputs
        are joined by one affine map to the logit. `stacked`: of the one after them,
        ending in 1.
      cross: `vector` (version 1), `matrix`, `low_rank` or `mixture` (version 2).
      rank: of `low_rank` and of each expert of a `mixture`.
      experts: of a `mixture`.
      head: `parallel` or `stacked`.
      loss: `bce`, `wbce` or `mse`, see `ClickLoss`.
      loss_weights: of labels 0 and 1 in `wbce`.
      loss_threshold: clips probabilities where it lies in (0, 1).

    Raises:
      TypeError: a table is not a `TableConfig`.
      ValueError: a field is out of range, or fields do not fit each other.
    """

    tables: tuple[TableConfig, ...]
    bottom: tuple[int, ...]
    cross_layers: int
    deep: tuple[int, ...]
    cross: str = "vector"
    rank: int = 0
    experts: int = 4
    head: str = "parallel"
    loss: str = "bce"
    loss_weights: tuple[float, float] = (1.0, 1.0)
    loss_threshold: float = 0.0

    def __post_init__(self):
        self.read_fields(bottom=1, deep=1)
        require_choice("cross", self.cross, KINDS)
        require_choice("head", self.head, HEADS)
        has_rank = self.cross in ("low_rank", "mixture")
        for name, least in (
            ("cross_layers", 0),
            ("rank", 1 if has_rank else 0),
            ("experts", 1),
        ):
            number = require_integer(name, getattr(self, name), least)
            object.__setattr__(self, name, number)
        if self.head == "stacked" and self.deep[-1] != 1:
            raise ValueError(
                f"deep must end in 1 (the logit) for head='stacked', got {self.deep}"
            )

    @property
    def width(self) -> int:
        """N, the width of the crossed features."""
        return self.bottom[-1] + sum(map(output_width, self.tables))

    @property
    def deep_widths(self) -> tuple[int, ...]:
        """Of the perceptron, input included."""
        return (self.width, *self.deep)

    @property
    def head_widths(self) -> tuple[int, ...]:
        """Of the affine map that joins both sides; empty for `stacked`."""
        return (self.width + self.deep[-1], 1) if self.head == "parallel" else ()


def _cross_shapes(config: DCNConfig) -> dict[str, tuple[int, ...]]:
    """Leaves of one cross layer."""
    width, rank, experts = config.width, config.rank, config.experts
    return {
        "vector": {"weight": (width,)},
        "matrix": {"kernel": (width, width)},
        "low_rank": {"down": (width, rank), "up": (rank, width)},
        "mixture": {
            "down": (experts, width, rank),
            "core": (experts, rank, rank),
            "up": (experts, rank, width),
            "gate": (width, experts),
        },
    }[config.cross] | {"bias": (width,)}


def _init_cross(config: DCNConfig, key: jax.Array) -> dict[str, jax.Array]:
    """Glorot-normal matrices (a vector as one column) and zero biases."""
    leaves = {}
    for index, (name, shape) in enumerate(_cross_shapes(config).items()):
        if name == "bias":
            leaves[name] = jnp.zeros(shape, jnp.float32)
            continue
        fans = (*shape, 1) if len(shape) == 1 else shape[-2:]
        draw = jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)
        leaves[name] = math.sqrt(2.0 / sum(fans)) * draw
    return leaves


def cross_layer(
    cross: str, params: dict[str, jax.Array], x0: jax.Array, x: jax.Array
) -> jax.Array:
    """One cross layer at x, crossed with x0; both `[B, N]`.

    Args:
      cross: a kind of `DCNConfig.cross`.
      params: leaves of the layer, as from the model's `init`.
      x0: the features.
      x: output of the layer before.
    """
    bias = params["bias"]
    if cross == "vector":
        return cross_vector(x0, x, params["weight"], bias)
    if cross == "matrix":
        return cross_matrix(x0, x, params["kernel"], bias)
    if cross == "low_rank":
        return cross_low_rank(x0, x, params["down"], params["up"], bias)
    down, core, up, gate = (params[name] for name in ("down", "core", "up", "gate"))
    return cross_mixture(x0, x, down, core, up, bias, gate)


def count_params(config: DCNConfig) -> dict[str, int]:
    """Parameters of `tables`, `bottom`, `cross`, `deep`, `head`, and the `total`."""
    layer = cross_params(config.cross, config.width, config.rank, config.experts)
    counts = {
        "tables": CategoricalTables(config.tables).num_params,
        "bottom": mlp_params(config.bottom),
        "cross": config.cross_layers * layer,
        "deep": mlp_params(config.deep_widths),
        "head": mlp_params(config.head_widths),
    }
    return counts | {"total": sum(counts.values())}


def forward_flops(config: DCNConfig) -> int:
    """Operations of one sample, forward: perceptrons and cross layers, no lookups.

    Every parameter of a cross layer is used once, in a multiplication and an addition.
    """
    perceptrons = (config.bottom, config.deep_widths, config.head_widths)
    return sum(map(mlp_flops, perceptrons)) + 2 * count_params(config)["cross"]


def matrix_rules(config: DCNConfig) -> tuple[tuple[str, MatrixAxes], ...]:
    """Says what every leaf is; the map to the logit is the head."""
    last = len(config.deep) - 1
    head = "head/layer_0" if config.head == "parallel" else f"deep/layer_{last}"
    experts = MatrixAxes("hidden", (0,), (1,), (2,))
    factors = experts if config.cross == "mixture" else MatrixAxes("hidden")
    return (
        (rf"^{head}/kernel$", MatrixAxes("head")),
        (r"^(bottom|deep|head)/layer_\d+/kernel$", MatrixAxes("hidden")),
        (r"^(bottom|deep|head)/layer_\d+/bias$", MatrixAxes("bias")),
        (r"^cross/\d+/(bias|weight)$", MatrixAxes("bias")),
        (r"^cross/\d+/(down|up|core)$", factors),
        (r"^cross/\d+/(kernel|gate)$", MatrixAxes("hidden")),
    )


@functools.lru_cache
def dcn(config: DCNConfig) -> Model:
    """Builds the pure functions of a Deep & Cross network.

    Batches come from `models.dlrm.make_batch`; `apply` returns logits `[B]`.

    Args:
      config: shape and loss.

    Returns:
      The model, with `row_ids` and `loss_from_rows`. Parameters are
      `tables/<t>/<leaf>`, `bottom/layer_<i>/…`, `cross/<i>/…`, `deep/layer_<i>/…` and
      `head/layer_0/…`. The same config gives the same object.
    """
    tables = CategoricalTables(config.tables)

    @jax.jit
    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 5)
        params: Params = {"tables": tables.init(keys[0])}
        if len(config.bottom) > 1:
            params["bottom"] = init_mlp(keys[1], config.bottom)
        params["cross"] = {
            str(layer): _init_cross(config, jax.random.fold_in(keys[2], layer))
            for layer in range(config.cross_layers)
        }
        params["deep"] = init_mlp(keys[3], config.deep_widths)
        if config.head_widths:
            params["head"] = init_mlp(keys[4], config.head_widths)
        return params

    def logits_from_rows(rows: Any, params: Params, batch: Batch) -> jax.Array:
        dense = batch["dense"]
        if len(config.bottom) > 1:
            dense = apply_mlp(params["bottom"], dense, relu_last=True)
        pooled = tables.pool(rows, params.get("tables", {}), batch)
        features = jnp.concatenate([dense, *pooled], axis=1)
        crossed = features
        for layer in range(config.cross_layers):
            crossed = cross_layer(
                config.cross, params["cross"][str(layer)], features, crossed
            )
        if config.head == "stacked":
            return apply_mlp(params["deep"], crossed, relu_last=False)[:, 0]
        deep = apply_mlp(params["deep"], features, relu_last=True)
        both = jnp.concatenate([crossed, deep], axis=1)
        return apply_mlp(params["head"], both, relu_last=False)[:, 0]

    return build_click_model(
        config,
        tables,
        init=init,
        logits_from_rows=logits_from_rows,
        matrix_rules=matrix_rules(config),
        forward_flops=forward_flops(config),
    )
