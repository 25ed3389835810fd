"""Losses of the models, float32 throughout."""

import jax
import jax.numpy as jnp


def token_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    *,
    z_loss: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted mean cross-entropy over tokens, with an optional z-loss.

    `objective = sum(w * (xent + z_loss * log Z^2)) / sum(w)`, `log Z` the logsumexp of
    a token's logits; 0 where all weights are 0. Sums run over the whole (global)
    batch.

    Args:
      logits: `[..., V]`, any float type; cast to float32.
      targets: integer labels `[...]`. A negative label carries no weight; one of V or
        more that carries weight makes the loss NaN.
      weights: `[...]`, >= 0; None means 1 everywhere.
      z_loss: coefficient of the z-loss, >= 0; 0 leaves it out.

    Returns:
      The objective and float32 scalars: `loss` (the mean cross-entropy alone),
      `weight` (the sum of weights) and `correct` (the weight of the tokens whose label
      has the largest logit; a tie counts as a hit).
    """
    logits = logits.astype(jnp.float32)
    labelled = targets >= 0
    if weights is None:
        weights = jnp.ones(targets.shape, jnp.float32)
    weights = jnp.where(labelled, weights.astype(jnp.float32), 0.0)
    # A constant shift: its gradient cancels.
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_z = jnp.log(jnp.sum(jnp.exp(logits - peak), axis=-1)) + peak[..., 0]
    # A masked sum in place of a gather: as fast, and it stays local when the
    # vocabulary is split over devices.
    classes = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    label_logits = jnp.sum(
        jnp.where(classes == targets[..., None], logits, 0.0), axis=-1
    )
    outside = (targets >= logits.shape[-1]) & (weights > 0)
    label_logits = jnp.where(outside, jnp.nan, label_logits)

    total = jnp.sum(weights)
    divisor = jnp.where(total > 0, total, 1.0)
    loss = jnp.sum(weights * (log_z - label_logits)) / divisor
    objective = loss
    if z_loss:
        objective = loss + z_loss * jnp.sum(weights * jnp.square(log_z)) / divisor
    # The maximum is at hand: this needs no argmax over the vocabulary.
    correct = jnp.sum(weights * (label_logits >= peak[..., 0]))
    return objective, {"loss": loss, "weight": total, "correct": correct}
