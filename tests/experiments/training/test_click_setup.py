"""Runs on clicks through the trainer: what they compute, resume, meshes, stopping."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.data.click_batches import Clicks, Part, batch_of_clicks
from experiments.data.planted import four_feature_world, sample
from experiments.training import prepare, run
from experiments.training.click_setup import build_click_setup
from experiments.training.sparse_step import make_sparse_step
from models.click_batch import BatchRules
from optim_jax.row_sparse import dense_adagrad, sparse_row_wise_adagrad
from tests.experiments.training.click_runs import tiny_clicks
from tests.experiments.training.runs import (
    ONE_DEVICE,
    metric_rows,
    preempt_after,
    state_leaves,
)


def _losses(folder):
    return [row["train/loss"] for row in metric_rows(folder, "train")]


def test_a_run_is_the_sparse_step_on_the_batches_of_its_order(tmp_path):
    config = tiny_clicks(steps=3, evaluation__every=3)
    prepared = prepare(config, tmp_path / "run", devices=ONE_DEVICE)
    params = jax.device_get(prepared.setup.sparse.params(prepared.loop.state))
    prepared.run()
    step = make_sparse_step(
        prepared.setup.model,
        dense_adagrad(0.05, eps=1e-10),
        sparse_row_wise_adagrad(0.05, eps=1e-8),
    )
    world = four_feature_world()
    planted = sample(world, 500, 0)
    clicks = Clicks(planted.dense, planted.ids, planted.labels)
    rules = BatchRules(world.rows, 4)
    order = np.random.default_rng((0, 0)).permutation(500)
    state, expected = step.init(params), []
    for start in (0, 64, 128):
        batch = batch_of_clicks(clicks, order[start : start + 64], rules, Part(64))
        state, metrics = step.step(state, batch)
        expected.append(float(metrics["loss"]))
    np.testing.assert_allclose(_losses(tmp_path / "run"), expected, rtol=1e-6)
    trained = prepared.setup.sparse.params(prepared.loop.state)
    for a, b in zip(
        jax.tree.leaves(trained), jax.tree.leaves(step.params(state)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["adagrad", pytest.param("gpa+shampoo", marks=pytest.mark.slow)]
)
def test_stopping_in_the_middle_and_going_on_changes_nothing(tmp_path, name):
    config = tiny_clicks(
        optimizer__name=name,
        optimizer__max_preconditioner_dim=32,
        batch__micro_batch=32,
    )
    straight = prepare(config, tmp_path / "straight", devices=ONE_DEVICE)
    straight.run()
    # 500 samples are eight batches of 64: step 9 lies in the second epoch.
    broken = prepare(config, tmp_path / "broken", devices=ONE_DEVICE)
    preempt_after(broken.loop, step=9)
    assert broken.run().status == "preempted"
    resumed = prepare(config, tmp_path / "broken", resume=True, devices=ONE_DEVICE)
    assert resumed.loop.step == 9 and resumed.loop.samples == 9 * 64
    assert resumed.run().status == "finished"
    for a, b in zip(
        state_leaves(straight.loop.state), state_leaves(resumed.loop.state), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert _losses(tmp_path / "straight") == _losses(tmp_path / "broken")


def test_a_finished_epoch_is_followed_by_the_next(tmp_path):
    config = tiny_clicks(steps=0, epochs=1.0, evaluation__every=100)
    run(config, tmp_path / "run", devices=ONE_DEVICE)
    longer = dataclasses.replace(config, epochs=2.0)
    straight = prepare(longer, tmp_path / "straight", devices=ONE_DEVICE)
    assert straight.setup.config.steps == 16
    with pytest.raises(ValueError, match="epochs: 1.0 -> 2.0"):
        prepare(longer, tmp_path / "run", resume=True, devices=ONE_DEVICE)
    straight.run()
    rows = _losses(tmp_path / "straight")
    assert rows[:8] == _losses(tmp_path / "run") and len(set(rows)) == 16


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    whole = prepare(tiny_clicks(), tmp_path / "whole", devices=ONE_DEVICE)
    parts = prepare(
        tiny_clicks(batch__micro_batch=16), tmp_path / "parts", devices=ONE_DEVICE
    )
    whole.run(), parts.run()
    # An epoch of 500 ends differently in batches of 64 and of 16, hence the first 7.
    np.testing.assert_allclose(
        _losses(tmp_path / "parts")[:7], _losses(tmp_path / "whole")[:7], rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["table", "row", "column", "auto"])
def test_eight_devices_give_the_losses_of_one(tmp_path, layout):
    # Neither the batch nor the last one of the epoch splits over eight.
    config = tiny_clicks(tables__layout=layout, batch__size=60)
    run(config, tmp_path / "one", devices=ONE_DEVICE)
    run(config, tmp_path / "eight")
    np.testing.assert_allclose(
        _losses(tmp_path / "eight"), _losses(tmp_path / "one"), rtol=1e-5
    )


@pytest.mark.slow
def test_a_checkpoint_of_four_devices_goes_on_on_one(tmp_path):
    config = tiny_clicks(tables__layout="table")
    straight = prepare(config, tmp_path / "straight", devices=ONE_DEVICE)
    straight.run()
    broken = prepare(config, tmp_path / "run", devices=jax.devices()[:4])
    preempt_after(broken.loop, step=5)
    assert broken.run().status == "preempted"
    resumed = prepare(config, tmp_path / "run", resume=True, devices=ONE_DEVICE)
    resumed.run()
    np.testing.assert_allclose(
        _losses(tmp_path / "run"), _losses(tmp_path / "straight"), rtol=1e-5
    )


def test_the_step_is_compiled_once(tmp_path):
    prepared = prepare(tiny_clicks(), tmp_path / "run", devices=ONE_DEVICE)
    setup = prepared.setup
    traced = []
    loss = setup.model.loss_from_rows

    def counting(*arguments, **options):
        traced.append(1)
        return loss(*arguments, **options)

    model = dataclasses.replace(setup.model, loss_from_rows=counting)
    sparse = dataclasses.replace(setup.sparse, model=model)
    object.__setattr__(setup, "sparse", sparse)
    prepared.run()
    # Shapes of the sums, the step itself, and the validation: none of it per step.
    assert len(traced) <= 6


def test_more_samples_than_32_bits_are_counted(tmp_path):
    config = tiny_clicks(steps=2**30, stopping__max_seconds=0.2)
    prepared = prepare(config, tmp_path / "run", devices=ONE_DEVICE)
    assert prepared.setup.config.total_samples == 2**36
    object.__setattr__(
        prepared.loop, "state", prepared.loop.state._replace(samples=np.int32(2**29))
    )
    prepared.loop.samples = prepared.loop._before = 2**29 * 64
    result = prepared.run()
    assert result.status == "finished"
    assert result.summary["samples"] == (2**29 + result.step) * 64


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ({"stopping__target_accuracy": 0.2}, "eval/accuracy"),
        ({"stopping__target_auc": 0.1}, "eval/auc"),
        ({"stopping__target_loss": 5.0}, "eval/loss"),
    ],
)
def test_a_target_ends_the_run(tmp_path, target, wanted):
    result = run(tiny_clicks(**target), tmp_path / "run", devices=ONE_DEVICE)
    assert result.status == "target_reached" and wanted in result.message
    assert result.summary["steps_to_target"] == 6


def _poisoned(prepared, at):
    """Has the n-th batch overflow; the first one placed only tells its shapes."""
    train, place = prepared.setup.data.train, prepared.setup.sparse.place
    count = iter(range(10**6))

    def placing(batch):
        if next(count) == at:
            batch = {**batch, "dense": np.full_like(batch["dense"], 3e38)}
        return place(batch)

    object.__setattr__(prepared.setup, "place", placing)
    return train


def test_a_non_finite_step_stops_the_run_or_is_left_out(tmp_path):
    stopped = prepare(tiny_clicks(), tmp_path / "stopped", devices=ONE_DEVICE)
    _poisoned(stopped, at=3)
    result = stopped.run()
    assert result.status == "diverged" and "step 3" in result.message
    skipping = prepare(
        tiny_clicks(stopping__on_nonfinite="skip"),
        tmp_path / "skipping",
        devices=ONE_DEVICE,
    )
    _poisoned(skipping, at=3)
    result = skipping.run()
    assert result.status == "finished" and result.summary["optim/skipped_steps"] == 1
    assert np.isfinite(result.summary["eval/loss"])
    counts = {
        int(state.count)
        for table in skipping.loop.state.opt_state["rows"].values()
        for state in table.values()
    }
    assert counts == {11}


def test_bad_requests_are_refused_before_anything_is_written(tmp_path):
    for changes, message in (
        ({"model__bottom": "8-12"}, "ends in 12 and tables\\[0\\].dim=16"),
        ({"model__top": "8-2"}, "top must end in 1"),
        ({"data__world": "P9"}, "data.world must be one of P1, O1"),
        ({"tables__byte_budget": 100}, "byte_budget is 100"),
        ({"model__init": "reference"}, "model.init=reference draws full tables only"),
        ({"optimizer__name": "pb_lbfgs"}, "pb_lbfgs searches along the loss of each"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(tiny_clicks(**changes), tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_every_optimizer_trains_the_dense_part():
    for name in ("muon", "soap", "signum", "row_wise_adagrad", "gpa_adamw"):
        setup = build_click_setup(tiny_clicks(optimizer__name=name), ONE_DEVICE)
        dense = setup.abstract_state.params["dense"]
        assert set(dense) == {"tables", "bottom", "top"}
        assert not jax.tree.leaves(dense["tables"])


def test_reference_weights_do_not_depend_on_the_devices(tmp_path):
    config = tiny_clicks(
        model__init="reference", model__method="full", tables__layout="table"
    )
    one, four = (build_click_setup(config, jax.devices()[:count]) for count in (1, 4))
    a, b = (setup.sparse.params(setup.initial_state()) for setup in (one, four))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
    draws = np.random.RandomState(0)
    bound = np.sqrt(1 / 2000)
    first = draws.uniform(-bound, bound, (2000, 16)).astype(np.float32)
    np.testing.assert_array_equal(a["tables"]["0"]["table"], first)
