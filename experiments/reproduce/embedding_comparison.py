"""Embeddings compared inside a small DLRM: configurations, orders, files."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.reproduce.claims import Options
from experiments.reproduce.embedding_arms import CONCAT_DIMS, DIM, EmbeddingArm
from experiments.reproduce.embedding_protocol import (
    BOTTOM,
    THRESHOLD,
    TOP,
    ClickRows,
    OnePass,
    dlrm_config,
    dlrm_learner,
    train_and_predict,
)
from experiments.reproduce.embedding_report import embedding_markdown
from experiments.reproduce.embedding_runs import Configuration, Metrics, evaluated
from experiments.reproduce.report import Document, write_files
from models.dlrm import DLRMConfig, count_params

INTERACTIONS = {"dot": "dot interaction", "cat": "concatenated vectors"}


def dlrm_configurations(
    arms: Mapping[str, Sequence[EmbeddingArm]],
    table_rows: Sequence[int],
    one_pass: OnePass,
    train: ClickRows,
    held_out: ClickRows,
    metrics: Callable[[np.ndarray], Metrics],
) -> list[Configuration]:
    """All arms of all interactions, ready to be run.

    Args:
      arms: by interaction, which names the panel.
      table_rows: number of ids of each feature.
      one_pass: the training.
      train: rows to train on.
      held_out: rows to evaluate.
      metrics: of logits of the held-out rows.
    """

    def measure(config: DLRMConfig, seeds: Sequence[int]) -> list[Metrics]:
        learner = dlrm_learner(config, one_pass)
        trained = train_and_predict(
            learner, one_pass, train, held_out, table_rows, seeds
        )
        return evaluated(trained, metrics)

    found = []
    for interaction, of_panel in arms.items():
        for arm in of_panel:
            config = dlrm_config(arm, table_rows, train.dense.shape[1], interaction)
            found.append(
                Configuration(
                    arm,
                    interaction,
                    config.tables,
                    count_params(config),
                    functools.partial(measure, config),
                )
            )
    return found


def panels_of(
    arms: Mapping[str, Sequence[EmbeddingArm]], entries: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Entries, in the order of `dlrm_configurations`, by interaction."""
    remaining = iter(entries)
    return [
        {
            "name": interaction,
            "label": INTERACTIONS[interaction],
            "arms": [next(remaining) for _ in of_panel],
        }
        for interaction, of_panel in arms.items()
    ]


ORDERS_TEXT = (
    "Composed embeddings below hashing of as many rows and mult below add and concat "
    "(arXiv 1909.02107), full tables below all, features and path between full and "
    "hash, a threshold below no threshold"
)


def expected_orders(
    arms: Mapping[str, Sequence[EmbeddingArm]], metric: str
) -> list[dict[str, str]]:
    """The orders of `ORDERS_TEXT` for every panel.

    Args:
      arms: by interaction; orders whose arms a panel lacks are left out.
      metric: lower is better.
    """
    pairs = [
        (f"{family}_c{c}", f"hash_c{c}")
        for family in ("qr_mult", "qr_add", "qr_concat")
        for c in (2, 4, 8, 16)
    ]
    pairs += [("qr_mult_c4", "qr_add_c4"), ("qr_mult_c4", "qr_concat_c4")]
    pairs += [("full", "qr_mult_c4")]
    for family in ("features", "path"):
        pairs += [("full", f"{family}_c4"), (f"{family}_c4", "hash_c4")]
    pairs += [("qr_mult_c4", "qr_mult_c4_t0")]
    orders = []
    for panel, of_panel in arms.items():
        names = {arm.name for arm in of_panel}
        orders += [
            {"panel": panel, "metric": metric, "lower": lower, "higher": higher}
            for lower, higher in pairs
            if {lower, higher} <= names
        ]
    return orders


def model_sentences(num_dense: int | str, one_pass: OnePass) -> list[str]:
    """What the protocol says about model and training."""

    def widths(*numbers: Any) -> str:
        return "-".join(map(str, numbers))

    return [
        f"DLRM, tables of width {DIM}, dense features through "
        f"{widths(num_dense, *BOTTOM)}, interaction through {widths(*TOP)}; tables of "
        f"at most {THRESHOLD} rows stay full. Adagrad (one statistic per entry) at "
        f"{one_pass.learning_rate:g}, eps {one_pass.eps:g}, on everything; tables are "
        f"updated at the rows looked up. One pass in batches of {one_pass.batch_size}."
        " Nothing is tuned.",
        "Hashing has ceil(n / c) + c rows, as many as quotient and remainder together; "
        "for the mixed radix and the Chinese remainder of k parts, balanced moduli, as "
        "many as the parts of the mixed radix. Concat is "
        f"{CONCAT_DIMS[0]} + {CONCAT_DIMS[1]} and so smaller than the others; features "
        "gives two vectors to the interaction; path has a hidden width of 16, and its "
        "perceptrons count as parameters of the table.",
    ]


def run_claim(
    options: Options, plan: Sequence[str], build: Callable[[], Document]
) -> None:
    """Prints the plan, or builds the document and writes table, figure and JSON."""
    if options.dry_run:
        print("\n".join(plan))
        return
    # Here, so that plans can be made where matplotlib is not installed.
    from experiments.reproduce.embedding_figure import draw_embeddings

    document = build()
    paths = write_files(
        document,
        options.results_dir,
        options.result_name,
        text=embedding_markdown,
        draw=draw_embeddings,
    )
    print(embedding_markdown(document))
    print("\n".join(f"written: {path}" for path in paths))
