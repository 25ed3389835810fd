"""The loop: what it computes, when it stops, what it leaves behind."""

import json
import math

import jax
import numpy as np
import pytest

from experiments.curves import read_curve
from experiments.training import launch, prepare, run
from optim_jax import gpa_eval_params
from tests.experiments.training.runs import (
    ONE_DEVICE,
    metric_rows,
    preempt_after,
    state_leaves,
)


def _run(config, folder, **options):
    return run(config, folder, devices=ONE_DEVICE, **options)


def test_run_learns_and_leaves_everything_behind(tiny_config, tmp_path):
    config = tiny_config(steps=30, optimizer__learning_rate=2e-2)
    result = _run(config, tmp_path / "run")
    assert result.status == "finished" and result.step == 30
    losses = [row["train/loss"] for row in metric_rows(tmp_path / "run", "train")]
    assert len(losses) == 30 and losses[-1] < losses[0] - 1.0
    curve = read_curve(tmp_path / "run")
    assert list(curve.steps) == [5, 10, 15, 20, 25, 30]
    assert result.summary["eval/loss"] == curve.values[-1]
    status = json.loads((tmp_path / "run" / "run_status.json").read_text())
    assert status["status"] == "finished" and status["step"] == 30
    assert (tmp_path / "run" / "checkpoints" / "30").is_dir()
    tokens = [row["tokens"] for row in metric_rows(tmp_path / "run", "train")]
    assert tokens == [8 * 32 * step for step in range(1, 31)]


def test_the_same_run_twice_is_bitwise_the_same(tiny_config, tmp_path):
    for name in ("a", "b"):
        _run(tiny_config(optimizer__name="gpa_adamw"), tmp_path / name)
    first, second = (metric_rows(tmp_path / name, "train") for name in ("a", "b"))
    assert [r["train/loss"] for r in first] == [r["train/loss"] for r in second]


