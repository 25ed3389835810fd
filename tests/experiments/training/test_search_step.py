"""Runs whose optimizer searches along the loss: the same rows, keys and weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import OptimizerConfig
from experiments.optimizers import build_optimizer
from experiments.training import launch, prepare, run
from experiments.training.inference import load_for_inference
from experiments.training.search_step import (
    build_search_accumulate,
    build_search_apply,
    row_objective,
    rows_of_step,
    search_metrics,
    zero_search_sum,
)
from experiments.training.state import TrainState, init_state
from models import LLAMA_PRESETS, Model, build_llama
from tests.experiments.training.runs import (
    ONE_DEVICE,
    metric_rows,
    preempt_after,
    state_leaves,
)

# One layer: the program of a line search holds the model several times.
SEARCH = {"optimizer__name": "pb_lbfgs", "model__num_layers": 1}
# Shared by tests, so that they share the program.
STOCHASTIC = {"batch__micro_batch": 4, "model__dropout": 0.1, **SEARCH}
EIGHT = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__model": 2}


def _losses(folder):
    return [row["train/loss"] for row in metric_rows(folder, "train")]


def _state(params):
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, params, (), jax.random.key(3))


def _packed_rows(rows, length, seed=0):
    """Rows of two examples each, filled to different degrees; one is empty."""
    generator = np.random.default_rng(seed)
    segments = np.zeros((rows, length), np.int32)
    for row in range(1, rows):
        cut, end = 2 + row % 3, min(length, 3 + 2 * row)
        segments[row, :cut], segments[row, cut:end] = 1, 2
    return {
        "tokens": generator.integers(0, 256, (rows, length), dtype=np.int32),
        "targets": generator.integers(0, 256, (rows, length), dtype=np.int32),
        "segment_ids": segments,
        "weights": (segments > 0).astype(np.float32),
    }


@pytest.mark.parametrize("slots", [1, 3])
def test_the_mean_over_rows_is_the_objective_over_tokens(slots):
    model = build_llama(LLAMA_PRESETS["llama_pico"](z_loss=1e-2))
    params = model.init(jax.random.key(0))
    batch = _packed_rows(6, 16)
    state, micro = _state(params), 6 // slots
    parts = [
        jax.tree.map(lambda leaf, i=i: leaf[i * micro : (i + 1) * micro], batch)
        for i in range(slots)
    ]
    sums = zero_search_sum(params, parts[0], slots)
    accumulate = jax.jit(build_search_accumulate(model))
    for index, part in enumerate(parts):
        sums = accumulate(state, sums, part, index)
    whole = jax.value_and_grad(model.loss, has_aux=True)
    (objective, aux), gradients = whole(params, batch)
    assert sums.weight == aux["weight"] == batch["weights"].sum()
    np.testing.assert_allclose(sums.loss / sums.weight, aux["loss"], rtol=1e-6)
    np.testing.assert_allclose(sums.objective / sums.weight, objective, rtol=1e-6)
    rows = rows_of_step(state, sums, sums.weight)
    losses, of_rows = row_objective(model, micro).losses, jnp.zeros(6)
    mean, of_rows = jax.value_and_grad(lambda p: jnp.mean(losses(p, rows)))(params)
    np.testing.assert_allclose(mean, objective, rtol=1e-6)
    for accumulated, expected, searched in zip(
        jax.tree.leaves(sums.gradients),
        jax.tree.leaves(gradients),
        jax.tree.leaves(of_rows),
        strict=True,
    ):
        np.testing.assert_allclose(accumulated / sums.weight, expected, atol=2e-6)
        np.testing.assert_allclose(searched, expected, atol=2e-6)


def test_rows_that_are_full_count_once_each():
    model = build_llama(LLAMA_PRESETS["llama_pico"]())
    params = model.init(jax.random.key(0))
    batch = _packed_rows(6, 16)
    batch = {name: batch[name] for name in ("tokens", "targets")}
    sums = zero_search_sum(params, batch, 1)
    sums = build_search_accumulate(model)(_state(params), sums, batch, 0)
    rows = rows_of_step(_state(params), sums, sums.weight)
    np.testing.assert_array_equal(rows.share, np.ones(6))
    single = row_objective(model, 6).losses(params, rows)
    for row in range(6):
        alone = jax.tree.map(lambda leaf, r=row: leaf[r : r + 1], batch)
        np.testing.assert_allclose(single[row], model.loss(params, alone)[0], rtol=1e-6)


def _regression():
    """A model of one matrix: squared errors, weighted, under random noise."""

    def loss(params, batch, *, key=None, train=False):
        noise = 0.1 * jax.random.normal(key, batch["y"].shape) if train else 0.0
        errors = jnp.square(batch["x"] @ params["w"] - batch["y"] + noise)
        weight = jnp.sum(batch["weights"])
        mean = jnp.sum(batch["weights"] * errors) / weight
        return mean, {"loss": mean, "weight": weight}

    return Model(
        init=lambda key: {"w": jax.random.normal(key, (3,))},
        apply=None,
        loss=loss,
        partition_rules=(),
        matrix_axes=lambda params: params,
        flops_per_example=1.0,
    )


def test_a_step_searches_over_the_rows_it_has_gathered():
    model, slots, micro = _regression(), 2, 6
    optimizer = build_optimizer(
        OptimizerConfig(name="pb_lbfgs"),
        steps=1,
        matrix_axes=model.matrix_axes,
        objective=row_objective(model, micro),
    )
    state = init_state(model, optimizer.transformation, seed=0)()
    generator = np.random.default_rng(0)
    x = generator.normal(size=(slots, micro, 3)).astype(np.float32)
    parts = {
        "x": x,
        "y": x @ np.array([1.0, -2.0, 0.5], np.float32),
        "weights": generator.integers(1, 4, (slots, micro)).astype(np.float32),
    }
    traces = []
    update = build_search_apply(optimizer, skip_nonfinite=False)

    def apply(*arguments):
        traces.append(None)
        return update(*arguments)

    accumulate, apply = jax.jit(build_search_accumulate(model)), jax.jit(apply)
    sums = zero_search_sum(state.params, {k: v[0] for k, v in parts.items()}, slots)
    found = []
    for step in range(5):
        for slot in range(slots):
            part = {name: rows[slot] for name, rows in parts.items()}
            sums = accumulate(state, sums, part, np.int32(slot))
        state, sums, metrics = apply(state, sums, np.int32(12), np.int32(12), None)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(sums))
        assert metrics["healthy"] and "lr" not in metrics
        # The search began where the gradient was taken: same weights, same noise.
        np.testing.assert_allclose(
            state.opt_state.info.value, metrics["objective"], rtol=1e-6
        )
        record = search_metrics(metrics["search"])
        assert 0 < record["optim/step_length"] <= 1 and record["optim/pair"] in (1, 2)
        assert record["optim/recommended_batch"] in range(12, 25)
        assert record["optim/gradient_rows"] == 3 * 12 * (step + 1)
        found.append(float(metrics["loss"]))
    assert found[-1] < 0.1 < found[0] and len(traces) == 1
    assert int(state.step) == 5 and int(state.samples) == 60


@pytest.mark.slow
def test_a_run_learns_and_logs_its_line_search(tiny_config, tmp_path):
    config = tiny_config(steps=15, **STOCHASTIC)
    prepared = prepare(config, tmp_path / "run", devices=ONE_DEVICE)
    loop, compiled, by_step = prepared.loop, [], {}
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "compile" in event else None
    )
    boundary = loop._boundary

    def counting_boundary():
        by_step[loop.step] = len(compiled)
        return boundary()

    loop._boundary = counting_boundary
    assert prepared.run().status == "finished"
    assert 0 < by_step[7] == by_step[15]  # past the first step and the first evaluation
    rows = metric_rows(tmp_path / "run", "train")
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] - 1.0
    for row in rows:
        assert "train/lr" not in row
        assert 0.0 < row["optim/step_length"] <= row["optim/first_trial"] <= 1.0
        assert row["optim/recommended_batch"] in range(8, 17)
        assert row["optim/pair"] in (0.0, 1.0, 2.0)
        assert row["optim/search_failed"] == row["optim/memory_reset"] == 0.0
        tested = row.get("optim/sample_ratio", np.inf)
        assert (tested > 1) == (row["optim/recommended_batch"] > 8)
    assert rows[-1]["optim/pairs_stored"] == 10.0
    # Every step takes the gradient of its rows three times.
    assert [row["optim/gradient_rows"] for row in rows] == [
        3 * 8 * step for step in range(1, 16)
    ]
    # A sample can be drawn from what it leaves.
    _, params, _ = load_for_inference(tmp_path / "run", which="latest")
    np.testing.assert_array_equal(
        jax.tree.leaves(params)[0], jax.tree.leaves(loop.state.params)[0]
    )


@pytest.mark.slow
def test_micro_batches_give_the_steps_of_the_whole_batch(tiny_config, tmp_path):
    run(tiny_config(steps=6, **SEARCH), tmp_path / "whole", devices=ONE_DEVICE)
    parts = tiny_config(steps=6, batch__micro_batch=2, evaluation__batches=8, **SEARCH)
    run(parts, tmp_path / "parts", devices=ONE_DEVICE)
    np.testing.assert_allclose(
        _losses(tmp_path / "whole"), _losses(tmp_path / "parts"), atol=1e-4
    )


@pytest.mark.slow
def test_stopping_in_the_middle_and_going_on_changes_nothing(tiny_config, tmp_path):
    config = tiny_config(steps=6, **STOCHASTIC)
    straight = prepare(config, tmp_path / "straight", devices=ONE_DEVICE)
    straight.run()
    broken = prepare(config, tmp_path / "broken", devices=ONE_DEVICE)
    preempt_after(broken.loop, step=3)
    assert broken.run().status == "preempted"
    resumed = prepare(config, tmp_path / "broken", resume=True, devices=ONE_DEVICE)
    assert resumed.loop.step == 3 and resumed.run().status == "finished"
    for a, b in zip(
        state_leaves(straight.loop.state), state_leaves(resumed.loop.state), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert _losses(tmp_path / "straight") == _losses(tmp_path / "broken")
    # The search began at the loss that was differentiated: dropout and all.
    (last,) = metric_rows(tmp_path / "straight", "train")[-1:]
    searched = float(straight.loop.state.opt_state.info.value)
    assert searched == pytest.approx(last["train/objective"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [EIGHT, {"mesh__data": 8}])
def test_eight_devices_give_the_losses_of_one(tiny_config, tmp_path, mesh):
    config = {"steps": 6, **SEARCH}
    run(tiny_config(**config), tmp_path / "one", devices=ONE_DEVICE)
    eight = prepare(tiny_config(**config, **mesh), tmp_path / "eight")
    state = eight.setup.abstract_state
    for param, pairs in zip(
        jax.tree.leaves(state.params),
        jax.tree.leaves(state.opt_state.memory.s),
        strict=True,
    ):
        share = param.sharding.shard_shape(param.shape)
        assert pairs.sharding.shard_shape(pairs.shape) == (10, *share)
    eight.run()
    np.testing.assert_allclose(
        _losses(tmp_path / "eight"), _losses(tmp_path / "one"), atol=5e-5
    )


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_when_asked(
    tiny_config, tmp_path, monkeypatch
):
    config = tiny_config(stopping__on_nonfinite="skip", **SEARCH)
    prepared = prepare(config, tmp_path / "run", devices=ONE_DEVICE)
    train = prepared.setup.data.train
    advance, calls = type(train).__next__, []

    def poisoned(iterator):
        calls.append(None)
        batch = advance(iterator)
        if len(calls) == 5:
            batch = dict(batch, weights=np.full_like(batch["weights"], np.nan))
        return batch

    monkeypatch.setattr(type(train), "__next__", poisoned)
    result = prepared.run()
    assert result.status == "finished"
    assert result.summary["optim/skipped_steps"] == 1
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(prepared.loop.state.params)
    )
    assert _losses(tmp_path / "run")[-1] < _losses(tmp_path / "run")[0]


def test_an_infinite_ratio_is_left_out_of_the_log():
    logged = search_metrics({"sample_ratio": np.inf, "pair": np.float32(1)})
    assert logged == {"optim/pair": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch__adaptive": "l2", "batch__max_size": 16},
            "optimizer.name=pb_lbfgs trains on batches of one size: leave out batch.ad",
        ),
        (
            {"batch__seesaw": True, "batch__max_size": 16},
            "optimizer.name=pb_lbfgs trains on batches of one size",
        ),
        ({"batch__path": "path.csv"}, "pb_lbfgs trains on batches of one size"),
        ({"batch__size": 1}, "batch.size must be >= 2 with optimizer.name=pb_lbfgs"),
        ({"optimizer__name": "gpa+pb_lbfgs"}, "pb_lbfgs searches along the loss"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_compiled(
    tiny_config, tmp_path, monkeypatch, changes, message
):
    def not_reached(*_):
        raise AssertionError("compiled")

    monkeypatch.setattr(launch.TrainingLoop, "__init__", not_reached)
    with pytest.raises(ValueError, match=message):
        run(tiny_config(**SEARCH | changes), tmp_path / "run", devices=ONE_DEVICE)
