"""Command-line flags for a tree of frozen config dataclasses.

Every leaf field becomes one typed absl flag, `--config.optimizer.learning_rate` for
`config.optimizer.learning_rate`; a flag that is not given leaves the preset's value.
The config is rebuilt from its leaves, so every check in `__post_init__` runs on what
was asked for, and an unknown field is an unknown flag, with absl's suggestion.
"""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from absl import flags, logging

Config = TypeVar("Config")


def _fields(config_class: type) -> dict[str, type]:
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def _value_type(hint: Any) -> type:
    """The scalar type behind `X` or `X | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return str
    return hint


def _parse(name: str, text: str, hint: Any) -> Any:
    kind = _value_type(hint)
    if kind is bool:
        lowered = text.lower()
        if lowered not in ("true", "false", "1", "0"):
            raise ValueError(f"{name} must be true or false, got {text!r}")
        return lowered in ("true", "1")
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{name} must be of type {kind.__name__}, got {text!r}") from (
            error
        )


def leaf_fields(config_class: type, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all leaf fields, with their type hints."""
    leaves = {}
    for name, hint in _fields(config_class).items():
        if dataclasses.is_dataclass(hint):
            leaves.update(leaf_fields(hint, f"{prefix}{name}."))
        else:
            leaves[prefix + name] = hint
    return leaves


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A copy with dotted fields replaced; text is converted to the field's type.

    Args:
      config: a dataclass, possibly of dataclasses.
      overrides: `{"optimizer.learning_rate": 3e-4}` or `"3e-4"`.

    Raises:
      ValueError: for a name that is no field (it lists what exists), a text that does
        not convert, or a value that a `__post_init__` refuses.
    """
    leaves = leaf_fields(type(config))
    unknown = sorted(set(overrides) - set(leaves))
    if unknown:
        raise ValueError(
            f"no config field named {', '.join(unknown)}; fields are: "
            + ", ".join(leaves)
        )
    converted = {
        name: _parse(f"config.{name}", value, leaves[name])
        if isinstance(value, str)
        else value
        for name, value in overrides.items()
    }
    return _rebuild(config, converted, "")


def _rebuild(config: Any, overrides: Mapping[str, Any], prefix: str) -> Any:
    changes = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            changes[field.name] = _rebuild(value, overrides, name + ".")
        elif name in overrides:
            changes[field.name] = overrides[name]
    return dataclasses.replace(config, **changes)


def define_config_flags(config_class: type, prefix: str = "config.") -> None:
    """Declares a flag for each leaf field; not given means as in the preset."""
    for name, hint in leaf_fields(config_class).items():
        kind = _value_type(hint).__name__
        flags.DEFINE_string(
            prefix + name, None, f"{kind}; by default as in the preset."
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


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values of a config, for JSON; infinities become strings."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, enum.Enum):
            return value.value
        if isinstance(value, float) and value in (float("inf"), -float("inf")):
            return str(value)
        return value

    return plain(dataclasses.asdict(config))


def from_dict(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`."""
    arguments = {}
    for name, hint in _fields(config_class).items():
        if name not in values:
            continue
        value = values[name]
        if dataclasses.is_dataclass(hint):
            value = from_dict(hint, value)
        elif isinstance(value, str):
            value = _parse(name, value, hint)
        arguments[name] = value
    return config_class(**arguments)


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
