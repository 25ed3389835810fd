"""The table of optimizers by name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax
from experiments.config import LINE_SEARCHES, OptimizerConfig
from experiments.optimizers import (
    NOT_OF_SEARCHES,
    OPTIMIZERS,
    RowObjective,
    build_optimizer,
    learning_rate_schedule,
    require_applicable,
)
from models import LLAMA_PRESETS, build_llama
from optim_jax import MatrixAxes
from optim_jax.quasi_newton import line_search

CONFIG = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup_fraction=0.0)
AXES = {"matrix": MatrixAxes("hidden"), "scale": MatrixAxes("norm")}
PARAMS = {"matrix": jnp.ones((4, 3)), "scale": jnp.ones(3)}
GRADIENTS = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), PARAMS)
NAMES = [*OPTIMIZERS, "gpa+adamw", "gpa+sgd", "gpa+lion", "gpa+muon"]
RATED = [name for name in NAMES if name != "pb_lbfgs"]  # take a learning rate
ROWS = jnp.linspace(-1.0, 1.0, 8)


def _row_losses(params, rows):
    return sum(
        jnp.sum(
            (leaf - rows.reshape(-1, *[1] * leaf.ndim)) ** 2, range(1, 1 + leaf.ndim)
        )
        for leaf in jax.tree.leaves(params)
    )


def _build(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    return build_optimizer(
        config,
        steps=10,
        matrix_axes=lambda params: AXES,
        objective=RowObjective(_row_losses, rows_at_once=4),
    )


def _trajectory(optimizer, steps=4):
    params, state = PARAMS, optimizer.transformation.init(PARAMS)
    update = optimizer.transformation.update
    if optimizer.searches:
        update = jax.jit(update)
    for step in range(steps):
        gradients = jax.tree.map(lambda leaf, s=step: leaf * (1 + s), GRADIENTS)
        more = {}
        if optimizer.searches:
            more = {"batch": ROWS}
            gradients = jax.grad(lambda p: jnp.mean(_row_losses(p, ROWS)))(params)
        updates, state = update(gradients, state, params, **more)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", NAMES)
def test_every_name_moves_the_parameters_and_says_whether_it_averages(name):
    optimizer = _build(name=name)
    params, state = _trajectory(optimizer)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), params, PARAMS)
    assert all(jax.tree.leaves(moved))
    if optimizer.averages:
        x = optim_jax.gpa_eval_params(state, params)
        assert jax.tree.structure(x) == jax.tree.structure(params)
    else:
        with pytest.raises(ValueError):
            optim_jax.gpa_eval_params(state, params)


@pytest.mark.parametrize("name", RATED)
def test_at_a_rate_a_step_is_that_of_the_schedule_at_this_rate(name):
    optimizer = _build(name=name, schedule="cosine", precondition_frequency=2)
    params, state = PARAMS, optimizer.transformation.init(PARAMS)

    @jax.jit
    def step(rate, gradients, params, state):
        updates, state = optimizer.at_rate(rate).update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for count in range(4):
        gradients = jax.tree.map(lambda leaf, c=count: leaf * (1 + c), GRADIENTS)
        rate = jnp.asarray(optimizer.schedule(count), jnp.float32)
        params, state = step(rate, gradients, params, state)
    expected, expected_state = _trajectory(optimizer, steps=4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        params,
        expected,
    )
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)


@pytest.mark.parametrize(
    "name",
    ["adamw", "lion", "muon", "specsgd", "sgd", "sign_sgd", "signum", "gpa_adamw"],
)
def test_decay_reaches_matrices_and_spares_norms(name):
    with_decay, _ = _trajectory(_build(name=name, weight_decay=0.5))
    without, _ = _trajectory(_build(name=name, weight_decay=0.0))
    assert not np.allclose(with_decay["matrix"], without["matrix"], atol=1e-3)
    np.testing.assert_allclose(with_decay["scale"], without["scale"], rtol=1e-6)


def test_ema_trains_as_adamw_and_evaluates_at_its_average():
    config = dataclasses.replace(CONFIG, ema_decay=0.5)
    plain = build_optimizer(config, steps=10, matrix_axes=lambda params: AXES)
    ema = _build(name="adamw_ema", ema_decay=0.5)
    params, state = _trajectory(ema)
    expected = [_trajectory(plain, steps)[0] for steps in range(5)]
    np.testing.assert_allclose(params["matrix"], expected[-1]["matrix"], rtol=1e-6)
    average = expected[0]["matrix"]
    for step_params in expected[1:]:
        average = 0.5 * average + 0.5 * step_params["matrix"]
    x = optim_jax.gpa_eval_params(state, params)
    np.testing.assert_allclose(x["matrix"], average, rtol=1e-6)


def test_schedule_free_is_gpa_adamw_with_its_constants():
    params, _ = _trajectory(_build(name="schedule_free_adamw"))
    direct = optax.chain(
        optax.clip_by_global_norm(1.0),
        optim_jax.gpa_adamw(
            0.1,
            b1=0.0,
            b2=0.95,
            weight_decay=0.1,
            mask={"matrix": True, "scale": False},
            mu_y=0.9,
            averaging="schedule_free",
        ),
    )
    wanted, _ = _trajectory(_build(name="adamw")._replace(transformation=direct))
    np.testing.assert_allclose(params["matrix"], wanted["matrix"], rtol=1e-6)


def test_diloco_synchronises_after_its_inner_steps():
    optimizer = _build(name="diloco_adamw", inner_steps=2)
    params, state = _trajectory(optimizer, steps=2)
    x = optim_jax.gpa_eval_params(state, params)
    np.testing.assert_allclose(x["matrix"], params["matrix"], rtol=1e-7)
    params, state = _trajectory(optimizer, steps=3)
    x = optim_jax.gpa_eval_params(state, params)
    assert not np.allclose(x["matrix"], params["matrix"], rtol=1e-6)


def test_muon_gets_hidden_matrices_only():
    model = build_llama(LLAMA_PRESETS["llama_pico"]())
    params = jax.eval_shape(model.init, jax.random.key(0))
    config = dataclasses.replace(CONFIG, name="muon")
    optimizer = build_optimizer(config, steps=10, matrix_axes=model.matrix_axes)
    state = jax.eval_shape(optimizer.transformation.init, params)
    # Adam keeps a second moment, Muon none: they appear for what Muon leaves alone.
    second_moments = {
        jax.tree_util.keystr(path, simple=True, separator="/").partition("/nu/")[2]
        for path, _ in jax.tree.leaves_with_path(state)
        if "/nu/" in jax.tree_util.keystr(path, simple=True, separator="/")
    }
    assert "token_embedding/embedding" in second_moments
    assert "head/kernel" in second_moments
    assert not [name for name in second_moments if "attention/query" in name]


def test_clipping_comes_before_averaging():
    small, _ = _trajectory(_build(name="sgd", clip_norm=1e-3, weight_decay=0.0), 1)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, small, PARAMS))
    assert float(moved) == pytest.approx(0.1 * 1e-3, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_matrix_methods_say_that_they_use_matrices(name):
    expected = name.removeprefix("gpa+") in {
        "kl_shampoo",
        "muon",
        "shampoo",
        "soap",
        "specsgd",
    }
    assert _build(name=name).uses_matrices == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "adam",
            "optimizer.name must be one of adagrad, .*, specsgd, each also as gpa",
        ),
        ("gpa+nope", "got 'gpa.nope'"),
        ("gpa+gpa_adamw", "gpa_adamw already averages"),
        ("gpa+pb_lbfgs", "searches along the loss at the parameters"),
    ],
)
def test_unknown_names_list_what_exists(name, message):
    with pytest.raises(ValueError, match=message):
        _build(name=name)


def test_a_line_search_goes_to_the_minimum_whatever_rate_and_clipping_say():
    params, state = _trajectory(_build(name="pb_lbfgs"))
    for leaf in jax.tree.leaves(params):
        np.testing.assert_allclose(leaf, jnp.mean(ROWS), atol=0.1)
    assert int(state.info.b_tested) == len(ROWS)
    changed = {"learning_rate": 1e9, "clip_norm": 1e-9, "weight_decay": 1e9}
    same, _ = _trajectory(_build(name="pb_lbfgs", **changed))
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_a_line_search_needs_an_objective():
    config = dataclasses.replace(CONFIG, name="pb_lbfgs")
    with pytest.raises(ValueError, match="name=pb_lbfgs searches along the loss of ea"):
        build_optimizer(config, steps=10, matrix_axes=lambda params: AXES)


def test_fields_of_a_rate_are_refused_only_where_they_mean_nothing():
    fields = {f"optimizer.{field.name}" for field in dataclasses.fields(CONFIG)}
    assert set(NOT_OF_SEARCHES) <= fields
    with pytest.raises(
        ValueError, match="optimizer.learning_rate, optimizer.clip_norm "
    ):
        require_applicable(
            "pb_lbfgs", ["optimizer.clip_norm", "optimizer.learning_rate", "seed"]
        )
    require_applicable("pb_lbfgs", ["optimizer.memory_size", "steps"])
    require_applicable("adamw", NOT_OF_SEARCHES)
    require_applicable("gpa+adamw", NOT_OF_SEARCHES)


def test_the_config_knows_all_line_searches():
    assert set(LINE_SEARCHES) == set(line_search.LINE_SEARCHES)
    for field, value, message in (
        ("line_search", "exact", "optimizer.line_search must be one of armijo, "),
        ("memory_size", 0, "optimizer.memory_size must be >= 1, got 0"),
        ("theta", 0.0, "optimizer.theta must be > 0, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedule_rises_then_follows_its_kind(kind):
    config = dataclasses.replace(
        CONFIG, schedule=kind, warmup_fraction=0.1, final_fraction=0.1
    )
    schedule = learning_rate_schedule(config, 100)
    rates = np.array([schedule(step) for step in range(101)])
    np.testing.assert_allclose(rates[:10], 0.01 * np.arange(1, 11), rtol=1e-5)
    assert rates.max() == pytest.approx(0.1)
    if kind == "constant":
        np.testing.assert_allclose(rates[10:], 0.1, rtol=1e-6)
    else:
        assert rates[100] == pytest.approx(0.01, rel=1e-4)
        assert np.all(np.diff(rates[11:]) < 0)
        assert rates[55] == pytest.approx(0.055, rel=1e-3)
