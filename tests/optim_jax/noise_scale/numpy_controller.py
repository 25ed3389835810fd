"""The batch-size controller again, in double precision, from the paper's algorithm.

Written without a look at the library's controller: the grid is a list of its points,
the averages are weighted sums over everything measured so far, and a decision waits in
a dictionary of steps.
"""

import bisect
import math


def grid_points(quantum, largest):
    """All batch sizes up to `largest`, in increasing order."""
    pairs = [(1, quantum)] if isinstance(quantum, int) else list(quantum)
    points = []
    for size in range(1, largest + 1):
        steps = [step for start, step in pairs if start <= size]
        if steps and size % steps[-1] == 0:
            points.append(size)
    return points


def almost(size, points):
    """The point that a size is but for a relative 1e-6, or None."""
    index = bisect.bisect_left(points, size)
    near = [
        p for p in points[max(index - 1, 0) : index + 1] if abs(p - size) <= 1e-6 * p
    ]
    return min(near, key=lambda p: abs(p - size), default=None)


def up(size, points):
    above = points[min(bisect.bisect_left(points, size), len(points) - 1)]
    return almost(size, points) or above


def down(size, points):
    below = points[max(bisect.bisect_right(points, size) - 1, 0)]
    return almost(size, points) or below


def debiased_average(values, decay):
    """Mean of the values with weights decay^age."""
    weights = [decay**age for age in reversed(range(len(values)))]
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(
        weights
    )


def allowed(config, size, batch, points):
    """The real size asked for -> the size that the next steps may take."""
    chosen = (up if config.rounding == "ceil" else down)(size, points)
    if config.max_growth is not None:
        chosen = min(chosen, max(batch, down(config.max_growth * batch, points)))
    shrinks = not config.monotone and size < (1 - config.hysteresis) * batch
    chosen = max(chosen, config.init_batch if shrinks else batch)
    return chosen if config.max_batch is None else min(chosen, config.max_batch)


def run(config, measurements, points):
    """The batch of every step, and after it: (batch, samples, skipped) per step.

    Args:
      config: a `BatchSizeConfig`.
      measurements: one (noise, signal, valid) per step.
      points: the grid.
    """
    noises, signals, decisions, rows = [], [], {}, []
    batch, samples, skipped = config.init_batch, 0, 0
    for step, (noise, signal, valid) in enumerate(measurements):
        batch = decisions.pop(step, batch)
        before, samples = samples, samples + batch
        if step % config.every == 0:
            if valid and math.isfinite(noise) and math.isfinite(signal):
                noises.append(noise)
                signals.append(signal)
                if before >= config.warmup_samples:
                    size = request(config, noises, signals, batch)
                    when = step + 1 + config.apply_lag
                    decisions[when] = allowed(config, size, batch, points)
            else:
                skipped += 1
        rows.append((batch, samples, skipped))
    return rows


def request(config, noises, signals, batch):
    noise = debiased_average(noises, config.ema_noise)
    signal = debiased_average(signals, config.ema_signal)
    if signal <= 1e-12 * noise:
        return batch if config.max_batch is None else config.max_batch
    effective = noise / (config.theta**2 * signal)
    return effective * (1 - config.momentum) / (1 + config.momentum)
