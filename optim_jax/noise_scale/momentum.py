"""The batch that a gradient averaged by momentum is worth."""

import jax

from optim_jax.validation import check_decay_rate


def momentum_batch_size(
    batch_size: float | jax.Array, b1: float | jax.Array
) -> float | jax.Array:
    r"""Batch size of an exponential average of independent gradients.

    The average :math:`m = (1 - b_1) \sum_i b_1^i g_{t-i}` of gradients of equal mean
    and independent noise has the variance of one gradient of

    .. math::

      B_m = B \, \frac{1 + b_1}{1 - b_1}

    samples. Derived, not read in the paper, which leaves momentum to future work.

    Args:
      batch_size: B > 0, samples per gradient.
      b1: decay rate of the average in [0, 1).

    Returns:
      B_m in samples, e.g. 19 B for b1 = 0.9.

    Raises:
      ValueError: b1 is out of range.
    """
    check_decay_rate("b1", b1)
    return batch_size * (1.0 + b1) / (1.0 - b1)
