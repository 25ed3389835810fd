"""The sequences of primal averaging over a tree, around a base transformation."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from optim_jax.averaging.precision import (
    is_absent,
    is_half,
    next_count,
    scalar_at,
    scalar_dtype,
    scalar_like,
    step_onto,
    wide_dtype,
    widen,
    widen_like,
)
from optim_jax.averaging.recursion import (
    DECAY_RULES,
    Coefficients,
    DecayRule,
    Scalar,
    step_y,
    step_z,
)
from optim_jax.averaging.weights import AverageWeight
from optim_jax.typing import Params, ScalarOrSchedule, Updates
from optim_jax.validation import (
    as_static,
    check_choice,
    check_inexact_leaves,
    check_mu_y,
    check_nonnegative,
    concrete,
    require_params,
)

# Bases that look at the loss along their step would look from y and move z.
_SEARCH_STATES = (
    optax.ScaleByBacktrackingLinesearchState,
    optax.ScaleByZoomLinesearchState,
    contrib.SAMState,
)


class GPAState(NamedTuple):
    """State of `gpa`, `schedule_free` and `gpa_adamw`.

    The scalars are float32, or float64 as soon as one parameter leaf is.

    Attributes:
      count: int32 (), number of updates made.
      z: base sequence, like params; float32 for half-precision leaves.
      base_state: state of the base optimizer.
      weight_sum: (), sum of the Schedule-Free weights; 0 with constant smoothing.
      lr_max: (), largest learning rate so far; 0 with constant smoothing.
      mu_y: (), the mu_y at which the current y lies.
      y_master: float32 y of half-precision leaves, `None` in place of the others.
    """

    count: jax.Array
    z: Params
    base_state: optax.OptState
    weight_sum: jax.Array
    lr_max: jax.Array
    mu_y: jax.Array
    y_master: Params


class Decay(NamedTuple):
    """Weight decay that the wrapper itself applies."""

    rule: DecayRule
    weight_decay: ScalarOrSchedule
    learning_rate: ScalarOrSchedule
    mask: Any  # tree or prefix of bools, a function of params, or None: every leaf


class Precision(NamedTuple):
    """What is kept in which dtype."""

    state_dtype: Any  # of z; None: the parameter's, at least float32
    master: bool | None  # None: for half-precision leaves


def make_decay(
    weight_decay: ScalarOrSchedule,
    learning_rate: ScalarOrSchedule | None,
    decay_mode: str,
    mask: Any,
) -> Decay | None:
    """Checks the arguments of the wrapper's decay; None if there is none."""
    check_choice("decay_mode", decay_mode, DECAY_RULES)
    check_nonnegative(weight_decay=weight_decay)
    known = concrete("weight_decay", weight_decay)
    if learning_rate is None:
        if known is not None and known > 0:
            raise ValueError(
                f"weight_decay = {known} needs learning_rate: the decay of one step is "
                "their product, and the base's learning rate cannot be seen from here"
            )
        return None
    check_nonnegative(learning_rate=learning_rate)
    if known == 0:
        return None
    return Decay(
        DECAY_RULES[decay_mode],
        as_static("weight_decay", weight_decay),
        as_static("learning_rate", learning_rate),
        mask,
    )


def make_precision(state_dtype: Any, master: bool | None) -> Precision:
    """Checks the dtype arguments; warns where z would be half precision."""
    if master is not None and not isinstance(master, bool):
        raise ValueError(f"master must be None, True or False, got {master!r}")
    if state_dtype is None:
        return Precision(None, master)
    state_dtype = jnp.dtype(state_dtype)
    if not jnp.issubdtype(state_dtype, jnp.floating):
        raise ValueError(f"state_dtype must be a floating dtype, got {state_dtype}")
    if state_dtype.itemsize < 4:
        warnings.warn(
            f"state_dtype={state_dtype}: small updates are lost in a half-precision z, "
            "and x with them; leave state_dtype=None to keep z in float32",
            stacklevel=3,
        )
    return Precision(state_dtype, master)


