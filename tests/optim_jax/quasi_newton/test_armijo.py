import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim_jax.quasi_newton.armijo import ArmijoState, scale_by_armijo
from optim_jax.quasi_newton.multibatch import scale_by_multibatch_lbfgs

SCALES = {"a": jnp.asarray([1.0, 3.0]), "b": {"c": jnp.asarray(8.0)}}
PARAMS = {"a": jnp.asarray([2.0, -1.0]), "b": {"c": jnp.asarray(0.5)}}


def bowl(params):
    terms = jax.tree.map(lambda scale, x: jnp.sum(scale * x**2), SCALES, params)
    return 0.5 * sum(jax.tree.leaves(terms))


def rosenbrock(x):
    return 100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2


def descend(params=PARAMS, function=bowl, multiple=-1.0, **options):
    """One update along a multiple of the gradient; returns updates and state."""
    tx = scale_by_armijo(**options)
    value, grad = jax.value_and_grad(function)(params)
    step = jax.tree.map(lambda g: multiple * g, grad)
    return tx.update(
        step, tx.init(params), params, value=value, grad=grad, value_fn=function
    )


@pytest.mark.parametrize("length", [0.1, 1.0, 50.0])
def test_the_step_on_a_quadratic(length, x64):
    # F(w - a L g) = F - a L |g|^2 + (a L)^2 g'Dg / 2 keeps the condition up to
    # a = 2 (1 - c1) |g|^2 / (L g'Dg).
    updates, state = descend(multiple=-length)
    grad = jax.grad(bowl)(PARAMS)
    square, curved = optax.tree.vdot(grad, grad), 2 * bowl(grad)
    bound = 2 * (1 - 1e-4) * float(square / curved) / length
    halvings = max(0, int(np.ceil(-np.log2(bound))))
    assert float(state.step) == 0.5**halvings <= bound
    assert state.trials == halvings + 1 and state.accepted
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, -(0.5**halvings) * length * g),
        updates,
        grad,
    )


def test_it_is_the_search_of_optax_with_the_same_constants(x64):
    search = optax.scale_by_backtracking_linesearch(
        40, decrease_factor=0.5, increase_factor=np.inf
    )
    ours = optax.chain(optax.scale(-1.0), scale_by_armijo())
    theirs = optax.chain(optax.scale(-1.0), search)
    path = []
    for tx in (ours, theirs):

        @jax.jit
        def step(x, state, tx=tx):
            value, grad = jax.value_and_grad(rosenbrock)(x)
            updates, state = tx.update(
                grad, state, x, value=value, grad=grad, value_fn=rosenbrock
            )
            return x + updates, state

        x = jnp.asarray([-1.2, 1.0])
        state = tx.init(x)
        points = []
        for _ in range(25):
            x, state = step(x, state)
            points.append(np.asarray(x))
        path.append(points)
    np.testing.assert_allclose(*path, rtol=1e-9)


@pytest.mark.parametrize(
    "directions", [optax.scale_by_lbfgs, scale_by_multibatch_lbfgs]
)
def test_lbfgs_in_a_chain(directions, x64):
    tx = optax.chain(directions(), optax.scale(-1.0), scale_by_armijo())
    traces = []

    def objective(x):
        traces.append(None)
        return rosenbrock(x)

    @jax.jit
    def step(x, state):
        value, grad = jax.value_and_grad(rosenbrock)(x)
        updates, state = tx.update(
            grad, state, x, value=value, grad=grad, value_fn=objective
        )
        return optax.apply_updates(x, updates), state, value

    x = jnp.asarray([-1.2, 1.0])
    state, values = tx.init(x), []
    for _ in range(80):
        x, state, value = step(x, state)
        values.append(float(value))
    assert len(traces) == 1
    assert np.all(np.diff(values) <= 1e-16)
    np.testing.assert_allclose(x, 1.0, atol=1e-6)


def test_the_state_has_the_same_types_from_init_on(x64):
    tx = scale_by_armijo()
    for dtype, wide in (("bfloat16", "float32"), ("float64", "float64")):
        params = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), PARAMS)
        _, state = descend(params, lambda p: bowl(p).astype(p["a"].dtype))
        for old, new in zip(tx.init(params), state, strict=True):
            assert (old.dtype, old.shape, old.weak_type) == (new.dtype, (), False)
        assert state.step.dtype == wide
    assert isinstance(state, ArmijoState)


