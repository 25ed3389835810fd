import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim_jax.quasi_newton.extra_args import arguments_taken, with_filtered_args
from optim_jax.quasi_newton.multibatch import scale_by_multibatch_lbfgs

TARGET = jnp.asarray([1.0, -2.0, 0.5])
SEARCHES = {
    "backtracking": lambda: optax.scale_by_backtracking_linesearch(30),
    "zoom": lambda: optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one"),
}


def loss(x, batch):
    return jnp.sum((x - batch) ** 2) + 0.5 * jnp.sum(x**4)


def minimise(search, steps=12):
    """Multi-batch L-BFGS in one chain with a search; returns the last gradient."""
    tx = optax.chain(scale_by_multibatch_lbfgs(), optax.scale(-1.0), search)
    x = jnp.zeros(3)
    state = tx.init(x)

    @jax.jit
    def step(x, state):
        value, grad = jax.value_and_grad(loss)(x, TARGET)
        updates, state = tx.update(
            grad,
            state,
            x,
            value=value,
            grad=grad,
            value_fn=loss,
            batch=TARGET,
            overlap_grad_new=grad,
            overlap_grad=grad,
        )
        return x + updates, state

    for _ in range(steps):
        x, state = step(x, state)
    return jax.grad(loss)(x, TARGET)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_of_optax_shares_a_chain_only_when_filtered(name, x64):
    search = SEARCHES[name]()
    with pytest.raises(TypeError, match="Unexpected keyword.*overlap_grad"):
        minimise(search, steps=1)
    names = ("value", "grad", "value_fn", "batch")
    gradient = minimise(with_filtered_args(search, names))
    assert float(jnp.abs(gradient).max()) < 1e-5


def recorder():
    """A transformation that writes the names of its extra arguments down."""
    seen = []

    def update(updates, state, params=None, **extra_args):
        seen.append((sorted(extra_args), params))
        return updates, state

    init = functools.partial(optax.tree.full_like, fill_value=1.0)
    return optax.GradientTransformationExtraArgs(init, update), seen


@pytest.mark.parametrize("names", [("a", "b"), ["b", "a"], {"a", "b"}])
def test_only_named_arguments_pass(names):
    inner, seen = recorder()
    tx = with_filtered_args(inner, names)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    state = tx.init(jnp.zeros(2))
    np.testing.assert_array_equal(state, 1.0)
    updates, state = tx.update(jnp.ones(2), state, "params", a=1, c=3)
    np.testing.assert_array_equal(updates, 1.0)
    tx.update(jnp.ones(2), state, b=1, a=2, d=4)
    assert seen == [(["a"], "params"), (["a", "b"], None)]


def test_a_transformation_without_extra_arguments():
    plain, filtered = optax.scale(2.0), with_filtered_args(optax.scale(2.0), ())
    state = filtered.init(jnp.zeros(2))
    assert jax.tree.structure(state) == jax.tree.structure(plain.init(jnp.zeros(2)))
    updates, _ = filtered.update(jnp.ones(2), state, anything=5)
    np.testing.assert_array_equal(updates, 2.0)


@pytest.mark.parametrize("names", ["value", ("value", 1)])
def test_names_must_be_several_strings(names):
    with pytest.raises(ValueError, match="names must be a tuple, list or set of arg"):
        with_filtered_args(optax.identity(), names)


class Model:
    def loss(self, params, x, y=0.0):
        return params + x + y


GIVEN = {"x": 1, "y": 2, "z": 3}


@pytest.mark.parametrize(
    ("function", "taken"),
    [
        (lambda p: 0.0, {}),
        (lambda p, x: 0.0, {"x": 1}),
        (lambda p, x, w=5: 0.0, {"x": 1}),
        (lambda p, *, y=0, z: 0.0, {"y": 2, "z": 3}),
        (lambda p, **rest: 0.0, GIVEN),
        (lambda p, x, **rest: 0.0, GIVEN),
        (lambda *args: 0.0, {}),
        (lambda x, y: 0.0, {"y": 2}),  # x is the parameters here
        (Model().loss, {"x": 1, "y": 2}),
        (functools.partial(lambda data, p, x: 0.0, None), {"x": 1}),
        (jax.jit(lambda p, z: 0.0), {"z": 3}),
        (max, {}),
    ],
)
def test_what_a_function_takes(function, taken):
    assert arguments_taken(function, GIVEN) == taken


def test_what_is_missing_is_named():
    message = "value_fn needs the arguments a, b, but the update was given x, y, z"
    with pytest.raises(TypeError, match=message):
        arguments_taken(lambda p, a, x, *, b: 0.0, GIVEN)
    with pytest.raises(TypeError, match="given none"):
        arguments_taken(lambda p, a: 0.0, {})
