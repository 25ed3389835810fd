"""Momentum on finished directions."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim_jax import Momentum
from optim_jax.preconditioning.momentum import scale_by_momentum


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_dampening_it_is_optaxs_trace(nesterov):
    ours = scale_by_momentum(Momentum(0.9, nesterov=nesterov))
    theirs = optax.trace(0.9, nesterov=nesterov)
    params = {"w": jnp.ones(3)}
    state, reference = ours.init(params), theirs.init(params)
    for t in range(4):
        direction = {"w": jnp.arange(3.0) + t}
        update, state = ours.update(direction, state)
        expected, reference = theirs.update(direction, reference)
        np.testing.assert_allclose(update["w"], expected["w"], rtol=1e-6)


def test_dampening_weighs_the_direction():
    tx = scale_by_momentum(Momentum(0.5, 0.25))
    state = tx.init(jnp.zeros(1))
    first, state = tx.update(jnp.ones(1), state)
    second, _ = tx.update(jnp.ones(1), state)
    np.testing.assert_allclose([first[0], second[0]], [0.75, 0.5 * 0.75 + 0.75])
    tx = scale_by_momentum(Momentum(0.5, 0.25, nesterov=True))
    first, _ = tx.update(jnp.ones(1), tx.init(jnp.zeros(1)))
    np.testing.assert_allclose(first, 0.75 + 0.5 * 0.75)


def test_half_precision_keeps_a_float32_buffer():
    tx = scale_by_momentum(Momentum())
    params = jnp.ones(2, jnp.bfloat16)
    update, state = tx.update(params, tx.init(params))
    assert update.dtype == jnp.bfloat16 and state.momentum.dtype == jnp.float32
