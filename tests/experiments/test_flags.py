"""Flags for config fields, and those of several processes."""

import dataclasses

import pytest
from absl import flags

from experiments.config import TrainConfig
from experiments.flags import (
    config_from_flags,
    define_config_flags,
    define_distributed_flags,
    initialize_distributed,
)
from experiments.presets import LLAMA, preset_by_name

PRESET = LLAMA["llama_pico_stdlib"]()


def test_flags_override_the_preset_and_leave_the_rest():
    flag_values = flags.FLAGS
    define_config_flags(TrainConfig, prefix="testconfig.")
    flag_values(["program", "--testconfig.optimizer.b2=0.99", "--testconfig.seed=3"])
    config = config_from_flags(PRESET, flag_values, prefix="testconfig.")
    assert config.optimizer.b2 == 0.99 and config.seed == 3
    assert dataclasses.replace(
        config, optimizer=PRESET.optimizer, seed=PRESET.seed
    ) == (PRESET)


def test_unknown_field_is_an_unknown_flag():
    flag_values = flags.FlagValues()
    with pytest.raises(flags.UnrecognizedFlagError, match="config.nope"):
        flag_values(["program", "--config.nope=1"])


def test_unknown_preset_lists_what_exists():
    with pytest.raises(ValueError, match="llama_nano_stdlib, llama_pico_stdlib.*'x'"):
        preset_by_name("x", LLAMA)


def test_process_flags_without_distributed_are_refused():
    flag_values = flags.FLAGS
    if "distributed" not in flag_values:
        define_distributed_flags()
    flag_values(["program", "--num_processes=2"])
    with pytest.raises(ValueError, match="--num_processes needs --distributed"):
        initialize_distributed(flag_values)
    flag_values(["program", "--distributed", "--num_processes=2"])
    with pytest.raises(ValueError, match="missing: --coordinator, --process_id"):
        initialize_distributed(flag_values)
    flag_values.unparse_flags()
