"""Gradient noise scales in non-Euclidean norms, and the batch size they ask for."""

from optim_jax.noise_scale.batch_grid import is_on_grid, round_to_grid
from optim_jax.noise_scale.batch_size_config import BatchSizeConfig
from optim_jax.noise_scale.controller import (
    BatchSizeController,
    BatchSizeState,
    batch_size_controller,
)
from optim_jax.noise_scale.estimate import noise_scale
from optim_jax.noise_scale.independence import check_independent_draws
from optim_jax.noise_scale.measurement import NoiseScale, measurement_of
from optim_jax.noise_scale.moment_types import Moments
from optim_jax.noise_scale.moments import (
    moments_from_stacked,
    moments_init,
    moments_merge,
    moments_psum,
    moments_push,
)
from optim_jax.noise_scale.momentum import momentum_batch_size
from optim_jax.noise_scale.resampling import alignment_signal, direct_noise
from optim_jax.noise_scale.sample_schedule import (
    scale_by_batch_lr,
    schedule_by_samples,
)
from optim_jax.noise_scale.saturation import (
    c4,
    is_saturated,
    marchenko_pastur_sqrt_mean,
    saturation_factor,
)
from optim_jax.noise_scale.tracking import NoiseScaleState, track_noise_scale

__all__ = [
    # Moments of gradients and the noise scale.
    "Moments",
    "NoiseScale",
    "alignment_signal",
    "c4",
    "check_independent_draws",
    "direct_noise",
    "is_saturated",
    "marchenko_pastur_sqrt_mean",
    "measurement_of",
    "moments_from_stacked",
    "moments_init",
    "moments_merge",
    "moments_psum",
    "moments_push",
    "momentum_batch_size",
    "noise_scale",
    "saturation_factor",
    # Batch-size controller and transformations.
    "BatchSizeConfig",
    "BatchSizeController",
    "BatchSizeState",
    "NoiseScaleState",
    "batch_size_controller",
    "is_on_grid",
    "round_to_grid",
    "scale_by_batch_lr",
    "schedule_by_samples",
    "track_noise_scale",
]
