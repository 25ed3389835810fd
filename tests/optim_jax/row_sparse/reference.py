"""The rules under test, and the same as loops over single rows, in double precision."""

import numpy as np

from optim_jax.row_sparse import sparse_adagrad, sparse_row_wise_adagrad, sparse_sgd

OPTIONS = {"eps": 1e-3, "lr_decay": 0.2, "initial_accumulator_value": 0.1}
RULES = {
    "sgd": sparse_sgd,
    "adagrad": lambda lr: sparse_adagrad(lr, **OPTIONS),
    "row_wise": lambda lr: sparse_row_wise_adagrad(lr, **OPTIONS),
}


def random_case(seed, *, rows, width, length, distinct=None):
    """A table, ids with many duplicates and some padding, and their gradients."""
    rng = np.random.default_rng(seed)
    pool = rng.choice(rows, size=distinct or max(1, min(rows, length // 2)))
    ids = rng.choice(pool, size=length).astype(np.int32)
    padding = rng.random(length) < 0.1
    ids[padding] = rows + rng.integers(0, 3, size=padding.sum())
    table = rng.normal(size=(rows, width)).astype(np.float32)
    values = rng.normal(size=(length, width)).astype(np.float32)
    return table, ids, values


def summed(ids, values, rows):
    """The dense gradient, float64, and which rows were looked up."""
    total, touched = np.zeros((rows, *values.shape[1:])), np.zeros(rows, bool)
    for row, value in zip(ids, values, strict=True):
        if row < rows:
            total[row] += value
            touched[row] = True
    return total, touched


class RowLoop:
    """Adagrad and SGD row by row; `kind` is "sgd", "adagrad" or "row_wise"."""

    def __init__(self, kind, table, lr, *, eps=1e-10, lr_decay=0.0, initial=0.0):
        self.kind, self.lr, self.eps, self.lr_decay = kind, lr, eps, lr_decay
        self.table = table.astype(np.float64)
        shape = {"adagrad": table.shape, "row_wise": table.shape[:1]}.get(kind, (0,))
        self.accumulator = np.full(shape, float(initial))
        self.calls = 0

    def update(self, ids, values):
        rate = self.lr / (1.0 + self.calls * self.lr_decay)
        self.calls += 1
        total, touched = summed(ids, values, len(self.table))
        for row in np.flatnonzero(touched):
            g = total[row]
            if self.kind == "sgd":
                self.table[row] -= rate * g
                continue
            square = g * g
            mean = square.mean() if self.kind == "row_wise" else square
            self.accumulator[row] += mean
            root = np.sqrt(self.accumulator[row]) + self.eps
            self.table[row] -= rate * g / root
