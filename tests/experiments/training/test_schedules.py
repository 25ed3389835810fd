"""The schedule against the original implementation's rates and its own formula."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.training.schedules import dlrm_schedule


def _rates(steps, base=1.0, **arguments):
    schedule = dlrm_schedule(base, **arguments)
    return np.array([float(schedule(t)) for t in range(steps)])


@pytest.mark.parametrize("name", ["lr_none", "lr_warm_only", "lr_warm_decay"])
def test_reference_rates(golden_dir, name, x64):
    config = json.loads((golden_dir / "dlrm" / f"{name}.json").read_text())
    arrays = np.load(golden_dir / "dlrm" / f"{name}.npz", allow_pickle=False)
    rates = _rates(
        config["n"],
        config["base"],
        warmup_steps=config["warmup"],
        decay_start=config["decay_start"],
        decay_steps=config["decay_steps"],
        mode="reference",
    )
    np.testing.assert_allclose(rates, arrays["lr"], rtol=1e-15)


def test_standard_reaches_the_base_and_the_end_value():
    rates = _rates(
        18, 2.0, warmup_steps=4, decay_start=8, decay_steps=6, end_value=0.01
    )
    decay = [2 * (k / 6) ** 2 for k in (6, 5, 4, 3, 2, 1)]
    expected = [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, *decay, 0.01, 0.01, 0.01, 0.01, 0.01]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_the_floor_of_the_decay():
    settings = dict(warmup_steps=0, decay_start=0, decay_steps=10, end_value=0.1)
    rates = _rates(12, **settings)
    np.testing.assert_allclose(rates[:3], [0.81, 0.64, 0.49], rtol=1e-6)
    np.testing.assert_allclose(rates[6:], 0.1, rtol=1e-6)
    np.testing.assert_allclose(rates, _rates(12, **settings, mode="reference"))


def test_the_tail_of_the_reference_is_not_below_its_floor():
    rates = _rates(
        6, 1e-6, warmup_steps=0, decay_start=1, decay_steps=4, mode="reference"
    )
    np.testing.assert_allclose(
        rates, [1e-6, 5.625e-7, 2.5e-7, 1e-7, 1e-7, 1e-7], rtol=1e-6
    )


def test_without_a_decay_the_start_is_ignored():
    rates = _rates(6, warmup_steps=3, decay_start=0, decay_steps=0)
    np.testing.assert_allclose(rates, [1 / 3, 2 / 3, 1, 1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("mode", ["standard", "reference"])
def test_every_form_of_the_step(mode):
    schedule = dlrm_schedule(
        1.0, warmup_steps=4, decay_start=8, decay_steps=6, mode=mode
    )
    steps = jnp.arange(24)
    one_by_one = np.array([float(schedule(t)) for t in range(24)])
    for rates in (
        schedule(steps),
        jax.jit(schedule)(steps),
        jax.jit(schedule)(steps.astype(jnp.float32)),
        jax.vmap(schedule)(steps.astype(jnp.int8)),
        np.array([schedule(float(t)) for t in range(24)]),
        np.array([schedule(np.int64(t)) for t in range(24)]),
    ):
        # Compiled, a division by a constant may round differently in its last bit.
        np.testing.assert_allclose(np.asarray(rates), one_by_one, rtol=3e-7)
    assert schedule(3).dtype == jnp.float32 and schedule(3).shape == ()


def test_between_steps_the_rate_is_between():
    schedule = dlrm_schedule(1.0, warmup_steps=10, decay_start=20, decay_steps=10)
    assert float(schedule(3.5)) == pytest.approx(0.45)
    assert float(schedule(24.5)) == pytest.approx(0.45**2)


def test_the_last_step_that_can_be_counted():
    last = jnp.int32(2**31 - 1)
    plain = dlrm_schedule(0.5, warmup_steps=4, decay_start=0, decay_steps=0)
    assert float(jax.jit(plain)(last)) == 0.5
    long = dlrm_schedule(
        24.0, warmup_steps=2750, decay_start=49_315, decay_steps=27_772
    )
    assert float(jax.jit(long)(last)) == pytest.approx(1e-7)
    assert float(long(49_314 + 13_886)) == pytest.approx(6.0)


def test_it_drives_an_optax_optimizer():
    schedule = dlrm_schedule(0.4, warmup_steps=4, decay_start=4, decay_steps=0)
    tx = optax.sgd(schedule)
    params = jnp.zeros(())
    state = tx.init(params)
    for expected in (-0.1, -0.2, -0.3, -0.4, -0.4):
        updates, state = tx.update(jnp.ones(()), state)
        assert float(updates) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(mode="exact"), "mode must be one of standard, reference, got 'exact'"),
        (dict(base=-0.1), "base must be a finite number >= 0, got -0.1"),
        (dict(base=float("nan")), "base must be a finite number >= 0, got nan"),
        (dict(end_value=-1.0), "end_value must be a finite number >= 0"),
        (dict(end_value=2.0), "end_value=2.0 must not exceed base=1.0"),
        (dict(warmup_steps=-1), "warmup_steps must be an integer >= 0, got -1"),
        (dict(decay_steps=2.5), "decay_steps must be an integer >= 0, got 2.5"),
        (dict(decay_start=3), "decay_start=3 must not be less than warmup_steps=4"),
        (
            dict(decay_start=3, decay_steps=0, mode="reference"),
            "decay_start=3 must not be less than warmup_steps=4",
        ),
        (dict(warmup_steps=0, mode="reference"), "no rate for the first step"),
        (dict(warmup_steps=1, mode="reference"), "no rate for the first step"),
        (
            dict(warmup_steps=0, decay_start=0, decay_steps=1, mode="reference"),
            r"no rate for the first step.*decay_start=0, decay_steps=1",
        ),
        (dict(decay_steps=2**31), "must end within 2147483646 steps"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = dict(base=1.0, warmup_steps=4, decay_start=8, decay_steps=6) | changes
    base = arguments.pop("base")
    with pytest.raises(ValueError, match=message):
        dlrm_schedule(base, **arguments)


def test_standard_has_a_rate_where_the_reference_has_none():
    rates = _rates(4, warmup_steps=0, decay_start=3, decay_steps=2)
    np.testing.assert_allclose(rates, [1.0, 1.0, 1.0, 0.25], rtol=1e-6)
