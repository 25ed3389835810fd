import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optim_jax.quasi_newton.progressive_batching.logistic import make_solver

PARAMETERS, INPUTS = 200_000, 100
ROWS = PARAMETERS // INPUTS // 2


def network(params, batch):
    x, y = batch
    hidden = jnp.tanh(jnp.tanh(x @ params["first"].T) @ params["first"])
    return jnp.mean(hidden[:, :50] @ params["second"], axis=1) - y


def temporaries(**options):
    """Memory of one iteration besides the two states, in copies of the parameters."""
    params = {"first": jnp.zeros((ROWS, INPUTS)), "second": jnp.zeros((50, 2 * ROWS))}
    data = np.zeros((256, INPUTS), np.float32), np.zeros(256, np.float32)
    options = {"batch_size": 64, "memory_size": 3, "chunk_size": 8, **options}
    solver = make_solver(network, data, **options)
    state = solver.init(params, jax.random.key(0))
    used = solver.memory_analysis(state).temp_size_in_bytes
    return used / (4 * PARAMETERS)


def test_an_iteration_holds_ten_copies_of_the_parameters():
    # 9.6: gradients of the sample, its overlap, a group and a chunk; sum and parts of
    # the three groups that shared samples touch; step, trial, and the next gradient.
    assert temporaries() < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "copies"),
    [
        # Neither the pairs nor the samples of a batch are copied.
        ({"memory_size": 20}, 10),
        ({"batch_size": 256}, 10),
        ({"overlap": "full"}, 9),
        # The shared samples touch two groups more.
        ({"groups": 16}, 12),
        ({"line_search": "strong_wolfe"}, 10),
    ],
)
def test_what_an_iteration_holds(options, copies):
    assert temporaries(**options) < copies
