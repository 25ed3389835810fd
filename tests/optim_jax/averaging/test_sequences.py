import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax

PARAMS = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3), "s": jnp.array(0.5)}
GPA = optim_jax.gpa(optax.adam(0.1), mu_x=0.9, mu_y=0.7)
LABELS = {"w": "first", "b": "second", "s": "neither"}

NESTED = {
    "bare": GPA,
    "chain": optax.chain(optax.clip_by_global_norm(1.0), GPA),
    "inject_hyperparams": optax.inject_hyperparams(
        lambda learning_rate: optim_jax.gpa(
            optax.adam(learning_rate), mu_x=0.9, mu_y=0.7
        )
    )(learning_rate=0.1),
    "apply_if_finite": optax.apply_if_finite(GPA, 3),
    "MultiSteps": optax.MultiSteps(GPA, 1),
}


def _advance(optimizer, steps=3):
    params = PARAMS
    state = optimizer.init(params)
    for step in range(steps):
        grads = jax.tree.map(lambda p, s=step: jnp.ones_like(p) * (1 + s), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("optimizer", NESTED.values(), ids=NESTED)
def test_found_anywhere_in_a_nested_state(optimizer):
    params, state = _advance(optimizer)
    x, y, z = jax.jit(optim_jax.gpa_sequences)(state, params)
    found = jax.jit(optim_jax.gpa_eval_params)(state, params)
    for name in PARAMS:
        np.testing.assert_array_equal(y[name], params[name])
        np.testing.assert_allclose(
            y[name], 0.7 * x[name] + 0.3 * z[name], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(found[name], x[name], rtol=1e-6)
        assert found[name].shape == PARAMS[name].shape
        assert not np.allclose(x[name], z[name], atol=1e-3)


def test_states_on_disjoint_leaves_are_combined_and_others_left_alone():
    other = optim_jax.gpa(optax.sgd(0.1), mu_x=0.5, mu_y=0.9)
    optimizer = optax.partition(
        {"first": GPA, "second": other, "neither": optax.sgd(0.1)}, LABELS
    )
    params, state = _advance(optimizer)
    x = optim_jax.gpa_eval_params(state, params)
    np.testing.assert_array_equal(x["s"], params["s"])
    for name, single, mu_y in (("w", GPA, 0.7), ("b", other, 0.9)):
        alone, alone_state = _advance(single)
        del mu_y
        expected = optim_jax.gpa_eval_params(alone_state, alone)
        np.testing.assert_allclose(x[name], expected[name], rtol=1e-6)


def test_masked_leaves_are_left_alone():
    mask = {"w": True, "b": False, "s": True}
    params, state = _advance(optax.masked(GPA, mask))
    x = optim_jax.gpa_eval_params(state, params)
    np.testing.assert_array_equal(x["b"], params["b"])
    assert not np.allclose(x["w"], params["w"], atol=1e-4)


def test_train_params_invert_eval_params():
    for optimizer in (
        GPA,
        optax.chain(optax.sgd(0.1), optim_jax.scale_by_primal_averaging(0.9, 0.6)),
    ):
        params, state = _advance(optimizer)
        x = optim_jax.gpa_eval_params(state, params)
        back = optim_jax.gpa_train_params(state, x)
        for name in params:
            np.testing.assert_allclose(back[name], params[name], rtol=1e-5, atol=1e-6)


def test_dtypes_of_half_precision_leaves():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = GPA.init(params)
    assert optim_jax.gpa_eval_params(state, params)["w"].dtype == jnp.bfloat16
    for sequence in optim_jax.gpa_sequences(state, params):
        assert sequence["w"].dtype == jnp.float32


def test_a_leaf_under_two_states_is_refused():
    twice = optax.chain(
        optim_jax.scale_by_primal_averaging(), optim_jax.scale_by_primal_averaging()
    )
    params, state = _advance(optax.chain(optax.sgd(0.1), twice))
    with pytest.raises(ValueError, match="leaf 'b' belongs to 2 GPA states"):
        optim_jax.gpa_eval_params(state, params)


@pytest.mark.parametrize(
    "helper", [optim_jax.gpa_eval_params, optim_jax.gpa_train_params]
)
def test_a_state_without_averaging_is_refused(helper):
    params, state = _advance(optax.adam(0.1))
    with pytest.raises(ValueError, match="no GPAState or .* found in the optimizer"):
        helper(state, params)


def test_diloco_has_no_train_params():
    diloco = optim_jax.single_worker_diloco(optax.sgd(0.1), inner_steps=2)
    params, state = _advance(diloco)
    with pytest.raises(ValueError, match="found in the optimizer state"):
        optim_jax.gpa_train_params(state, params)
