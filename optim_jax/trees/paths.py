"""Names of the leaves of a tree, and rule tables over these names."""

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax

Label = TypeVar("Label")


def leaf_name(path: tuple[Any, ...]) -> str:
    """Joins a key path of `jax.tree_util` by "/", e.g. `block/0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[str, Any]]:
    """Lists the leaves of a tree with their "/"-joined names.

    Args:
      tree: any pytree.
      is_leaf: where to stop descending, as in `jax.tree.map`.

    Returns:
      Pairs (name, leaf) in the order of `jax.tree.leaves`. A tree that is one single
      leaf has the name "".
    """
    pairs = jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    return [(leaf_name(path), leaf) for path, leaf in pairs]


def compile_rules(
    rules: Iterable[tuple[str, Label]],
) -> tuple[tuple[re.Pattern[str], Label], ...]:
    """Compiles the patterns of a rule table.

    Args:
      rules: pairs (regular expression, label).

    Returns:
      The same pairs with compiled expressions.

    Raises:
      ValueError: a rule is not a pair of a string and a label, or its expression is
        not valid.
    """
    compiled = []
    for rule in rules:
        if (
            not isinstance(rule, (tuple, list))
            or len(rule) != 2
            or not isinstance(rule[0], str)
        ):
            raise ValueError(f"a rule must be a pair (regex, label), got {rule!r}")
        try:
            compiled.append((re.compile(rule[0]), rule[1]))
        except re.error as error:
            raise ValueError(
                f"rule {rule[0]!r} is not a valid regular expression: {error}"
            ) from error
    return tuple(compiled)


def first_match(
    rules: Iterable[tuple[re.Pattern[str], Label]], name: str
) -> Label | None:
    """Returns the label of the first rule found in `name`, or None.

    Args:
      rules: what `compile_rules` returns.
      name: "/"-joined name of a leaf; the expression is searched, not anchored.
    """
    for pattern, label in rules:
        if pattern.search(name):
            return label
    return None
