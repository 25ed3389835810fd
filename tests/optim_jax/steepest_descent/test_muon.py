import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax
from optim_jax import MatrixAxes
from tests.optim_jax.steepest_descent.trees import (
    AMPLIFIED_ROUNDING,
    AXES,
    DIMENSION_NUMBERS,
    HIDDEN,
    SHAPES,
    assert_trees_close,
    draw,
    matrices,
    walk,
)

PER_STEP = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
# Ours -> Optax's, where the names differ.
SETTINGS = {
    "defaults": ({}, {}),
    "without_nesterov": ({"nesterov": False}, {"nesterov": False}),
    "consistent_rms": ({"consistent_rms": 0.2}, {"consistent_rms": 0.2}),
    "triple_per_step": ({"ns_coeffs": PER_STEP}, {"ns_coeffs": PER_STEP}),
    "three_steps_and_eps": ({"ns_steps": 3, "eps": 1e-3}, {"ns_steps": 3, "eps": 1e-3}),
    "decay": (
        {"b1": 0.8, "weight_decay": 0.1},
        {"beta": 0.8, "weight_decay": 0.1},
    ),
    "masked_decay": (
        {"weight_decay": 0.1, "mask": {name: name != "wide" for name in SHAPES}},
        {
            "weight_decay": 0.1,
            "weight_decay_mask": {name: name != "wide" for name in SHAPES},
        },
    ),
    "mu_dtype": ({"mu_dtype": "bfloat16"}, {"mu_dtype": "bfloat16"}),
}


def _compare(setting, dtype, rtol):
    ours, theirs = SETTINGS[setting]
    found, _ = walk(optim_jax.muon(0.1, AXES, **ours), dtype, steps=4)
    expected, _ = walk(
        optax.contrib.muon(
            0.1, muon_weight_dimension_numbers=DIMENSION_NUMBERS, **theirs
        ),
        dtype,
        steps=4,
    )
    assert_trees_close(found, expected, rtol)


@pytest.mark.parametrize("setting", SETTINGS)
def test_muon_is_that_of_optax(setting):
    _compare(setting, "float32", AMPLIFIED_ROUNDING)


@pytest.mark.parametrize("setting", SETTINGS)
def test_muon_is_that_of_optax_in_double_precision(setting, x64):
    _compare(setting, "float64", 1e-10)


def test_muon_takes_a_schedule_as_that_of_optax():
    schedule = optax.linear_schedule(0.1, 0.0, 3)
    found, _ = walk(optim_jax.muon(schedule, AXES))
    expected, _ = walk(
        optax.contrib.muon(schedule, muon_weight_dimension_numbers=DIMENSION_NUMBERS)
    )
    assert_trees_close(found, expected, AMPLIFIED_ROUNDING)


def test_products_in_bfloat16_are_near():
    exact, _ = walk(optim_jax.muon(0.1, AXES), steps=1)
    half, state = walk(optim_jax.muon(0.1, AXES, ns_dtype="bfloat16"), steps=1)
    for name in SHAPES:
        error = jnp.linalg.norm(exact[0][name] - half[0][name])
        relative = float(error / jnp.linalg.norm(exact[0][name]))
        assert (1e-5 < relative < 0.1) if name in HIDDEN else relative == 0.0
    assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(state))


def _polar(matrices_bmn):
    left, _, right = np.linalg.svd(matrices_bmn, full_matrices=False)
    return left @ right


@pytest.mark.parametrize(("method", "atol"), [("svd", 1e-6), ("polar", 1e-5)])
def test_specsgd_is_written_out(method, atol):
    tx = optim_jax.specsgd(0.1, AXES, b1=0.5, weight_decay=0.2, method=method)
    params = draw(0)
    state = tx.init(params)
    average = dict.fromkeys(HIDDEN, 0.0)
    for step in (1, 2):
        gradients = draw(step)
        updates, state = jax.jit(tx.update)(gradients, state, params)
        for name in HIDDEN:
            # The polar factor does not see the scale, so debiasing is no matter.
            gradient = matrices(name, gradients[name])
            average[name] = 0.5 * average[name] + 0.5 * gradient
            decayed = _polar(average[name]) + 0.2 * matrices(name, params[name])
            np.testing.assert_allclose(
                matrices(name, updates[name]), -0.1 * decayed, atol=atol
            )


def test_specsgd_moves_other_leaves_by_adamw():
    found, _ = walk(optim_jax.specsgd(0.1, AXES, weight_decay=0.2))
    expected, _ = walk(optax.adamw(0.1, eps=1e-8, weight_decay=0.0))
    for ours, theirs in zip(found, expected, strict=True):
        for name in set(SHAPES) - set(HIDDEN):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)


def test_specsgd_keeps_no_buffer_of_matrices_by_default():
    state = optim_jax.specsgd(0.1, AXES).init(draw(0))
    assert not [x for x in jax.tree.leaves(state.inner_states["hidden"]) if x.ndim]


