"""Tokens per second, step time, and the share of the hardware's peak they use.

Model FLOPs utilisation (MFU) is the model's analytic FLOPs per second over the peak
of the devices (Chowdhery et al., 2022, arXiv 2204.02311, appendix B). Peaks are the
vendors' dense bfloat16 figures, whatever type a run computes in. Where no figure is
known, the speed of one large matrix product stands in, and the ratio gets another
name.
"""

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# FLOP/s of one device; the whole `device_kind` must match.
_PEAKS = (
    (r"NVIDIA A100.*", 312e12),
    (r"NVIDIA H100 PCIe", 756e12),
    (r"NVIDIA H100 80GB HBM3", 989e12),
    (r"NVIDIA H200", 989e12),
    (r"TPU v4", 275e12),
    (r"TPU (v5 lite|v5e)", 197e12),
    (r"TPU (v5|v5p)", 459e12),
    (r"TPU (v6 lite|v6e)", 918e12),
)

MFU = "mfu"
RELATIVE = "relative_to_measured_matmul"


def peak_flops(device_kind: str) -> float | None:
    """The vendor's dense bfloat16 FLOP/s of one device; None if not known."""
    for pattern, peak in _PEAKS:
        if re.fullmatch(pattern, device_kind):
            return peak
    return None


@functools.cache
def measured_matmul_peak(
    device: jax.Device | None = None, dtype: str = "float32", size: int = 1024
) -> float:
    """FLOP/s of one square matrix product, the fastest of five; measured once.

    Args:
      device: where; the first local device if None.
      dtype: of the factors, by name.
      size: of each side.

    Returns:
      `2 size³` over the seconds taken.
    """
    device = device or jax.local_devices()[0]
    a = jax.device_put(np.ones((size, size), jnp.dtype(dtype)), device)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)


def mfu(
    flops_per_s: float,
    devices: Sequence[jax.Device] | None = None,
    *,
    dtype: str = "float32",
) -> tuple[float, str]:
    """The share of the devices' peak that a run uses.

    Args:
      flops_per_s: the model's FLOPs per token times tokens per second, of all devices.
      devices: that took part; all if None.
      dtype: the run computes in; used only where the peak has to be measured.

    Returns:
      The ratio and what it is: `mfu`, or `relative_to_measured_matmul` for devices
      without a known peak.
    """
    devices = list(jax.devices() if devices is None else devices)
    known = peak_flops(devices[0].device_kind)
    if known is not None:
        return flops_per_s / (known * len(devices)), MFU
    if devices[0].platform == "cpu":
        # All CPU devices of a process share its cores: one product uses them all.
        count = len({device.process_index for device in devices})
    else:
        count = len(devices)
    measured = measured_matmul_peak(jax.local_devices()[0], dtype)
    return flops_per_s / (measured * count), RELATIVE


class ThroughputMeter:
    """Counts tokens, steps and the seconds that went into them.

    The clock runs from `start` and stands still inside `excluded` (compilation,
    evaluation, checkpoints).
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, *, unit: str = "tokens"
    ):
        """Makes a meter whose clock stands still.

        Args:
          clock: seconds from any origin; tests pass their own.
          unit: of what is counted, for the name of the rate.
        """
        self._clock = clock
        self.rate_name = f"perf/{unit}_per_s"
        self._running_since: float | None = None
        self._seconds = 0.0
        self._window_start = (0.0, 0, 0)  # seconds, tokens, steps
        self.tokens = 0
        self.steps = 0

    @property
    def seconds(self) -> float:
        """Seconds counted so far."""
        if self._running_since is None:
            return self._seconds
        return self._seconds + self._clock() - self._running_since

    def start(self) -> None:
        """Lets the clock run; does nothing if it does."""
        if self._running_since is None:
            self._running_since = self._clock()

    def stop(self) -> None:
        """Stops the clock; does nothing if it stands."""
        self._seconds = self.seconds
        self._running_since = None

    def count(self, tokens: int, steps: int = 1) -> None:
        """Adds steps that were carried out."""
        self.tokens += tokens
        self.steps += steps

    @contextlib.contextmanager
    def excluded(self, pending: Any = None) -> Iterator[None]:
        """Context whose seconds do not count.

        Args:
          pending: arrays of counted steps that may still be computed; waited for
            before the clock stops, or their time would be lost.
        """
        jax.block_until_ready(pending)
        was_running = self._running_since is not None
        self.stop()
        try:
            yield
        finally:
            if was_running:
                self.start()

    def window(self) -> dict[str, float]:
        """Rates since the last call of this, by metric name; empty if no step."""
        seconds, tokens, steps = self._window_start
        now = self._window_start = (self.seconds, self.tokens, self.steps)
        elapsed, counted = now[0] - seconds, now[2] - steps
        if not (counted > 0 and elapsed > 0):
            return {}
        return {
            self.rate_name: (now[1] - tokens) / elapsed,
            "perf/step_ms": 1e3 * elapsed / counted,
        }

    def totals(self) -> dict[str, float]:
        """Rates since the start, by metric name; empty if no step."""
        seconds = self.seconds
        if not (self.steps > 0 and seconds > 0):
            return {}
        return {
            self.rate_name: self.tokens / seconds,
            "perf/step_ms": 1e3 * seconds / self.steps,
        }
