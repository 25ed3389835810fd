import jax
import jax.numpy as jnp
import optax
import pytest

from optim_jax.trees.paths import (
    compile_rules,
    first_match,
    leaf_name,
    named_leaves,
)


def test_names_join_keys_indices_and_fields():
    tree = {"block": [{"kernel": 1}, {"kernel": 2}], "scale": 3}
    assert named_leaves(tree) == [
        ("block/0/kernel", 1),
        ("block/1/kernel", 2),
        ("scale", 3),
    ]
    state = optax.adam(1e-3).init({"w": jnp.ones(2)})
    assert [name for name, _ in named_leaves(state)] == [
        "0/count",
        "0/mu/w",
        "0/nu/w",
    ]


def test_a_single_leaf_has_the_empty_name():
    assert named_leaves(7) == [("", 7)]
    assert leaf_name(()) == ""


def test_is_leaf_stops_the_descent():
    tree = {"a": (1, 2), "b": (3, 4)}
    names = named_leaves(tree, is_leaf=lambda node: isinstance(node, tuple))
    assert names == [("a", (1, 2)), ("b", (3, 4))]


def test_order_is_that_of_tree_leaves():
    tree = {"z": 1, "a": {"y": 2, "b": 3}}
    assert [leaf for _, leaf in named_leaves(tree)] == jax.tree.leaves(tree)


def test_first_match_wins_and_is_not_anchored():
    rules = compile_rules([(r"norm/scale$", "norm"), (r"scale", "other")])
    assert first_match(rules, "block/0/norm/scale") == "norm"
    assert first_match(rules, "scale_of_the_head") == "other"
    assert first_match(rules, "kernel") is None


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("(kernel", 1)], r"rule '\(kernel' is not a valid regular expression"),
        ([("kernel",)], "a rule must be a pair"),
        ([(3, 1)], "a rule must be a pair"),
        (["kernel"], "a rule must be a pair"),
    ],
)
def test_bad_rules_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        compile_rules(rules)
