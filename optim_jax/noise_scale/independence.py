"""A check that the gradients behind a measurement were not the same one."""

import jax
import numpy as np

from optim_jax.noise_scale.measurement import NoiseScale
from optim_jax.noise_scale.moment_types import Moments


def check_independent_draws(measurement: NoiseScale, moments: Moments) -> None:
    """Refuses a measurement of several gradients that do not differ, on the host.

    Inside `jax.shard_map` with `check_vma=True`, differentiating with respect to
    replicated parameters gives gradients that are already summed over the mesh axis:
    every rank holds the same one, and the noise is zero. Call this on the first
    measurement.

    A mean of n equal numbers is off by rounding, so noise is taken as zero where the
    standard deviation of a draw is below 4 n times the machine epsilon of the signal.

    Args:
      measurement: of `noise_scale` or `measurement_of`, concrete.
      moments: those of its draws; count and weight are read.

    Raises:
      ValueError: there are at least two draws and a signal, but no noise.
    """
    noise, signal, count, weight = jax.device_get(
        (measurement.noise_sq, measurement.signal_sq, moments.count, moments.weight)
    )
    if count < 2 or not signal > 0.0:
        return
    rounding = 4.0 * float(count) * float(np.finfo(noise.dtype).eps)
    samples_per_draw = float(weight) / float(count)
    if float(noise) <= rounding**2 * samples_per_draw * float(signal):
        raise ValueError(
            f"the {int(count)} gradients of a measurement are equal (noise_sq = "
            f"{float(noise):.3g}, signal_sq = {float(signal):.3g}): they were summed "
            "before they were compared. Inside jax.shard_map, make the parameters vary "
            "first, jax.lax.pcast(params, axis_name, to='varying'), or use "
            "check_vma=False; otherwise give each draw samples of its own"
        )
