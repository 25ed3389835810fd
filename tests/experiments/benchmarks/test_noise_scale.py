"""The cost of measuring a noise scale: what is judged, and that it can be measured."""

import dataclasses
import json
import math
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest

from experiments.benchmarks import noise_scale
from experiments.benchmarks.interleaved import Ratio
from experiments.benchmarks.measuring_step import (
    MeasurementMemory,
    Reductions,
    TrainingRun,
    measuring_config,
)
from experiments.benchmarks.noise_scale import CaseFigures
from experiments.config import MeshConfig
from experiments.presets import LLAMA
from experiments.sharding import make_mesh
from experiments.training.measurement import build_measurement
from models import build_llama


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """The pico preset, on text that takes no time to read."""
    text = tmp_path_factory.mktemp("text")
    for number in range(24):
        words = " ".join(f"word{(number * 7 + i * i) % 97}" for i in range(120))
        (text / f"{number:02}.txt").write_text(words)
    config = LLAMA["llama_pico_stdlib"]()
    data = dataclasses.replace(
        config.data, source="text", path=str(text), validation_fraction=0.2
    )
    return dataclasses.replace(config, data=data)


def _config(preset, geometry, optimizer="signum"):
    return measuring_config(
        preset, optimizer=optimizer, geometry=geometry, method="eigh", every=3
    )


class _Advanced(NamedTuple):
    run: TrainingRun
    losses: list[float]  # of its first three steps


@pytest.fixture(scope="module")
def measuring(preset):
    """A run that has measured in its first three steps."""
    run = TrainingRun(_config(preset, "sign"))
    return _Advanced(run, [float(run.measuring()["loss"]) for _ in range(3)])


def _figures(price=0.4, left=1e-4, reduced=2.0):
    def times(median):
        return Ratio(median, 0.9 * median, 1.1 * median, median)

    return CaseFigures(
        plain_ms=100.0,
        between=times(1.0),
        measuring=times(1.0 + price),
        window=times(1.01),
        memory=MeasurementMemory(left, 2.0, 8.0, 7.0),
        reductions=Reductions(1.0, reduced),
    )


def test_overhead_is_the_price_over_the_period():
    figures = _figures(price=0.4)
    assert figures.price == pytest.approx(0.4)
    assert figures.overhead(100) == pytest.approx(0.004)


def test_bars():
    figures = {
        "l1": _figures(price=0.6),
        "S1, eigh": _figures(price=2.9, left=0.5),
        "S1, matmul": _figures(price=3.1, reduced=3.0),
    }
    met = {bar["name"]: bar["met"] for bar in noise_scale.judge(figures, 100)}
    assert met == {
        "l1: overhead, measured every 100": False,
        "S1, eigh: overhead, measured every 100": True,
        "S1, matmul: overhead, measured every 100": False,
        "l1: bytes left / bytes of params": True,
        "S1, eigh: bytes left / bytes of params": False,
        "S1, matmul: bytes left / bytes of params": True,
        "l1: elements reduced over ranks / params": True,
        "S1, eigh: elements reduced over ranks / params": True,
        "S1, matmul: elements reduced over ranks / params": False,
    }


def test_tables_show_price_and_spread():
    times = noise_scale.cases_table({"l1": _figures()}, 100)
    assert "0.40 [0.26, 0.54]" in times and "+0.40 %" in times
    assert "+1.00 % [-9.10 %, +11.10 %]" in times
    assert "0.00010" in noise_scale.memory_table({"l1": _figures()})


def test_measuring_steps_train_as_plain_ones(preset, measuring):
    plain = TrainingRun(_config(preset, "none"))
    losses = [float(plain.plain()["loss"]) for _ in range(3)]
    np.testing.assert_allclose(measuring.losses, losses, rtol=1e-5)
    assert losses[2] < losses[0]


def test_the_newest_measurement_has_a_draw_per_micro_batch(measuring):
    assert int(measuring.run.measured.draws) == 2
    assert bool(measuring.run.measured.noise.valid)


def test_a_window_measures_once(measuring, monkeypatch):
    calls = []
    for name in ("plain", "measuring"):
        monkeypatch.setattr(measuring.run, name, lambda name=name: calls.append(name))
    measuring.run.window(4)
    assert calls == ["measuring", "plain", "plain", "plain"]


def test_a_measurement_leaves_scalars(measuring):
    memory = measuring.run.memory()
    # Held: means and second moments of the draws.
    assert memory.held == pytest.approx(2.0, abs=1e-3)
    assert 0.0 < memory.left < 1e-3
    assert memory.temporary > 0.0


def _compiled_reductions(config, devices):
    """Elements of the all-reduces in a compiled measurement, over the parameters."""
    model, mesh = build_llama(config.model), make_mesh(MeshConfig(), devices)
    params = jax.eval_shape(model.init, jax.random.key(0))
    functions = build_measurement(model, config, mesh, params)
    draws = jax.eval_shape(functions.empty)
    text = jax.jit(functions.finish).lower(draws).compile().as_text()
    elements = 0
    for result in re.findall(r"= (.*) all-reduce(?:-start)?\(", text):
        for shape in re.findall(r"\w\d+\[([\d,]*)\]", result):
            elements += math.prod(int(size) for size in shape.split(",") if size)
    return elements / sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_traced_reductions_are_those_of_eight_devices(preset, measuring):
    traced = measuring.run.reductions(8)
    compiled = _compiled_reductions(_config(preset, "sign"), jax.devices()[:8])
    assert traced.finish == pytest.approx(compiled, rel=1e-3)
    assert traced.finish == pytest.approx(2.0, rel=1e-3)
    assert traced.accumulate == pytest.approx(1.0, rel=1e-3)


def test_the_estimator_alone_is_timed_by_size_and_method():
    seconds = noise_scale.estimator_seconds((4, 8), matrices=2, rounds=2)
    assert {key: len(values) for key, values in seconds.items()} == {
        (size, method): 2 for size in (4, 8) for method in ("eigh", "matmul")
    }
    first, second = noise_scale.estimator_rows(seconds)
    assert "eigh_growth" not in first
    assert second["eigh_growth"] == pytest.approx(second["eigh_ms"] / first["eigh_ms"])
    assert "eigh / matmul" in noise_scale.estimator_table([first, second])


@pytest.mark.slow
def test_runs_on_a_tiny_model(preset, monkeypatch, capsys):
    monkeypatch.setattr(noise_scale, "preset_by_name", lambda name, presets: preset)
    report = noise_scale.run(
        "pico",
        every=3,
        rounds=2,
        windows=1,
        sizes=[4, 8],
        matrices=1,
        estimator_rounds=1,
    )
    printed = capsys.readouterr().out
    assert "S1, matmul" in printed and "overhead every 3" in printed
    assert len(report["bars"]) == 9
    bars = {bar["name"]: bar for bar in report["bars"]}
    assert all(bar["met"] for name, bar in bars.items() if "overhead" not in name)
    assert report["cases"]["l1"]["plain_ms"] > 0.0
    json.dumps(report)