@pytest.mark.parametrize("name", ["gpa_adamw", "diloco_adamw", "adamw_ema"])
def test_stopping_in_the_middle_and_going_on_changes_nothing(
    tiny_config, tmp_path, name
):
    def config(**changes):
        return tiny_config(
            optimizer__name=name,
            optimizer__inner_steps=4,
            batch__micro_batch=4,
            model__dropout=0.1,
            **changes,
        )

    straight = prepare(config(), tmp_path / "straight", devices=ONE_DEVICE)
    straight.run()
    # A preemption at step 6: the flag is what a SIGTERM sets.
    broken = prepare(config(), tmp_path / "broken", devices=ONE_DEVICE)
    preempt_after(broken.loop, step=6)
    assert broken.run().status == "preempted"
    resumed = prepare(config(), tmp_path / "broken", resume=True, devices=ONE_DEVICE)
    assert resumed.loop.step == 6
    assert resumed.run().status == "finished"
    for a, b in zip(
        state_leaves(straight.loop.state), state_leaves(resumed.loop.state), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    rows = [metric_rows(tmp_path / name, "train") for name in ("straight", "broken")]
    assert [r["train/loss"] for r in rows[0]] == [r["train/loss"] for r in rows[1]]
    curves = [read_curve(tmp_path / name) for name in ("straight", "broken")]
    np.testing.assert_array_equal(curves[0].values, curves[1].values)


def test_micro_batches_give_the_gradient_of_the_whole_batch(tiny_config, tmp_path):
    whole = _run(tiny_config(), tmp_path / "whole")
    parts = _run(
        tiny_config(batch__micro_batch=2, evaluation__batches=8), tmp_path / "parts"
    )
    # The same rows, so the same validation set and the same losses up to rounding.
    assert parts.summary["eval/loss"] == pytest.approx(
        whole.summary["eval/loss"], abs=2e-5
    )
    for a, b in zip(
        metric_rows(tmp_path / "whole", "train"),
        metric_rows(tmp_path / "parts", "train"),
        strict=True,
    ):
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=2e-5)
        assert a["train/grad_norm"] == pytest.approx(b["train/grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "mesh"),
    [
        ("adamw", {"mesh__data": 8}),
        pytest.param(
            "gpa_adamw",
            {"mesh__data": 2, "mesh__fsdp": 2, "mesh__model": 2},
            marks=pytest.mark.slow,
        ),
        ("diloco_adamw", {"mesh__data": 1, "mesh__fsdp": 8}),
    ],
)
def test_eight_devices_give_the_losses_of_one(tiny_config, tmp_path, optimizer, mesh):
    common = {"optimizer__name": optimizer, "optimizer__inner_steps": 2, "steps": 5}
    _run(tiny_config(**common), tmp_path / "one")
    run(tiny_config(**common, **mesh), tmp_path / "eight")
    one, eight = (metric_rows(tmp_path / name, "train") for name in ("one", "eight"))
    np.testing.assert_allclose(
        [row["train/loss"] for row in one],
        [row["train/loss"] for row in eight],
        atol=1e-5,
    )
    np.testing.assert_allclose(
        read_curve(tmp_path / "one").values,
        read_curve(tmp_path / "eight").values,
        atol=1e-5,
    )


def test_resuming_on_another_mesh(tiny_config, tmp_path):
    prepared = prepare(tiny_config(optimizer__name="gpa_adamw"), tmp_path / "run")
    preempt_after(prepared.loop, step=4)
    assert prepared.run().status == "preempted"
    result = _run(
        tiny_config(optimizer__name="gpa_adamw"), tmp_path / "run", resume=True
    )
    straight = _run(tiny_config(optimizer__name="gpa_adamw"), tmp_path / "straight")
    assert result.summary["eval/loss"] == pytest.approx(
        straight.summary["eval/loss"], abs=1e-5
    )


def test_averaging_methods_are_evaluated_at_x_with_y_beside_it(tiny_config, tmp_path):
    config = tiny_config(optimizer__name="gpa_adamw")
    prepared = prepare(config, tmp_path / "run", devices=ONE_DEVICE)
    prepared.run()
    loop, model = prepared.loop, prepared.setup.model
    batches = list(prepared.setup.data.validation())
    x = gpa_eval_params(loop.state.opt_state, loop.state.params)

    def mean_loss(params):
        aux = [model.loss(params, batch)[1] for batch in batches]
        weights = sum(float(a["weight"]) for a in aux)
        return sum(float(a["weight"] * a["loss"]) for a in aux) / weights

    row = metric_rows(tmp_path / "run", "eval")[-1]
    assert row["eval/loss"] == pytest.approx(mean_loss(x), rel=1e-5)
    assert row["eval/loss_y"] == pytest.approx(mean_loss(loop.state.params), rel=1e-5)
    assert abs(row["eval/loss"] - row["eval/loss_y"]) > 1e-4


def test_target_ends_the_run(tiny_config, tmp_path):
    straight = _run(tiny_config(), tmp_path / "straight")
    assert "steps_to_target" not in straight.summary
    target = read_curve(tmp_path / "straight").values[0]
    result = _run(tiny_config(stopping__target_loss=target), tmp_path / "run")
    assert result.status == "target_reached" and result.step == 5
    assert result.summary["steps_to_target"] == 5
    assert result.summary["seconds_to_target"] > 0
    assert (tmp_path / "run" / "checkpoints" / "5").is_dir()


def test_time_limit_ends_the_run_with_a_checkpoint(tiny_config, tmp_path):
    result = _run(tiny_config(stopping__max_seconds=1e-6), tmp_path / "run")
    assert result.status == "finished" and result.step == 1
    assert "max_seconds" in result.message
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()


def _poison(prepared, step):
    """Makes the loss of one step non-finite by giving its tokens a NaN weight."""
    place, calls = type(prepared.setup).place, []

    def poisoned(setup, batch):
        placed = place(setup, batch)
        calls.append(None)
        # The first calls place the two validation batches.
        if len(calls) == 2 + step:
            placed = dict(placed, weights=placed["weights"] * math.nan)
        return placed

    return poisoned


def test_divergence_names_step_and_leaf_and_keeps_the_good_checkpoint(
    tiny_config, tmp_path, monkeypatch
):
    config = tiny_config(checkpoint__every=2)
    prepared = prepare(config, tmp_path / "run", devices=ONE_DEVICE)
    monkeypatch.setattr(type(prepared.setup), "place", _poison(prepared, 5))
    result = prepared.run()
    assert result.status == "diverged"
    assert "final_norm/scale at step 5 is not finite" in result.message
    kept = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [2, 4]
    monkeypatch.undo()
    assert _run(config, tmp_path / "run", resume=True).status == "finished"


def test_nonfinite_steps_are_skipped_when_asked(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(stopping__on_nonfinite="skip", optimizer__name="gpa_adamw")
    prepared = prepare(config, tmp_path / "run", devices=ONE_DEVICE)
    monkeypatch.setattr(type(prepared.setup), "place", _poison(prepared, 5))
    result = prepared.run()
    assert result.status == "finished"
    assert result.summary["optim/skipped_steps"] == 1
    assert all(np.isfinite(leaf).all() for leaf in state_leaves(prepared.loop.state))


def test_a_failing_reader_loses_no_step(tiny_config, tmp_path, monkeypatch):
    prepared = prepare(tiny_config(), tmp_path / "run", devices=ONE_DEVICE)
    train = prepared.setup.data.train
    advance, calls = type(train).__next__, []

    def failing(iterator):
        calls.append(None)
        if len(calls) == 8:
            raise OSError("the disk is gone")
        return advance(iterator)

    monkeypatch.setattr(type(train), "__next__", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        prepared.run()
    monkeypatch.undo()
    status = json.loads((tmp_path / "run" / "run_status.json").read_text())
    assert status["status"] == "failed" and "the disk is gone" in status["reason"]
    resumed = prepare(tiny_config(), tmp_path / "run", resume=True, devices=ONE_DEVICE)
    assert resumed.loop.step == 7
    resumed.run()
    straight = _run(tiny_config(), tmp_path / "straight")
    assert resumed.loop.step == 10
    assert straight.summary["eval/loss"] == read_curve(tmp_path / "run").values[-1]


def test_a_finished_run_resumed_stays_finished(tiny_config, tmp_path):
    first = _run(tiny_config(), tmp_path / "run")
    second = _run(tiny_config(), tmp_path / "run", resume=True)
    assert second.status == "finished" and second.step == first.step
    assert second.summary["eval/loss"] == first.summary["eval/loss"]


def test_a_folder_with_a_run_is_refused_unless_resuming(tiny_config, tmp_path):
    _run(tiny_config(steps=5), tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        _run(tiny_config(steps=5), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_resuming_another_trajectory_shows_the_difference(tiny_config, tmp_path):
    _run(tiny_config(), tmp_path / "run")
    with pytest.raises(ValueError, match="optimizer.learning_rate: 0.01 -> 0.02"):
        _run(tiny_config(optimizer__learning_rate=0.02), tmp_path / "run", resume=True)
    # What does not bear on the trajectory may change.
    _run(tiny_config(evaluation__every=3), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__name": "adm"}, "optimizer.name must be one of"),
        ({"data__tokenizer": "byte_special"}, "model.vocab_size=256 is smaller than"),
        ({"mesh__model": 3}, "mesh.model=3"),
        ({"batch__size": 6, "mesh__data": 4, "mesh__fsdp": 2}, "6 rows"),
        ({"data__path": "nowhere/*.txt"}, "nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_compiled(
    tiny_config, tmp_path, monkeypatch, changes, message
):
    def not_reached(*_):
        raise AssertionError("compiled")

    monkeypatch.setattr(launch.TrainingLoop, "__init__", not_reached)
    with pytest.raises((ValueError, OSError), match=message):
        run(tiny_config(**changes), tmp_path / "run")


def test_one_compilation_serves_all_steps(tiny_config, tmp_path):
    with jax.log_compiles(False):
        compiled = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, _, **__: (
                compiled.append(event)
                if event == "/jax/core/compile/backend_compile_duration"
                else None
            )
        )
        _run(tiny_config(steps=5), tmp_path / "short")
        short = len(compiled)
        _run(tiny_config(steps=25), tmp_path / "long")
    assert len(compiled) - short <= short
