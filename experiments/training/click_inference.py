"""A trained click model put to use: its parameters, predictions and quantised forms."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.click_config import ClickTrainConfig
from experiments.config import MeshConfig
from experiments.config_fields import from_dict
from experiments.training.binary_metrics import BinaryMetrics
from experiments.training.checkpoints import Checkpoints
from experiments.training.click_architecture import Architecture
from experiments.training.click_setup import ClickSetup, build_click_setup
from experiments.training.inference import restore_chosen
from models import Params
from models.categorical import split_tables
from models.embeddings import dequantize_rows, quantize_rows
from optim_jax import gpa_eval_params


@dataclasses.dataclass(frozen=True)
class TrainedClicks:
    """A model of a finished or running run, on one device.

    Attributes:
      setup: of the run, for its data and model.
      params: of the whole model, at the evaluated point.
      step: updates that made them.
    """

    setup: ClickSetup
    params: Params
    step: int

    @property
    def architecture(self) -> Architecture:
        """The model's config."""
        return self.setup.architecture


def load_click_model(
    run_dir: str | pathlib.Path,
    *,
    which: str = "best",
    change: Callable[[ClickTrainConfig], ClickTrainConfig] | None = None,
) -> TrainedClicks:
    """Loads a run's model from its best or newest checkpoint, onto one device.

    Args:
      run_dir: the run's output folder.
      which: `best` by validation loss (the newest where none was evaluated), or
        `latest`.
      change: changes the run's config first, for instance the paths of its data.

    Raises:
      FileNotFoundError: the folder holds no run or no checkpoint.
      ValueError: for another `which`; data that do not fit the model; a checkpoint that
        cannot be read.
    """
    if which not in ("best", "latest"):
        raise ValueError(f"which must be best or latest, got {which!r}")
    run_dir = pathlib.Path(run_dir)
    config_path = run_dir / "config.json"
    if not config_path.exists():
        raise FileNotFoundError(f"{run_dir} holds no run: {config_path} is missing")
    config = from_dict(ClickTrainConfig, json.loads(config_path.read_text()))
    config = dataclasses.replace(config, mesh=MeshConfig())
    config = config if change is None else change(config)
    setup = build_click_setup(config, jax.local_devices()[:1])
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=config.checkpoint.keep)
    restored = restore_chosen(checkpoints, setup.padding.stored, which)
    checkpoints.close()
    if restored is None:
        raise FileNotFoundError(f"{run_dir / 'checkpoints'} holds no checkpoint yet")
    state = restored.state
    dense = state.params["dense"]
    if setup.optimizer.averages:
        dense = jax.jit(gpa_eval_params)(state.opt_state["dense"], dense)
    whole = setup.sparse.params(
        state._replace(params={"dense": dense, "rows": state.params["rows"]})
    )
    return TrainedClicks(setup, whole, int(state.step))


def predict(
    trained: TrainedClicks, batches: Iterable[Mapping[str, Any]]
) -> Iterator[np.ndarray]:
    """Probabilities of a click, float32 `[samples]` of each batch.

    Args:
      trained: the model.
      batches: as from `models.dlrm.make_batch`; samples of weight 0 are left out.
    """
    for batch, logits in zip_logits(trained, batches):
        p = trained.architecture.click_loss.probability(logits)
        yield np.asarray(p)[batch["weights"] > 0]


def zip_logits(
    trained: TrainedClicks,
    batches: Iterable[Mapping[str, Any]],
    params: Params | None = None,
) -> Iterator[tuple[Mapping[str, Any], jax.Array]]:
    """Each batch with its logits.

    Args:
      trained: the model.
      batches: see `predict`.
      params: to use in place of the model's.
    """
    apply = jax.jit(trained.setup.model.apply)
    for batch in batches:
        yield batch, apply(trained.params if params is None else params, batch)


def evaluate(trained: TrainedClicks, params: Params | None = None) -> dict[str, float]:
    """Metrics on the validation samples of the run.

    Args:
      trained: the model.
      params: to use in place of the model's.
    """
    metrics = BinaryMetrics()
    for batch, logits in zip_logits(trained, trained.setup.data.validation(), params):
        metrics.update(logits, batch["labels"], batch["weights"])
    return metrics.result()


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A model whose tables were rounded after training.

    Attributes:
      params: with the tables as they come back, and the perceptrons rounded.
      bytes_before: of tables and perceptrons.
      bytes_after: of their rounded form, scales and offsets included.
    """

    params: Params
    bytes_before: int
    bytes_after: int


def quantize(
    params: Params, *, table_bits: int = 8, perceptron_dtype: str = "float32"
) -> Quantized:
    """Rounds the rows of every table to 8 or 4 bits, and the perceptrons to a dtype.

    Args:
      params: of a click model.
      table_bits: 8 or 4 (each row with a scale and an offset), or 32 for none.
      perceptron_dtype: `float32`, `float16` or `bfloat16`.

    Raises:
      ValueError: for other widths.
    """
    if table_bits not in (4, 8, 32):
        raise ValueError(f"table_bits must be 4, 8 or 32, got {table_bits}")
    allowed = ("float32", "float16", "bfloat16")
    if perceptron_dtype not in allowed:
        raise ValueError(
            f"perceptron_dtype must be one of {', '.join(allowed)}, got "
            f"{perceptron_dtype!r}"
        )
    rows, dense = split_tables(params)
    size = {"before": 0, "after": 0}

    def round_rows(table: jax.Array) -> jax.Array:
        size["before"] += table.nbytes
        if table_bits == 32:
            size["after"] += table.nbytes
            return table
        packed = quantize_rows(table, table_bits)
        size["after"] += sum(np.asarray(part).nbytes for part in packed)
        return dequantize_rows(packed)

    def round_dense(leaf: jax.Array) -> jax.Array:
        rounded = leaf.astype(perceptron_dtype)
        size["before"] += leaf.nbytes
        size["after"] += rounded.nbytes
        return rounded.astype(leaf.dtype)

    rows = jax.tree.map(round_rows, rows)
    dense = jax.tree.map(round_dense, dense)
    tables = {index: {**rows[index], **dense["tables"][index]} for index in rows}
    return Quantized({**dense, "tables": tables}, size["before"], size["after"])
