import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    compiled,
    draw_rows,
    losses,
    make_solver,
)

TRUTH = np.array([1.0, -2.0, 0.5, 3.0])
NOISE = 0.5


def sampler(key, n):
    """Linear regression with noise of a known size."""
    x_key, noise_key = jax.random.split(key)
    x = jax.random.normal(x_key, (n, 4))
    return x, x @ jnp.asarray(TRUTH, x.dtype) + NOISE * jax.random.normal(
        noise_key, (n,)
    )


def squares(w, batch):
    x, y = batch
    return 0.5 * (x @ w - y) ** 2


def test_a_stream_is_followed_to_its_noise():
    solver = make_solver(
        squares,
        sampler,
        batch_size=32,
        max_batch=2048,
        memory_size=4,
        max_iterations=25,
        chunk_size=256,
    )
    result = solver.run(jnp.zeros(4), jax.random.key(0))
    history = result.history
    assert result.reason == "max_iterations" and result.n_iter == 25
    assert (np.diff(history.b) >= 0).all() and history.b[-1] == 2048
    # The best possible parameters are off by NOISE * sqrt(4 / 2048) = 0.022.
    assert np.linalg.norm(result.params - TRUTH) < 3 * NOISE * np.sqrt(4 / 2048)
    assert result.value == pytest.approx(NOISE**2 / 2, rel=0.15)
    assert not result.converged and set(history.epochs.tolist()) == {0.0}
    assert history.compilations[-1] == 1
    # Where the sample cannot grow any more, that is recorded.
    size = history.b_tested
    wanted = np.minimum(history.ratio, 2.0) * size
    np.testing.assert_array_equal(history.capped, wanted > 2048)
    assert history.capped.any() and not history.capped.all()
    # Everything that was drawn is new but for the shared quarter.
    drawn = int(result.state.window.drawn)
    assert drawn > 0.7 * result.grad_evals


def test_no_more_signal_than_noise_ends_a_run_at_its_largest_batch():
    data = draw_rows(seed=4, samples=400)
    solver = make_solver(
        losses, data, batch_size=32, max_batch=40, memory_size=4, max_epochs=1000.0
    )
    result = solver.run(jnp.zeros(5), jax.random.key(0))
    history = result.history
    assert result.reason == "noise_limited" and not result.converged
    assert history.b.max() == 40 and history.b[0] == 32
    assert (history.r_U[-3:] <= 0).all() and np.isinf(history.ratio[-3:]).all()
    assert history.capped[-3:].all()
    full = float(compiled(lambda w: jnp.mean(losses(w, data)))(result.params))
    assert full < 0.9 * np.log(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_iterations": 5}, "a stream has no size: give max_batch"),
        ({"max_batch": 64}, "a stream has no epochs: give max_iterations or max_time"),
        (
            {"max_batch": 64, "max_time": 1.0, "finite_population": True},
            "finite_population needs data of a known size",
        ),
        (
            {"max_batch": 64, "max_time": 1.0, "weights": np.ones(3)},
            "weights need arrays as data",
        ),
    ],
)
def test_what_a_stream_needs_is_asked_for(options, message):
    with pytest.raises(ValueError, match=message):
        make_solver(squares, sampler, **options)
