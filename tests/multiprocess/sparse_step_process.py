"""One of several processes that train a small model together; process 0 writes.

python -m tests.multiprocess.sparse_step_process ADDRESS COUNT INDEX PLAN FILE
"""

import sys

import jax
import numpy as np
from jax.sharding import AxisType

from experiments.sharding.table_placement import LAYOUTS
from experiments.training.sparse_step import make_sparse_step
from models.dlrm import DLRMConfig, dlrm, make_batch
from models.embeddings import TableConfig
from optim_jax.row_sparse import dense_adagrad, sparse_row_wise_adagrad

STEPS = 3
# The four layouts, with a table of two parts among them.
CONFIG = DLRMConfig(
    (
        TableConfig(11, 4),
        TableConfig(23, 4),
        TableConfig(40, 4, method="qr", op="mult"),
        TableConfig(9, 4),
    ),
    (3, 4),
    (5, 1),
)


def batch_of(step, share, shares):
    """The samples of one of several shares of a step's batch; unequal many."""
    rng = np.random.default_rng(step)
    size = 9
    lengths = [rng.integers(0, 4, size) for _ in CONFIG.tables]
    bags = [
        [rng.integers(0, table.rows, n) for n in of_table]
        for table, of_table in zip(CONFIG.tables, lengths, strict=True)
    ]
    dense, labels = rng.normal(size=(size, 3)), rng.integers(0, 2, size)
    mine = np.array_split(np.arange(size), shares)[share]
    return make_batch(
        CONFIG,
        dense[mine],
        [np.concatenate([of_table[i] for i in mine]) for of_table in bags],
        lengths=[of_table[mine] for of_table in lengths],
        labels=labels[mine],
    )


def train(mesh, plan, share=0, shares=1):
    """Losses, parameters and accumulators after some steps."""
    step = make_sparse_step(
        dlrm(CONFIG),
        dense_adagrad(0.1),
        sparse_row_wise_adagrad(0.1),
        mesh=mesh,
        plan=plan,
    )
    state, losses = step.init(step.model.init(jax.random.key(0))), []
    for number in range(STEPS):
        state, metrics = step.step(state, batch_of(number, share, shares))
        losses.append(np.asarray(metrics["loss"]))
    trained = {"params": step.params(state), "states": step.row_states(state)}
    return {"losses": np.array(losses)} | {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(trained)
    }


def main():
    address, count, index, plan, file = sys.argv[1:]
    jax.distributed.initialize(address, int(count), int(index))
    devices = jax.devices()
    mesh = jax.make_mesh((len(devices),), ("x",), axis_types=(AxisType.Auto,))
    plan = list(LAYOUTS) if plan == "mix" else plan
    found = train(mesh, plan, int(index), int(count))
    if not int(index):
        np.savez(file, **found)


if __name__ == "__main__":
    main()
