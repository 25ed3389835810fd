import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.steepest_descent.first_moment import average, debiased, read_decay_rate


@pytest.mark.parametrize(
    ("b1", "traced"),
    [(0.5, False), (0.95, False), (0.999, False), (0.0, True), (0.95, True)],
)
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_constant_gradient_is_its_own_average(b1, traced, nesterov):
    rate = jnp.asarray(b1) if traced else b1
    gradient = jnp.asarray([2.0, -3.0])
    moment = jnp.zeros(2)
    for step in range(1, 6):
        moment = average(moment, gradient, rate)
        read = debiased(moment, gradient, rate, jnp.asarray(step), nesterov)
        expected = 1.0
        if nesterov:  # m_t and g_t are corrected for different steps
            ahead = b1 * (1 - b1**step) / (1 - b1 ** (step + 1))
            expected = ahead + (1 - b1) / (1 - b1**step)
        np.testing.assert_allclose(read, expected * gradient, rtol=1e-5)


def test_the_correction_is_exact_at_the_first_step():
    # As a difference in single precision, 1 - 0.9999 is off by 1e-4 of itself.
    gradient = jnp.asarray([1.0])
    moment = average(jnp.zeros(1), gradient, 0.9999)
    read = debiased(moment, gradient, 0.9999, jnp.asarray(1), nesterov=False)
    np.testing.assert_allclose(read, 1.0, rtol=1e-6)


def test_decay_rates():
    assert read_decay_rate(0) == 0.0 and isinstance(read_decay_rate(0), float)
    assert read_decay_rate(np.float32(0.5)) == 0.5
    array = jnp.asarray(0.9)
    assert read_decay_rate(array) is array
    for bad in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"b1 must be in \[0, 1\)"):
            read_decay_rate(bad)
