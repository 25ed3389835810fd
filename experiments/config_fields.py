"""A tree of frozen config dataclasses by its dotted leaf fields, and as JSON.

A config is always rebuilt from its leaves, so every check in `__post_init__` runs on
what was asked for.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")


def _fields(config_class: type) -> dict[str, type]:
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def _parse(name: str, text: str, kind: type) -> Any:
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


def leaf_fields(config_class: type, prefix: str = "") -> dict[str, type]:
    """Dotted names of all leaf fields, with their types."""
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


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values of a config, for JSON; infinities become strings."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
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
