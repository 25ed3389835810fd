"""Coefficients that take singular values to one in the fewest odd quintic steps.

Each step is the odd quintic that is closest to one, in the largest error, on the
interval that the steps before it left. It is found by Remez's exchange: the error of
the best one alternates in sign at both ends of the interval and at two points inside.
"""

import functools

import numpy as np

Triple = tuple[float, float, float]

# Ratio of the singular values that the schedule is made for, and the error it leaves.
CONDITION = 1e3
TOLERANCE = 1e-4
# An interval is widened by this part of its width: rounding may put a singular value
# outside, where the quintic is steep.
_SAFETY = 2e-3
_EXCHANGES = 100
# On narrower intervals around one, where the exchange has no digits left, the best
# quintic is that with two vanishing derivatives; its error is 5/2 of the cube.
_NARROW = 1e-4
_AT_ONE = (15 / 8, -10 / 8, 3 / 8)


@functools.cache
def polar_schedule(lower: float, tolerance: float = TOLERANCE) -> tuple[Triple, ...]:
    r"""Odd quintics :math:`a x + b x^3 + c x^5` that take [lower, 1] to one.

    Smaller values of x rise, too, but not all the way; zero stays zero.

    Args:
      lower: lower end of the interval, in (0, 1).
      tolerance: largest error in [0, 1) that the composition may leave.

    Returns:
      The coefficients (a, b, c) of each step.

    References:
      Amsel, Persson, Musco, Gower, 2025, https://arxiv.org/abs/2505.16932:
      steps that are each the best on what remains compose to the best.
      Chen, Chow, 2014, scaled Newton-Schulz, for the cubics. Those need 11 steps of two
      products where these need 7 of three, the middle one on the smaller side.
    """
    steps = []
    error = 1.0 - lower
    upper = 1.0
    while error > tolerance:
        if error < _NARROW:
            coefficients, error = _AT_ONE, 2.5 * error**3
        else:
            coefficients, error = minimax_quintic(lower, upper + _SAFETY * error)
        steps.append(coefficients)
        lower, upper = 1.0 - error, 1.0 + error
    return tuple(steps)


def minimax_quintic(lower: float, upper: float) -> tuple[Triple, float]:
    """The odd quintic closest to one on an interval.

    Args:
      lower: > 0.
      upper: > lower.

    Returns:
      Its coefficients (a, b, c), and its largest distance from one.
    """
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    inner = np.array([0.75 * lower + 0.25 * upper, 0.25 * lower + 0.75 * upper])
    a = b = c = error = 0.0
    for _ in range(_EXCHANGES):
        points = np.array([lower, inner[0], inner[1], upper])
        odd_powers = points[:, None] ** np.array([1, 3, 5])
        a, b, c, error = np.linalg.solve(
            np.column_stack([odd_powers, signs]), np.ones(4)
        )
        # The extrema inside are where the derivative a + 3 b x^2 + 5 c x^4 vanishes.
        root = np.sqrt(max(9.0 * b * b - 20.0 * a * c, 0.0))
        moved = np.sqrt(np.array([-3.0 * b - root, -3.0 * b + root]) / (10.0 * c))
        done = np.max(np.abs(moved - inner)) <= 1e-12 * upper
        inner = moved
        if done:
            break
    return (float(a), float(b), float(c)), abs(float(error))
