"""Every stored trajectory of the original implementation, replayed."""

import jax
import numpy as np
import pytest

import optim_jax
from tests.optim_jax.preconditioning.golden import (
    load_problem,
    make_optimizer,
    read_cases,
    replay,
)


@pytest.mark.parametrize("case", read_cases(), ids=lambda case: case["id"])
def test_replays_the_stored_trajectory(case):
    with jax.enable_x64("64" in case["dtype"] or "64" in str(case["config"])):
        params, grads, stored = load_problem(case)
        tx = make_optimizer(case)
        path, state, last = replay(tx, params, grads)
        for name in params:
            np.testing.assert_allclose(
                path[name],
                stored[f"params/{name}"],
                rtol=0.0,
                atol=case["suggested_atol"],
                err_msg=name,
            )
        assert jax.tree.leaves(last)[0].dtype == case["dtype"]
        if case["config"]["iterate_averaging"] and "eval_params/w" in stored:
            evaluated = optim_jax.gpa_eval_params(state, last)
            for name in params:
                np.testing.assert_allclose(
                    evaluated[name],
                    stored[f"eval_params/{name}"],
                    rtol=0.0,
                    atol=case["suggested_atol"],
                )
