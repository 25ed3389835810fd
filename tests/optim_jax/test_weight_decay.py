"""The four kinds of weight decay."""

import jax.numpy as jnp
import numpy as np
import pytest

import optim_jax
from optim_jax.weight_decay import add_decay, decay_coefficient


def _schedule(step):
    return jnp.asarray([0.1, 0.2])[step]


@pytest.mark.parametrize(
    ("kind", "shrink"),
    [
        ("decoupled", lambda rate: 1 - rate * 0.5),
        ("corrected", lambda rate: 1 - rate**2 * 0.5 / 0.4),
        ("independent", lambda rate: 1 - rate / 0.4 * 0.5),
    ],
)
def test_shrink_factors(kind, shrink):
    tx = optim_jax.shampoo(
        _schedule, weight_decay=0.5, weight_decay_type=kind, peak_lr=0.4
    )
    params, zero = jnp.full(3, 2.0), jnp.zeros(3)
    state = tx.init(params)
    for rate in (0.1, 0.2):
        update, state = tx.update(zero, state, params)
        np.testing.assert_allclose(params + update, params * shrink(rate), rtol=1e-6)


def test_l2_enters_the_gradient():
    options = {"b1": 0.0, "grafting": None, "target_dimensionality": 2}
    decayed = optim_jax.shampoo(
        0.1, weight_decay=0.5, weight_decay_type="l2", **options
    )
    plain = optim_jax.shampoo(0.1, **options)
    params = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
    gradient = jnp.eye(3)
    update = decayed.update(gradient, decayed.init(params), params)[0]
    expected = plain.update(gradient + 0.5 * params, plain.init(params), params)[0]
    np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-6)


def test_a_number_is_its_own_peak():
    assert decay_coefficient("independent", 0.5, 0.2, None) == 0.5 / 0.2
    assert decay_coefficient("corrected", 0.5, 0.2, None) == pytest.approx(0.5)
    assert decay_coefficient("decoupled", 0.5, _schedule, None) == 0.5


def test_mask_and_dtype():
    params = {"a": jnp.full(2, 2.0, jnp.bfloat16), "b": jnp.full(2, 2.0)}
    tx = add_decay(jnp.float32(0.5), {"a": True, "b": False})
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["a"].dtype == jnp.bfloat16
    np.testing.assert_allclose(updates["a"], 3.0)
    np.testing.assert_allclose(updates["b"], 2.0)
    with pytest.raises(ValueError, match="weight decay needs the current parameters"):
        tx.update(params, tx.init(params))
