"""The strong Wolfe conditions by Optax's zoom search, on one line."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim_jax.quasi_newton.line_search.trial import (
    Evaluate,
    SearchResult,
    Trial,
    check_search_options,
    evaluate_on,
    no_trial,
    prepare,
)

# Optax's tolerance of the approximate decrease, relative to |F(0)|.
APPROXIMATE_DECREASE = 1e-6


class _Line(NamedTuple):
    """What Optax takes for parameters.

    The gradient by `step` is the slope. Entries of `aux` are added nothing to, and
    their gradient brings the `aux` of a trial out of Optax's loop.
    """

    step: jax.Array
    aux: Any


def strong_wolfe(
    evaluate: Evaluate,
    start: Trial,
    slope: Any,
    init_step: Any,
    *,
    c1: Any = 1e-4,
    c2: Any = 0.9,
    max_trials: Any = 20,
) -> SearchResult:
    r"""Finds a step that keeps the strong Wolfe conditions.

    .. math::

      F(\alpha) \le F(0) + c_1 \alpha F'(0), \qquad
      |F'(\alpha)| \le c_2 |F'(0)|.

    This is `optax.scale_by_zoom_linesearch` with its defaults; the initial guess is
    `init_step`. Near a minimum, where :math:`F(\alpha) \le F(0) + 10^{-6} |F(0)|`, the
    first condition may be replaced by :math:`F'(\alpha) \le (2 c_1 - 1) F'(0)`, which
    rounding spares for longer; this stands in for a slack.

    A trial with a value, a slope or an entry of `aux` that is not finite is rejected.
    Where `max_trials` is not enough, or the bracket is shorter than 1e-5, the step
    is the best one that keeps the first condition, if there is one, and accepted.

    Args:
      evaluate: step -> `Trial` with the slope. It is traced once and stands twice in
        the program: Optax has a branch for each of its two phases. It is not
        differentiated.
      start: the trial at step 0; its `aux` only gives the structure.
      slope: float (), the derivative F'(0) < 0. Without a negative slope and a finite
        value there is no trial.
      init_step: float (), the first step > 0.
      c1: fraction of the slope that the decrease must attain, in (0, 1).
      c2: fraction of the slope that may be left, in (c1, 1).
      max_trials: most evaluations, >= 1.

    Returns:
      A `SearchResult`. The loop carries four trees of the size of `aux`.

    Raises:
      ValueError: an option is out of range.

    References:
      Nocedal and Wright, Numerical Optimization, 2006, algorithms 3.5 and 3.6.
      Hager and Zhang, 2006, https://doi.org/10.1145/1132973.1132979, equation (23).
    """
    check_search_options(c1=c1, c2=c2, max_trials=max_trials)
    ray = prepare(start, slope, init_step, c1)
    dtype = ray.first_step.dtype
    # One trace for the two branches of Optax's step.
    traced = jax.jit(lambda step: evaluate_on(ray, evaluate, step))

    def value_and_gradient(line: _Line) -> tuple[jax.Array, _Line]:
        trial = traced(line.step)
        value = trial.value.astype(dtype)
        # Optax would take minus infinity for a decrease.
        value = jnp.where(jnp.isfinite(value), value, jnp.nan)
        return value, _Line(trial.slope, pack(trial.aux))

    @jax.custom_vjp
    def value_of(line: _Line) -> jax.Array:
        return value_and_gradient(line)[0]

    # The cotangent is 1: Optax differentiates this very function.
    value_of.defvjp(value_and_gradient, lambda gradient, _: (gradient,))

    tx = optax.scale_by_zoom_linesearch(
        max_trials,
        slope_rtol=c1,
        curv_rtol=c2,
        approx_dec_rtol=APPROXIMATE_DECREASE,
        initial_guess_strategy="keep",
    )

    def search() -> SearchResult:
        zeros = jax.tree.map(jnp.zeros_like, pack(ray.start.aux))
        origin = _Line(jnp.zeros((), dtype), zeros)
        state: Any = tx.init(origin)
        state = state._replace(learning_rate=ray.first_step)
        value = ray.start.value.astype(dtype)
        _, state = tx.update(
            _Line(jnp.ones((), dtype), zeros),
            state,
            origin,
            value=value,
            grad=_Line(ray.slope, zeros),
            value_fn=value_of,
        )
        step, gradient = state.learning_rate, state.grad
        # The errors in the state are those of the last trial, which need not be the
        # step that was taken in the end.
        falls = state.value - value - c1 * step * ray.slope <= 0.0
        nearly_falls = (gradient.step <= (2.0 * c1 - 1.0) * ray.slope) & (
            state.value <= value + APPROXIMATE_DECREASE * jnp.abs(value)
        )
        falls |= nearly_falls | (state.info.decrease_error <= 0.0)
        moved = step > 0.0
        found = Trial(
            state.value.astype(ray.start.value.dtype),
            gradient.step,
            unpack(gradient.aux, ray.start.aux),
        )
        return SearchResult(
            step=step,
            trial=jax.tree.map(lambda a, b: jnp.where(moved, a, b), found, ray.start),
            trials=state.info.num_linesearch_steps.astype(jnp.int32),
            accepted=moved & falls & jnp.isfinite(state.value),
        )

    return jax.lax.cond(ray.usable, search, lambda: no_trial(ray))


def pack(aux: Any) -> list[Any]:
    """Writes leaves of any dtype as floating-point arrays without loss.

    Booleans and integers become digits of 16 bits, which float32 holds exactly, along a
    new last axis; complex numbers their two parts; typed keys the bits they are.
    """
    return [_pack_leaf(leaf) for leaf in jax.tree.leaves(aux)]


def unpack(packed: list[Any], like: Any) -> Any:
    """Undoes `pack`; `like` gives structure and dtypes."""
    leaves, structure = jax.tree.flatten(like)
    pairs = zip(packed, leaves, strict=True)
    return structure.unflatten([_unpack_leaf(new, leaf) for new, leaf in pairs])


def _pack_leaf(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jnp.stack([leaf.real, leaf.imag], axis=-1)
    if jnp.issubdtype(leaf.dtype, jnp.bool_):
        return leaf[..., None].astype(jnp.float32)
    bits = jnp.iinfo(leaf.dtype).bits
    digits = leaf[..., None] >> jnp.arange(0, bits, 16, leaf.dtype)
    return (digits & _low_bits(leaf.dtype)).astype(jnp.float32)


def _unpack_leaf(packed: jax.Array, like: jax.Array) -> jax.Array:
    dtype = like.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        data = _unpack_leaf(packed, jax.random.key_data(like))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    if jnp.issubdtype(dtype, jnp.floating):
        return packed
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jax.lax.complex(packed[..., 0], packed[..., 1])
    if jnp.issubdtype(dtype, jnp.bool_):
        return packed[..., 0] != 0.0
    bits = jnp.iinfo(dtype).bits
    digits = packed.astype(jnp.int32).astype(dtype)
    return jnp.sum(digits << jnp.arange(0, bits, 16, dtype), axis=-1, dtype=dtype)


def _low_bits(dtype: Any) -> jax.Array:
    bits = min(jnp.iinfo(dtype).bits, 16)
    mask = (1 << bits) - 1
    return jnp.asarray(mask if jnp.iinfo(dtype).max >= mask else -1, dtype)