@pytest.mark.parametrize("factory", [optim_jax.muon, optim_jax.specsgd])
def test_another_optimizer_of_other_leaves(factory):
    tx = factory(0.1, AXES, other=optax.sgd(0.5), weight_decay=0.1)
    updates, _ = walk(tx, steps=1)
    for name in set(SHAPES) - set(HIDDEN):
        np.testing.assert_array_equal(updates[0][name], -0.5 * draw(1)[name])


def test_the_other_optimizer_gets_the_extra_arguments():
    def update(updates, state, params=None, *, lr_scale, **_):
        return jax.tree.map(lambda u: lr_scale * u, updates), state

    other = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx, params = optim_jax.muon(0.1, AXES, other=other), draw(0)
    updates, _ = tx.update(draw(1), tx.init(params), params, lr_scale=3.0)
    np.testing.assert_allclose(updates["bias"], 3.0 * draw(1)["bias"], rtol=1e-6)


def test_statistics_of_half_precision_leaves_are_float32():
    params = draw(0, "bfloat16")
    for factory in (optim_jax.muon, optim_jax.specsgd):
        tx = factory(0.1, AXES)
        state = tx.init(params)
        updates, after = tx.update(draw(1, "bfloat16"), state, params)
        for leaf in jax.tree.leaves((state, after)):
            assert leaf.dtype in (jnp.float32, jnp.int32)
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(updates))
    rounded = optim_jax.muon(0.1, AXES, mu_dtype="bfloat16").init(params)
    moments = rounded.inner_states["hidden"].inner_state[0].momentum
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(moments))


@pytest.mark.parametrize("mask", [False, lambda tree: jax.tree.map(jnp.ndim, tree)])
def test_masks_are_prefixes_or_functions(mask):
    tx = optim_jax.muon(0.1, AXES, weight_decay=0.5, mask=mask)
    plain, _ = walk(optim_jax.muon(0.1, AXES), steps=1)
    found, _ = walk(tx, steps=1)
    decay = 0.0 if mask is False else 0.05
    np.testing.assert_allclose(
        found[0]["wide"], plain[0]["wide"] - decay * draw(0)["wide"], atol=1e-6
    )
    np.testing.assert_array_equal(found[0]["head"], plain[0]["head"])


def test_a_function_of_params_sees_the_whole_tree():
    def matrix_axes(params):
        return AXES if params["bias"].ndim == 1 else None

    found, _ = walk(optim_jax.muon(0.1, matrix_axes))
    expected, _ = walk(optim_jax.muon(0.1, AXES))
    assert_trees_close(found, expected, 0.0)


def test_matrices_without_a_gradient_do_not_move():
    tx, params = optim_jax.muon(0.1, AXES), draw(0)
    gradients = draw(1) | {"wide": None, "layers": None}
    updates, state = tx.update(gradients, tx.init(params), params)
    assert updates["wide"] is None and updates["layers"] is None
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))


@pytest.mark.parametrize("factory", [optim_jax.muon, optim_jax.specsgd])
def test_faults_are_found_when_the_optimizer_is_built_or_started(factory):
    with pytest.raises(ValueError, match="needs matrix_axes"):
        factory(0.1, None)
    with pytest.raises(ValueError, match=r"b1 must be in \[0, 1\)"):
        factory(0.1, AXES, b1=1.0)
    with pytest.raises(ValueError, match="learning_rate must be finite and >= 0"):
        factory(-0.1, AXES)
    with pytest.raises(ValueError, match="weight_decay must be finite and >= 0"):
        factory(0.1, AXES, weight_decay=-0.1)
    with pytest.raises(ValueError, match=r"leaf 'table' of shape \(2, 3\) has no"):
        factory(0.1, AXES | {"table": None}).init(draw(0) | {"table": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="leaf 'wide' is complex64"):
        factory(0.1, AXES).init(draw(0) | {"wide": jnp.ones((4, 9), jnp.complex64)})
    with pytest.raises(ValueError, match="at least one hidden leaf"):
        factory(0.1, {"w": MatrixAxes("head")}).init({"w": jnp.ones((2, 3))})


@pytest.mark.parametrize("factory", [optim_jax.muon, optim_jax.specsgd])
def test_params_are_needed(factory):
    tx = factory(0.1, AXES)
    with pytest.raises(ValueError, match="needs the current parameters"):
        tx.update(draw(1), tx.init(draw(0)))


def test_a_traced_number_of_steps_is_refused_with_advice():
    muon = optax.inject_hyperparams(optim_jax.muon, static_args=("matrix_axes",))
    tx = muon(0.1, AXES)
    with pytest.raises(ValueError, match="ns_steps .* static_args"):
        jax.eval_shape(lambda: tx.update(draw(1), tx.init(draw(0)), draw(0)))
