"""Every stored trajectory of the original implementation, replayed."""

import jax
import numpy as np
import pytest

import optim_jax
from tests.optim_jax.preconditioning.golden import (
    internals,
    load_problem,
    make_optimizer,
    read_cases,
    replay,
)

# Names of the stored internals that a state holds by block; eigenvectors, which are
# not unique, were not stored.
BY_BLOCK = (
    "factor",
    "inverse",
    "eigenvalues",
    "corrected_eigenvalues",
    "diag",
    "filtered_grad",
)

# Entries of an inverse root above this belong to a singular factor.
SINGULAR = 1e3


@pytest.mark.parametrize("case", read_cases(), ids=lambda case: case["id"])
def test_replays_the_stored_trajectory(case):
    dtype, atol = case["dtype"], case["suggested_atol"]
    with jax.enable_x64("64" in dtype or "64" in str(case["config"])):
        params, grads, stored = load_problem(case, dtype)
        path, state, last = replay(make_optimizer(case, dtype), params, grads)
        for name in params:
            np.testing.assert_allclose(
                path[name], stored[f"params/{name}"], rtol=0.0, atol=atol, err_msg=name
            )
        assert jax.tree.leaves(last)[0].dtype == dtype
        if "eval_params/w" in stored:
            evaluated = optim_jax.gpa_eval_params(state, last)
            for name in params:
                expected = stored[f"eval_params/{name}"]
                np.testing.assert_allclose(
                    evaluated[name], expected, rtol=0.0, atol=atol
                )
        held = internals(case, state, params, dtype)
        expected = {k: v for k, v in stored.items() if k.split("/")[0] in BY_BLOCK}
        compared = {name for name in held if not name.startswith("eigenvectors/")}
        assert compared == set(expected)
        for name, array in expected.items():
            scale = max(1.0, float(np.abs(array).max(initial=0.0)))
            # The root of a singular factor is rounding, as large as epsilon lets it be.
            allowed = atol * scale * (1e3 if scale > SINGULAR else 1.0)
            np.testing.assert_allclose(
                held[name], array, rtol=0.0, atol=allowed, err_msg=name
            )
