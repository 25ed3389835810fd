from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from experiments.training import throughput
from experiments.training.throughput import (
    ThroughputMeter,
    measured_matmul_peak,
    mfu,
    peak_flops,
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def device(kind: str, platform: str = "gpu", process_index: int = 0):
    return SimpleNamespace(
        device_kind=kind, platform=platform, process_index=process_index
    )


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v3", None),
        ("NVIDIA H100 NVL", None),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert peak_flops(kind) == peak


def test_mfu_counts_all_devices():
    devices = [device("NVIDIA H100 80GB HBM3")] * 4
    assert mfu(989e12, devices) == (pytest.approx(0.25), "mfu")


def test_unknown_devices_are_measured(monkeypatch):
    asked = []

    def measured(where, dtype):
        asked.append(dtype)
        return 1e12

    monkeypatch.setattr(throughput, "measured_matmul_peak", measured)
    relative = "relative_to_measured_matmul"
    assert mfu(1e12, [device("Abacus")] * 4, dtype="bfloat16") == (0.25, relative)
    # The CPU devices of one process are the same cores.
    cores = [device("cpu", "cpu", process) for process in (0, 0, 0, 1)]
    assert mfu(1e12, cores) == (0.5, relative)
    assert asked == ["bfloat16", "float32"]


def test_the_peak_is_measured_once(monkeypatch):
    peak = measured_matmul_peak(None, "float32", 64)
    assert 1e6 < peak < 1e16
    monkeypatch.setattr(throughput.time, "perf_counter", pytest.fail)
    assert measured_matmul_peak(None, "float32", 64) == peak


def test_mfu_of_this_machine():
    ratio, label = mfu(1e6)
    assert label == "relative_to_measured_matmul"
    assert 0.0 < ratio < 1.0
    assert mfu(2e6)[0] == pytest.approx(2 * ratio)


def test_meter_leaves_out_what_is_excluded():
    clock = Clock()
    meter = ThroughputMeter(clock)
    clock.now += 50.0  # compilation
    meter.start()
    for _ in range(4):
        clock.now += 0.5
        meter.count(tokens=100)
    with meter.excluded():
        clock.now += 30.0
        with meter.excluded():
            clock.now += 1.0
        clock.now += 30.0
    assert meter.seconds == pytest.approx(2.0)
    assert meter.window() == {
        "perf/tokens_per_s": pytest.approx(200.0),
        "perf/step_ms": pytest.approx(500.0),
    }
    clock.now += 4.0
    meter.count(tokens=100, steps=2)
    assert meter.window() == {
        "perf/tokens_per_s": pytest.approx(25.0),
        "perf/step_ms": pytest.approx(2000.0),
    }
    assert meter.window() == {}
    assert meter.totals()["perf/tokens_per_s"] == pytest.approx(500 / 6)
    meter.stop()
    clock.now += 9.0
    assert meter.seconds == pytest.approx(6.0)
    assert (meter.tokens, meter.steps) == (500, 6)


def test_the_clock_goes_on_after_an_exception():
    clock = Clock()
    meter = ThroughputMeter(clock)
    meter.start()
    with pytest.raises(RuntimeError), meter.excluded():
        clock.now += 5.0
        raise RuntimeError
    clock.now += 1.0
    assert meter.seconds == pytest.approx(1.0)


def test_excluded_waits_for_counted_steps_first(monkeypatch):
    clock = Clock()

    def finish(arrays):
        clock.now += 2.0
        return arrays

    monkeypatch.setattr(jax, "block_until_ready", finish)
    meter = ThroughputMeter(clock)
    meter.start()
    with meter.excluded(pending=jnp.ones(1)):
        clock.now += 5.0
    assert meter.seconds == pytest.approx(2.0)


def test_an_empty_meter_has_no_rates():
    meter = ThroughputMeter(Clock())
    assert meter.window() == {} and meter.totals() == {}
    meter.stop()
    assert meter.seconds == 0.0
