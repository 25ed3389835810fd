"""Trains a Llama: `python -m experiments.train_llama --preset=llama_nano_stdlib`.

`--optimizer=NAME` is short for `--config.optimizer.name=NAME`, and `--preset=nano` for
`--preset=llama_nano_stdlib`. Flags make a `TrainConfig`; `experiments.training` does
the rest. Exit status: 0 for finished, target reached or preempted (a checkpoint was
saved), 2 for a request that was refused before anything was compiled or written, 3 for
diverged, 1 for the rest.
"""

import os
import sys

from absl import app, flags

from experiments.config import TrainConfig
from experiments.config_fields import leaf_fields, with_overrides
from experiments.flags import (
    config_from_flags,
    define_config_flags,
    define_distributed_flags,
    initialize_distributed,
    quiet_by_default,
)
from experiments.optimizers import OPTIMIZERS, require_applicable
from experiments.presets import LLAMA, preset_by_name
from experiments.training import prepare

EXIT_REFUSED, EXIT_DIVERGED = 2, 3

_PRESET = flags.DEFINE_string(
    "preset",
    "llama_nano_stdlib",
    f"One of: {', '.join(LLAMA)}; `nano` stands for llama_nano_stdlib, and so on.",
)
_OPTIMIZER = flags.DEFINE_string(
    "optimizer",
    None,
    f"One of: {', '.join(sorted(OPTIMIZERS))}; by default the preset's.",
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder of this run; must not hold another run.", required=True
)
_RESUME = flags.DEFINE_bool(
    "resume", False, "Go on from the newest checkpoint in --output_dir."
)
define_config_flags(TrainConfig)
define_distributed_flags()


def _request(argv: list[str]) -> TrainConfig:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; flags start with --")
    preset = _PRESET.value
    if f"llama_{preset}_stdlib" in LLAMA:
        preset = f"llama_{preset}_stdlib"
    config = config_from_flags(preset_by_name(preset, LLAMA), flags.FLAGS)
    given = {
        name: flags.FLAGS[f"config.{name}"].value
        for name in leaf_fields(TrainConfig)
        if flags.FLAGS[f"config.{name}"].value is not None
    }
    if _OPTIMIZER.value is not None:
        named = given.get("optimizer.name", _OPTIMIZER.value)
        if named != _OPTIMIZER.value:
            raise ValueError(
                f"--optimizer={_OPTIMIZER.value} contradicts "
                f"--config.optimizer.name={named}; give one of them"
            )
        config = with_overrides(config, {"optimizer.name": _OPTIMIZER.value})
    require_applicable(config.optimizer.name, given)
    return config


def main(argv: list[str]) -> None:
    """Flags to configuration to run."""
    quiet_by_default(flags.FLAGS)
    try:
        config = _request(argv)
        if config.deterministic:
            # Read when the backend starts, so before the first use of a device.
            os.environ["XLA_FLAGS"] = (
                os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
            )
        initialize_distributed(flags.FLAGS)
        prepared = prepare(config, _OUTPUT_DIR.value, resume=_RESUME.value)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    result = prepared.run()
    print(result.message)
    if result.status == "diverged":
        sys.exit(EXIT_DIVERGED)


if __name__ == "__main__":
    app.run(main)
