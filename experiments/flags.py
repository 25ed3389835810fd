"""Command-line flags: one per leaf field of a config, and those of several processes.

`--config.optimizer.learning_rate` sets `config.optimizer.learning_rate`; a flag that is
not given leaves the preset's value, and an unknown field is an unknown flag, with
absl's suggestion.
"""

from typing import TypeVar

import jax
from absl import flags, logging

from experiments.config_fields import leaf_fields, with_overrides

Config = TypeVar("Config")


def define_config_flags(config_class: type, prefix: str = "config.") -> None:
    """Declares a flag for each leaf field; not given means as in the preset."""
    for name, kind in leaf_fields(config_class).items():
        flags.DEFINE_string(
            prefix + name, None, f"{kind.__name__}; by default as in the preset."
        )


def config_from_flags(
    preset: Config, flag_values: flags.FlagValues, prefix: str = "config."
) -> Config:
    """The preset with every given `--config.…` flag applied.

    Raises:
      ValueError: see `with_overrides`.
    """
    given = {
        name: flag_values[prefix + name].value
        for name in leaf_fields(type(preset))
        if flag_values[prefix + name].value is not None
    }
    return with_overrides(preset, given)


def define_distributed_flags() -> None:
    """Declares the flags of a run over several processes."""
    flags.DEFINE_bool("distributed", False, "One of several processes of one run.")
    flags.DEFINE_string(
        "coordinator",
        None,
        "host:port of process 0; clusters that JAX knows need none.",
    )
    flags.DEFINE_integer("num_processes", None, "Processes in the run.")
    flags.DEFINE_integer("process_id", None, "This process, from 0.")


def initialize_distributed(flag_values: flags.FlagValues) -> None:
    """Joins the run's other processes; does nothing without `--distributed`.

    Must come before anything else that uses JAX.

    Raises:
      ValueError: if only some of the three addresses are given, or any of them
        without `--distributed`.
    """
    names = ("coordinator", "num_processes", "process_id")
    given = {n: flag_values[n].value for n in names if flag_values[n].value is not None}
    if not flag_values["distributed"].value:
        if given:
            raise ValueError(f"--{next(iter(given))} needs --distributed")
        return
    if not given:
        jax.distributed.initialize()
        return
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(
            "--distributed needs all of --coordinator, --num_processes and "
            "--process_id, or none on a cluster that JAX knows; missing: "
            + ", ".join(f"--{name}" for name in missing)
        )
    jax.distributed.initialize(
        given["coordinator"], given["num_processes"], given["process_id"]
    )


def quiet_by_default(flag_values: flags.FlagValues) -> None:
    """Shows warnings only, unless `--verbosity` asks for more; call it in `main`.

    absl's `app.run` turns on the info lines of every library.
    """
    if not flag_values["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