def average_primal(
    name: str,
    base: optax.GradientTransformation,
    average_weight: AverageWeight,
    *,
    mu_y: ScalarOrSchedule,
    base_params: str,
    decay: Decay | None,
    precision: Precision,
    read_update: Callable[[optax.OptState], Updates] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lifts the recursion of one leaf to a transformation around `base`.

    Args:
      name: name of the transformation in messages.
      base: transformation whose updates z takes.
      average_weight: state -> weight of the newest z and the new scalars.
      mu_y: interpolation between z and x.
      base_params: `"z"` or `"y"`.
      decay: the wrapper's own decay, or None.
      precision: dtypes of z and y.
      read_update: state of the base after an update -> this update, for a base from
        whose state it can be read; the compiler then need not hold it in a buffer.

    Returns:
      The transformation.
    """
    check_choice("base_params", base_params, ("z", "y"))
    check_mu_y(mu_y)
    mu_y = as_static("mu_y", mu_y)
    base = optax.with_extra_args_support(base)

    def init(params: Params) -> GPAState:
        check_inexact_leaves(name, params)
        base_state = base.init(jax.tree.map(_wide_if_half, params))
        _refuse_searches(name, base_state)
        return _initial_state(params, base_state, mu_y, precision)

    def update(
        updates: Updates,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Updates, GPAState]:
        require_params(name, params)
        z = jax.tree.map(widen, state.z)
        y = jax.tree.map(_wide_y, state.z, params, state.y_master)
        grads = jax.tree.map(lambda _, p, g: widen_like(g, p), z, params, updates)
        base_updates, base_state = base.update(
            grads, state.base_state, z if base_params == "z" else y, **extra_args
        )
        c, weight_sum, lr_max = average_weight(state)
        coefficients = Coefficients(c, *_mu_y_pair(mu_y, state), _shrink(decay, state))
        leaves = _Leaves(z, y, coefficients, decay, _decayed_leaves(decay, params))
        z = leaves.step_z(base_updates)
        if read_update is not None:
            z, base_state = _hold_on_cpu((z, base_state))
            base_updates = _read_again(read_update, base_state, base_updates)
        increments = leaves.step_y(z, base_updates)
        masters = jax.tree.map(_moved_master, z, state.y_master, increments)
        updates = jax.tree.map(_returned_update, z, params, increments, masters)
        mu_y_next = coefficients.mu_y_next
        return updates, GPAState(
            count=next_count(state.count),
            z=jax.tree.map(lambda old, new: new.astype(old.dtype), state.z, z),
            base_state=base_state,
            weight_sum=weight_sum,
            lr_max=lr_max,
            mu_y=state.mu_y
            if mu_y_next is None
            else jnp.asarray(mu_y_next, state.mu_y.dtype),
            y_master=masters,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _initial_state(
    params: Params, base_state: Any, mu_y: ScalarOrSchedule, precision: Precision
) -> GPAState:
    """Starts x, y and z at params: copies, so that both can be donated together."""
    dtype = scalar_dtype(params)
    count = jnp.zeros([], jnp.int32)

    def keeps_master(leaf: Any) -> bool:
        return is_half(leaf) if precision.master is None else precision.master

    def z_dtype(leaf: Any) -> Any:
        is_real = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        stated = precision.state_dtype if is_real else None
        return wide_dtype(leaf) if stated is None else stated

    def master(leaf: Any) -> jax.Array | None:
        if not keeps_master(leaf):
            return None
        return jnp.array(leaf, wide_dtype(leaf), copy=True)

    return GPAState(
        count=count,
        z=jax.tree.map(lambda p: jnp.array(p, z_dtype(p), copy=True), params),
        base_state=base_state,
        weight_sum=jnp.zeros([], dtype),
        lr_max=jnp.zeros([], dtype),
        mu_y=jnp.array(scalar_at(mu_y, count, dtype), dtype),
        y_master=False if _stands_for_params(params) else jax.tree.map(master, params),
    )


def _stands_for_params(params: Any) -> bool:
    """Whether init was called by `optax.tree_map_params` to see where params go.

    The `None`s of `y_master` do not pair with the leaves of a tree of, say, shardings;
    a leaf in the place of `y_master` makes Optax treat it as not params-like.
    """
    return type(params).__name__ == "_ParamsPlaceholder"


def _refuse_searches(name: str, base_state: Any) -> None:
    """Refuses a base whose state shows that it evaluates the loss along its step."""

    def is_search(node: Any) -> bool:
        return isinstance(node, _SEARCH_STATES)

    for node in jax.tree.leaves(base_state, is_leaf=is_search):
        if is_search(node):
            raise ValueError(
                f"{name} cannot wrap a base with {type(node).__name__}: it evaluates "
                "the loss from y, but its updates move z"
            )


def _wide_if_half(leaf: Any) -> Any:
    return widen(leaf) if is_half(leaf) else leaf


def _wide_y(_: jax.Array, leaf: jax.Array, master: jax.Array | None) -> jax.Array:
    return widen(leaf) if master is None else master


def _mu_y_pair(mu_y: ScalarOrSchedule, state: GPAState) -> tuple[Scalar, Scalar | None]:
    """The mu_y in force, and the next one where it may change."""
    if isinstance(mu_y, float):
        return mu_y, None
    return state.mu_y, scalar_at(mu_y, state.count, state.mu_y.dtype)


def _shrink(decay: Decay | None, state: GPAState) -> Scalar | None:
    """Learning rate times weight decay of this step."""
    if decay is None:
        return None
    dtype = state.mu_y.dtype
    return scalar_at(decay.learning_rate, state.count, dtype) * scalar_at(
        decay.weight_decay, state.count, dtype
    )


def _decayed_leaves(decay: Decay | None, params: Params | None) -> Any:
    """A tree like params: whether the wrapper decays the leaf."""
    if decay is None:
        return jax.tree.map(lambda _: False, params)
    mask = decay.mask(params) if callable(decay.mask) else decay.mask
    return jax.tree.broadcast(True if mask is None else mask, params)


def _hold_on_cpu(tree: Any) -> Any:
    """Keeps the CPU compiler from sharing work across this point.

    The CPU has no fusions with several results. Left alone, it would recognize that the
    new z and the new y need the same updates of the base and write them out into a
    buffer of their own. Read once more from the state, behind this point, they are
    fused into the increment of y instead. Accelerators make all results in one pass,
    where nothing should stand in between.
    """
    return jax.lax.platform_dependent(
        tree, cpu=jax.lax.optimization_barrier, default=lambda held: held
    )


def _read_again(
    read_update: Callable[[optax.OptState], Updates], base_state: Any, updates: Updates
) -> Updates:
    """The updates from the base's new state, absent where they were absent."""
    return jax.tree.map(
        lambda read, u: u if is_absent(u) else read, read_update(base_state), updates
    )


class _Leaves(NamedTuple):
    """What the step of every leaf needs, and its lift to the tree."""

    z: Params
    y: Params
    coefficients: Coefficients
    decay: Decay | None
    decayed: Any  # tree of bools

    def _rule(self, decayed: Any) -> DecayRule | None:
        return self.decay.rule if self.decay is not None and decayed else None

    def _scalars(self, leaf: jax.Array) -> Coefficients:
        return Coefficients(*(scalar_like(s, leaf) for s in self.coefficients))

    def step_z(self, updates: Updates) -> Params:
        """The new z; the old one where there is no update."""

        def leaf(z, y, u, decayed):
            if is_absent(u):
                return z
            shrink = self._scalars(z).shrink
            return step_z(z, y, u.astype(z.dtype), shrink, self._rule(decayed))

        return jax.tree.map(leaf, self.z, self.y, updates, self.decayed)

    def step_y(self, z_next: Params, updates: Updates) -> Updates:
        """The increments of y; absent where there is no update."""

        def leaf(z, z_next, y, u, decayed):
            if is_absent(u):
                return u
            return step_y(
                z, z_next, y, u.astype(z.dtype), self._scalars(z), self._rule(decayed)
            )

        return jax.tree.map(leaf, self.z, z_next, self.y, updates, self.decayed)


def _moved_master(_: jax.Array, master: jax.Array | None, increment: Any) -> Any:
    if master is None or is_absent(increment):
        return master
    return master + increment


def _returned_update(
    _: jax.Array, leaf: jax.Array, increment: Any, master: jax.Array | None
) -> Any:
    """What the user adds to the leaf."""
    if is_absent(increment):
        return increment
    leaf = jnp.asarray(leaf)
    return increment.astype(leaf.dtype) if master is None else step_onto(master, leaf)
