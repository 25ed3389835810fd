"""Tables of (path regex, value) that say something about every parameter."""

import re
from collections.abc import Sequence
from typing import Any

import jax


def parameter_path(path: tuple) -> str:
    """The "/"-joined name of a leaf, e.g. `layers/0/attention/query/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def apply_rules(params: Any, rules: Sequence[tuple[str, Any]]) -> Any:
    """Returns a tree like `params` that holds, per leaf, the value of its rule.

    Args:
      params: a tree of arrays or of their shapes.
      rules: pairs (regex searched in the leaf's path, value); the first match wins.

    Returns:
      The tree of values.

    Raises:
      ValueError: no rule matches a leaf.
    """

    def value(path, leaf):
        name = parameter_path(path)
        for pattern, result in rules:
            if re.search(pattern, name):
                return result
        raise ValueError(
            f"no rule matches parameter {name} of shape {leaf.shape}; "
            f"the patterns are {', '.join(pattern for pattern, _ in rules)}"
        )

    return jax.tree.map_with_path(value, params)