def test_updates_keep_the_dtype_of_each_leaf():
    params = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(2)}

    def function(p):
        return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in p.values())

    updates, state = descend(params, function)
    assert (
        updates["half"].dtype == jnp.bfloat16 and updates["single"].dtype == "float32"
    )
    assert float(state.step) == 0.5  # the minimum: w - g / 2 = 0
    np.testing.assert_array_equal(updates["half"].astype(jnp.float32), -1.0)


@pytest.mark.parametrize(
    ("multiple", "function"),
    [
        (1.0, bowl),  # a forgotten optax.scale(-1.0)
        (0.0, bowl),
        (-np.nan, bowl),
        (-np.inf, bowl),
        (-1.0, lambda p: bowl(p) + jnp.nan),
        (-1.0, lambda p: bowl(p) - jnp.inf),
    ],
)
def test_updates_are_zero_where_no_step_can_be_trusted(multiple, function):
    updates, state = descend(function=function, multiple=multiple)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_array_equal(leaf, 0.0)
    assert not state.accepted and state.trials == 0 and state.step == 0.0


def test_updates_are_zero_after_the_last_trial():
    # The gradient belongs to another function: no trial decreases.
    tx = scale_by_armijo(max_steps=4)
    grad = jax.grad(bowl)(PARAMS)
    updates, state = tx.update(
        jax.tree.map(jnp.negative, grad),
        tx.init(PARAMS),
        PARAMS,
        value=bowl(PARAMS),
        grad=grad,
        value_fn=lambda p: 100.0 - bowl(p),
    )
    assert not state.accepted and state.trials == 4 and state.step == 0.0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))


def test_trials_beyond_the_domain_are_rejected():
    def barrier(p):
        return -jnp.log(0.1 - p["x"]) + 30.0 * p["x"] ** 2

    updates, state = descend({"x": jnp.asarray(-1.0)}, barrier)
    assert state.accepted and state.trials > 1
    assert -1.0 < -1.0 + float(updates["x"]) < 0.1


@pytest.mark.parametrize("init_step", [0.3, np.float32(0.3), jnp.float32(0.3)])
def test_the_first_step_may_be_given(init_step):
    tx, (value, grad) = scale_by_armijo(), jax.value_and_grad(bowl)(PARAMS)
    _, state = tx.update(
        jax.tree.map(lambda g: -0.01 * g, grad),
        tx.init(PARAMS),
        PARAMS,
        value=value,
        grad=grad,
        value_fn=bowl,
        init_step=init_step,
    )
    assert state.step == np.float32(0.3) and state.trials == 1


@pytest.mark.parametrize("init_step", [0.0, -1.0, np.nan])
def test_a_first_step_that_is_not_positive(init_step):
    tx, (value, grad) = scale_by_armijo(), jax.value_and_grad(bowl)(PARAMS)
    down = jax.tree.map(jnp.negative, grad)
    update = functools.partial(
        tx.update, down, tx.init(PARAMS), PARAMS, value=value, grad=grad, value_fn=bowl
    )
    with pytest.raises(ValueError, match=f"init_step must be > 0, got {init_step}"):
        update(init_step=init_step)
    _, state = jax.jit(lambda step: update(init_step=step))(init_step)
    assert not state.accepted and state.step == 0.0


def test_value_fn_is_given_the_arguments_it_takes():
    def loss(p, batch, *, weight=1.0):
        return weight * jnp.sum((p - batch) ** 2)

    tx, p, batch = scale_by_armijo(), jnp.zeros(2), jnp.ones(2)
    value, grad = jax.value_and_grad(loss)(p, batch, weight=2.0)
    update = functools.partial(tx.update, -grad, tx.init(p), p, value=value, grad=grad)
    updates, state = update(
        value_fn=loss, batch=batch, weight=2.0, overlap_grad=None, lr_scale=3.0
    )
    assert state.step == 0.25
    np.testing.assert_array_equal(updates, 1.0)
    with pytest.raises(TypeError, match="value_fn needs the arguments batch, but .*lr"):
        update(value_fn=loss, lr_scale=3.0)


