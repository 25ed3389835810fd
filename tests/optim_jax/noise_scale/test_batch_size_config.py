"""Options of the controller: defaults, limits, messages."""

import dataclasses
import warnings

import numpy as np
import pytest

from optim_jax.noise_scale.batch_size_config import BatchSizeConfig

RELEASED = ((1, 32), (128, 128))


def _config(**changes):
    return BatchSizeConfig(**({"theta": 0.6, "init_batch": 64} | changes))


def test_defaults_are_the_papers():
    config = _config()
    assert dataclasses.asdict(config) == {
        "theta": 0.6,
        "init_batch": 64,
        "max_batch": None,
        "ema_noise": 0.9,
        "ema_signal": 0.9,
        "every": 100,
        "warmup_samples": 0,
        "quantum": 1,
        "rounding": "ceil",
        "monotone": True,
        "hysteresis": 0.2,
        "max_growth": None,
        "lr_power": 0.5,
        "apply_lag": 0,
        "momentum": 0.0,
    }


def test_is_frozen_hashable_and_by_keyword_only():
    config = _config(quantum=[[1, 32], [128, 128]])
    assert config.quantum == RELEASED
    assert hash(config) == hash(_config(quantum=RELEASED))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.theta = 0.5
    with pytest.raises(TypeError):
        BatchSizeConfig(0.6, 64)


def test_theta_from_one_on_warns():
    with pytest.warns(UserWarning, match="theta=1.0 asks .* theta < 1") as caught:
        _config(theta=1.0)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _config(theta=0.999)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("theta", 0.0, "finite and > 0"),
        ("theta", np.nan, "finite and > 0"),
        ("theta", "0.6", "finite and > 0"),
        ("theta", True, "finite and > 0"),
        ("theta", np.array([0.6]), "finite and > 0"),
        ("init_batch", 0, "an int from 1"),
        ("init_batch", 64.0, "an int from 1"),
        ("init_batch", 2**31, "an int from 1"),
        ("init_batch", True, "an int from 1"),
        ("max_batch", 32, "None or >= init_batch=64"),
        ("max_batch", 128.0, "an int from 1"),
        ("ema_noise", 1.0, r"in \[0, 1\)"),
        ("ema_signal", -0.1, r"in \[0, 1\)"),
        ("ema_signal", np.nan, r"in \[0, 1\)"),
        ("every", 0, "an int from 1"),
        ("every", 2.5, "an int from 1"),
        ("warmup_samples", -1, "an int from 0"),
        ("warmup_samples", 2**31, "an int from 0"),
        ("quantum", 0, "an int >= 1 or pairs"),
        ("rounding", "nearest", "one of ceil, floor"),
        ("monotone", 1, "a bool"),
        ("hysteresis", 1.0, r"in \[0, 1\)"),
        ("hysteresis", -0.1, r"in \[0, 1\)"),
        ("max_growth", 1.0, "None or finite and > 1"),
        ("max_growth", np.inf, "None or finite and > 1"),
        ("lr_power", -0.5, "finite and >= 0"),
        ("lr_power", np.inf, "finite and >= 0"),
        ("apply_lag", -1, "an int from 0"),
        ("apply_lag", 100, "below every=100"),
        ("momentum", 1.0, r"in \[0, 1\)"),
        ("momentum", -0.1, r"in \[0, 1\)"),
    ],
)
def test_a_bad_value_is_an_error_that_names_field_value_and_limits(
    field, value, allowed
):
    with pytest.raises(ValueError, match=f"{field} must be {allowed}") as caught:
        _config(**{field: value})
    assert str(value) in str(caught.value)


def test_sizes_off_the_grid_are_errors():
    with pytest.raises(ValueError, match="init_batch must be on the grid .*128.* 48"):
        _config(init_batch=48, quantum=RELEASED)
    with pytest.raises(ValueError, match="max_batch must be .*on the grid .* got 192"):
        _config(max_batch=192, quantum=RELEASED)
    assert _config(max_batch=64, quantum=RELEASED).max_batch == 64


def test_numbers_of_numpy_are_numbers():
    config = _config(theta=np.float32(0.5), init_batch=np.int64(64), every=np.int32(10))
    assert (config.theta, config.init_batch, config.every) == (0.5, 64, 10)
