import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    breast_cancer,
    make_solver,
)

# What the stored rules say, in the words of the options.
SIGNALS = {"plain": "ipqn", "group": "ipqn_unbiased"}
OVERLAPS = {"FO": "full", "MB": "multi"}


@pytest.mark.parametrize("name", ["FO-plain", "MB-plain", "FO-group"])
def test_trajectories_of_the_original_implementation(x64, golden_dir, name):
    mode, signal = name.split("-")
    stored = json.loads((golden_dir / "pblbfgs" / "trajectories.json").read_text())
    (run,) = (
        run
        for run in stored["breast_cancer"]
        if (run["mode"], run["test"]) == (mode, signal)
    )
    losses, data = breast_cancer()
    population = len(data[1])
    solver = make_solver(
        losses,
        data,
        batch_size=run["b0"],
        overlap=OVERLAPS[mode],
        test=SIGNALS[signal],
        growth_cap=run["growth"] or math.inf,
        variance="exact",
        variance_samples=None,
        first_step="unit",
        max_epochs=1000.0,
    )
    state = solver.init(jnp.zeros(data[0].shape[1]), jax.random.key(0))
    value = jax.jit(lambda w: jnp.mean(losses(w, data)))
    for expected in run["iters"]:
        rng = np.random.default_rng([run["seed"], expected["k"]])
        state, info = solver.step(state, perm=rng.permutation(population))
        assert int(info.k) == expected["k"]
        for field in ("b_tested", "b", "backtracks", "grad_evals"):
            assert int(getattr(info, field)) == expected[field], (field, info.k)
        assert float(info.alpha0) == pytest.approx(expected["alpha0"], abs=1e-9)
        assert float(value(state.params)) == pytest.approx(expected["F_full"], rel=1e-9)
        assert (int(info.pair) > 0) == expected["pair_ok"]
        if expected["ratio"] is None:
            assert not math.isfinite(float(info.ratio))
        else:
            assert float(info.ratio) == pytest.approx(expected["ratio"], rel=1e-8)
    np.testing.assert_allclose(state.params, run["w_last"], rtol=0, atol=1e-11)
    assert info.compilations == 1


def test_with_all_data_and_the_zoom_search_it_is_the_lbfgs_of_optax(x64, golden_dir):
    stored = json.loads((golden_dir / "pblbfgs" / "optax_fullbatch.json").read_text())
    losses, data = breast_cancer()
    solver = make_solver(
        losses,
        data,
        batch_size=len(data[1]),
        line_search="strong_wolfe",
        first_step="capped",
        curvature="none",
        max_iterations=16,
    )
    result = solver.run(jnp.zeros(data[0].shape[1]), jax.random.key(0))
    expected = stored["breast_cancer"]["F"]
    np.testing.assert_allclose(result.history.value[:16], expected[:16], rtol=1e-9)
