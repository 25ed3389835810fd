import jax
import numpy as np
import pytest

from optim_jax import noise_scale as ns


@pytest.mark.parametrize(("b1", "factor"), [(0.0, 1.0), (0.9, 19.0), (0.95, 39.0)])
def test_momentum_multiplies_the_batch(b1, factor):
    assert ns.momentum_batch_size(64, b1) == pytest.approx(64 * factor)
    assert float(jax.jit(ns.momentum_batch_size)(64.0, b1)) == pytest.approx(
        64 * factor, rel=1e-5
    )


def test_average_has_the_variance_of_the_larger_batch():
    # The sum of squared weights of the average, for a gradient of variance 1 / B.
    b1, batch = 0.8, 16
    weights = (1 - b1) * b1 ** np.arange(200)
    variance = np.square(weights).sum() / batch
    assert ns.momentum_batch_size(batch, b1) == pytest.approx(1 / variance)


@pytest.mark.parametrize("b1", [-0.1, 1.0, np.nan])
def test_decay_out_of_range_is_refused(b1):
    with pytest.raises(ValueError, match=r"b1 must be in \[0, 1\), got"):
        ns.momentum_batch_size(64, b1)
