import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.progressive_batching import driver
from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    FEATURES,
    SAMPLES,
    draw_rows,
    losses,
    make_solver,
)

OPTIONS = {"batch_size": 64, "memory_size": 4, "chunk_size": 64}
ITERATIONS = 8


@functools.cache
def solver(data_seed=0):
    data = draw_rows(data_seed, dtype=np.float64)
    return make_solver(losses, data, max_iterations=ITERATIONS, **OPTIONS)


def run(key=0, data_seed=0):
    return solver(data_seed).run(jnp.zeros(FEATURES), jax.random.key(key))


def assert_identical(found, expected):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in leaves:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def through_numpy(state):
    """As a checkpoint: plain arrays of the host, and back."""
    leaves, structure = jax.tree.flatten(jax.device_get(state))
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
    assert all(leaf.dtype != object for leaf in leaves)
    return structure.unflatten(leaves)


def test_the_key_decides_the_run(x64):
    first = run()
    assert_identical(run()[:-2], first[:-2])
    assert_identical(run().state, first.state)
    raw = solver().run(jnp.zeros(FEATURES), jax.random.PRNGKey(0))
    assert_identical(raw.state, first.state)
    other = run(key=1)
    assert (np.asarray(other.state.window.base) != first.state.window.base).any()
    assert (np.asarray(other.params) != np.asarray(first.params)).any()


def test_a_key_of_another_kind_is_refused():
    for key in (jnp.zeros(3, jnp.uint32), 0, jax.random.key(0, impl="rbg")):
        with pytest.raises(ValueError, match="key must be a PRNG key"):
            solver().init(jnp.zeros(FEATURES), key)


def test_a_saved_state_goes_on_as_if_nothing_had_happened(x64):
    method = solver()
    state = method.init(jnp.zeros(FEATURES), jax.random.key(2))
    saved, infos, resumed = None, [], []
    for k in range(5):
        state, info = method.step(state)
        infos.append(info)
        if k == 1:
            saved = through_numpy(state)
    for _ in range(3):
        saved, info = method.step(saved)
        resumed.append(info)
    assert_identical(saved, state)
    assert_identical([i[:-2] for i in resumed], [i[:-2] for i in infos[2:]])
    assert len({int(info.b) for info in infos}) > 1
    # One program serves every batch size, and first, later and restored states.
    assert resumed[-1].compilations == 1


def test_a_part_of_a_run_goes_on_to_the_whole(x64, monkeypatch):
    whole = run(key=3)
    assert whole.reason == "max_iterations" and whole.n_iter == ITERATIONS
    np.testing.assert_array_equal(whole.history.k, np.arange(ITERATIONS))
    # Another limit, and two iterations in one call of the device.
    monkeypatch.setattr(driver, "RECORDS", 2)
    data = draw_rows(dtype=np.float64)
    short = make_solver(losses, data, max_iterations=5, **OPTIONS)
    part = short.run(jnp.zeros(FEATURES), jax.random.key(3))
    assert part.reason == "max_iterations" and part.n_iter == 5
    monkeypatch.undo()
    rest = solver().run(state=through_numpy(part.state))
    assert_identical(rest.state, whole.state)
    for name in whole.history._fields:
        joined = [getattr(r.history, name) for r in (part, rest)]
        np.testing.assert_array_equal(
            np.concatenate(joined), getattr(whole.history, name), err_msg=name
        )
    # A run that has reached its limit does not go on.
    assert solver().run(state=whole.state).history.k.size == 0


def test_the_first_state_has_the_types_of_all_others(x64):
    method = solver()
    first = method.init(jnp.zeros(FEATURES), jax.random.key(0))
    later = run().state
    types = [jax.tree.map(lambda leaf: leaf.aval, state) for state in (first, later)]
    assert jax.tree.structure(first) == jax.tree.structure(later)
    assert jax.tree.leaves(types[0]) == jax.tree.leaves(types[1])
    assert run().history.compilations.tolist() == [1] * ITERATIONS


@pytest.mark.parametrize("data_seed", range(3))
def test_the_batch_grows_and_never_shrinks(x64, data_seed):
    history = run(data_seed=data_seed).history
    assert history.b[0] >= 64 and history.b[-1] > 64
    assert (np.diff(history.b) >= 0).all() and history.b.max() <= SAMPLES
    np.testing.assert_array_equal(history.b_tested[1:], history.b[:-1])
    assert (history.b <= 2 * history.b_tested).all()
    # Of a part of the data the gradient is noisy, of all data it is not.
    is_full = history.b == SAMPLES
    assert (history.alpha0[is_full] == 1).all() and is_full.any()
    assert (history.alpha0[~is_full] < 1).all()


def test_a_row_that_is_not_a_number_ends_the_run(x64):
    x, y = draw_rows(dtype=np.float64)
    x[17, 2] = np.nan
    method = make_solver(losses, (x, y), max_iterations=ITERATIONS, **OPTIONS)
    moved = 0
    for key in range(4):
        state = method.init(jnp.zeros(FEATURES), jax.random.key(key))
        last = state
        while int(state.reason) == 0:
            last = state
            state, _ = method.step(state)
        # Back at the last point whose sample was finite.
        np.testing.assert_array_equal(state.params, last.params)
        moved += int(state.counters.k) > 1 and bool(jnp.any(state.params != 0))
        result = method.run(jnp.zeros(FEATURES), jax.random.key(key))
        assert result.reason == "diverged" and not result.converged
        np.testing.assert_allclose(result.params, state.params, rtol=1e-12)
        assert np.isfinite(result.history.value[:-1]).all()
    assert moved > 0


def test_bucketed_programs_are_few(x64):
    data = draw_rows(dtype=np.float64)
    method = make_solver(
        losses,
        data,
        evaluation="bucketed",
        batch_size=100,
        growth_cap=math.inf,
        theta=1e-3,
        test="ipqn",
        init_step="unit",
        max_iterations=3,
    )
    result = method.run(jnp.zeros(FEATURES), jax.random.key(0))
    assert result.history.b.tolist() == [SAMPLES] * 3
    assert result.history.b_tested[0] == 100
    assert result.history.compilations[-1] == 2  # for 128 and for 200


@pytest.mark.parametrize("start", [32, 64, 100])
def test_buckets_are_powers_of_two_and_all_data(start):
    method = make_solver(losses, draw_rows(), evaluation="bucketed", batch_size=start)
    buckets = {method._chunk(size) for size in range(start, SAMPLES + 1)}
    assert all(b == SAMPLES or math.log2(b).is_integer() for b in buckets)
    assert len(buckets) <= math.ceil(math.log2(SAMPLES / start)) + 2
    assert method._chunk(2) == 32


def test_run_needs_somewhere_to_start():
    for arguments in [(), (jnp.zeros(FEATURES),)]:
        with pytest.raises(ValueError, match="run needs params and key, or state"):
            solver().run(*arguments)
