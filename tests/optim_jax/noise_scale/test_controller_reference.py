"""The controller against one in NumPy that was written from the paper's algorithm."""

import functools

import hypothesis
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import strategies as st

from optim_jax.noise_scale.batch_grid import is_on_grid
from tests.optim_jax.noise_scale import numpy_controller
from tests.optim_jax.noise_scale.measurements import config, scanner, states

RELEASED = ((1, 32), (128, 128))
STEPS = 36
LARGEST = 20_000

CONFIGS = {
    "paper": config(theta=0.6, every=4, ema_noise=0.9, ema_signal=0.9),
    "released": config(
        theta=0.6,
        init_batch=64,
        ema_noise=0.9,
        ema_signal=0.9,
        every=3,
        warmup_samples=300,
        quantum=RELEASED,
        rounding="floor",
        apply_lag=1,
    ),
    "no averages": config(theta=0.5, max_batch=4096),
    "unequal averages": config(theta=0.7, ema_noise=0.5, ema_signal=0.95, every=2),
    "capped": config(theta=0.3, quantum=8, max_growth=1.7, max_batch=512),
    "shrinking": config(theta=0.6, monotone=False, ema_noise=0.3, ema_signal=0.2),
    "shrinking late": config(
        theta=0.8,
        monotone=False,
        hysteresis=0.5,
        every=5,
        apply_lag=4,
        quantum=4,
        rounding="floor",
        lr_power=1.0,
        max_growth=3.0,
        max_batch=1024,
    ),
    "momentum": config(theta=0.2, momentum=0.8, ema_noise=0.6, ema_signal=0.9),
}


@functools.cache
def points_of(name):
    return numpy_controller.grid_points(CONFIGS[name].quantum, LARGEST)


@functools.cache
def run_of(name):
    return scanner(CONFIGS[name])


kinds = st.sampled_from(
    ["good"] * 6 + ["invalid", "nan noise", "infinite signal", "no signal", "negative"]
)


def measurements(options, kinds, seed):
    """Around a few initial batches, over three decades; the odd ones as named."""
    rng = np.random.default_rng(seed)
    rows = []
    for kind, (noise, signal) in zip(
        kinds, rng.lognormal((2.0, 0.0), 1.0, (len(kinds), 2)), strict=True
    ):
        noise = np.nan if kind == "nan noise" else noise * options.init_batch / 8
        signal = np.inf if kind == "infinite signal" else signal
        signal = 0.0 if kind == "no signal" else signal
        signal = -signal if kind == "negative" else signal
        # What the other one computes with is what the float32 holds.
        rows.append((float(np.float32(noise)), float(np.float32(signal))))
    return [(*row, kind != "invalid") for row, kind in zip(rows, kinds, strict=True)]


@pytest.mark.parametrize("name", CONFIGS)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
    st.lists(kinds, min_size=STEPS, max_size=STEPS), st.integers(0, 2**32 - 1)
)
def test_every_step_is_that_of_the_numpy_controller(name, kinds, seed):
    options = CONFIGS[name]
    path = measurements(options, kinds, seed)
    before, after = run_of(name)(path)
    expected = np.asarray(numpy_controller.run(options, path, points_of(name)))
    # Above the points listed the reference would have to list more.
    hypothesis.assume(expected[:, 0].max() < LARGEST)
    np.testing.assert_array_equal(before.batch_size, expected[:, 0])
    np.testing.assert_array_equal(after.samples_seen, expected[:, 1])
    np.testing.assert_array_equal(after.skipped, expected[:, 2])
    ratio = np.asarray(after.batch_size, np.float64) / options.init_batch
    np.testing.assert_allclose(after.lr_scale, ratio**options.lr_power, rtol=2e-7)


@pytest.mark.parametrize("name", CONFIGS)
@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
@hypothesis.given(
    st.lists(kinds, min_size=STEPS, max_size=STEPS), st.integers(0, 2**32 - 1)
)
def test_batches_stay_on_the_grid_and_within_the_limits(name, kinds, seed):
    options = CONFIGS[name]
    found = np.asarray(run_of(name)(measurements(options, kinds, seed))[1].batch_size)
    assert all(is_on_grid(int(batch), options.quantum) for batch in found)
    assert found.min() >= options.init_batch
    if options.max_batch is not None:
        assert found.max() <= options.max_batch
    if options.monotone:
        assert np.all(np.diff(found) >= 0)


def test_the_released_grid_replays_the_floor_of_the_noise_scale():
    # No averages in the controller: the path is one of averages already, with the
    # decades and the noise of a run of signSGD from 64 sequences on.
    rng = np.random.default_rng(1)
    knots = (
        [0, 1, 37, 43, 79, 91, 95, 100, 130],
        [7, 3.5, 43, 47, 91, 153, 199, 313, 290],
    )
    path = np.interp(np.arange(131), *knots) * rng.lognormal(0.0, 0.05, 131)
    options = config(theta=0.6, init_batch=64, quantum=RELEASED, rounding="floor")
    grid = [64, 96, *range(128, 2000, 128)]
    batch, expected = 64, []
    for scale in path:
        wanted = max(size for size in [0, *grid] if size <= scale / 0.36)
        batch = max(batch, wanted)
        expected.append(batch)
    found = scanner(options)([(scale, 1.0) for scale in path])[1]
    np.testing.assert_array_equal(found.batch_size, expected)
    assert set(expected) >= {64, 128, 256, 384, 512, 640, 768}
    roots = np.sqrt(np.asarray(expected) / 64)
    np.testing.assert_allclose(found.lr_scale, roots, rtol=1e-7)


@pytest.mark.parametrize("name", ["released", "shrinking late"])
def test_a_restored_state_repeats_the_sequence_bit_by_bit(name, tmp_path):
    options = CONFIGS[name]
    path = measurements(options, ["good"] * 16, 2)
    straight = states(options, path)
    # Saved while a decision waits.
    assert straight[7].pending_steps > 0
    assert straight[7].pending_batch != straight[7].batch_size
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", straight[7])
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, straight[7])
        restored = checkpointer.restore(tmp_path / "checkpoint", abstract)
    resumed = states(options, path[7:], restored, first_step=7)
    for left, right in zip(resumed, straight[7:], strict=True):
        for one, other in zip(left, right, strict=True):
            assert one.dtype == other.dtype
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
