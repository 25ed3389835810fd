"""The tree of parameters, the gradients and the runs that the checks share.

Gradients are given in advance (open loop), so that two ways of computing the same
update stay comparable. What one check has compiled the others use again.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS = 4
SHAPES = {"dense": {"bias": (4,), "kernel": (8, 4)}, "scale": ()}


class Point(NamedTuple):
    """Parameters and state after some step, and the update that led there."""

    params: Any
    state: Any
    updates: Any


def _draw(seed, dtype, leading=()):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=(*leading, *shape)), dtype),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def make_params(dtype=jnp.float32, seed=0):
    """Fresh arrays at every call: some checks donate them."""
    return _draw(seed, dtype)


def make_gradients(dtype=jnp.float32, seed=1):
    """Gradients of `STEPS` steps, stacked along axis 0."""
    return _draw(seed, dtype, leading=(STEPS,))


def at(stacked, index):
    """One entry of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def stepper(row, tx):
    """The step of a user: `(params, state, grads) -> Point`."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params, **row.extra_args)
        return Point(optax.apply_updates(params, updates), state, updates)

    return step


def runner(row, tx):
    """`init` and a scan over the steps as one function of params and gradients."""
    step = stepper(row, tx)

    def run(params, gradients):
        def body(carry, grads):
            point = step(*carry, grads)
            return point[:2], point.updates

        carry, updates = jax.lax.scan(body, (params, tx.init(params)), gradients)
        return Point(*carry, updates)

    return run


def counted(function):
    """The function and a list that grows by one at every trace."""
    traces = []

    @functools.wraps(function)
    def wrapper(*args):
        traces.append(None)
        return function(*args)

    return wrapper, traces


@functools.cache
def compiled_step(row):
    return jax.jit(stepper(row, row.make()))


@functools.cache
def reference(row, dtype=jnp.float32):
    """The points of the plain run, the initial one first: one device, jitted."""
    params = make_params(dtype)
    return walk(compiled_step(row), params, row.make().init(params), dtype)


def walk(step, params, state, dtype=jnp.float32, steps=STEPS):
    """Applies `step` to the gradients one by one."""
    points = [Point(params, state, None)]
    gradients = make_gradients(dtype)
    for index in range(steps):
        points.append(step(*points[-1][:2], at(gradients, index)))
    return points


def kernel_only(tree):
    """The tree with its one matrix alone."""
    return {"dense": {"kernel": tree["dense"]["kernel"]}}


def walk_eagerly(row, tx, steps=2, select=lambda tree: tree):
    """The points of a run that is not jitted, on a part or a dressing of the tree.

    On trees this small it costs far less than a compilation.
    """
    step, gradients = stepper(row, tx), make_gradients()
    params = select(make_params())
    points = [Point(params, tx.init(params), None)]
    for index in range(steps):
        points.append(step(*points[-1][:2], select(at(gradients, index))))
    return points


@functools.cache
def kernel_reference(row):
    """The last point of a run on the tree that has the matrix alone."""
    return walk_eagerly(row, row.make(), select=kernel_only)[-1]


def params_like(state, params):
    """Pairs (state leaf, params leaf) whose paths end alike and whose shapes agree."""
    leaves = jax.tree.leaves_with_path(params)
    pairs = []
    for path, entry in jax.tree.leaves_with_path(state):
        for params_path, leaf in leaves:
            if path[-len(params_path) :] == params_path and entry.shape == leaf.shape:
                pairs.append((entry, leaf))
    return pairs


# What rounding decides: residuals and stops of solvers, and signs of eigenvectors.
NOISE = {"max_residual", "iterations", "eigenvectors"}


def assert_close(actual, expected, rtol):
    """Equal up to `rtol` times the largest entry of each leaf, but for pure noise."""

    def check(path, left, right):
        if NOISE & {getattr(key, "name", None) for key in path}:
            return
        left, right = (np.asarray(leaf, np.float64) for leaf in (left, right))
        atol = rtol * np.max(np.abs(right), initial=0.0)
        np.testing.assert_allclose(
            left, right, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path)
        )

    jax.tree.map_with_path(check, actual, expected)


def assert_identical(actual, expected):
    """The same tree, dtypes and bits."""

    def check(path, left, right):
        assert left.dtype == right.dtype, jax.tree_util.keystr(path)
        np.testing.assert_array_equal(
            np.asarray(left), np.asarray(right), err_msg=jax.tree_util.keystr(path)
        )

    jax.tree.map_with_path(check, actual, expected)


def assert_finite(tree):
    for path, leaf in jax.tree.leaves_with_path(tree):
        assert np.all(np.isfinite(np.asarray(leaf, np.float64))), (
            f"{jax.tree_util.keystr(path)} is not finite: {leaf}"
        )


def kinds(tree):
    """Shape and dtype of every leaf, the tree's structure kept."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
