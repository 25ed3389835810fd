"""One pass over rows with categorical features, as one compiled program per model.

All steps of a run are one `lax.scan`, compiled once for each configuration: the seed
(of the initial weights and of the order of the rows) is an argument.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.reproduce.embedding_arms import EmbeddingArm
from experiments.training.sparse_step import make_sparse_step
from models.dlrm import DLRMConfig, dlrm
from optim_jax.row_sparse import dense_adagrad, sparse_adagrad

# Bottom and top perceptron after the dense features and the interaction.
BOTTOM, TOP = (16, 16), (64, 1)
THRESHOLD = 100  # a table of at most so many rows stays full

_ORDER_STREAM = 505


class ClickRows(NamedTuple):
    """Rows with labels."""

    ids: np.ndarray  # integers [n, T]
    dense: np.ndarray  # float32 [n, d]
    labels: np.ndarray  # [n], 0 or 1


@dataclasses.dataclass(frozen=True)
class OnePass:
    """How a model is trained: Adagrad with one statistic per entry, on everything.

    Attributes:
      batch_size: rows of a step; the last one may be short.
      learning_rate: constant.
      eps: outside the root.
      steps: 0 for the whole pass.
    """

    batch_size: int
    learning_rate: float
    eps: float = 1e-8
    steps: int = 0

    def count_steps(self, rows: int) -> int:
        """Steps of a run.

        Raises:
          ValueError: more steps are asked for than one pass has.
        """
        whole = -(-rows // self.batch_size)
        if not 0 <= self.steps <= whole:
            raise ValueError(
                f"steps must be at most {whole}, one pass over {rows} rows in batches "
                f"of {self.batch_size}, got {self.steps}"
            )
        return self.steps or whole


class Learner(NamedTuple):
    """A model and its update, both traceable."""

    init: Callable[[jax.Array], Any]  # key -> state
    update: Callable[[Any, Any], tuple[Any, jax.Array]]  # state, batch -> state, loss
    predict: Callable[[Any, Any], jax.Array]  # state, batch -> logits [B]


def dlrm_config(
    arm: EmbeddingArm,
    rows: Sequence[int],
    num_dense: int,
    interaction: str,
    threshold: int = THRESHOLD,
) -> DLRMConfig:
    """The small DLRM whose tables an arm makes."""
    return DLRMConfig(
        arm.tables(rows, threshold), (num_dense, *BOTTOM), TOP, interaction=interaction
    )


def dlrm_learner(config: DLRMConfig, one_pass: OnePass) -> Learner:
    """A DLRM whose tables are updated at the rows looked up only."""
    model = dlrm(config)
    rate, eps = one_pass.learning_rate, one_pass.eps
    step = make_sparse_step(
        model, dense_adagrad(rate, eps=eps), sparse_adagrad(rate, eps=eps)
    )

    def update(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        state, metrics = step.update(state, batch)
        return state, metrics["loss"]

    return Learner(
        init=lambda key: step.init_state(model.init(key)),
        update=update,
        predict=lambda state, batch: model.apply(step.params(state), batch),
    )


def epoch_order(seed: int, rows: int, one_pass: OnePass) -> np.ndarray:
    """The rows of every step.

    Args:
      seed: of the order, >= 0.
      rows: n.
      one_pass: batch size and number of steps.

    Returns:
      int32 [steps, batch size], a permutation of 0 ... n - 1 cut into steps; where the
      last batch is short, n stands for no row.

    Raises:
      ValueError: see `OnePass.count_steps`.
    """
    steps = one_pass.count_steps(rows)
    stream = np.random.SeedSequence([seed, _ORDER_STREAM])
    order = np.random.Generator(np.random.PCG64(stream)).permutation(rows)
    order = order[: steps * one_pass.batch_size]
    missing = steps * one_pass.batch_size - len(order)
    order = np.append(order, np.full(missing, rows))
    return order.reshape(steps, one_pass.batch_size).astype(np.int32)


class Trained(NamedTuple):
    """What runs of one configuration leave."""

    logits: np.ndarray  # float32 [seeds, evaluated rows], after the last step
    losses: np.ndarray  # float32 [seeds, steps], of each batch before its update


def train_and_predict(
    learner: Learner,
    one_pass: OnePass,
    train: ClickRows,
    evaluated: ClickRows,
    table_rows: Sequence[int],
    seeds: Sequence[int],
) -> Trained:
    """Trains once for every seed and predicts the evaluated rows.

    Args:
      learner: what to train.
      one_pass: how.
      train: rows to train on, each at most once.
      evaluated: rows to predict; their labels are not read.
      table_rows: number of ids of each feature.
      seeds: of the initial weights and of the order.

    Returns:
      Predictions and training losses of all seeds.
    """
    count = len(train.labels)

    @jax.jit
    def run(key: jax.Array, order: jax.Array, data: Any, asked: Any) -> Any:
        def step(state: Any, chosen: jax.Array) -> tuple[Any, jax.Array]:
            batch = {
                "ids": data["ids"][:, chosen],
                "dense": data["dense"][chosen],
                "labels": data["labels"][chosen],
                "weights": (chosen < count).astype(jnp.float32),
            }
            return learner.update(state, batch)

        state, losses = jax.lax.scan(step, learner.init(key), order)
        return learner.predict(state, asked), losses

    data, asked = jax.device_put((_with_no_row(train, table_rows), _columns(evaluated)))
    found = [
        run(jax.random.key(seed), epoch_order(seed, count, one_pass), data, asked)
        for seed in seeds
    ]
    return Trained(*(np.stack([np.asarray(f[i]) for f in found]) for i in (0, 1)))


def _columns(rows: ClickRows) -> dict[str, np.ndarray]:
    return {
        "ids": np.ascontiguousarray(rows.ids.T, np.int32),
        "dense": np.asarray(rows.dense, np.float32),
        "labels": np.asarray(rows.labels, np.float32),
    }


def _with_no_row(rows: ClickRows, table_rows: Sequence[int]) -> dict[str, np.ndarray]:
    """The rows and, at the end, one that looks up nothing."""
    columns = _columns(rows)
    beyond = np.asarray(table_rows, np.int32)[:, None]
    return {
        "ids": np.concatenate([columns["ids"], beyond], axis=1),
        "dense": np.pad(columns["dense"], ((0, 1), (0, 0))),
        "labels": np.pad(columns["labels"], (0, 1)),
    }
