"""What tests of sparse steps share: small models, batches of bags, short runs."""

import dataclasses

import jax
import numpy as np

from experiments.training.sparse_step import make_sparse_step
from models.dlrm import DLRMConfig, dlrm, make_batch
from models.embeddings import TableConfig
from optim_jax.row_sparse import dense_adagrad, sparse_row_wise_adagrad

FULL = DLRMConfig((TableConfig(40, 4), TableConfig(30, 4)), (3, 4), (1,))


def bag_batches(config, size, count=3, longest=3, capacities=None, seed=0):
    """Batches of bags that may be empty, their samples weighted unevenly."""
    rng = np.random.default_rng(seed)
    rules = dataclasses.replace(config.batch_rules, capacities=capacities)
    for _ in range(count):
        lengths = [rng.integers(0, longest + 1, size) for _ in rules.rows]
        yield make_batch(
            rules,
            rng.normal(size=(size, rules.num_dense)),
            [
                rng.integers(
                    0, rows // 2, of_table.sum()
                )  # the other half is untouched
                for rows, of_table in zip(rules.rows, lengths, strict=True)
            ],
            lengths=lengths,
            labels=rng.integers(0, 2, size),
            weights=rng.choice([0.0, 1.0, 2.0], size),
        )


def assert_trees_close(found, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
        found,
        expected,
    )


def adagrad_step(config, **options):
    return make_sparse_step(
        dlrm(config), dense_adagrad(0.1), sparse_row_wise_adagrad(0.1), **options
    )


def train(step, params, batches):
    """Parameters, states of the rows and losses after some steps."""
    state, losses = step.init(params), []
    for batch in batches:
        state, metrics = step.step(state, batch)
        losses.append(metrics["loss"])
    return step.params(state), step.row_states(state), np.array(losses)
