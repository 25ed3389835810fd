"""Learning-rate schedules that Optax does not have."""

import math
import numbers

import jax
import jax.numpy as jnp
import optax

MODES = ("standard", "reference")

# Steps are counted in int32 inside compiled programs, and one is added to them.
_MOST_STEPS = 2**31 - 2


def dlrm_schedule(
    base: float,
    *,
    warmup_steps: int,
    decay_start: int,
    decay_steps: int,
    mode: str = "standard",
    end_value: float = 1e-7,
) -> optax.Schedule:
    r"""Linear warm-up, a plateau, a decay with the square of what is left, a tail.

    With :math:`c = t + 1`, W = `warmup_steps`, S = `decay_start`, K = `decay_steps`:

    .. math::

      \gamma_t = \begin{cases}
        \gamma c / W & c < W \\
        \max(\epsilon, \gamma ((K - (c - S)) / K)^2) & S \le c < S + K \\
        \text{tail} & K > 0, c \ge S + K \\
        \text{plateau} & \text{otherwise}
      \end{cases}

    The mode `standard` has the plateau :math:`\gamma` and the tail :math:`\epsilon`.
    The mode `reference` repeats the original program, which outside warm-up and decay
    keeps the rate it computed last: with a decay the plateau is
    :math:`\gamma (W - 1) / W`, the base rate appears once, at c = S, and the tail is
    :math:`\max(\epsilon, \gamma / K^2)`.

    Args:
      base: peak rate :math:`\gamma`, finite and >= 0.
      warmup_steps: W >= 0; the rate of step t = W - 1 is the plateau's.
      decay_start: S >= W. Without a decay it has no meaning, but `reference` checks it
        all the same, as the original does.
      decay_steps: K >= 0; 0 means no decay: the plateau, `base`, never ends.
      mode: `standard` or `reference`.
      end_value: :math:`\epsilon`, the floor of the decay, finite and >= 0; in
        `standard` at most `base`.

    Returns:
      A schedule: the rate as a function of the 0-based step, which may be a number, an
      integer array or traced. Its dtype is JAX's default for floats.

    Raises:
      ValueError: an argument is out of range; the decay would start before the end of
        the warm-up; in `reference`, the original would have no rate for the first
        step (no warm-up, and a decay that begins later).

    References:
      Naumov et al., 2019, https://arxiv.org/abs/1906.00091, and its public code. The
      mode `standard` is this project's choice.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    _require_rate("base", base)
    _require_rate("end_value", end_value)
    for name, steps in (
        ("warmup_steps", warmup_steps),
        ("decay_start", decay_start),
        ("decay_steps", decay_steps),
    ):
        if not isinstance(steps, numbers.Integral) or steps < 0:
            raise ValueError(f"{name} must be an integer >= 0, got {steps!r}")
    reference = mode == "reference"
    decays = decay_steps > 0
    # The step after which nothing changes any more.
    end = max(warmup_steps, decay_start + decay_steps if decays else 0)
    if end > _MOST_STEPS:
        raise ValueError(
            f"warm-up and decay must end within {_MOST_STEPS} steps, they end at {end}"
        )
    if decay_start < warmup_steps and (decays or reference):
        raise ValueError(
            f"decay_start={decay_start} must not be less than "
            f"warmup_steps={warmup_steps}: the warm-up ends before the decay starts"
        )
    if decays and not reference and end_value > base:
        raise ValueError(f"end_value={end_value} must not exceed base={base}")
    plateau, tail = base, end_value
    if reference and decays:
        if warmup_steps < 2 and not decay_start <= 1 < decay_start + decay_steps:
            raise ValueError(
                "mode='reference' has no rate for the first step: it is neither in the "
                f"warm-up (warmup_steps={warmup_steps}) nor in the decay "
                f"(decay_start={decay_start}, decay_steps={decay_steps}); "
                "mode='standard' has one"
            )
        plateau = base * (warmup_steps - 1) / max(warmup_steps, 1)
        tail = max(end_value, base / decay_steps**2)

    def schedule(t: float | jax.Array) -> jax.Array:
        t = jnp.asarray(t)
        # Within [0, end] the count is exact and cannot overflow.
        c = jnp.clip(t.astype(jnp.promote_types(t.dtype, jnp.int32)), 0, end) + 1
        dtype = jnp.result_type(float)

        def real(steps: jax.Array) -> jax.Array:
            return steps.astype(dtype)

        rate = jnp.full(c.shape, plateau, dtype)
        if decays:
            left = real(decay_start + decay_steps - c) / decay_steps
            decayed = jnp.maximum(base * left * left, end_value)
            rate = jnp.where(c >= decay_start, decayed, rate)
            rate = jnp.where(c >= decay_start + decay_steps, tail, rate)
        return jnp.where(c < warmup_steps, base * real(c) / max(warmup_steps, 1), rate)

    return schedule


def _require_rate(name: str, value: float) -> None:
    if not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
