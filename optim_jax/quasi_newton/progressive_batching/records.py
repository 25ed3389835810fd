"""The records of many iterations, packed so that writing one is two small copies.

A record has some twenty fields. With an array for each, a loop over a small problem
would spend a good part of its time on writing them, and the host on fetching them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.quasi_newton.progressive_batching.solver_state import StepInfo

_FLAGS = ("reset", "ls_failed", "capped")
_REALS = (
    "ratio",
    "r",
    "r_U",
    "alpha0",
    "alpha",
    "value",
    "grad_norm",
    "epochs",
    "work",
)
_WHOLE = tuple(name for name in StepInfo._fields if name not in _REALS)


class Records(NamedTuple):
    """Records of iterations, one a row.

    Attributes:
      reals: (n, 9) in the accumulation dtype.
      whole: (n, 13) in the default integer dtype; flags are 0 or 1.
    """

    reals: jax.Array
    whole: jax.Array


def empty_records(count: int, dtype: Any) -> Records:
    """Room for a number of records whose reals are of some dtype."""
    return Records(
        reals=jnp.zeros((count, len(_REALS)), dtype),
        whole=jnp.zeros((count, len(_WHOLE)), jnp.result_type(int)),
    )


def write_record(records: Records, index: jax.Array, info: StepInfo) -> Records:
    """Writes one record into its row."""
    reals = jnp.stack([getattr(info, name) for name in _REALS])
    whole = [getattr(info, name).astype(records.whole.dtype) for name in _WHOLE]
    return Records(
        reals=records.reals.at[index].set(reals.astype(records.reals.dtype)),
        whole=records.whole.at[index].set(jnp.stack(whole)),
    )


def read_records(records: Records, count: int) -> StepInfo:
    """The first records as a `StepInfo` of NumPy arrays (count,)."""
    reals, whole = np.asarray(records.reals)[:count], np.asarray(records.whole)[:count]
    fields = {name: reals[:, column] for column, name in enumerate(_REALS)}
    for column, name in enumerate(_WHOLE):
        fields[name] = whole[:, column].astype(bool if name in _FLAGS else whole.dtype)
    return StepInfo(**fields)
