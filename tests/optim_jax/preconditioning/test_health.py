"""Failed refreshes keep what was there, are counted, and raise when asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim_jax

OPTIONS = {"max_preconditioner_dim": 4, "grafting": "adam"}


def _spoiled(tx, params):
    """A state after one good step whose first factor of the bias is NaN."""
    _, state = tx.update(params, tx.init(params))
    bucket = state.buckets["3"]
    factors = (bucket.factors[0] * np.nan,)
    buckets = state.buckets | {"3": bucket._replace(factors=factors)}
    return state, state._replace(buckets=buckets)


@pytest.mark.parametrize("refresh", ["cond", "staggered"])
def test_a_failed_refresh_keeps_the_previous_root(refresh):
    params = {"bias": jnp.arange(1.0, 4.0), "kernel": jnp.ones((4, 4))}
    tx = optim_jax.scale_by_shampoo(refresh=refresh, **OPTIONS)
    good, state = _spoiled(tx, params)
    step, plan = jax.jit(tx.update), tx.plan(params)
    for failures in range(1, 5):
        _, state = step(params, state)
        np.testing.assert_array_equal(
            state.buckets["3"].inverses[0], good.buckets["3"].inverses[0]
        )
        assert np.all(np.isfinite(state.buckets["4x4"].inverses[0]))
        if failures <= 3:
            facts = optim_jax.check_preconditioners(state)
            assert facts["failures"] == facts["total_failures"] == failures
    with pytest.raises(RuntimeError, match="block 0 of leaf 'bias' could not be refr"):
        optim_jax.check_preconditioners(state, plan=plan)
    with pytest.raises(RuntimeError, match="slot 0 of the blocks 3 could not"):
        optim_jax.check_preconditioners(state)
    assert optim_jax.check_preconditioners(state, max_failures=4)["failures"] == 4


def test_success_resets_the_count():
    params = {"bias": jnp.arange(1.0, 4.0), "kernel": jnp.ones((4, 4))}
    tx = optim_jax.scale_by_shampoo(**OPTIONS)
    good, state = _spoiled(tx, params)
    _, state = tx.update(params, state)
    state = state._replace(buckets=good.buckets)
    _, state = tx.update(params, state)
    facts = optim_jax.check_preconditioners(state)
    assert facts["failures"] == 0 and facts["total_failures"] == 1


def test_facts_are_plain_numbers_of_any_nested_state():
    params = {"kernel": jnp.ones((4, 4))}
    tx = optim_jax.gpa(optim_jax.shampoo(0.1))
    _, state = tx.update(params, tx.init(params), params)
    facts = optim_jax.check_preconditioners({"nested": (state, 3)})
    assert facts["refreshes"] == 1 and isinstance(facts["refreshes"], int)
    assert 0.0 <= facts["max_residual"] < 1e-5 and facts["iterations"] == 1
    assert set(facts) == {
        "refreshes",
        "failures",
        "total_failures",
        "skipped",
        "max_residual",
        "iterations",
        "off_diagonal",
    }
    with pytest.raises(ValueError, match="found no Shampoo state"):
        optim_jax.check_preconditioners({})


def test_external_refreshes_when_called():
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))}
    options = OPTIONS | {"target_dimensionality": 2}
    external = optim_jax.scale_by_shampoo(refresh="external", **options)
    inside = optim_jax.scale_by_shampoo(precondition_frequency=2, **options)
    plan, state = external.plan(params), external.init(params)
    assert optim_jax.refresh_preconditioners(state, plan).health.refreshes == 0
    other = inside.init(params)
    for t in range(1, 5):
        update, state = external.update(params, state)
        expected, other = inside.update(params, other)
        if t % 2:
            # A refresh after step t serves from step t + 1 on.
            np.testing.assert_allclose(update["kernel"], expected["kernel"], rtol=1e-5)
        else:
            state = optim_jax.refresh_preconditioners(state, plan)
            np.testing.assert_allclose(
                state.buckets["4x3"].inverses[0],
                other.buckets["4x3"].inverses[0],
                rtol=1e-5,
            )
    assert int(state.health.refreshes) == 2
