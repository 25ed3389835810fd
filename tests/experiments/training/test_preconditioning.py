"""The Shampoo family in a run: continued, spread over devices, watched."""

import jax
import numpy as np
import pytest

from experiments.curves import read_curve
from experiments.training import prepare, run
from experiments.training.preconditioning import counter_metrics, counters
from optim_jax import ShampooState
from tests.experiments.training.runs import (
    ONE_DEVICE,
    metric_rows,
    preempt_after,
    state_leaves,
)

# Above this the small matrices would be merged into vectors of up to 1024 entries.
BLOCKS = {"optimizer__max_preconditioner_dim": 48}
EIGHT = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__model": 2}


def _shampoo_states(state):
    def is_shampoo(node):
        return isinstance(node, ShampooState)

    leaves = jax.tree.leaves(state.opt_state, is_leaf=is_shampoo)
    return [leaf for leaf in leaves if is_shampoo(leaf)]


def _losses(folder):
    return [row["train/loss"] for row in metric_rows(folder, "train")]


@pytest.mark.parametrize(
    ("name", "refresh"),
    [
        ("shampoo", "cond"),
        pytest.param("soap", "staggered", marks=pytest.mark.slow),
        pytest.param("kl_shampoo", "external", marks=pytest.mark.slow),
        pytest.param("gpa+shampoo", "staggered", marks=pytest.mark.slow),
        pytest.param("gpa+soap", "cond", marks=pytest.mark.slow),
    ],
)
def test_stopping_in_the_middle_and_going_on_changes_nothing(
    tiny_config, tmp_path, name, refresh
):
    config = tiny_config(
        optimizer__name=name,
        optimizer__refresh=refresh,
        optimizer__precondition_frequency=2,
        **BLOCKS,
    )
    straight = prepare(config, tmp_path / "straight", devices=ONE_DEVICE)
    straight.run()
    broken = prepare(config, tmp_path / "broken", devices=ONE_DEVICE)
    preempt_after(broken.loop, step=5)  # between two refreshes
    assert broken.run().status == "preempted"
    resumed = prepare(config, tmp_path / "broken", resume=True, devices=ONE_DEVICE)
    assert resumed.run().status == "finished"
    for a, b in zip(
        state_leaves(straight.loop.state), state_leaves(resumed.loop.state), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert _losses(tmp_path / "straight") == _losses(tmp_path / "broken")


# SOAP works in eigenbases, which of singular factors are not unique: in runs this short
# rounding picks them, so only its steps before a refresh can be compared.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "refresh", "period"),
    [
        ("shampoo", "cond", 2),
        ("kl_shampoo", "external", 2),
        ("gpa+shampoo", "staggered", 2),
        ("gpa+soap", "cond", 50),
    ],
)
def test_eight_devices_give_the_losses_of_one(
    tiny_config, tmp_path, name, refresh, period
):
    changes = {
        "optimizer__name": name,
        "optimizer__refresh": refresh,
        "optimizer__precondition_frequency": period,
        # Singular factors would amplify the rounding of another order of summation.
        "optimizer__relative_epsilon": 1e-3,
        **BLOCKS,
        "steps": 6,
    }
    run(tiny_config(**changes), tmp_path / "one", devices=ONE_DEVICE)
    eight = prepare(tiny_config(**changes, **EIGHT), tmp_path / "eight")
    (abstract,) = _shampoo_states(eight.setup.abstract_state)
    for stack in jax.tree.leaves(abstract.buckets):
        spread = stack.sharding.shard_shape(stack.shape)
        assert spread[0] == stack.shape[0] // 8
    eight.run()
    np.testing.assert_allclose(
        _losses(tmp_path / "eight"), _losses(tmp_path / "one"), atol=2e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "period"), [("shampoo", 2), ("gpa+soap", 50)])
def test_eight_devices_go_on_as_one(tiny_config, tmp_path, name, period):
    changes = {
        "optimizer__name": name,
        "optimizer__precondition_frequency": period,
        "optimizer__relative_epsilon": 1e-3,
        **BLOCKS,
    }
    prepared = prepare(tiny_config(**changes, **EIGHT), tmp_path / "run")
    preempt_after(prepared.loop, step=5)
    assert prepared.run().status == "preempted"
    run(tiny_config(**changes), tmp_path / "run", resume=True, devices=ONE_DEVICE)
    run(tiny_config(**changes), tmp_path / "straight", devices=ONE_DEVICE)
    np.testing.assert_allclose(
        read_curve(tmp_path / "run").values,
        read_curve(tmp_path / "straight").values,
        atol=2e-5,
    )


@pytest.mark.parametrize(
    ("refresh", "refreshes"), [("cond", 3), ("external", 3), ("staggered", 10)]
)
def test_counters_are_in_the_metrics(tiny_config, tmp_path, refresh, refreshes):
    config = tiny_config(
        optimizer__name="soap",
        optimizer__refresh=refresh,
        optimizer__precondition_frequency=3,
        logging__every=10,
        **BLOCKS,
    )
    run(config, tmp_path / "run", devices=ONE_DEVICE)
    row = metric_rows(tmp_path / "run", "train")[-1]
    assert row["optim/refreshes"] == refreshes
    assert row["optim/refresh_failures"] == 0
    assert row["optim/consecutive_refresh_failures"] == 0
    assert 0.0 < row["optim/refresh_residual"] < 1e-4
    assert row["optim/skipped_leaf_steps"] == 0


def test_a_block_that_cannot_be_refreshed_ends_the_run_with_its_name(
    tiny_config, tmp_path
):
    config = tiny_config(optimizer__name="soap", **BLOCKS)
    prepared = prepare(config, tmp_path / "run", devices=ONE_DEVICE)
    loop, plan = prepared.loop, prepared.setup.plan

    def fail_always(node):
        failures = jax.tree.map(lambda counts: counts + 4, node.health.failures)
        return node._replace(health=node.health._replace(failures=failures))

    spoiled = jax.tree.map(
        lambda node: fail_always(node) if isinstance(node, ShampooState) else node,
        loop.state.opt_state,
        is_leaf=lambda node: isinstance(node, ShampooState),
    )
    state = loop.state._replace(opt_state=spoiled)
    with pytest.raises(
        RuntimeError, match="block .* of leaf .* could not be refreshed"
    ):
        counter_metrics(counters(state), plan)


def test_other_optimizers_have_no_counters(tiny_config, tmp_path):
    prepared = prepare(tiny_config(), tmp_path / "run", devices=ONE_DEVICE)
    assert prepared.setup.plan is None and prepared.setup.refresh_every == 0
    prepared.run()
    row = metric_rows(tmp_path / "run", "train")[-1]
    assert not [name for name in row if "refresh" in name]
