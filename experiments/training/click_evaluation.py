"""Validation metrics of click models, over as many samples as there are."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from experiments.training.binary_metrics import BinaryMetrics
from experiments.training.sparse_step import SparseStep
from optim_jax import gpa_eval_params

_REPORTED = (
    "accuracy",
    "auc",
    "normalized_entropy",
    "calibration",
    "average_precision",
)


class ClickEvaluator:
    """Computes loss, accuracy, AUC and more where a method is meant to be evaluated.

    Averaging methods average the dense part; it is evaluated at x, with the tables as
    they are.

    Args:
      sparse: of the run.
      batches: opens the validation batches of this process, on the host; samples of
        weight 0 do not count.
      in_turn: wraps compiled functions that must not overlap with others.
      averages: whether the optimizer state holds an averaged sequence.
      gradient_point: also report the loss at y for averaging methods.
    """

    def __init__(
        self,
        sparse: SparseStep,
        batches: Callable[[], Iterator[Mapping[str, Any]]],
        *,
        in_turn: Callable[[Callable[..., Any]], Callable[..., Any]],
        averages: bool,
        gradient_point: bool,
    ):
        first = next(iter(batches()), None)
        if first is None:
            raise ValueError("the validation data has no batch")
        self.example = sparse.place(first)
        self._sparse, self._batches = sparse, batches
        self._gradient_point = gradient_point
        self._eval_params = in_turn(jax.jit(gpa_eval_params)) if averages else None
        self._predict = in_turn(jax.jit(build_predict(sparse)))

    def __call__(self, params: Any, opt_state: Any) -> dict[str, float]:
        """Metrics by `eval/` name; `eval/loss` is that of the model's own loss."""
        at = params
        if self._eval_params is not None:
            dense = self._eval_params(opt_state["dense"], params["dense"])
            at = {**params, "dense": dense}
        metrics = self._metrics(at)
        if self._eval_params is not None and self._gradient_point:
            metrics["eval/loss_y"] = self._metrics(params)["eval/loss"]
        return metrics

    def _metrics(self, params: Any) -> dict[str, float]:
        metrics, loss, weight = BinaryMetrics(), 0.0, 0.0
        for batch in self._batches():
            logits, total, count = self._predict(params, self._sparse.place(batch))
            # The samples of this process come first to last over its devices.
            local = _local(logits)
            labels, weights = (
                _padded(batch[name], len(local)) for name in ("labels", "weights")
            )
            if not np.isfinite(local[weights > 0]).all():
                return dict.fromkeys(
                    ("eval/loss", *(f"eval/{name}" for name in _REPORTED)), float("nan")
                )
            metrics.update(local, labels, weights)
            loss, weight = loss + float(total), weight + float(count)
        if jax.process_count() > 1:
            sums = multihost_utils.process_allgather(
                (metrics.totals, metrics.histogram)
            )
            metrics.totals, metrics.histogram = (
                np.asarray(part, np.float64).sum(axis=0) for part in sums
            )
        with warnings.catch_warnings():
            # Early models predict no click at all; precision is not reported.
            warnings.filterwarnings("ignore", message="precision")
            result = metrics.result()
        return {
            "eval/loss": loss / weight,
            **{f"eval/{name}": result[name] for name in _REPORTED},
        }


def build_predict(sparse: SparseStep) -> Callable[[Any, Any], Any]:
    """`(params, placed batch) -> logits, sum of weight * loss, sum of weights`.

    Logits are `[B]` on one device, `[devices, B / devices]` on several.
    """

    def local(params: Any, batch: Any) -> Any:
        spread = sparse.mesh is not None
        if spread:
            batch = jax.tree.map(lambda leaf: leaf[0], batch)
        rows = sparse.tables.lookup(params["rows"], sparse.model.row_ids(batch))
        _, aux = sparse.model.loss_from_rows(rows, params["dense"], batch, train=False)
        sums = jnp.stack([aux["weight"] * aux["loss"], aux["weight"]])
        if spread:
            sums = jax.lax.psum(sums, sparse.tables.axis)
            return aux["logits"][None], sums[0], sums[1]
        return aux["logits"], sums[0], sums[1]

    if sparse.mesh is None:
        return local
    share, whole = PartitionSpec(sparse.tables.axis), PartitionSpec()
    return jax.shard_map(
        local,
        mesh=sparse.mesh,
        in_specs=(sparse.state_specs().params, share),
        out_specs=(share, whole, whole),
        check_vma=False,
    )


def _local(logits: jax.Array) -> np.ndarray:
    """This process's logits, float64 `[samples]`."""
    if logits.is_fully_addressable:
        return np.asarray(logits, np.float64).reshape(-1)
    shards = sorted(logits.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([np.asarray(shard.data).reshape(-1) for shard in shards])


def _padded(values: Any, size: int) -> np.ndarray:
    """Filled up with zeros, as samples are when they are placed."""
    return np.pad(np.asarray(values), (0, size - len(values)))
