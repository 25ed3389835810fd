import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from optim_jax.quasi_newton.progressive_batching import pb_lbfgs
from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    FEATURES,
    SAMPLES,
    compiled,
    draw_rows,
    full_gradient,
    losses,
    make_solver,
)

OPTIONS = {"batch_size": 64, "memory_size": 4, "theta": 9.0, "overlap": "full"}


def test_on_the_same_batch_it_takes_the_steps_of_the_solver(x64):
    data = draw_rows(dtype=np.float64)
    solver = make_solver(losses, data, **OPTIONS)
    state = solver.init(jnp.zeros(FEATURES), jax.random.key(0))
    tx = pb_lbfgs(losses, None, memory_size=4, theta=9.0, max_batch=64).as_optax()
    update = compiled(tx.update)
    params, ours = state.params, tx.init(state.params)
    for k in range(4):
        order = np.random.default_rng(k).permutation(SAMPLES)
        batch = tuple(leaf[order[:64]] for leaf in data)
        state, info = solver.step(state, perm=order)
        assert int(info.b) == 64  # so theta is chosen
        grad = full_gradient(losses, params, batch)
        updates, ours = update(grad, ours, params, batch=batch)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, state.params, rtol=0, atol=1e-13)
        found = ours.info
        for name in (
            "k",
            "b",
            "backtracks",
            "pair",
            "memory_count",
            "reset",
            "fn_evals",
        ):
            assert getattr(found, name) == getattr(info, name), name
        for name in ("ratio", "r", "r_U", "alpha0", "alpha", "value", "grad_norm"):
            expected = pytest.approx(float(getattr(info, name)), rel=1e-11)
            assert float(getattr(found, name)) == expected, name
    assert int(ours.memory.count) == 4
    np.testing.assert_allclose(ours.memory.sy, state.memory.sy, rtol=1e-10, atol=1e-13)


def digit_losses(params, batch):
    pixels, digit = batch
    hidden = jnp.tanh(pixels @ params["first"])
    logits = hidden @ params["second"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, digit)


def test_a_network_on_batches_of_digits():
    pixels, digit = load_digits(return_X_y=True)
    pixels, digit = (pixels / 16).astype(np.float32), digit.astype(np.int32)
    keys = jax.random.split(jax.random.key(0))
    params = {
        "first": 0.1 * jax.random.normal(keys[0], (64, 16)),
        "second": 0.1 * jax.random.normal(keys[1], (16, 10)),
    }
    tx = pb_lbfgs(digit_losses, None, damping=True, theta=0.5).as_optax()
    state, traces = tx.init(params), []

    @compiled
    def step(params, state, batch):
        traces.append(1)
        grad = full_gradient(digit_losses, params, batch)
        updates, state = tx.update(grad, state, params, batch=batch)
        return optax.apply_updates(params, updates), state

    whole = compiled(lambda params: jnp.mean(digit_losses(params, (pixels, digit))))
    before, wanted = float(whole(params)), []
    rng = np.random.default_rng(0)
    for _ in range(40):
        rows = rng.choice(len(digit), size=200, replace=False)
        params, state = step(params, state, (pixels[rows], digit[rows]))
        wanted.append(int(state.info.b))
        assert int(state.info.b_tested) == 200
    assert len(traces) == 1 and step._cache_size() == 1
    assert before == pytest.approx(np.log(10), rel=0.02)
    assert float(whole(params)) < 0.35 * before
    # More samples are asked for, but never more than the cap allows at once.
    assert max(wanted) == 400 and min(wanted) == 200
    ratio = float(state.info.ratio)
    assert wanted[-1] == np.clip(np.ceil(200 * min(ratio, 2.0)), 200, 400)
    assert int(state.info.k) == 39 and int(state.counters.k) == 40
    # A gradient given, one over the groups, and one that closes the pair.
    assert int(state.info.grad_evals) == 40 * 3 * 200


def tiny(loss=losses, **options):
    quick = {"test": "none", "init_step": "unit", "line_search": "fixed"}
    return pb_lbfgs(loss, None, memory_size=2, **{**quick, **options}).as_optax()


def test_a_batch_may_be_of_numpy():
    batch, w = draw_rows(samples=16), jnp.zeros(FEATURES)
    grad = full_gradient(losses, w, batch)
    tx = tiny()
    # Not an argument, so that it is not an array of JAX under jit.
    update = compiled(lambda grad, state: tx.update(grad, state, w, batch=batch))
    updates, state = update(grad, tx.init(w))
    np.testing.assert_allclose(updates, -grad, rtol=1e-6)
    assert float(state.info.alpha) == 1.0


@pytest.mark.parametrize("given", [True, False])
def test_a_known_value_saves_an_evaluation(given):
    batch, w = draw_rows(samples=16), jnp.ones(FEATURES)
    tx = tiny(line_search="armijo")
    grad = full_gradient(losses, w, batch)
    options = {"value": jnp.float32(123.0)} if given else {}
    _, state = compiled(tx.update)(grad, tx.init(w), w, batch=batch, **options)
    expected = 123.0 if given else float(losses(w, batch).mean())
    assert float(state.info.value) == pytest.approx(expected, rel=1e-6)


def test_the_signature_of_an_update():
    tx = tiny()
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    names = list(inspect.signature(tx.update).parameters)
    assert names[:5] == ["updates", "state", "params", "batch", "value"]


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {}, "needs the batch"),
        ({}, {"batch": draw_rows(samples=16), "params": None}, "params"),
        ({}, {"batch": (np.ones((3, 5)), np.ones(2))}, "leading axes"),
        ({}, {"batch": draw_rows(samples=1)}, "at least 2 samples in a batch, got 1"),
        (
            {"loss": lambda w, b: losses(w, b).mean()},
            {"batch": draw_rows(samples=16)},
            "return one loss per sample",
        ),
    ],
)
def test_what_an_update_needs_is_asked_for(options, arguments, message):
    tx = tiny(**options)
    w = jnp.zeros(FEATURES)
    arguments = {"params": w, **arguments}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(tx.update, w, tx.init(w), **arguments))


def test_weights_of_data_do_not_apply_to_batches():
    solver = pb_lbfgs(losses, draw_rows(), weights=np.ones(SAMPLES))
    with pytest.raises(ValueError, match="weights"):
        solver.as_optax()
