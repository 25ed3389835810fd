"""Presets by name."""

from collections.abc import Callable
from typing import TypeVar

from experiments.click_config import ClickTrainConfig
from experiments.config import TrainConfig
from experiments.presets import dlrm, llama

Config = TypeVar("Config")

LLAMA: dict[str, Callable[[], TrainConfig]] = {
    preset.__name__: preset
    for preset in (
        llama.llama_pico_stdlib,
        llama.llama_nano_stdlib,
        llama.llama_micro_stdlib,
        llama.llama_debug_c4,
        llama.llama_60m_opendiloco_c4,
        llama.llama_150m_opendiloco_c4,
        llama.llama_160m_c4,
    )
}

DLRM: dict[str, Callable[[], ClickTrainConfig]] = {
    preset.__name__: preset
    for preset in (
        dlrm.dlrm_nano,
        dlrm.dlrm_planted,
        dlrm.dlrm_name_calls,
        dlrm.dlrm_kaggle,
        dlrm.dlrm_terabyte,
        dlrm.dlrm_mlperf_v1,
        dlrm.dlrm_mlperf_v1_large_batch,
        dlrm.dcnv2_mlperf_v2,
    )
}


def preset_by_name(name: str, presets: dict[str, Callable[[], Config]]) -> Config:
    """The preset's complete configuration.

    Raises:
      ValueError: for an unknown name; it lists what exists.
    """
    if name not in presets:
        raise ValueError(
            f"--preset must be one of {', '.join(sorted(presets))}, got {name!r}"
        )
    return presets[name]()
