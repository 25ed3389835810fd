"""From a run's configuration and its data to the model's own config."""

import dataclasses

from experiments.click_config import ClickModelConfig, numbers
from models import Model
from models.click_batch import BatchRules
from models.dcn import DCNConfig, dcn
from models.dlrm import DLRMConfig, dlrm
from models.embeddings import TableConfig, choose_moduli, mixed_dimensions

Architecture = DLRMConfig | DCNConfig


def architecture(config: ClickModelConfig, rules: BatchRules) -> Architecture:
    """The model's config, its tables as large as the data say.

    Args:
      config: of the run.
      rules: rows of the tables and dense features of the data.

    Raises:
      ValueError: fields that do not fit each other or the data.
    """
    tables = _tables(config, rules.rows)
    widths = numbers("model.bottom", config.bottom) if config.bottom else ()
    weights = numbers("model.loss_weights", config.loss_weights, float)
    common = dict(
        tables=tables,
        bottom=(rules.num_dense, *widths),
        loss=config.loss,
        loss_weights=weights,
        loss_threshold=config.loss_threshold,
    )
    if config.family == "dcn":
        return DCNConfig(
            **common,
            cross_layers=config.cross_layers,
            deep=numbers("model.top", config.top),
            cross=config.cross,
            rank=config.rank,
            head=config.head,
        )
    return DLRMConfig(
        **common,
        top=numbers("model.top", config.top),
        interaction=config.interaction,
        interaction_itself=config.interaction_itself,
        weighted_pooling=config.weighted_pooling,
        compute_dtype=config.compute_dtype,
    )


def build_model(config: Architecture) -> Model:
    """The model of either family."""
    return dcn(config) if isinstance(config, DCNConfig) else dlrm(config)


def _tables(config: ClickModelConfig, rows: tuple[int, ...]) -> tuple[TableConfig, ...]:
    widths: tuple[int, ...] | None = None
    if config.method == "mixed":
        widths = tuple(
            mixed_dimensions(
                rows,
                config.mixed_temperature,
                d0=config.dim,
                round_to_power_of_two=config.mixed_round,
            )
        )
    return tuple(
        _table(config, count, None if widths is None else int(widths[index]))
        for index, count in enumerate(rows)
    )


def _table(config: ClickModelConfig, rows: int, width: int | None) -> TableConfig:
    """One table; a small one is full whatever the method."""
    table = TableConfig(
        rows,
        config.dim,
        threshold=config.threshold,
        pool_order=config.pool_order,
    )
    if config.method == "full" or rows <= config.threshold:
        return dataclasses.replace(table, init=_full_init(config.table_init))
    if config.method == "mixed":
        return dataclasses.replace(
            table, method="mixed", component_dims=(width,), init=config.table_init
        )
    fields: dict = {"method": config.method, "init": config.table_init}
    if config.method in ("mixed_radix", "crt"):
        fields["moduli"] = choose_moduli(
            rows, config.parts, coprime=config.method == "crt"
        )
    else:
        fields["collisions"] = config.collisions
    if config.method == "path":
        fields["path_hidden"] = config.path_hidden
    if config.method in ("qr", "mixed_radix", "crt"):
        fields["op"] = config.op
    return dataclasses.replace(table, **fields)


def _full_init(init: str) -> str:
    """The original draws full tables alike, however it draws the compressed ones."""
    return "default" if init == "reference_qr" else init
