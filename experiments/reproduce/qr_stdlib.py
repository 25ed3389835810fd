"""Compositional embeddings against hashing on a real task that needs no download.

Is a name in the source of the standard library called? Eleven categorical features with
counts that follow a power law, as in click data (arXiv 1909.02107 for the embeddings).
Models are compared on files that none of them has seen.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.data.name_calls import DENSE_FEATURES, NameCalls, read_name_calls
from experiments.reproduce.claims import Options
from experiments.reproduce.embedding_arms import EmbeddingArm, embedding_arms
from experiments.reproduce.embedding_comparison import (
    INTERACTIONS,
    ORDERS_TEXT,
    dlrm_configurations,
    expected_orders,
    model_sentences,
    panels_of,
    run_claim,
)
from experiments.reproduce.embedding_protocol import ClickRows, OnePass
from experiments.reproduce.embedding_runs import (
    Metrics,
    measure_all,
    require_untuned,
    shared_setting,
)
from experiments.reproduce.provenance import command_line, provenance
from experiments.reproduce.report import Document
from experiments.training.binary_metrics import auc, log_loss, normalized_entropy

ARMS: Mapping[str, Sequence[EmbeddingArm]] = {
    "dot": embedding_arms(thresholds=(0, 10_000), original_init=True),
    "cat": embedding_arms(collisions=(4,), parts=()),
}


def held_out_rows(calls: NameCalls) -> ClickRows:
    """The rows of the validation and the test files: nothing is chosen on either."""
    parts = (calls.validation, calls.test)
    return ClickRows(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ClickRows._fields
        )
    )


def _metrics(labels: np.ndarray, logits: np.ndarray) -> Metrics:
    return {
        "loss": log_loss(logits, labels),
        "normalized_entropy": normalized_entropy(logits, labels),
        "auc": auc(logits, labels),
    }


def _protocol(one_pass: OnePass) -> list[str]:
    return [
        "Standard library of the running Python: every name in the code is a row, its "
        "label is whether an opening parenthesis follows. Files are split 90 to 10 by "
        "their content; categories that the training files lack share one id. Losses "
        "are on the held-out files, validation and test parts together, since nothing "
        "is chosen.",
        *model_sentences(len(DENSE_FEATURES), one_pass),
        "Progressive loss: mean loss of the last quarter of the pass, each row before "
        "it is trained on. Its rows come from the training files, and their names have "
        "mostly been seen; the held-out files bring names of their own. Normalised "
        "entropy is the loss over the entropy of the base rate of the same rows.",
        "The seed is that of the initial weights and of the order of the rows; the "
        "held-out rows are the same for all, so the spread over seeds is not that over "
        "other files.",
    ]


def one_pass_of(options: Options) -> OnePass:
    """The training, shortened when the command line asks for fewer steps."""
    return OnePass(batch_size=256, learning_rate=0.05, steps=options.steps)


def build_document(
    options: Options,
    calls: NameCalls,
    arms: Mapping[str, Sequence[EmbeddingArm]] = ARMS,
) -> Document:
    """Runs the arms on all seeds."""
    one_pass, held_out = one_pass_of(options), held_out_rows(calls)
    configurations = dlrm_configurations(
        arms,
        calls.rows,
        one_pass,
        ClickRows(calls.train.ids, calls.train.dense, calls.train.labels),
        held_out,
        functools.partial(_metrics, held_out.labels),
    )
    entries = measure_all(
        configurations, options, shared_setting(options, one_pass, calls.sha256)
    )
    rate = float(held_out.labels.mean())
    return {
        "claim": options.name,
        "title": "Names called in the standard library: compositional embeddings "
        "against hashing",
        "provenance": provenance(command_line()),
        "protocol": _protocol(one_pass),
        "seeds": list(options.seeds),
        "corpus_sha256": calls.sha256,
        "drawn": [
            {"panel": next(iter(arms)), "metric": metric, "label": label}
            for metric, label in (
                ("loss", "log loss on held-out files (nats)"),
                ("progressive_loss", "progressive log loss (nats)"),
            )
        ],
        "hollow": "other thresholds or initial weights",
        "metrics": [
            {"name": "loss", "label": "held-out log loss"},
            {"name": "normalized_entropy", "label": "normalised entropy"},
            {"name": "auc", "label": "AUC"},
            {"name": "progressive_loss", "label": "progressive loss"},
        ],
        "panels": panels_of(arms, entries),
        "orders": [
            *expected_orders(arms, "loss"),
            *expected_orders(arms, "progressive_loss"),
        ],
        "acceptance": [],
        "orders_text": ORDERS_TEXT,
        "notes": [
            f"{len(calls.train.labels):,} training rows and {len(held_out.labels):,} "
            f"held-out rows, of which {100 * rate:.1f} % are called; tables of "
            + ", ".join(
                f"{rows:,} ({name})"
                for name, rows in zip(calls.features, calls.rows, strict=True)
            )
            + f" rows. SHA-256 of the corpus {calls.sha256[:16]}; another version of "
            "Python has another corpus.",
        ],
    }


def reproduce(options: Options) -> None:
    """Runs the experiment and writes its table, figure and JSON."""
    require_untuned(options)
    one_pass = one_pass_of(options)
    plan = _protocol(one_pass)
    for name, of_panel in ARMS.items():
        plan += [f"{INTERACTIONS[name]}: {arm.label}" for arm in of_panel]

    def build() -> Document:
        calls = read_name_calls(options.output_dir / "name_calls")
        one_pass.count_steps(len(calls.train.labels))
        return build_document(options, calls)

    run_claim(options, plan, build)
