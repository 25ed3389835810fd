"""What DLRM and DCN share: their configs' habits, and from logits to a `Model`."""

import dataclasses
import json
import operator
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
from jax.sharding import PartitionSpec

from models.categorical import CategoricalTables
from models.click_batch import BatchRules
from models.click_losses import ClickLoss, click_loss
from models.embeddings import TableConfig
from models.model import Batch, Model, Params
from optim_jax import MatrixAxes, matrix_axes_from_rules

# Perceptrons whole on every device; rows of tables split over `fsdp`.
PARTITION_RULES = (
    (r"^tables/\d+/(functions|projection)", PartitionSpec()),
    (r"^tables/", PartitionSpec("fsdp")),
    (r"", PartitionSpec()),
)

TABLE_MATRIX_RULES = (
    (r"^tables/\d+/functions/.*kernel$", MatrixAxes("hidden", (0,), (1,), (2,))),
    (r"^tables/\d+/functions/.*bias$", MatrixAxes("bias")),
    (r"^tables/\d+/projection$", MatrixAxes("hidden")),
    (r"^tables/", MatrixAxes("embedding")),
)


class ClickConfig:
    """What the configs of click models can do; they are frozen dataclasses.

    Attributes:
      tables: one `TableConfig` for each categorical feature; none is fine.
      bottom: widths, `bottom[0]` dense features.
      loss: see `ClickLoss`, as the next two.
      loss_weights: of labels 0 and 1.
      loss_threshold: where probabilities are clipped.
    """

    tables: tuple[TableConfig, ...]
    bottom: tuple[int, ...]
    loss: str
    loss_weights: tuple[float, float]
    loss_threshold: float

    def read_fields(self, **least_widths: int) -> None:
        """Turns fields into plain hashable values, and refuses what they cannot be.

        Args:
          **least_widths: names of the fields that are widths of layers, and how many
            there are at least.

        Raises:
          TypeError: a table is not a `TableConfig`.
          ValueError: widths are not positive integers; see `ClickLoss`.
        """
        tables = tuple(self.tables)
        for index, table in enumerate(tables):
            if not isinstance(table, TableConfig):
                raise TypeError(f"tables[{index}] must be a TableConfig, got {table!r}")
        plain = {
            "tables": tables,
            "loss_weights": tuple(map(float, self.loss_weights)),
            "loss_threshold": float(self.loss_threshold),
        }
        for name, least in least_widths.items():
            plain[name] = _widths(name, getattr(self, name), least)
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        self.click_loss  # noqa: B018, its own checks

    @property
    def click_loss(self) -> ClickLoss:
        """The loss as its own object."""
        return ClickLoss(self.loss, self.loss_weights, self.loss_threshold)

    @property
    def batch_rules(self) -> BatchRules:
        """What a batch must look like; `dataclasses.replace` changes the policies."""
        return BatchRules(tuple(table.rows for table in self.tables), self.bottom[0])

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types (tuples are written as lists)."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Args:
          fields: may leave out what has a default.

        Returns:
          The config.

        Raises:
          ValueError: a key is no field, or a value is refused.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(
                f"unknown fields {', '.join(unknown)} of {cls.__name__}; there are "
                f"{', '.join(known)}"
            )
        fields = dict(fields)
        if "tables" in fields:
            fields["tables"] = [TableConfig.from_dict(t) for t in fields["tables"]]
        return cls(**fields)

    def to_json(self) -> str:
        """The config as one JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`; raises like `from_dict`."""
        return cls.from_dict(json.loads(text))


def require_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises a `ValueError` unless the value is one of these."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def require_integer(name: str, value: Any, least: int) -> int:
    """Reads an integer of any kind; raises a `ValueError` if it is below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return number


def _widths(name: str, widths: Sequence[Any], least: int) -> tuple[int, ...]:
    widths = tuple(widths)
    if len(widths) < least:
        raise ValueError(f"{name} must hold at least {least} widths, got {widths}")
    return tuple(require_integer(f"{name}[{i}]", w, 1) for i, w in enumerate(widths))


def build_click_model(
    config: ClickConfig,
    tables: CategoricalTables,
    *,
    init: Callable[[jax.Array], Params],
    logits_from_rows: Callable[[Any, Params, Batch], jax.Array],
    matrix_rules: tuple[tuple[str, MatrixAxes], ...],
    forward_flops: int,
) -> Model:
    """The pure functions of a model with embedding tables.

    Args:
      config: of the model.
      tables: its categorical side.
      init: `key -> params`, with the tables under `tables`.
      logits_from_rows: `(rows, params, batch) -> logits [B]`, which reads no
        looked-up leaf of `params`.
      matrix_rules: of the leaves that are not of a table.
      forward_flops: of one sample.
    """
    loss_kind = config.click_loss

    def checked_logits(rows: Any, params: Params, batch: Batch) -> jax.Array:
        _check_batch(config, batch)
        return logits_from_rows(rows, params, batch)

    def apply(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        rows = tables.lookup(params["tables"], tables.row_ids(batch))
        return checked_logits(rows, params, batch)

    def loss_from_rows(
        rows: Any,
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        if "labels" not in batch:
            raise ValueError("the loss needs labels, and the batch has none")
        logits = checked_logits(rows, params, batch)
        return click_loss(loss_kind, logits, batch["labels"], batch.get("weights"))

    def loss(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        rows = tables.lookup(params["tables"], tables.row_ids(batch))
        return loss_from_rows(rows, params, batch)

    return Model(
        init=init,
        apply=apply,
        loss=loss,
        partition_rules=PARTITION_RULES,
        matrix_axes=matrix_axes_from_rules((*matrix_rules, *TABLE_MATRIX_RULES)),
        flops_per_example=3.0 * forward_flops,
        row_ids=tables.row_ids,
        loss_from_rows=loss_from_rows,
    )


def _check_batch(config: ClickConfig, batch: Batch) -> None:
    """Shapes that are known inside jit; values are checked where batches are made."""
    shape = batch["dense"].shape
    if len(shape) != 2 or shape[1] != config.bottom[0]:
        raise ValueError(
            f"batch dense must have shape [B, {config.bottom[0]}], got {shape}"
        )
