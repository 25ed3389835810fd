"""Updates of embedding tables that touch only the rows a batch has looked up."""

from optim_jax.row_sparse.dense_adagrad import (
    AdagradState,
    dense_adagrad,
    row_wise_adagrad,
)
from optim_jax.row_sparse.lookup import lookup, unique_rows
from optim_jax.row_sparse.rules import (
    RowRule,
    RowSparseState,
    sparse_adagrad,
    sparse_row_wise_adagrad,
    sparse_sgd,
)
from optim_jax.row_sparse.table_update import sparse_update, update_unique_rows

__all__ = [
    # Rows of a table.
    "lookup",
    "unique_rows",
    # Sparse updates and their rules.
    "RowRule",
    "RowSparseState",
    "sparse_adagrad",
    "sparse_row_wise_adagrad",
    "sparse_sgd",
    "sparse_update",
    "update_unique_rows",
    # The same rules for dense gradients, as Optax transformations.
    "AdagradState",
    "dense_adagrad",
    "row_wise_adagrad",
]
