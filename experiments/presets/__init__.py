"""Presets by name."""

from collections.abc import Callable

from experiments.config import TrainConfig
from experiments.presets import llama

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


def preset_by_name(
    name: str, presets: dict[str, Callable[[], TrainConfig]]
) -> TrainConfig:
    """The preset's complete configuration.

    Raises:
      ValueError: for an unknown name; it lists what exists.
    """
    if name not in presets:
        raise ValueError(
            f"--preset must be one of {', '.join(sorted(presets))}, got {name!r}"
        )
    return presets[name]()
