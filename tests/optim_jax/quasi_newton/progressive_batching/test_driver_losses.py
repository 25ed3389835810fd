import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from optim_jax.quasi_newton.progressive_batching import pb_lbfgs
from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    FEATURES,
    SAMPLES,
    draw_rows,
    losses,
    make_solver,
)

KEY = 0
FULL = {"batch_size": SAMPLES, "memory_size": 4, "max_iterations": 9}


def first_state(loss, data, params, **options):
    return make_solver(loss, data, **options).init(params, jax.random.key(KEY))


def close(found, expected, rtol=1e-12):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-13)


# A loss of several leaves with auxiliary outputs.


def tree_losses(params, batch):
    x, y = batch["x"], batch["y"]
    margins = y * (x @ params["layer"]["kernel"] + params["bias"])
    margins = margins * jnp.exp(params["layer"]["scale"])
    return jax.nn.softplus(-margins), {"right": margins > 0, "square": margins**2}


def test_trees_auxiliary_outputs_and_the_l2_term():
    x, y = draw_rows()
    params = {
        "layer": {"kernel": jnp.zeros(FEATURES), "scale": 0.1},
        "bias": np.float32(0),
    }
    solver = make_solver(
        tree_losses,
        {"x": x, "y": y},
        batch_size=64,
        memory_size=4,
        has_aux=True,
        l2=0.01,
        max_iterations=12,
    )
    result = solver.run(params, jax.random.key(KEY))
    found = result.params
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for leaf in jax.tree.leaves(found):
        assert leaf.dtype == jnp.float32
    assert result.history.b[-1] == SAMPLES
    values, aux = tree_losses(found, {"x": x, "y": y})
    square = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(found))
    assert result.value == pytest.approx(float(values.mean() + 0.005 * square), 1e-5)
    # The auxiliary outputs are the means at the point that was accepted.
    assert float(result.state.aux["right"]) == pytest.approx(float(aux["right"].mean()))
    expected = float(aux["square"].mean())
    assert float(result.state.aux["square"]) == pytest.approx(expected, rel=1e-5)
    assert result.value < 0.6 * float(np.log(2))
    assert result.history.compilations[-1] == 1


@pytest.mark.parametrize("size", [64, SAMPLES])
def test_the_l2_term_may_as_well_be_in_the_loss(x64, size):
    data = draw_rows(dtype=np.float64)
    w = jnp.linspace(-1, 1, FEATURES)

    def plain(w, batch):
        return losses(w, batch) - 0.005 * jnp.sum(w * w)

    options = {"batch_size": size, "memory_size": 2}
    inside = first_state(losses, data, w, **options).evaluation
    outside = first_state(plain, data, w, l2=0.01, **options).evaluation
    jax.tree.map(close, outside, inside)


def test_whole_weights_are_repeated_rows(x64):
    rng = np.random.default_rng(8)
    x, y = draw_rows(samples=SAMPLES, dtype=np.float64)
    counts = rng.multinomial(SAMPLES, rng.dirichlet(np.ones(120)))
    rows = slice(0, 120)
    repeated = tuple(np.repeat(leaf[rows], counts, axis=0) for leaf in (x, y))
    weighted = make_solver(
        losses, (x[rows], y[rows]), weights=counts, **{**FULL, "batch_size": 120}
    )
    plain = make_solver(losses, repeated, **FULL)
    found, expected = (
        solver.run(jnp.zeros(FEATURES), jax.random.key(KEY))
        for solver in (weighted, plain)
    )
    close(found.history.value, expected.history.value)
    close(found.params, expected.params, rtol=1e-9)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            np.ones(199),
            r"weights must have shape \(200,\), one per sample, got \(199,\)",
        ),
        (np.ones((200, 1)), r"got \(200, 1\)"),
        (-np.ones(200), "weights must be finite, >= 0 and not all zero"),
        (np.zeros(200), "not all zero"),
        (np.full(200, np.nan), "finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        pb_lbfgs(losses, draw_rows(), weights=weights)


def test_weights_need_arrays():
    with pytest.raises(ValueError, match="weights need arrays as data"):
        pb_lbfgs(losses, None, weights=np.ones(3))


# What is not a loss.


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (lambda w, b: losses(w, b).mean(), {}, "return one loss per sample"),
        (lambda w, b: losses(w, b)[:1], {}, "return one loss per sample"),
        (lambda w, b: b[0] * w, {}, "return one loss per sample"),
        (
            lambda w, b: (losses(w, b), losses(w, b)),
            {},
            "return one loss per sample.*has_aux=True",
        ),
        (losses, {"has_aux": True}, r"must return \(losses, aux\)"),
        (
            lambda w, b: (losses(w, b), {"mean": losses(w, b).mean()}),
            {"has_aux": True},
            "auxiliary outputs must hold one entry per sample",
        ),
        (
            lambda w, b: (b[1] > 0).astype(jnp.int32),
            {},
            "return one loss per sample, real floating-point",
        ),
    ],
)
def test_what_is_no_loss_per_sample_is_refused(loss, options, message):
    solver = make_solver(loss, draw_rows(), **options)
    with pytest.raises(ValueError, match=message):
        solver.init(jnp.zeros(FEATURES), jax.random.key(KEY))


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (jnp.zeros(FEATURES, jnp.int32), ValueError, "int32"),
        (jnp.zeros(FEATURES, jnp.complex64), TypeError, "complex"),
    ],
)
def test_parameters_that_are_not_real_are_refused(params, error, message):
    solver = make_solver(losses, draw_rows())
    with pytest.raises(error, match=message):
        solver.init(params, jax.random.key(KEY))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((), "at least one array"),
        ((np.zeros((0, 5)), np.zeros(0)), "at least 2 samples, got 0"),
        ((np.zeros((9, 5)), np.zeros(8)), "leading axes of data must agree"),
    ],
)
def test_data_that_hold_no_samples_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        pb_lbfgs(losses, data)


