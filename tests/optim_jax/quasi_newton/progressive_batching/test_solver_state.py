import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.quasi_newton.progressive_batching.solver_state import (
    REASONS,
    Counters,
    PBLBFGSResult,
    StepInfo,
)

RECORD = (
    "k b_tested b ratio r r_U alpha0 alpha backtracks value grad_norm pair "
    "memory_count grad_evals fn_evals jvp_evals epochs work reset ls_failed "
    "compilations capped"
).split()


def test_the_record_has_its_fields_in_order():
    assert StepInfo._fields == tuple(RECORD)


def test_the_result_has_its_fields_in_order():
    names = (
        "params value grad_norm reason converged n_iter grad_evals fn_evals jvp_evals "
        "batch_size history state"
    )
    assert PBLBFGSResult._fields == tuple(names.split())


def test_the_first_reason_is_none():
    assert REASONS[0] == "running" and len(set(REASONS)) == len(REASONS) == 9


def test_counters_begin_at_zero():
    counters = Counters.zeros()
    assert all(leaf.dtype == jnp.int32 for leaf in counters)
    assert np.sum(counters) == 0


def test_samples_are_counted_in_the_widest_integers():
    with jax.enable_x64(True):
        counters = Counters.zeros()
    wide = ("grad_evals", "fn_evals", "jvp_evals")
    for name in Counters._fields:
        expected = jnp.int64 if name in wide else jnp.int32
        assert getattr(counters, name).dtype == expected, name
