"""The battery notices what it is there for: each flaw below is caught by its check."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.contract import (
    test_compilation,
    test_composition,
    test_leaves,
    test_memory,
    test_protocol,
    test_sharding,
)
from tests.contract.problem import make_params
from tests.contract.transformations import Row


class _State(NamedTuple):
    count: Any
    average: Any


def _init(params):
    return _State(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))


def _rate(learning_rate, count):
    return learning_rate(count) if callable(learning_rate) else learning_rate


def averaged_sgd(learning_rate, **flaws):
    """SGD on a running average of gradients, correct but for the flaws asked for."""
    init = flaws.get("init", _init)
    increment = flaws.get("increment", optax.safe_increment)
    average = flaws.get("average", lambda old, new: 0.9 * old + 0.1 * new)
    scale = flaws.get("scale", lambda rate, m, grads: (-rate * m).astype(m.dtype))
    offset = flaws.get("offset", 0)

    def update(grads, state, params=None, **extra_args):
        if flaws.get("no_extra_args") and extra_args:
            raise TypeError(f"unexpected arguments {sorted(extra_args)}")
        if flaws.get("branch_on_rate") and learning_rate == 0.0:
            return grads, state
        averages = jax.tree.map(average, state.average, grads)
        rate = _rate(learning_rate, state.count + offset)
        updates = jax.tree.map(lambda m: scale(rate, m, grads), averages)
        return updates, _State(increment(state.count), averages)

    return optax.GradientTransformationExtraArgs(init, update)


def _row(**flaws):
    return Row(
        "averaged_sgd",
        lambda learning_rate: averaged_sgd(learning_rate, **flaws),
        lambda rate: {"learning_rate": rate},
        needs_params=False,
        buffers=1,
    )


def _aliasing(params):
    return _State(jnp.zeros([], jnp.int32), params)


def _doubled(params):
    zeros = _init(params).average
    return _State(jnp.zeros([], jnp.int32), (zeros, zeros))


def _oversized(params):
    return _State(jnp.zeros([100], jnp.int32), _init(params).average)


def _python_counter(params):
    return _State(0, _init(params).average)


def _hidden(params):
    del params
    return _State(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, make_params()))


def _one_device(params):
    return jax.device_put(_init(params), jax.devices()[0])


def _normalised(rate, average, grads):
    return -rate * average / optax.tree.norm(grads)


def _coupled(rate, average, grads):
    return -rate * average / (1.0 + optax.tree.norm(grads))


def _wide(rate, average, grads):
    del grads
    return (-rate * average).astype(jnp.float32)


class Flaw(NamedTuple):
    """A defect, the check that must see it, and words of the failure."""

    flaws: dict[str, Any]
    check: Callable[..., None]
    match: str
    arguments: tuple[Any, ...] = ()


FLAWS = {
    "state_shares_the_params_buffers": Flaw(
        {"init": _aliasing}, test_memory.test_params_and_state_can_be_donated, "donate"
    ),
    "two_fields_share_a_buffer": Flaw(
        {"init": _doubled}, test_memory.test_no_buffer_is_held_twice, "assert"
    ),
    "more_memory_than_promised": Flaw(
        {"init": _oversized},
        test_memory.test_the_state_holds_the_promised_buffers,
        "assert",
    ),
    "counter_wraps_around": Flaw(
        {"increment": lambda count: count + 1},
        test_protocol.test_counters_saturate,
        "assert",
    ),
    "counter_changes_its_dtype": Flaw(
        {"increment": lambda count: count + 1.0},
        test_protocol.test_state_is_arrays_of_stable_type,
        "float32",
    ),
    "counter_is_a_python_number": Flaw(
        {"init": _python_counter},
        test_protocol.test_state_is_arrays_of_stable_type,
        "isinstance",
    ),
    "buffers_hidden_from_map_params": Flaw(
        {"init": _hidden},
        test_protocol.test_map_params_pairs_every_buffer_with_its_parameter,
        "all",
    ),
    "unknown_extra_arguments_refused": Flaw(
        {"no_extra_args": True},
        test_protocol.test_is_a_transformation_with_extra_args,
        "unexpected arguments",
    ),
    "python_branch_on_the_learning_rate": Flaw(
        {"branch_on_rate": True}, test_composition.test_inject_hyperparams, "traced"
    ),
    "schedule_read_one_step_late": Flaw(
        {"offset": 1},
        test_compilation.test_one_trace_with_a_changing_learning_rate,
        "Not equal",
    ),
    "half_precision_update_in_float32": Flaw(
        {"scale": _wide}, test_leaves.test_half_precision_params, "bfloat16"
    ),
    "division_by_a_vanishing_gradient": Flaw(
        {"scale": _normalised},
        test_leaves.test_extreme_gradients_stay_finite,
        "not finite",
        (0.0,),
    ),
    "communication_not_declared": Flaw(
        {"scale": _coupled},
        test_sharding.test_eight_devices_are_one,
        "all-reduce",
        ("rows",),
    ),
    "state_left_on_one_device": Flaw(
        {"init": _one_device},
        test_sharding.test_eight_devices_are_one,
        "is_equivalent_to",
        ("rows",),
    ),
    "integer_leaf_accepted": Flaw(
        {}, test_leaves.test_integer_leaf_is_an_error, "DID NOT RAISE"
    ),
}


@pytest.mark.parametrize("name", FLAWS)
def test_a_flaw_is_caught(name):
    flaw = FLAWS[name]
    errors = (
        AssertionError,
        RuntimeError,
        TypeError,
        ValueError,
        pytest.fail.Exception,
    )
    with pytest.raises(errors, match=flaw.match):
        flaw.check(_row(**flaw.flaws), *flaw.arguments)


@pytest.mark.parametrize("name", [name for name in FLAWS if FLAWS[name].flaws])
def test_the_flawless_version_passes(name):
    FLAWS[name].check(_row(), *FLAWS[name].arguments)
