"""The transformation that measures and lets gradients pass."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim_jax.noise_scale.controller import batch_size_controller
from optim_jax.noise_scale.estimate import noise_scale
from optim_jax.noise_scale.geometry import signed_square
from optim_jax.noise_scale.moments import moments_from_stacked
from optim_jax.noise_scale.resampling import alignment_signal, direct_noise
from optim_jax.noise_scale.tracking import NoiseScaleState, track_noise_scale
from optim_jax.typing import MatrixAxes
from tests.optim_jax.noise_scale.measurements import config

DRAWS = 6
AXES = {"kernel": MatrixAxes("hidden"), "bias": None}
LAYOUTS = {
    "l2": {"geometry": "l2"},
    "sign": {"geometry": "sign"},
    "spectral": {"geometry": "spectral", "matrix_axes": AXES},
}


def draws(seed=0, number=DRAWS, dtype=jnp.float32):
    """Gradients of a small layer around a mean, stacked."""
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (4, 3), "bias": (3,)}
    return {
        name: jnp.asarray(0.5 + rng.normal(size=(number, *shape)), dtype)
        for name, shape in shapes.items()
    }


def mean_of(stacked):
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), stacked)


def run(tx, stacks, **extra_args):
    """States after each update, the initial one first, and the last updates."""
    state, updates = tx.init(mean_of(stacks[0])), None
    found = [state]
    for stack in stacks:
        updates, state = tx.update(stack, state, **extra_args)
        found.append(state)
    return found, updates


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


# What is measured.


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_stacked_source_measures_the_noise_scale_of_the_stack(name):
    layout, weights = LAYOUTS[name], jnp.asarray([4.0, 4.0, 2.0, 8.0, 0.0, 4.0])
    stack = draws()
    tx = track_noise_scale(**layout, stacked=True)
    (_, state), updates = run(tx, [stack], samples_per_grad=weights)
    moments = moments_from_stacked(stack, sample_weights=weights, **layout)
    expected = noise_scale(moments, **layout)
    np.testing.assert_allclose(state.noise_sq, expected.noise_sq, rtol=1e-6)
    np.testing.assert_allclose(state.signal_sq, expected.signal_sq, rtol=1e-6)
    np.testing.assert_allclose(state.value, expected.value, rtol=1e-6)
    assert state.valid
    for leaf in stack:
        mean = np.average(stack[leaf], axis=0, weights=weights)
        np.testing.assert_allclose(updates[leaf], mean, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", LAYOUTS)
def test_given_moments_are_measured_and_the_gradients_pass_unchanged(name):
    layout, stack = LAYOUTS[name], draws()
    moments = moments_from_stacked(stack, sample_weights=3.0, **layout)
    tx = track_noise_scale(**layout)
    grads = mean_of(stack)
    updates, state = tx.update(grads, tx.init(grads), moments=moments)
    assert all(updates[leaf] is grads[leaf] for leaf in grads)
    expected = noise_scale(moments, **layout)
    assert state.noise_sq == expected.noise_sq
    assert state.signal_sq == expected.signal_sq


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("method", ["eigh", "matmul"])
def test_alignment_and_direct_noise_are_those_of_the_pure_functions(name, method, x64):
    # In double precision: iterations amplify the rounding of another compilation.
    layout = LAYOUTS[name]
    stack = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), draws())
    arguments = layout | {"sample_weights": 2.0, "method": method}
    tx = track_noise_scale(
        **layout, stacked=True, signal="alignment", noise="direct", method=method
    )
    (_, state), _ = run(tx, [stack], samples_per_grad=2.0)
    signal = signed_square(alignment_signal(stack, **arguments))
    noise = direct_noise(stack, **arguments) ** 2
    np.testing.assert_allclose(state.noise_sq, noise, rtol=1e-6)
    np.testing.assert_allclose(state.signal_sq, signal, rtol=1e-6)
    np.testing.assert_allclose(state.value, state.noise_sq / state.signal_sq, rtol=1e-6)


def test_either_of_the_two_leaves_the_other_number_alone():
    stack = draws()
    plain, aligned, direct = (
        run(track_noise_scale("sign", stacked=True, **options), [stack])[0][1]
        for options in ({}, {"signal": "alignment"}, {"noise": "direct"})
    )
    assert aligned.noise_sq == plain.noise_sq
    assert aligned.signal_sq < plain.signal_sq
    assert direct.signal_sq == plain.signal_sq
    assert direct.noise_sq < plain.noise_sq


def test_a_negative_alignment_keeps_its_sign_and_enters_the_average():
    # Two draws that point against each other.
    stack = {"w": jnp.asarray([[1.0, 2.0], [-2.0, -1.0]])}
    tx = track_noise_scale("sign", stacked=True, signal="alignment", ema_signal=0.0)
    state = run(tx, [stack])[0][1]
    assert state.signal_sq == -9.0
    assert state.signal_ema == -9.0
    assert state.value == np.inf
    assert state.valid


@pytest.mark.parametrize(
    "options",
    [
        {"geometry": "l2", "signal": "debiased"},
        {"geometry": "sign", "sqrt_bias": "gaussian"},
        {"geometry": "sign", "block_weights": {"kernel": 2.0, "bias": 0.5}},
        {"geometry": "sign", "mask": {"kernel": True, "bias": False}},
        {"geometry": "spectral", "matrix_axes": AXES, "side": "tightest"},
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_options_are_those_of_the_pure_functions(options):
    stack = draws()
    state = run(track_noise_scale(**options, stacked=True), [stack])[0][1]
    keys = ("geometry", "matrix_axes", "side", "mask")
    layout = {key: value for key, value in options.items() if key in keys}
    others = {key: value for key, value in options.items() if key not in keys}
    expected = noise_scale(moments_from_stacked(stack, **layout), **layout, **others)
    np.testing.assert_allclose(state.value, expected.value, rtol=1e-6)


# When it is measured, and the averages.


def test_it_measures_at_multiples_of_the_period_and_keeps_the_values_between():
    stacks = [draws(seed) for seed in range(7)]
    tx = track_noise_scale("sign", stacked=True, every=3)
    found, _ = run(tx, stacks)
    assert [int(state.count) for state in found] == list(range(8))
    assert [int(state.ticks) for state in found] == [0, 1, 1, 1, 2, 2, 2, 3]
    for step in range(7):
        changed = found[step + 1].value != found[step].value
        assert changed == (step % 3 == 0)
        if changed:
            moments = moments_from_stacked(stacks[step], geometry="sign")
            np.testing.assert_allclose(
                found[step + 1].value,
                noise_scale(moments, geometry="sign").value,
                rtol=1e-6,
            )


def test_the_averages_are_raw_and_begin_at_zero():
    tx = track_noise_scale("l2", stacked=True, every=1, ema_noise=0.9, ema_signal=0.5)
    found, _ = run(tx, [draws(seed) for seed in range(4)])
    noise = signal = 0.0
    for state in found[1:]:
        noise = 0.9 * noise + 0.1 * float(state.noise_sq)
        signal = 0.5 * signal + 0.5 * float(state.signal_sq)
        np.testing.assert_allclose(state.noise_ema, noise, rtol=1e-6)
        np.testing.assert_allclose(state.signal_ema, signal, rtol=1e-6)


def test_before_the_first_measurement_all_is_zero_and_not_valid():
    state = track_noise_scale("sign", stacked=True).init(mean_of(draws()))
    assert isinstance(state, NoiseScaleState)
    assert all(leaf == 0 for leaf in state)
    assert [leaf.dtype.name for leaf in state] == (
        ["int32"] * 3 + ["float32"] * 5 + ["bool"]
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_gradient_passes_and_its_measurement_is_as_if_it_had_not_happened(bad):
    stacks = [draws(seed) for seed in range(4)]
    spoiled = jax.tree.map(lambda leaf: leaf.at[1].set(bad), draws(9))
    tx = track_noise_scale("sign", stacked=True, every=1)
    straight, _ = run(tx, stacks)
    found, _ = run(tx, [*stacks[:2], spoiled, *stacks[2:]])
    refused = found[3]
    assert refused.skipped == 1 and not refused.valid
    assert same(refused[1:2] + refused[3:8], found[2][1:2] + found[2][3:8])
    for state, reference in zip(found[4:], straight[3:], strict=True):
        assert state.count == reference.count + 1
        assert same(state[3:], reference[3:])
    updates = run(tx, [spoiled])[1]
    for leaf in spoiled:
        np.testing.assert_array_equal(updates[leaf], np.mean(spoiled[leaf], axis=0))


def test_a_bad_gradient_passes_beside_good_moments():
    grads = {"w": jnp.asarray([jnp.nan, 1.0])}
    moments = moments_from_stacked({"w": jnp.ones((2, 2))}, geometry="sign")
    tx = track_noise_scale("sign")
    updates, state = tx.update(grads, tx.init(grads), moments=moments)
    assert updates["w"] is grads["w"]
    assert state.valid


# Edge cases.


def test_one_draw_by_chance_is_skipped():
    tx = track_noise_scale("sign", stacked=True)
    weights = jnp.zeros(DRAWS).at[2].set(1.0)
    (_, state), updates = run(tx, [draws()], samples_per_grad=weights)
    assert (state.ticks, state.skipped, bool(state.valid)) == (0, 1, False)
    assert state.noise_ema == state.signal_ema == 0.0
    np.testing.assert_array_equal(updates["kernel"], draws()["kernel"][2])


def test_gradients_of_zero_are_skipped():
    zeros = jax.tree.map(jnp.zeros_like, draws())
    state = run(track_noise_scale("sign", stacked=True), [zeros])[0][1]
    assert (state.ticks, state.skipped, bool(state.valid)) == (0, 1, False)


def test_equal_draws_have_no_noise_and_enter_the_averages():
    equal = jax.tree.map(jnp.ones_like, draws())
    state = run(track_noise_scale("sign", stacked=True), [equal])[0][1]
    assert state.valid and state.ticks == 1
    assert state.value == 0.0
    np.testing.assert_allclose(state.signal_ema, 0.1 * 15.0**2, rtol=1e-6)


def test_draws_that_cancel_have_no_signal_and_enter_the_averages():
    stack = {"w": jnp.asarray([[1.0, -2.0], [-1.0, 2.0]])}
    state = run(track_noise_scale("sign", stacked=True), [stack])[0][1]
    assert state.valid and state.ticks == 1
    assert state.value == np.inf
    assert state.signal_ema == 0.0
    np.testing.assert_allclose(state.noise_ema, 0.1 * state.noise_sq, rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_padding_without_samples_does_not_count_whatever_it_holds(weight):
    stack = draws(number=5)
    padded = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf, jnp.full((1, *leaf.shape[1:]), jnp.nan)]),
        stack,
    )
    weights = jnp.asarray([1.0, 1.0, 1.0, 1.0, 1.0, weight])
    tx = track_noise_scale("sign", stacked=True)
    (_, state), updates = run(tx, [padded], samples_per_grad=weights)
    assert state.valid == (weight == 0.0)
    if weight == 0.0:
        (_, expected), means = run(tx, [stack])
        np.testing.assert_allclose(state.value, expected.value, rtol=1e-6)
        np.testing.assert_allclose(updates["bias"], means["bias"], rtol=1e-6)


def test_half_precision_gradients_are_averaged_in_float32():
    # In bfloat16 the sum of 257 ones is 256.
    stack = {"w": jnp.ones((257, 3), jnp.bfloat16).at[0].set(2.0)}
    (_, state), updates = run(track_noise_scale("sign", stacked=True), [stack])
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["w"], jnp.bfloat16(258 / 257))
    # The variance of one 2 among ones is 1 / 257.
    np.testing.assert_allclose(state.noise_sq, 9 / 257, rtol=1e-5)


def test_double_precision_gradients_keep_theirs(x64):
    stack = {"w": jnp.asarray([[1.0, 2.0], [1.0 + 1e-12, 2.0]])}
    (_, state), updates = run(track_noise_scale("sign", stacked=True), [stack])
    assert updates["w"].dtype == jnp.float64
    assert updates["w"][0] == 1.0 + 5e-13
    assert state.noise_sq.dtype == jnp.float32
    np.testing.assert_allclose(state.noise_sq, 5e-25, rtol=1e-3)


def test_counters_stay_at_their_largest_value():
    last = 2**31 - 1
    tx = track_noise_scale("sign", stacked=True, every=1)
    state = tx.init(mean_of(draws()))
    full = state._replace(
        **dict.fromkeys(("count", "ticks", "skipped"), jnp.int32(last))
    )
    _, after = tx.update(draws(), full)
    assert after.count == after.ticks == last
    _, after = tx.update(jax.tree.map(jnp.zeros_like, draws()), full)
    assert after.count == after.skipped == last


# Trees and wrappers.


def test_absent_leaves_stay_absent_and_do_not_count():
    stack = {"w": draws()["kernel"], "none": None, "masked": optax.MaskedNode()}
    alone = {"w": draws()["kernel"]}
    tx = track_noise_scale("sign", stacked=True)
    (_, state), updates = run(tx, [stack])
    assert jax.tree.structure(updates) == jax.tree.structure(stack)
    assert state.value == run(tx, [alone])[0][1].value


def test_under_optax_masked_only_the_chosen_leaves_are_seen():
    # The other leaf keeps its stack: it is somebody else's.
    tx = optax.masked(
        track_noise_scale("sign", stacked=True), {"kernel": True, "bias": False}
    )
    stack = draws()
    updates, state = tx.update(stack, tx.init(mean_of(stack)))
    assert updates["bias"] is stack["bias"]
    alone = {"kernel": stack["kernel"]}
    expected = run(track_noise_scale("sign", stacked=True), [alone])[0][1]
    assert state.inner_state.value == expected.value


def test_in_a_chain_adam_sees_the_mean():
    stack = draws()
    chain = optax.chain(track_noise_scale("sign", stacked=True), optax.adam(1e-2))
    params = mean_of(stack)
    updates, _ = chain.update(stack, chain.init(params), params)
    adam = optax.adam(1e-2)
    expected, _ = adam.update(params, adam.init(params), params)
    for leaf in params:
        np.testing.assert_allclose(updates[leaf], expected[leaf], rtol=1e-5)


def test_a_scan_is_a_loop_and_one_trace_serves_all_steps():
    tx = track_noise_scale("sign", stacked=True, every=2)
    stacks = [draws(seed) for seed in range(5)]
    traces = []

    @jax.jit
    def step(state, stack):
        traces.append(None)
        return tx.update(stack, state)[::-1]

    state = tx.init(mean_of(stacks[0]))
    looped = state
    for stack in stacks:
        looped, _ = step(looped, stack)
    assert len(traces) == 1
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stacks)
    scanned, _ = jax.jit(lambda state: jax.lax.scan(step, state, together))(state)
    for left, right in zip(looped, scanned, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_hyperparameters_may_change_between_steps():
    factory = optax.inject_hyperparams(track_noise_scale)
    tx = factory("sign", stacked=True, every=2, ema_noise=0.9, ema_signal=0.9)
    stack = draws()
    state = tx.init(mean_of(stack))
    step = jax.jit(lambda state: tx.update(stack, state, mean_of(stack))[1])
    plain = run(track_noise_scale("sign", stacked=True, every=2), [stack])[0][1]
    state = step(state)
    for left, right in zip(state.inner_state, plain, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)
    state.hyperparams["every"] = jnp.asarray(1)
    state = step(state)
    assert state.inner_state.ticks == 2


def test_its_state_is_a_measurement_for_the_controller():
    tx = track_noise_scale("sign", stacked=True, every=2)
    init, update = batch_size_controller(config(theta=0.05, every=2))
    state, control = tx.init(mean_of(draws())), init()
    spoiled = jax.tree.map(lambda leaf: leaf * jnp.nan, draws())
    for step, stack in enumerate((draws(0), draws(1), spoiled, draws(2), draws(3))):
        _, state = tx.update(stack, state, samples_per_grad=8.0)
        control = update(control, state, step)
    assert (control.ticks, control.skipped) == (state.ticks, state.skipped) == (2, 1)
    assert control.batch_size >= np.ceil(float(state.value) / 0.05**2 * (1 - 1e-6))


# Errors.


def test_without_a_source_of_draws_there_is_one_gradient():
    tx = track_noise_scale("sign")
    with pytest.raises(ValueError, match="needs several draws, got one gradient"):
        tx.update(mean_of(draws()), tx.init(mean_of(draws())))


def test_two_sources_are_an_error():
    with pytest.raises(ValueError, match="axis_name or stacked=True, got both"):
        track_noise_scale("sign", axis_name="data", stacked=True)
    moments = moments_from_stacked(draws(), geometry="sign")
    for source in ({"stacked": True}, {"axis_name": "data"}):
        tx = track_noise_scale("sign", **source)
        with pytest.raises(ValueError, match="or the extra argument moments, got both"):
            tx.update(draws(), tx.init(mean_of(draws())), moments=moments)


@pytest.mark.parametrize("options", [{"signal": "alignment"}, {"noise": "direct"}])
def test_moments_do_not_hold_the_draws(options):
    with pytest.raises(ValueError, match="compares draws .* moments do not hold them"):
        track_noise_scale("sign", **options)


def test_a_stack_of_one_is_one_draw():
    tx = track_noise_scale("sign", stacked=True, every=100)
    state = tx.init(mean_of(draws()))
    # Also on a step that does not measure.
    with pytest.raises(ValueError, match="at least 2 independent .* axis 0 .* holds 1"):
        tx.update(draws(number=1), state._replace(count=jnp.int32(1)))


def test_anything_but_moments_is_an_error():
    tx = track_noise_scale("sign")
    with pytest.raises(ValueError, match="moments must be"):
        tx.update(draws(), tx.init(mean_of(draws())), moments=draws())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"geometry": "l1"}, "geometry must be one of l2, sign, spectral, got 'l1'"),
        ({"side": "left"}, "side must be one of"),
        ({"signal": "median"}, "signal must be one of alignment, debiased, mean"),
        ({"noise": "loud"}, "noise must be one of direct, moments"),
        ({"sqrt_bias": "c4"}, "sqrt_bias must be one of"),
        ({"method": "svd"}, "method must be one of"),
        ({"every": 0}, "every must be an int >= 1, got 0"),
        ({"every": 2.0}, "every must be an int >= 1, got 2.0"),
        ({"ema_noise": 1.0}, r"ema_noise must be in \[0, 1\), got 1.0"),
        ({"ema_signal": lambda step: 0.9}, "ema_signal must be a number"),
        ({"stacked": 1}, "stacked must be a bool"),
        (
            {"noise": "direct", "stacked": True, "sqrt_bias": "gaussian"},
            "sqrt_bias must be 'none' with noise='direct'",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_a_bad_argument_is_an_error_before_the_first_step(options, match):
    with pytest.raises(ValueError, match=match):
        track_noise_scale(**({"geometry": "sign"} | options))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"geometry": "sign", "signal": "debiased"}, "signal='debiased' exists for"),
        ({"geometry": "spectral"}, "needs matrix_axes"),
        ({"geometry": "sign", "mask": False}, "no leaf counts"),
    ],
    ids=["debiased", "axes", "mask"],
)
def test_a_layout_that_does_not_fit_is_an_error_of_the_first_trace(options, match):
    tx = track_noise_scale(**options, stacked=True)
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(lambda: tx.update(draws(), tx.init(mean_of(draws()))))


@pytest.mark.parametrize(
    ("leaf", "match"),
    [(jnp.ones((2, 3), int), "table.*int32"), (jnp.ones((2, 3), complex), "table")],
)
def test_gradients_that_are_not_real_are_an_error(leaf, match):
    tx = track_noise_scale("sign", stacked=True)
    state = tx.init(mean_of(draws()))
    with pytest.raises(ValueError, match=match):
        tx.update({"table": leaf}, state)


def test_integer_parameters_are_an_error():
    with pytest.raises(ValueError, match="track_noise_scale .* leaf 'table'"):
        track_noise_scale("sign", stacked=True).init({"table": jnp.arange(3)})
