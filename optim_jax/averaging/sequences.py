"""The sequences x, y and z from a state and the parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from optim_jax.averaging.diloco import DiLoCoState
from optim_jax.averaging.displacement import PrimalAveragingState
from optim_jax.averaging.iterates import GPAState
from optim_jax.averaging.precision import scalar_like, widen
from optim_jax.averaging.recursion import averaged_point, gradient_point
from optim_jax.trees.paths import named_leaves
from optim_jax.typing import Params

_AVERAGING_STATES = (GPAState, PrimalAveragingState, DiLoCoState)


class _View(NamedTuple):
    """One leaf of one averaging state."""

    state: Any  # one of _AVERAGING_STATES
    buffer: jax.Array  # z, w or s
    master: jax.Array | None


def gpa_eval_params(state: optax.OptState, params: Params) -> Params:
    """Returns x, the parameters to evaluate, report and ship.

    Args:
      state: state of `gpa`, `schedule_free`, `gpa_adamw`, `single_worker_diloco` or
        `scale_by_primal_averaging`, or any nested state that contains such states on
        disjoint leaves (chain, masked, partition, MultiSteps, inject_hyperparams, ...).
      params: the params that `update` is given, y. Never pass x back to `update`.

    Returns:
      A tree like params, in its dtypes: x, the slow parameters under DiLoCo, and the
      leaves as they are under no such state. Statistics of batch normalization belong
      to y: recompute them at x.

    Raises:
      ValueError: there is no such state, or a leaf belongs to two of them.
    """

    def leaf_x(y: jax.Array, view: _View) -> jax.Array:
        if isinstance(view.state, DiLoCoState):
            return view.buffer.astype(y.dtype)
        return _sequences(y, view)[0].astype(y.dtype)

    return _map_views(leaf_x, state, params, _AVERAGING_STATES)


def gpa_train_params(state: optax.OptState, x: Params) -> Params:
    """Returns y from x, for checkpoints that stored x.

    Args:
      state: as for `gpa_eval_params`, DiLoCo excepted.
      x: what `gpa_eval_params` returned for this state.

    Returns:
      A tree like x, in its dtypes: the params to go on with.

    Raises:
      ValueError: there is no such state, or a leaf belongs to two of them.
    """

    def leaf_y(x_leaf: jax.Array, view: _View) -> jax.Array:
        x_wide, buffer = widen(x_leaf), widen(view.buffer)
        mu_y = scalar_like(view.state.mu_y, x_wide)
        if isinstance(view.state, PrimalAveragingState):
            return (x_wide + (1.0 - mu_y) * buffer).astype(x_leaf.dtype)
        return gradient_point(x_wide, buffer, mu_y).astype(x_leaf.dtype)

    return _map_views(leaf_y, state, x, _AVERAGING_STATES[:2])


def gpa_sequences(
    state: optax.OptState, params: Params
) -> tuple[Params, Params, Params]:
    """Returns the three sequences (x, y, z).

    Args:
      state: as for `gpa_eval_params`, DiLoCo excepted.
      params: the params that `update` is given.

    Returns:
      Three trees like params. Leaves under an averaging state are at least float32,
      since x rounded to half precision would hide what happens; y is the float32 master
      where there is one.

    Raises:
      ValueError: there is no such state, or a leaf belongs to two of them.
    """

    def sequence(index: int) -> Params:
        def of_leaf(y: jax.Array, view: _View) -> jax.Array:
            return _sequences(y, view)[index]

        return _map_views(of_leaf, state, params, _AVERAGING_STATES[:2])

    return sequence(0), sequence(1), sequence(2)


def _sequences(y: jax.Array, view: _View) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, y and z of one leaf in at least float32."""
    y = widen(y) if view.master is None else view.master
    buffer = widen(view.buffer)
    mu_y = scalar_like(view.state.mu_y, y)
    if isinstance(view.state, PrimalAveragingState):
        return y - (1.0 - mu_y) * buffer, y, y + mu_y * buffer
    return averaged_point(y, buffer, mu_y), y, buffer


def _map_views(
    function: Callable[[jax.Array, _View], jax.Array],
    state: optax.OptState,
    params: Params,
    kinds: tuple[type, ...],
) -> Params:
    """Maps the leaves of params that belong to an averaging state."""

    def is_averaging(node: Any) -> bool:
        return isinstance(node, _AVERAGING_STATES)

    nodes = jax.tree.leaves(state, is_leaf=is_averaging)
    states = [node for node in nodes if isinstance(node, kinds)]
    if not states:
        raise ValueError(
            f"no {' or '.join(kind.__name__ for kind in kinds)} found in the "
            "optimizer state"
        )
    names = [name for name, _ in named_leaves(params)]
    leaves, treedef = jax.tree.flatten(params)
    owned = [_leaf_views(averaging, params) for averaging in states]
    for i, views in enumerate(zip(*owned, strict=True)):
        views = [view for view in views if view is not None]
        if len(views) > 1:
            raise ValueError(f"leaf {names[i]!r} belongs to {len(views)} GPA states")
        if views:
            leaves[i] = function(leaves[i], views[0])
    return treedef.unflatten(leaves)


def _leaf_views(state: Any, params: Params) -> list[_View | None]:
    """One entry per leaf of params; None where the state masks the leaf."""

    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    if isinstance(state, GPAState):
        tree, masters = state.z, state.y_master
    else:
        tree = state.w if isinstance(state, PrimalAveragingState) else state.slow
        masters = jax.tree.map(lambda _: None, tree)
    buffers, treedef = jax.tree.flatten(tree, is_leaf=is_masked)
    views: list[_View | None] = []
    for buffer, master, subtree in zip(
        buffers,
        treedef.flatten_up_to(masters),
        treedef.flatten_up_to(params),
        strict=True,
    ):
        if is_masked(buffer):
            views.extend([None] * len(jax.tree.leaves(subtree)))
        else:
            views.append(_View(state, buffer, master))
    return views
