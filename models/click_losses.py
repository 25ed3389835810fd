"""Losses of models that predict a click: one logit a sample, targets in [0, 1].

Cross-entropies are functions of the logit z, exact wherever z is finite, with the
gradient p - y. The original implementation (arXiv:1906.00091) takes logarithms of the
float32 probability instead, cut off at -100. There 1 - p is wrong by up to 6e-8, the
loss of label 0 by 6e-8 exp(z), and from z of about 17 on p is 1 and that loss 100.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

LOSSES = ("bce", "wbce", "mse")


@dataclasses.dataclass(frozen=True)
class ClickLoss:
    """Which loss, and its numbers; checked when made.

    Attributes:
      name: `bce`, binary cross-entropy in nats; `wbce`, the same times a weight per
        class, averaged over the samples (not over the class weights); `mse`, squared
        error of the probability.
      class_weights: `wbce` only: factors of label 0 and label 1; a label between them
        counts as 0.
      threshold: tau; probabilities are clipped to [tau, 1 - tau] where 0 < tau < 1,
        with no gradient where that bites. Any other value switches clipping off.

    Raises:
      ValueError: another name; weights that are not two finite numbers >= 0.
    """

    name: str = "bce"
    class_weights: tuple[float, float] = (1.0, 1.0)
    threshold: float = 0.0

    def __post_init__(self):
        if self.name not in LOSSES:
            raise ValueError(
                f"loss must be one of {', '.join(LOSSES)}, got {self.name!r}"
            )
        weights = self.class_weights
        if len(weights) != 2 or not all(0 <= w < math.inf for w in weights):
            raise ValueError(
                f"loss_weights must be two finite numbers >= 0, got {weights}"
            )

    @property
    def clips(self) -> bool:
        """Whether probabilities are clipped."""
        return 0.0 < self.threshold < 1.0

    def probability(self, logits: jax.Array) -> jax.Array:
        """What the model predicts: the sigmoid, clipped where that is asked for."""
        p = jax.nn.sigmoid(logits)
        return _clip(p, self.threshold, 1.0 - self.threshold) if self.clips else p

    def per_sample(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """The loss of each sample.

        Args:
          logits: `[B]`.
          labels: `[B]` in [0, 1].

        Returns:
          `[B]`.
        """
        if self.name == "mse":
            return jnp.square(self.probability(logits) - labels)
        if self.clips:
            # Clipping the logit instead of the probability keeps a small tau from
            # meeting the logarithm of a rounded 1 - tau.
            bound = math.log(self.threshold) - math.log1p(-self.threshold)
            logits = _clip(logits, bound, -bound)
        # Equals max(z, 0) - z y + log(1 + exp(-|z|)), but nothing cancels: loss and
        # gradient of a sure and right logit keep their digits.
        loss = labels * jax.nn.softplus(-logits)
        loss += (1.0 - labels) * jax.nn.softplus(logits)
        if self.name == "wbce":
            of_zero, of_one = self.class_weights
            loss *= jnp.where(labels >= 1.0, of_one, of_zero)
        return loss


def _clip(values: jax.Array, low: float, high: float) -> jax.Array:
    """Clips to [low, high], or to `high` if that is lower; no gradient at the ends."""
    values = jnp.where(values < low, low, values)
    return jnp.where(values > high, high, values)


def click_loss(
    loss: ClickLoss,
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted mean over the samples.

    Args:
      loss: which one.
      logits: float32 `[B]`.
      labels: float32 `[B]` in [0, 1].
      weights: float32 `[B]` >= 0; 0 for padding, which counts neither in the sum nor in
        what it is divided by, whatever its logit is. None means 1 everywhere.

    Returns:
      The objective, and `loss` (the same), `weight` (the sum of the weights), both
      float32 scalars, and `logits` `[B]` as they came. Without any weight the mean is
      0.
    """
    weights = jnp.ones_like(logits) if weights is None else weights
    total = jnp.sum(weights)
    losses = loss.per_sample(jnp.where(weights > 0, logits, 0.0), labels)
    mean = jnp.sum(weights * losses) / jnp.where(total > 0, total, 1.0)
    return mean, {"loss": mean, "weight": total, "logits": logits}
