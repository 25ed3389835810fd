"""Widths of tables by popularity: the larger a table, the narrower."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def mixed_dimensions(
    rows: Sequence[int],
    alpha: float,
    d0: int | None = None,
    budget: float | None = None,
    round_to_power_of_two: bool = False,
    *,
    query_rates: Sequence[float] | None = None,
) -> list[int]:
    r"""Widths by the power rule of mixed-dimension embeddings.

    .. math::

      d_i = \lambda n_i^{-\alpha}, \quad
      \lambda = d_0 n_{\min}^{\alpha} \text{ or } B / \sum_i n_i^{1 - \alpha}

    Widths are rounded half to even after a floor at 1, so a budget is met up to
    rounding.

    Args:
      rows: number of rows n_i of each table, >= 1.
      alpha: temperature, finite and >= 0; 0 gives equal widths, and the larger, the
        more width moves to small tables.
      d0: width of the smallest table, >= 1, which it gets exactly.
      budget: B, numbers in all tables together, > 0. Give `d0` or this.
      round_to_power_of_two: rounds every width to the power of two nearest in log2.
      query_rates: how often each table is looked up, > 0: n_i is divided by it in the
        rule (with a budget, in the sum too). None: equal.

    Returns:
      One width per table, in the order of `rows`.

    Raises:
      ValueError: an argument is out of range; both or neither of `d0` and `budget`.

    References:
      Ginart, Naumov, Mudigere, Yang, Zou, 2019, https://arxiv.org/abs/1909.11810.
    """
    counts = _positive("rows", rows)
    if query_rates is not None:
        rates = _positive("query_rates", query_rates)
        if len(rates) != len(counts):
            raise ValueError(
                f"query_rates must hold one rate for each of {len(counts)} tables, got "
                f"{len(rates)}"
            )
        counts = counts / rates
    if not 0.0 <= alpha < math.inf:
        raise ValueError(f"alpha must be finite and >= 0, got {alpha}")
    if (d0 is None) == (budget is None):
        raise ValueError(f"give one of d0 and budget, got d0={d0}, budget={budget}")
    if d0 is not None:
        if d0 < 1:
            raise ValueError(f"d0 must be >= 1, got {d0}")
        # The ratio is exactly 1 for the smallest table.
        widths = d0 * (counts / counts.min()) ** -alpha
    else:
        if not 0.0 < budget < math.inf:
            raise ValueError(f"budget must be finite and > 0, got {budget}")
        widths = budget / np.sum(counts ** (1.0 - alpha)) * counts**-alpha
    widths = np.rint(np.maximum(widths, 1.0))
    if round_to_power_of_two:
        widths = 2.0 ** np.rint(np.log2(widths))
    return [int(width) for width in widths]


def _positive(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must hold one number per table, got {values!r}")
    wrong = ~((array > 0) & np.isfinite(array))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"{name}[{place}] must be positive and finite, got {array[place]:g}"
        )
    return array
