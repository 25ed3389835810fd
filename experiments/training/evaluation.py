"""Validation loss on a fixed set of batches."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from models import Model
from optim_jax import gpa_eval_params

Batch = Mapping[str, jax.Array]


class Evaluator:
    """Computes the loss where a method is meant to be evaluated.

    Averaging methods are evaluated at x, everything else at the parameters; the
    averaging methods' gradient point y is reported beside it when asked for.

    Args:
      model: the model.
      batches: the validation batches, already on the devices; rows of weight 0 do
        not count.
      averages: whether the optimizer state holds an averaged sequence.
      gradient_point: also report the loss at y for averaging methods.
      bytes_per_token: of the validation text, for bits per byte.
      in_turn: wraps compiled functions that must not overlap with others.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Batch],
        *,
        in_turn: Callable[[Callable[..., Any]], Callable[..., Any]],
        averages: bool,
        gradient_point: bool,
        bytes_per_token: float,
    ):
        if not batches:
            raise ValueError("the validation data has no batch")
        self.example = batches[0]  # a batch like those of training
        self._batches = batches
        self._averages = averages
        self._gradient_point = gradient_point
        self._bytes_per_token = bytes_per_token
        self._eval_params = in_turn(jax.jit(gpa_eval_params)) if averages else None

        def loss_sums(params, batch):
            _, aux = model.loss(params, batch, train=False)
            return jnp.stack([aux["weight"] * aux["loss"], aux["weight"]])

        self._loss_sums = in_turn(jax.jit(loss_sums))

    def eval_params(self, params: Any, opt_state: Any) -> Any:
        """The parameters to evaluate, report and ship."""
        if self._eval_params is None:
            return params
        return self._eval_params(opt_state, params)

    def mean_loss(self, params: Any) -> float:
        """Token-weighted mean loss over all validation batches."""
        sums = [self._loss_sums(params, batch) for batch in self._batches]
        loss, weight = _total(sums)
        return loss / weight

    def __call__(self, params: Any, opt_state: Any) -> dict[str, float]:
        """`eval/loss`, `eval/bits_per_byte` and, if asked for, `eval/loss_y`."""
        loss = self.mean_loss(self.eval_params(params, opt_state))
        metrics = {
            "eval/loss": loss,
            "eval/bits_per_byte": loss / math.log(2.0) / self._bytes_per_token,
        }
        if self._averages and self._gradient_point:
            metrics["eval/loss_y"] = self.mean_loss(params)
        return metrics


def _total(sums: Iterable[jax.Array]) -> tuple[float, float]:
    # Summed on the host in double precision, after all batches were dispatched.
    pairs = [tuple(map(float, pair)) for pair in jax.device_get(list(sums))]
    return math.fsum(p[0] for p in pairs), max(math.fsum(p[1] for p in pairs), 1e-30)
