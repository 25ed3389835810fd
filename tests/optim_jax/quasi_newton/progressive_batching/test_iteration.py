import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.progressive_batching.evaluation import Evaluation
from optim_jax.quasi_newton.progressive_batching.iteration import is_finite


@pytest.mark.parametrize(
    ("value", "entry", "expected"),
    [
        (1.0, 2.0, True),
        (np.nan, 2.0, False),
        (np.inf, 2.0, False),
        (1.0, np.nan, False),
        (1.0, -np.inf, False),
    ],
)
def test_a_loss_and_its_gradient_must_be_finite(value, entry, expected):
    grad = {"a": jnp.ones(3), "b": jnp.float32(entry)}
    evaluation = Evaluation(jnp.float32(value), grad, (), ())
    assert bool(is_finite(evaluation)) == expected
