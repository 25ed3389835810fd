"""Runs whose batch follows a noise scale, a path or Seesaw."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from experiments.training import prepare, run
from experiments.training.batch_path import Change, read_batch_path, write_batch_path
from experiments.training.setup import Setup
from tests.experiments.training.runs import (
    ONE_DEVICE,
    metric_rows,
    preempt_after,
    state_leaves,
)

# Without a warm-up, and at a theta that always asks for more: 8, 12, 16, 24, 32 rows.
GROWING = {
    "steps": 24,
    "batch__micro_batch": 4,
    "batch__max_size": 32,
    "batch__theta": 0.1,
    "batch__max_growth": 1.5,
    "batch__warmup_fraction": 0.0,
    "batch__ema_noise": 0.5,
    "batch__ema_signal": 0.5,
    "noise_scale__every": 3,
    "evaluation__every": 12,
}


def _config(tiny_config, geometry="sign", **changes):
    return tiny_config(**{"batch__adaptive": geometry, **GROWING, **changes})


def _path(folder):
    return read_batch_path(folder / "batch_path.csv", quantum=1)


def _column(folder, name, split="train"):
    return np.array([row[name] for row in metric_rows(folder, split)])


@contextlib.contextmanager
def _counted_traces():
    """Counts what JAX traces meanwhile."""
    traced = []

    def listen(event, duration, **_):
        del duration
        if event.endswith("jaxpr_trace_duration"):
            traced.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield traced
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    ("optimizer", "geometry"),
    [
        ("signum", "sign"),
        ("muon", "spectral"),
        ("gpa_adamw", "l2"),
        pytest.param("adamw", "sign", marks=pytest.mark.slow),
        pytest.param("specsgd", "spectral", marks=pytest.mark.slow),
        pytest.param("gpa+soap", "spectral", marks=pytest.mark.slow),
        pytest.param("sgd", "l2", marks=pytest.mark.slow),
        pytest.param("diloco_adamw", "sign", marks=pytest.mark.slow),
    ],
)
def test_the_batch_grows_and_the_run_ends_on_its_last_sample(
    tiny_config, tmp_path, optimizer, geometry
):
    config = _config(
        tiny_config,
        geometry,
        optimizer__name=optimizer,
        optimizer__learning_rate=3e-3,
        optimizer__max_preconditioner_dim=48,
    )
    result = run(config, tmp_path / "run", devices=ONE_DEVICE)
    assert result.status == "finished"
    assert result.summary["samples"] == 24 * 8
    path = _path(tmp_path / "run")
    sizes = [change.size for change in path]
    assert sizes[0] == 8 and sizes[-1] > 8 and sizes == sorted(sizes)
    assert all(size % 4 == 0 and size <= 32 for size in sizes)
    rows = metric_rows(tmp_path / "run", "train")
    batch = _column(tmp_path / "run", "train/batch_size")
    np.testing.assert_array_equal(
        np.cumsum(batch) * 32, [row["tokens"] for row in rows]
    )
    assert result.step == len(rows) < 24
    for name in ("noise_scale", "noise_sq", "signal_sq", "noise_scale_saturated"):
        assert np.all(np.isfinite(_column(tmp_path / "run", f"optim/{name}")))
    ratio = _column(tmp_path / "run", "optim/noise_sq") / _column(
        tmp_path / "run", "optim/signal_sq"
    )
    np.testing.assert_allclose(
        _column(tmp_path / "run", "optim/noise_scale"), ratio, rtol=1e-5
    )


def test_rates_follow_samples_and_the_root_of_the_batch(tiny_config, tmp_path):
    config = _config(tiny_config, optimizer__warmup_fraction=0.25)
    prepared = prepare(config, tmp_path / "run", devices=ONE_DEVICE)
    schedule = prepared.setup.optimizer.schedule
    prepared.run()
    batch = _column(tmp_path / "run", "train/batch_size")
    before = np.cumsum(batch) - batch
    expected = [
        float(schedule(samples / 8)) * np.sqrt(size / 8)
        for samples, size in zip(before, batch, strict=True)
    ]
    # The last step may be shorter than the batch that decides its rate.
    np.testing.assert_allclose(
        _column(tmp_path / "run", "train/lr")[:-1], expected[:-1], rtol=1e-5
    )


def test_neither_batch_sizes_nor_measurements_compile_anything(tiny_config, tmp_path):
    counts = []
    for name, changes in (("grows", {}), ("stays", {"batch__max_size": 8})):
        config = _config(tiny_config, optimizer__name="signum", **changes)
        prepared = prepare(config, tmp_path / name, devices=ONE_DEVICE)
        with _counted_traces() as traced:
            prepared.run()
        counts.append(len(traced))
        counts.append(len(_path(tmp_path / name)))
    traces_growing, sizes, traces_constant, one = counts
    assert sizes >= 3 and one == 1
    assert traces_growing == traces_constant > 0


def test_the_order_of_the_data_does_not_depend_on_the_batch(
    tiny_config, tmp_path, monkeypatch
):
    fed, place = {}, Setup.place
    for name, geometry in (("constant", "none"), ("adaptive", "sign")):
        rows = fed[name] = []

        def noted(setup, batch, rows=rows):
            rows.append(np.array(batch["tokens"]))
            return place(setup, batch)

        monkeypatch.setattr(Setup, "place", noted)
        run(_config(tiny_config, geometry), tmp_path / name, devices=ONE_DEVICE)
    assert len(_path(tmp_path / "adaptive")) > 1
    np.testing.assert_array_equal(fed["constant"], fed["adaptive"])


@pytest.mark.parametrize(
    ("optimizer", "geometry", "changes"),
    [
        ("signum", "sign", {}),
        pytest.param(
            "muon", "spectral", {"batch__apply_lag": 1}, marks=pytest.mark.slow
        ),
        ("adamw", "sign", {"noise_scale__draws": "ranks", "noise_scale__splits": 2}),
    ],
)
@pytest.mark.parametrize("step", [3, 5])
def test_going_on_repeats_the_batch_sizes_bit_for_bit(
    tiny_config, tmp_path, optimizer, geometry, changes, step
):
    config = _config(tiny_config, geometry, optimizer__name=optimizer, **changes)
    straight = prepare(config, tmp_path / "straight", devices=ONE_DEVICE)
    straight.run()
    broken = prepare(config, tmp_path / "broken", devices=ONE_DEVICE)
    preempt_after(broken.loop, step=step)
    assert broken.run().status == "preempted"
    resumed = prepare(config, tmp_path / "broken", resume=True, devices=ONE_DEVICE)
    assert resumed.run().status == "finished"
    for a, b in zip(
        state_leaves(straight.loop.state), state_leaves(resumed.loop.state), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert _path(tmp_path / "straight") == _path(tmp_path / "broken")
    assert len(_path(tmp_path / "straight")) > 1


def test_a_recorded_path_can_be_replayed(tiny_config, tmp_path):
    run(_config(tiny_config), tmp_path / "adaptive", devices=ONE_DEVICE)
    recorded = tmp_path / "adaptive" / "batch_path.csv"
    config = _config(tiny_config, "none", batch__max_size=0, batch__path=str(recorded))
    run(config, tmp_path / "replayed", devices=ONE_DEVICE)
    assert _path(tmp_path / "replayed") == _path(tmp_path / "adaptive")
    for name, rtol in (("train/lr", 1e-6), ("train/loss", 1e-4)):
        np.testing.assert_allclose(
            _column(tmp_path / "replayed", name),
            _column(tmp_path / "adaptive", name),
            rtol=rtol,
        )


def test_a_path_may_move_but_not_change_between_run_and_continuation(
    tiny_config, tmp_path
):
    write_batch_path(tmp_path / "a.csv", [Change(0, 8), Change(80, 16)])
    write_batch_path(tmp_path / "b.csv", [Change(0, 8), Change(80, 16)])
    write_batch_path(tmp_path / "c.csv", [Change(0, 8), Change(80, 24)])

    def start(name, **options):
        config = tiny_config(steps=20, batch__path=str(tmp_path / name))
        return prepare(config, tmp_path / "run", devices=ONE_DEVICE, **options)

    broken = start("a.csv")
    preempt_after(broken.loop, step=3)
    broken.run()
    with pytest.raises(ValueError, match="batch_path_sha256"):
        start("c.csv", resume=True)
    assert start("b.csv", resume=True).run().status == "finished"


def test_seesaw_takes_its_steps_and_rates(tiny_config, tmp_path):
    config = tiny_config(
        steps=30,
        batch__seesaw=True,
        batch__micro_batch=8,
        batch__max_size=32,
        optimizer__learning_rate=1e-2,
        optimizer__warmup_fraction=0.0,
    )
    result = run(config, tmp_path / "run", devices=ONE_DEVICE)
    assert result.summary["samples"] == 30 * 8 and result.step < 30
    assert [change.size for change in _path(tmp_path / "run")] == [8, 16, 32]
    rates = _column(tmp_path / "run", "train/lr")
    batch = _column(tmp_path / "run", "train/batch_size")
    np.testing.assert_allclose(rates[batch == 16], 1e-2 / np.sqrt(2.0), rtol=1e-5)


def test_measuring_does_not_change_the_training(tiny_config, tmp_path):
    for name, geometry in (("plain", "none"), ("measured", "sign")):
        config = _config(tiny_config, geometry, batch__max_size=8)
        run(config, tmp_path / name, devices=ONE_DEVICE)
    np.testing.assert_allclose(
        _column(tmp_path / "plain", "train/loss"),
        _column(tmp_path / "measured", "train/loss"),
        rtol=1e-5,
    )


def _eight_devices(geometry, **estimator):
    fields = {f"noise_scale__{name}": value for name, value in estimator.items()}
    name = "-".join((geometry, *estimator.values()))
    return pytest.param(geometry, fields, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("geometry", "estimator"),
    [
        _eight_devices("sign", draws="microbatches"),
        _eight_devices("sign", draws="ranks"),
        _eight_devices("sign", draws="ranks", noise="direct"),
        _eight_devices("l2", draws="ranks", signal="debiased"),
        _eight_devices("spectral", draws="microbatches"),
        _eight_devices("spectral", draws="ranks"),
        _eight_devices("spectral", draws="ranks", signal="alignment"),
        _eight_devices("spectral", draws="ranks", method="matmul"),
    ],
)
def test_draws_on_eight_devices_are_those_of_a_cut_micro_batch(
    tiny_config, tmp_path, geometry, estimator
):
    changes = {
        "optimizer__name": "muon" if geometry == "spectral" else "adamw",
        "batch__size": 16,
        "batch__micro_batch": 8,
        "steps": 8,
        **estimator,
    }
    one = _config(tiny_config, geometry, noise_scale__splits=8, **changes)
    run(one, tmp_path / "one", devices=ONE_DEVICE)
    eight = _config(tiny_config, geometry, **changes)
    run(eight, tmp_path / "eight")
    first = {
        name: metric_rows(tmp_path / name, "train")[0] for name in ("one", "eight")
    }
    draws = 16 if estimator["noise_scale__draws"] == "microbatches" else 8
    for row in first.values():
        assert row["optim/noise_scale_draws"] == draws
    for name in ("optim/noise_sq", "optim/signal_sq", "optim/noise_scale"):
        np.testing.assert_allclose(
            first["one"][name], first["eight"][name], rtol=1e-3, err_msg=name
        )


@pytest.mark.slow
def test_a_mesh_of_three_axes_measures_as_one_device(tiny_config, tmp_path):
    changes = {"optimizer__name": "muon", "batch__micro_batch": 8, "steps": 4}
    mesh = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__model": 2}
    config = _config(tiny_config, "spectral", **changes, **mesh)
    run(config, tmp_path / "eight")
    config = _config(tiny_config, "spectral", noise_scale__splits=4, **changes)
    run(config, tmp_path / "one", devices=ONE_DEVICE)
    for name in ("optim/noise_scale", "train/loss"):
        np.testing.assert_allclose(
            _column(tmp_path / "one", name)[0],
            _column(tmp_path / "eight", name)[0],
            rtol=1e-3,
        )


def test_no_buffer_of_a_measurement_outlives_its_step(tiny_config, tmp_path):
    config = _config(tiny_config, batch__max_size=8, noise_scale__every=2)
    prepared = prepare(config, tmp_path / "run", devices=ONE_DEVICE)
    loop, live = prepared.loop, {}
    boundary = loop._boundary

    def counting_boundary():
        jax.block_until_ready(loop.state)
        live[loop.step] = sum(x.nbytes for x in jax.live_arrays() if x.size > 1000)
        return boundary()

    loop._boundary = counting_boundary
    prepared.run()
    # Steps 4 and 6 have just not measured, 5 and 7 have.
    assert live[5] == live[4] and live[7] == live[6]


REFUSED = {
    "one_draw": ({"batch__micro_batch": 0}, "needs at least two draws per step"),
    "one_rank": ({"noise_scale__draws": "ranks"}, "needs at least two draws per step"),
    "uneven_splits": ({"noise_scale__splits": 3}, "cannot be cut into .*splits=3"),
    "theta": ({"batch__theta": 0.0}, "batch.theta must be > 0, got 0.0"),
    "max_below_first": ({"batch__max_size": 4}, "batch.max_size must be >= batch.size"),
    "max_off_grid": ({"batch__max_size": 30}, "is not a multiple of the micro-batch"),
    "unknown_geometry": ({"batch__adaptive": "l1"}, "must be one of none, sign"),
    "uneven_micro_batch": ({"batch__micro_batch": 3}, "is not a multiple of"),
    "two_rules": ({"batch__seesaw": True}, "at most one rule may change the batch"),
    "debiased_sign": (
        {"noise_scale__signal": "debiased"},
        "debiased exists for batch.adaptive=l2 only",
    ),
    "alignment_of_moments": (
        {"noise_scale__signal": "alignment"},
        "set noise_scale.draws=ranks",
    ),
    "long_lag": ({"batch__apply_lag": 3}, "must be below noise_scale.every=3"),
    "spectral_adamw": (
        {"batch__adaptive": "spectral", "optimizer__name": "adamw"},
        "'adamw' has none",
    ),
    "seesaw_without_decay": (
        {
            "batch__adaptive": "none",
            "batch__seesaw": True,
            "optimizer__schedule": "constant",
        },
        "optimizer.schedule=constant never does",
    ),
    "missing_path": (
        {"batch__adaptive": "none", "batch__path": "no/such/file.csv"},
        "no/such/file.csv",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_cannot_work_is_refused_before_anything_compiles(
    tiny_config, tmp_path, case
):
    changes, message = REFUSED[case]
    with pytest.raises((ValueError, OSError), match=message):
        prepare(_config(tiny_config, **changes), tmp_path / "run", devices=ONE_DEVICE)


def test_eight_devices_with_uneven_rows_are_refused(tiny_config, tmp_path):
    with pytest.raises(ValueError, match="does not split over 8"):
        prepare(_config(tiny_config), tmp_path / "run")


def test_a_model_without_hidden_matrices_cannot_be_measured_spectrally(
    tiny_config, tmp_path, monkeypatch
):
    from experiments.training import setup
    from optim_jax import MatrixAxes

    build = setup.build_llama

    def all_embeddings(config):
        def axes(params):
            return jax.tree.map(
                lambda leaf: MatrixAxes("embedding" if leaf.ndim == 2 else "norm"),
                params,
            )

        return dataclasses.replace(build(config), matrix_axes=axes)

    monkeypatch.setattr(setup, "build_llama", all_embeddings)
    config = _config(tiny_config, "spectral", optimizer__name="soap")
    with pytest.raises(ValueError, match="hidden"):
        prepare(config, tmp_path / "run", devices=ONE_DEVICE)
