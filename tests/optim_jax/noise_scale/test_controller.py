"""The controller, rule by rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.noise_scale.batch_size_config import BatchSizeConfig
from optim_jax.noise_scale.controller import batch_size_controller
from tests.optim_jax.noise_scale.measurements import (
    Measured,
    batches,
    config,
    scanner,
    states,
)

INT32_MAX = 2**31 - 1
# Not an error's business: with theta = 1 the request is the noise scale itself.
pytestmark = pytest.mark.filterwarnings("ignore:theta=1.0")


# The rule of the paper.


def test_asks_for_the_noise_scale_over_theta_squared():
    assert batches(config(theta=0.5), [(12.0, 1.0)]) == [8, 48]
    assert batches(config(theta=0.6), [(7.0, 0.5)]) == [8, 39]  # 38.9
    assert batches(config(theta=0.6, rounding="floor"), [(7.0, 0.5)]) == [8, 38]
    assert batches(config(theta=0.75), [(9.0, 1.0)]) == [8, 16]  # 16/9 of it


def test_the_batch_never_shrinks():
    path = [(12.0, 1.0), (1.0, 1.0), (13.0, 1.0), (2.0, 1.0)]
    assert batches(config(), path) == [8, 48, 48, 52, 52]


def test_step_zero_is_measured_and_then_every_f_th():
    path = [(noise, 1.0) for noise in (3.0, 50.0, 60.0, 4.0, 70.0, 80.0, 5.0)]
    assert batches(config(every=3), path) == [8, 12, 12, 12, 16, 16, 16, 20]


def test_between_measurements_the_measurement_is_not_read():
    bad = (np.nan, np.inf, False)
    found = states(config(every=3), [(3.0, 1.0), bad, bad, (4.0, 1.0), bad])
    assert [int(state.batch_size) for state in found] == [8, 12, 12, 12, 16, 16]
    assert found[-1].ticks == 2
    assert found[-1].skipped == 0


def test_the_averages_are_of_squares_and_their_ratio_comes_last():
    options = config(theta=1.0, ema_noise=0.5, ema_signal=0.5)
    path = [(40.0, 1.0), (90.0, 3.0)]
    # Weights 1, 2: (40 + 180) / (1 + 6) = 31.4 does not exceed 40.
    assert batches(options, path) == [8, 40, 40]
    options = config(theta=1.0, ema_noise=0.5, ema_signal=0.5, init_batch=1)
    path = [(2.0, 2.0), *path]
    # (2 + 80) / (2 + 2) = 20.5; weights 1, 2, 4: (2 + 80 + 360) / (2 + 2 + 12) = 27.6.
    assert batches(options, path) == [1, 1, 21, 28]


def test_the_state_keeps_the_raw_averages_that_began_at_zero():
    options = config(ema_noise=0.9, ema_signal=0.5)
    state = states(options, [(10.0, 2.0), (20.0, 4.0)])[-1]
    np.testing.assert_allclose(state.noise_ema, 0.9 * 1.0 + 0.1 * 20.0, rtol=1e-6)
    np.testing.assert_allclose(state.signal_ema, 0.5 * 1.0 + 0.5 * 4.0, rtol=1e-6)
    assert state.ticks == 2


def test_the_first_measurement_does_not_keep_its_weight():
    # An average that began with the first value would still hold 0.9^9 of it.
    options = config(theta=1.0, ema_noise=0.9, ema_signal=0.9, monotone=False)
    path = [(1e4, 1e4)] + [(100.0, 1.0)] * 9
    weights = 0.9 ** np.arange(10)[::-1]
    noise, signal = weights @ np.asarray(path)
    # 10 on the way down from nothing, then the ratio of the weighted sums.
    assert batches(options, path)[-1] == max(8, np.ceil(noise / signal))


# Warm-up, counted in samples.


def test_warmup_is_over_when_the_samples_before_the_step_reach_it():
    path = [(12.0, 1.0)] * 6
    # Steps of 8: before step 3 there were 24.
    for warmup, first in ((0, 1), (1, 2), (23, 4), (24, 4), (25, 5)):
        found = batches(config(warmup_samples=warmup), path)
        assert found == [8] * first + [48] * (7 - first)


def test_the_averages_tick_during_warmup():
    options = config(theta=1.0, warmup_samples=16, ema_noise=0.5, ema_signal=0.5)
    found = states(options, [(100.0, 1.0), (100.0, 1.0), (16.0, 1.0)])
    assert [int(state.ticks) for state in found] == [0, 1, 2, 3]
    # Weights 1, 2, 4.
    assert [int(s.batch_size) for s in found] == [8, 8, 8, int(np.ceil(364 / 7))]


# Round, then cap the growth, then clip.


def test_the_request_goes_to_the_grid_in_one_step():
    # Through the integer 33 the ceiling would be the same, the floor of 32.4 not 32.
    path = [(8.1, 1.0)]  # 32.4
    for quantum, up, down in ((1, 33, 32), (8, 40, 32), (((1, 8), (32, 32)), 64, 32)):
        assert batches(config(quantum=quantum), path)[-1] == up
        assert batches(config(quantum=quantum, rounding="floor"), path)[-1] == down


def test_growth_is_capped_at_a_grid_point():
    path = [(1e3, 1.0)] * 5
    assert batches(config(max_growth=2.0), path) == [8, 16, 32, 64, 128, 256]
    # 12, 18, 27, 40.5, 60 without the grid.
    found = batches(config(max_growth=1.5, quantum=4), path)
    assert found == [8, 12, 16, 24, 36, 52]
    assert batches(config(max_growth=1.1, init_batch=10), path)[:3] == [10, 11, 12]


def test_a_cap_below_the_next_grid_point_keeps_the_batch():
    assert batches(config(max_growth=1.9, quantum=8), [(1e3, 1.0)]) == [8, 8]


def test_rounding_comes_before_the_cap():
    # 4 * 5.25 = 21 -> 24 on the grid; the cap 22 -> 16. Capped first it would be 24.
    options = config(quantum=8, max_growth=2.75)
    assert batches(options, [(5.25, 1.0)]) == [8, 16]


def test_the_limit_comes_last():
    path = [(1e3, 1.0)] * 3
    assert batches(config(max_batch=20), path) == [8, 20, 20, 20]
    assert batches(config(max_batch=20, max_growth=2.0), path) == [8, 16, 20, 20]


@pytest.mark.parametrize("rounding", ["ceil", "floor"])
@pytest.mark.parametrize("theta", [0.3, 0.6, 0.7, 0.9])
def test_a_request_that_is_an_integer_but_for_rounding_stays_it(theta, rounding):
    run = scanner(config(theta=theta, rounding=rounding))
    sizes = np.arange(9, 2000, 7)
    for signal in (0.1, 3.0, 7.7):
        found = run([(size * theta**2 * signal, signal) for size in sizes])[1]
        np.testing.assert_array_equal(found.batch_size, sizes)


# Shrinking.


def test_it_shrinks_only_below_the_band():
    options = config(theta=1.0, monotone=False, hysteresis=0.2)
    path = [(100.0, 1.0), (80.0, 1.0), (79.0, 1.0), (70.0, 1.0), (63.0, 1.0)]
    assert batches(options, path) == [8, 100, 100, 79, 79, 63]


def test_the_band_is_compared_with_the_real_request():
    # 31.9 rounds down to 24, which is below 0.8 * 32, but 31.9 is not.
    options = config(theta=1.0, monotone=False, quantum=8, rounding="floor")
    assert batches(options, [(32.0, 1.0), (31.9, 1.0), (25.5, 1.0)])[1:] == [32, 32, 24]


def test_it_never_shrinks_below_the_initial_batch():
    options = config(theta=1.0, monotone=False)
    found = states(options, [(100.0, 1.0), (1.0, 1.0)])
    assert [int(state.batch_size) for state in found] == [8, 100, 8]
    assert found[-1].lr_scale == 1.0


# The learning-rate factor.


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_factor_is_a_power_of_the_ratio_of_batches(power):
    options = config(theta=1.0, lr_power=power, init_batch=7)
    for state in states(options, [(7.0 + 11.0 * k, 1.0) for k in range(9)]):
        exact = np.float32((int(state.batch_size) / 7) ** power)
        np.testing.assert_allclose(state.lr_scale, exact, rtol=1.5e-7)


# A decision that is put off.


@pytest.mark.parametrize("lag", [0, 1, 2, 3])
def test_a_decision_at_step_k_is_in_force_from_step_k_plus_one_plus_lag(lag):
    options = config(every=4, apply_lag=lag)
    path = [(12.0, 1.0)] * 4 + [(20.0, 1.0)] * 5
    found = states(options, path)
    first, second = 1 + lag, 5 + lag
    expected = [8] * first + [48] * (second - first) + [80] * (10 - second)
    assert [int(state.batch_size) for state in found] == expected
    scales = [float(np.sqrt(batch / 8, dtype=np.float32)) for batch in expected]
    assert [float(state.lr_scale) for state in found] == scales
    assert int(found[-1].samples_seen) == sum(expected[:-1])


def test_what_waits_is_in_the_state():
    found = states(config(every=4, apply_lag=2), [(12.0, 1.0)] * 4)
    waiting = [(int(s.pending_batch), int(s.pending_steps)) for s in found]
    assert waiting == [(8, 0), (48, 2), (48, 1), (48, 0), (48, 0)]


# Edge cases of a measurement.


@pytest.mark.parametrize(
    "bad",
    [
        (np.nan, 1.0, True),
        (1.0, np.nan, True),
        (np.inf, 1.0, True),
        (1.0, np.inf, True),
        (1.0, -np.inf, True),
        (1e9, 1.0, False),
        (np.nan, np.nan, False),
    ],
    ids=str,
)
def test_a_refused_measurement_leaves_all_as_if_it_had_not_happened(bad):
    options = config(theta=1.0, ema_noise=0.9, ema_signal=0.8)
    good = [(20.0, 1.0), (30.0, 2.0), (90.0, 1.0), (10.0, 0.1)]
    start = states(options, good[:2])[-1]
    (before, after), straight = states(options, [bad], start, 2), states(options, good)
    assert after.skipped == 1
    assert after.samples_seen == before.samples_seen + before.batch_size
    expected = before._replace(skipped=after.skipped, samples_seen=after.samples_seen)
    assert after == expected
    later = states(options, good[2:], after, 3)[1:]
    for state, reference in zip(later, straight[3:], strict=True):
        seen = state._replace(skipped=reference.skipped)
        assert seen._replace(samples_seen=reference.samples_seen) == reference


def test_one_draw_by_chance_is_invalid_and_changes_nothing():
    # What the pure layer reports when only one draw had weight.
    after = states(config(), [(0.0, 3.0, False)])[-1]
    assert (after.ticks, after.skipped, after.batch_size) == (0, 1, 8)
    assert after.noise_ema == after.signal_ema == 0.0
    assert after.lr_scale == 1.0


def test_all_gradients_zero_is_invalid_and_changes_nothing():
    after = states(config(), [(0.0, 0.0, False)])[-1]
    assert (after.ticks, after.skipped, after.batch_size) == (0, 1, 8)


def test_no_noise_enters_the_averages_and_keeps_the_batch():
    options = config(theta=1.0, ema_noise=0.5, ema_signal=0.5)
    found = states(options, [(0.0, 1.0), (30.0, 1.0)])
    assert [int(state.batch_size) for state in found] == [8, 8, 20]
    assert [int(state.ticks) for state in found] == [0, 1, 2]
    assert found[-1].skipped == 0


@pytest.mark.parametrize("signal", [0.0, -1.0])
def test_no_signal_asks_for_the_largest_batch(signal):
    assert batches(config(max_batch=512), [(1.0, signal)]) == [8, 512]
    assert batches(config(max_batch=512, max_growth=4.0), [(1.0, signal)]) == [8, 32]


@pytest.mark.parametrize("signal", [0.0, -1.0])
def test_no_signal_without_a_limit_keeps_the_batch(signal):
    path = [(12.0, 1.0), (1.0, signal), (20.0, 1.0)]
    found = states(config(), path)
    assert [int(state.batch_size) for state in found] == [8, 48, 48, 80]
    assert found[-1].ticks == 3
    shrinking = config(monotone=False)
    assert batches(shrinking, path) == [8, 48, 48, 80]


def test_a_signal_is_one_above_1e_12_of_the_noise():
    assert batches(config(max_batch=512), [(1.0, 0.9e-12)]) == [8, 512]
    # Too weak for a batch of an int32, but not absent: no limit means int32.
    assert batches(config(), [(1.0, 0.9e-12)]) == [8, 8]
    assert batches(config(), [(1.0, 1.1e-12)]) == [8, INT32_MAX]


def test_a_negative_signal_is_averaged_before_the_division():
    options = config(theta=1.0, ema_noise=0.5, ema_signal=0.5, max_batch=512)
    # Weights 1, 2: noise 30, signal (-1 + 2 2) / 3 = 1.
    found = batches(options, [(30.0, 2.0), (30.0, -1.0), (30.0, 2.0)])
    assert found == [8, 15, 512, 512]
    found = batches(options, [(30.0, -1.0), (30.0, 2.0)])
    assert found == [8, 512, 512]
    found = batches(
        config(theta=1.0, ema_noise=0.5, ema_signal=0.5), [(30, -1), (30, 2)]
    )
    assert found == [8, 8, 30]


def test_measurements_beyond_float32_are_refused(x64):
    after = states(config(), [(jnp.asarray(1e300), 1.0)])[-1]
    assert (after.ticks, after.skipped, after.batch_size) == (0, 1, 8)


# Integers that end.


def test_the_batch_stops_at_the_largest_grid_point_of_int32():
    assert batches(config(), [(1e30, 1e20)]) == [8, INT32_MAX]
    quantum = 1000
    options = config(quantum=quantum, init_batch=1000)
    assert batches(options, [(1e30, 1e20)])[-1] == INT32_MAX // quantum * quantum
    options = config(max_growth=1e9)
    assert batches(options, [(1e30, 1e20)])[-1] == INT32_MAX


def test_counters_stay_at_their_largest_value():
    init, update = batch_size_controller(config())
    full = init()._replace(
        samples_seen=jnp.int32(INT32_MAX - 3),
        ticks=jnp.int32(INT32_MAX),
        skipped=jnp.int32(INT32_MAX),
    )
    after = update(full, Measured(12.0, 1.0), jnp.int32(INT32_MAX))
    assert after.samples_seen == after.ticks == INT32_MAX
    after = update(after, Measured(12.0, 1.0, False), jnp.int32(INT32_MAX))
    assert after.samples_seen == after.skipped == INT32_MAX
    assert after.batch_size == 48


def test_samples_add_up_exactly_to_the_last():
    init, update = batch_size_controller(config())
    state = init()._replace(samples_seen=jnp.int32(INT32_MAX - 8))
    assert update(state, Measured(1.0, 1.0), 0).samples_seen == INT32_MAX


# The unequal and the equal decays.


def test_with_equal_decays_the_ratio_is_that_of_the_weighted_means():
    rng = np.random.default_rng(3)
    path = rng.lognormal(2.0, 1.0, size=(30, 2))
    options = config(theta=0.05, ema_noise=0.8, ema_signal=0.8, monotone=False)
    found = states(options, path)[1:]
    for count, state in enumerate(found, 1):
        weights = 0.8 ** np.arange(count)[::-1]
        noise, signal = weights @ path[:count]
        raw = float(state.noise_ema) / float(state.signal_ema)
        np.testing.assert_allclose(raw, noise / signal, rtol=2e-6)


def test_with_unequal_decays_the_division_matters():
    # Constant values: divided, both averages are the values from the first step on.
    options = config(theta=1.0, ema_noise=0.9, ema_signal=0.5)
    found = states(options, [(640.0, 10.0)] * 5)
    assert [int(state.batch_size) for state in found[1:]] == [64] * 5
    raw = [float(state.noise_ema / state.signal_ema) for state in found[1:]]
    np.testing.assert_allclose(raw[0], 64 * 0.1 / 0.5, rtol=1e-6)
    np.testing.assert_allclose(raw[1], 64 * 0.19 / 0.75, rtol=1e-6)


# Closed loop.


def test_with_the_biased_l2_signal_the_loop_ends_where_theory_says():
    # The signal of a batch B is |grad|^2 + tr(C) / B: the end is B(theta^-2 - 1).
    trace, gradient_sq, theta = 500.0, 2.0, 0.6
    init, update = batch_size_controller(config(theta=theta, quantum=1))
    state = init()
    for step in range(60):
        signal = gradient_sq + trace / state.batch_size
        state = update(state, Measured(trace, signal), step)
    end = trace / gradient_sq * (theta**-2 - 1)
    assert abs(int(state.batch_size) - end) <= 2


# As a part of a program.


def test_one_trace_serves_all_steps_and_a_loop_is_a_scan():
    options = config(theta=0.6, every=3, apply_lag=2, ema_noise=0.9, ema_signal=0.8)
    rng = np.random.default_rng(0)
    path = [tuple(pair) for pair in rng.lognormal(2.0, 1.0, size=(20, 2))]
    init, update = batch_size_controller(options)
    traces = []

    @jax.jit
    def step(state, noise, signal, index):
        traces.append(None)
        return update(state, Measured(noise, signal), index)

    state, looped = init(), []
    for index, (noise, signal) in enumerate(path):
        state = step(state, np.float32(noise), np.float32(signal), np.int32(index))
        looped.append(state)
    assert len(traces) == 1
    scanned = scanner(options)(path)[1]
    for index, state in enumerate(looped):
        for left, right in zip(state, scanned, strict=True):
            np.testing.assert_array_equal(left, right[index])


@pytest.mark.parametrize("enable_x64", [False, True])
def test_the_state_has_float32_and_int32_scalars_only(enable_x64):
    with jax.enable_x64(enable_x64):
        init, update = batch_size_controller(
            config(max_growth=2.0, monotone=False, max_batch=64, momentum=0.9)
        )
        measured = Measured(jnp.ones([]), jnp.ones([]))
        before = jax.eval_shape(init)
        after = jax.eval_shape(lambda: update(init(), measured, 0))
        for leaf, then in zip(before, after, strict=True):
            assert leaf.shape == () and leaf.dtype in (jnp.float32, jnp.int32)
            assert (leaf.dtype, leaf.weak_type) == (then.dtype, then.weak_type)


def test_the_controller_vectorises_over_runs():
    init, update = batch_size_controller(config())
    noises = jnp.asarray([12.0, 20.0, jnp.nan])
    after = jax.vmap(lambda noise: update(init(), Measured(noise, 1.0), 0))(noises)
    np.testing.assert_array_equal(after.batch_size, [48, 80, 8])
    np.testing.assert_array_equal(after.skipped, [0, 0, 1])


def test_no_two_parts_of_the_state_share_a_buffer():
    # Otherwise a train state that holds it could not be donated.
    state = batch_size_controller(config())[0]()
    assert len({leaf.unsafe_buffer_pointer() for leaf in state}) == len(state)


def test_anything_but_a_config_is_an_error():
    with pytest.raises(ValueError, match="config must be a BatchSizeConfig, got {"):
        batch_size_controller({"theta": 0.6})
    assert BatchSizeConfig(theta=0.6, init_batch=1).momentum == 0.0