def test_without_data_there_is_no_first_state():
    with pytest.raises(ValueError, match=r"data is None: only as_optax\(\)"):
        pb_lbfgs(losses, None).init(jnp.zeros(FEATURES), jax.random.key(KEY))


@pytest.mark.parametrize(
    "perm",
    [
        np.arange(SAMPLES - 1),
        np.zeros(SAMPLES, int),
        np.arange(SAMPLES)[:, None],
        np.arange(1, SAMPLES + 1),
    ],
)
def test_what_is_no_permutation_is_refused(perm):
    solver = make_solver(losses, draw_rows(), batch_size=64)
    state = solver.init(jnp.zeros(FEATURES), jax.random.key(KEY))
    with pytest.raises(ValueError, match=r"perm must be a permutation of 0\.\.199"):
        solver.step(state, perm=perm)


def test_a_step_with_a_stream_takes_no_permutation():
    solver = make_solver(losses, lambda key, n: None, max_batch=64, max_iterations=3)
    with pytest.raises(ValueError, match="perm needs data of a known size"):
        solver.step(None, perm=np.arange(5))


@pytest.mark.parametrize("devices", [1, 4])
def test_samples_may_be_of_any_type(devices):
    """Flags, small integers and the keys of random layers."""
    x, y = draw_rows(samples=50)
    keys = jax.random.key_data(jax.random.split(jax.random.key(1), 50))
    data = {"x": x, "up": y > 0, "age": np.arange(50, dtype=np.uint8), "key": keys}

    def loss(w, batch):
        assert batch["up"].dtype == bool and batch["age"].dtype == jnp.uint8
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.8, (FEATURES,)))(
            jax.random.wrap_key_data(batch["key"])
        )
        logits = (keep * batch["x"]) @ w + 0.01 * batch["age"]
        return jax.nn.softplus(jnp.where(batch["up"], -logits, logits))

    mesh = None
    if devices > 1:
        mesh = jax.make_mesh(
            (devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices]
        )
    w = jnp.linspace(-1, 1, FEATURES)
    state = first_state(loss, data, w, batch_size=48, mesh=mesh)
    rows = np.asarray(state.window.order)[:48]
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data)
    assert float(state.evaluation.value) == pytest.approx(float(loss(w, batch).mean()))


def test_a_budget_beyond_the_counters_is_refused():
    data = np.zeros((1000, 1), np.float32)
    solver = pb_lbfgs(lambda w, x: (x * w).sum(axis=1), data, max_epochs=1e7)
    with pytest.raises(
        ValueError, match="max_epochs=1e.07 of 1000 samples.*jax_enable"
    ):
        solver.init(jnp.zeros(1), jax.random.key(KEY))
    with jax.enable_x64(True):
        solver.init(jnp.zeros(1), jax.random.key(KEY))


def test_a_run_without_a_limit_on_epochs():
    data = np.zeros((40, 1), np.float32)
    solver = make_solver(lambda w, x: (x + w**2).sum(axis=1), data, max_epochs=np.inf)
    assert solver.run(jnp.ones(1), jax.random.key(KEY)).reason == "certified"