@pytest.mark.parametrize(
    ("value_fn", "message"),
    [
        (
            lambda p: (bowl(p), {"logits": 1}),
            "return the value alone, got a tuple of 2",
        ),
        (
            lambda p: jnp.ones(3),
            r"one real floating-point number, got float32 of shape",
        ),
        (lambda p: jnp.ones((1,)), r"of shape \(1,\)"),
        (lambda p: jnp.int32(1), "got int32 of shape"),
        (lambda p: jnp.complex64(1), "got complex64 of shape"),
        (lambda p: None, "got NoneType"),
        (lambda p: {"loss": bowl(p)}, "got dict"),
    ],
)
def test_other_results_of_value_fn_are_refused(value_fn, message):
    tx, grad = scale_by_armijo(), jax.grad(bowl)(PARAMS)
    with pytest.raises(TypeError, match=message):
        tx.update(
            jax.tree.map(jnp.negative, grad),
            tx.init(PARAMS),
            PARAMS,
            value=bowl(PARAMS),
            grad=grad,
            value_fn=value_fn,
        )


def test_leaves_without_an_update_stay():
    params = {"x": jnp.asarray(3.0), "frozen": jnp.asarray(2.0), "none": None}

    def function(p):
        return (p["frozen"] * p["x"]) ** 2

    tx = scale_by_armijo()
    grad = {"x": jnp.asarray(24.0), "frozen": None, "none": None}
    updates, state = tx.update(
        jax.tree.map(jnp.negative, grad),
        tx.init(params),
        params,
        value=function(params),
        grad=grad,
        value_fn=function,
    )
    assert updates["frozen"] is None is updates["none"]
    # F = 4 x^2 from 3 along -24: a <= 2 |g|^2 / (8 g^2) = 1/4.
    assert state.step == 0.125 and updates["x"] == -3.0


def test_missing_arguments_are_named():
    tx, params = scale_by_armijo(), PARAMS
    given = {"value": 1.0, "grad": params, "value_fn": bowl}
    with pytest.raises(ValueError, match="needs the current parameters"):
        tx.update(params, tx.init(params), **given)
    for name in given:
        rest = {key: value for key, value in given.items() if key != name}
        with pytest.raises(ValueError, match=f"needs the extra argument {name}: call"):
            tx.update(params, tx.init(params), params, **rest)


def test_a_gradient_of_another_structure_is_an_error():
    tx = scale_by_armijo()
    with pytest.raises(ValueError, match="grad must have the structure of the updates"):
        tx.update(
            PARAMS,
            tx.init(PARAMS),
            PARAMS,
            value=1.0,
            grad={"a": PARAMS["a"]},
            value_fn=bowl,
        )


def test_hyperparameters_may_be_injected():
    tx = optax.inject_hyperparams(scale_by_armijo)(c1=0.3, factor=0.25, max_steps=7)
    value, grad = jax.value_and_grad(bowl)(PARAMS)

    @jax.jit
    def step(state):
        return tx.update(
            jax.tree.map(jnp.negative, grad),
            state,
            PARAMS,
            value=value,
            grad=grad,
            value_fn=bowl,
        )

    state = tx.init(PARAMS)
    _, after = step(state)
    _, plain = descend(c1=0.3, factor=0.25)
    assert after.inner_state.step == plain.step == 0.25
    state.hyperparams["max_steps"] = jnp.ones_like(state.hyperparams["max_steps"])
    assert step(state)[1].inner_state.trials == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c1": 0.0}, r"c1 must be in \(0, 1\), got 0.0"),
        ({"c1": 1.0}, r"c1 must be in \(0, 1\), got 1.0"),
        ({"factor": 1.0}, r"factor must be in \(0, 1\), got 1.0"),
        ({"factor": lambda count: 0.5}, "factor must be a number, got the schedule"),
        ({"max_steps": 0}, "max_steps must be an integer >= 1, got 0.0"),
        ({"max_steps": 1.5}, "max_steps must be an integer >= 1, got 1.5"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        scale_by_armijo(**options)


def test_leaves_that_have_no_real_gradient_are_named():
    tx = scale_by_armijo()
    with pytest.raises(ValueError, match="leaf 'table/rows' is int32"):
        tx.init({"table": {"rows": jnp.arange(3)}})
    with pytest.raises(TypeError, match="leaf 'phase' is complex64"):
        tx.init({"phase": jnp.ones(2, jnp.complex64)})
