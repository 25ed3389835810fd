import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.progressive_batching.records import (
    empty_records,
    read_records,
    write_record,
)
from optim_jax.quasi_newton.progressive_batching.solver_state import StepInfo

FLAGS = {"reset": True, "ls_failed": False, "capped": True}
REALS = ("ratio", "r", "r_U", "alpha0", "alpha", "value", "grad_norm", "epochs", "work")


def info_of(iteration, dtype):
    """A record whose every field is another number."""
    fields = {}
    for column, name in enumerate(StepInfo._fields):
        number = 100 * iteration + column
        if name in FLAGS:
            fields[name] = jnp.asarray(FLAGS[name] == (iteration % 2 == 0))
        elif name in REALS:
            fields[name] = jnp.asarray(number + 0.5, dtype)
        else:
            fields[name] = jnp.asarray(number, jnp.int32)
    return StepInfo(**fields)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_written_is_read(x64, dtype):
    records = empty_records(4, dtype)
    for iteration in range(3):
        records = write_record(records, jnp.int32(iteration), info_of(iteration, dtype))
    history = read_records(records, 3)
    for iteration in range(3):
        expected = info_of(iteration, dtype)
        for name in StepInfo._fields:
            found = getattr(history, name)
            assert found.shape == (3,)
            assert found[iteration] == getattr(expected, name), name
            kind = "b" if name in FLAGS else "f" if name in REALS else "i"
            assert found.dtype.kind == kind
    assert history.value.dtype == np.dtype(dtype)


def test_no_records():
    assert all(len(column) == 0 for column in read_records(empty_records(4, "f4"), 0))
