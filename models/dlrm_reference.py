"""Weights of the original DLRM implementation: its initial draws and its names.

The original stores layers as `[out, in]`, numbers the layers of a perceptron by twos
(activations lie between) and keeps `quotient` and `remainder` tables as `weight_q` and
`weight_r` (arXiv:1906.00091 and 1909.02107).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from models.categorical import POOLING_WEIGHT
from models.dlrm import DLRMConfig, dlrm
from models.model import Params

# Leaves of a table under the original's names, `{}` standing for its position.
_TABLE_NAMES = {
    "table": "emb_l.{}.weight",
    "quotient": "emb_l.{}.weight_q",
    "remainder": "emb_l.{}.weight_r",
    POOLING_WEIGHT: "v_W_l.{}",
}
_MIXED_NAMES = {"table": "emb_l.{}.embs.weight", "projection": "emb_l.{}.proj.weight"}
_PERCEPTRONS = {"bottom": "bot_l", "top": "top_l"}
_TRANSPOSED = ("kernel", "projection")

_Path = tuple[str, str, str]  # as ("tables", "0", "quotient")


def reference_params(config: DLRMConfig, seed: int = 123) -> Params:
    """The initial weights that the original draws with `--numpy-rand-seed`, bit by bit.

    Drawn in float64 by NumPy's legacy generator and cast to float32: every table
    U(±1/sqrt(rows)), then the bottom and the top layers in order, weight before bias.

    Args:
      config: of a model with full tables only: parts of the others come, in the
        original, from a generator that the seed does not reach.
      seed: of the legacy generator, in [0, 2**32).

    Returns:
      Parameters as of `dlrm(config).init`, as NumPy arrays.

    Raises:
      ValueError: for a table that is not full.
    """
    draws = np.random.RandomState(seed)
    tables: dict[str, Any] = {}
    for index, table in enumerate(config.tables):
        if table.built_method != "full":
            raise ValueError(
                "reference_params draws full tables only, but "
                f"tables[{index}].method={table.method!r}"
            )
        bound = np.sqrt(1 / table.rows)
        drawn = draws.uniform(-bound, bound, (table.rows, table.dim))
        tables[str(index)] = {"table": drawn.astype(np.float32)}
        if config.weighted_pooling == "learned":
            ones = np.ones((table.rows, 1), np.float32)
            tables[str(index)][POOLING_WEIGHT] = ones
    return {
        "tables": tables,
        "bottom": _draw_layers(draws, config.bottom),
        "top": _draw_layers(draws, config.top_widths),
    }


def _draw_layers(
    draws: np.random.RandomState, widths: Sequence[int]
) -> dict[str, dict[str, np.ndarray]]:
    layers = {}
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        deviation = np.sqrt(2 / (fan_out + fan_in))
        kernel = draws.normal(0.0, deviation, (fan_out, fan_in)).astype(np.float32)
        bias = draws.normal(0.0, np.sqrt(1 / fan_out), fan_out).astype(np.float32)
        layers[f"layer_{index}"] = {"kernel": kernel.T.copy(), "bias": bias}
    return layers


def from_reference_state(
    config: DLRMConfig, arrays: Mapping[str, np.ndarray]
) -> Params:
    """Parameters from the original's state dict.

    Linear, so it converts gradients and accumulators of every weight as well.

    Args:
      config: of the model.
      arrays: by the original's names, neither more nor fewer than the model has.

    Returns:
      NumPy copies under this project's names.

    Raises:
      ValueError: missing or unknown names, an array of another shape, or a model that
        the original does not have.
    """
    leaves = _leaves(config)
    expected = {original for original, _ in leaves.values()}
    if expected != set(arrays):
        missing = ", ".join(sorted(expected - set(arrays))) or "none"
        unknown = ", ".join(sorted(set(arrays) - expected)) or "none"
        raise ValueError(
            f"the state does not fit the config: missing {missing}; unknown {unknown}"
        )
    params: dict[str, Any] = {"tables": {}, "bottom": {}, "top": {}}
    for (group, node, leaf), (original, shape) in leaves.items():
        array = np.asarray(arrays[original])
        if array.shape != shape:
            raise ValueError(
                f"{original} has shape {array.shape}, this config's has {shape}"
            )
        if leaf == POOLING_WEIGHT:
            array = array[:, None]
        array = array.T if leaf in _TRANSPOSED else array
        params[group].setdefault(node, {})[leaf] = array.copy()
    return params


def to_reference_state(config: DLRMConfig, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `from_reference_state`: NumPy copies by the original's names.

    Raises:
      ValueError: a model that the original does not have.
    """
    found = {}
    for (group, node, leaf), (original, _) in _leaves(config).items():
        array = np.asarray(params[group][node][leaf])
        if leaf == POOLING_WEIGHT:
            array = array[:, 0]
        array = array.T if leaf in _TRANSPOSED else array
        found[original] = array.copy()
    return found


def _leaves(config: DLRMConfig) -> dict[_Path, tuple[str, tuple[int, ...]]]:
    """The original's name and shape of every leaf, by its path."""
    shapes = jax.eval_shape(dlrm(config).init, jax.random.key(0))
    found = {}
    for index, table in enumerate(config.tables):
        names = _MIXED_NAMES if table.built_method == "mixed" else _TABLE_NAMES
        for leaf, array in shapes["tables"][str(index)].items():
            if leaf not in names:
                raise ValueError(
                    "the original implementation has no name for the leaf "
                    f"{leaf!r} of tables[{index}].method={table.method!r}"
                )
            shape = array.shape[::-1] if leaf in _TRANSPOSED else array.shape
            shape = shape[:1] if leaf == POOLING_WEIGHT else shape
            path = ("tables", str(index), leaf)
            found[path] = names[leaf].format(index), shape
    for group, original in _PERCEPTRONS.items():
        for number in range(len(shapes[group])):
            layer = f"layer_{number}"
            for leaf, suffix in (("kernel", "weight"), ("bias", "bias")):
                name = f"{original}.{2 * number}.{suffix}"
                shape = shapes[group][layer][leaf].shape[::-1]
                found[group, layer, leaf] = name, shape
    return found
