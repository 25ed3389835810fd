import dataclasses
import inspect
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.initial_step import FIRST_STEPS, INIT_STEPS
from optim_jax.quasi_newton.line_search import LINE_SEARCHES
from optim_jax.quasi_newton.progressive_batching import pb_lbfgs
from optim_jax.quasi_newton.progressive_batching.options import (
    CURVATURES,
    FORMS,
    OVERLAPS,
    VARIANCES,
    Options,
)
from optim_jax.quasi_newton.sample_tests import SAMPLE_TESTS
from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    FEATURES,
    SAMPLES,
    draw_rows,
    losses,
    make_solver,
)

# Every choice occurs; together with the defaults, in some run.
COMBINATIONS = [
    {
        "test": "ipqn_window",
        "line_search": "armijo_interp",
        "init_step": "variance_unbiased",
        "variance": "hutchinson",
        "first_step": "normalized",
        "overlap": "full",
        "memory_dtype": jnp.bfloat16,
        "curvature": "none",
    },
    {
        "test": "inner_product",
        "line_search": "weak_wolfe",
        "init_step": "projected",
        "first_step": "capped",
        "overlap": "multi",
        "test_every": 2,
        "form": "two_loop",
    },
    {
        "test": "norm",
        "theta": 0.1,
        "line_search": "weak_wolfe_interp",
        "init_step": "unit",
        "variance": "exact",
        "overlap": "multi",
        "growth_cap": math.inf,
        "finite_population": True,
    },
    {
        "test": "none",
        "line_search": "fixed",
        "init_step": "previous",
        "first_step": "unit",
        "overlap": "full",
        "damping": True,
    },
    {
        "test": "ipqn",
        "line_search": "strong_wolfe",
        "variance": "groups",
        "overlap": "multi",
        "overlap_ratio": 0.5,
        "curvature": "absolute",
    },
    # What is left: the defaults.
    {"test": "ipqn_unbiased", "line_search": "armijo", "init_step": "variance"},
]
CHOICES = {
    "test": SAMPLE_TESTS,
    "line_search": LINE_SEARCHES,
    "init_step": INIT_STEPS,
    "variance": VARIANCES,
    "first_step": FIRST_STEPS,
    "overlap": OVERLAPS,
    "curvature": CURVATURES,
    "form": FORMS,
}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_made_once(name):
    default = getattr(Options(), name)
    made = {options.get(name, default) for options in COMBINATIONS}
    assert set(CHOICES[name]) <= made


def solve(**options):
    options = {"batch_size": 64, "memory_size": 4, "max_iterations": 9, **options}
    solver = make_solver(losses, draw_rows(), **options)
    result = solver.run(jnp.zeros(FEATURES), jax.random.key(0))
    history = result.history
    assert (np.diff(history.b) >= 0).all() and history.b.max() <= SAMPLES
    assert np.isfinite(history.value).all() and np.isfinite(history.alpha).all()
    assert not history.ls_failed.any()
    assert history.memory_count[-1] == 4
    return result


def assert_low(result):
    """Asserts that the loss of all data has come down from log 2 to its minimum."""
    value = float(jnp.mean(losses(result.params, draw_rows())))
    # The minimum of a part of the data is off by about FEATURES / (2 b).
    size = result.batch_size
    slack = 0.01 if size == SAMPLES else 1.5 * FEATURES / size
    assert 0.3307 < value < 0.3307 + slack


@pytest.mark.parametrize(
    "options", COMBINATIONS[:-1], ids=lambda options: options["test"]
)
def test_every_choice_goes_down(options):
    result = solve(**options)
    history = result.history
    assert_low(result)
    is_tested = ~np.isnan(history.ratio)
    below = history.b_tested < SAMPLES
    if options["test"] == "none":
        assert not is_tested.any() and set(history.b.tolist()) == {64}
    elif options.get("test_every") == 2:
        np.testing.assert_array_equal(is_tested, below & (history.k % 2 == 0))
    else:
        np.testing.assert_array_equal(is_tested, below)
    if options.get("growth_cap") == math.inf:
        assert (history.b > 2 * history.b_tested).any()
    else:
        assert (history.b <= 2 * history.b_tested).all()
    if "memory_dtype" in options:
        assert result.state.memory.s.dtype == jnp.bfloat16
        assert result.state.memory.ss.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, values in CHOICES.items()
        for value in values
        if value != getattr(Options(), name)
    ],
)
def test_each_choice_alone_goes_down(name, value):
    assert_low(solve(**{name: value}))


def test_the_signature_is_that_of_the_options():
    parameters = inspect.signature(pb_lbfgs).parameters
    for field in dataclasses.fields(Options):
        assert parameters[field.name].default == field.default, field.name
        assert parameters[field.name].kind == inspect.Parameter.KEYWORD_ONLY
    others = set(parameters) - {field.name for field in dataclasses.fields(Options)}
    assert others == {"per_sample_loss", "data", "mesh", "data_axis", "weights"}


def test_a_batch_of_more_than_all_samples_is_clipped_with_a_warning():
    with pytest.warns(UserWarning, match="batch_size 300 is more than the 200"):
        solver = pb_lbfgs(losses, draw_rows(), batch_size=300)
    assert solver.options.batch_size == SAMPLES
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pb_lbfgs(losses, draw_rows(), batch_size=SAMPLES)


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="batch_size must be an integer >= 2, got 1"):
        pb_lbfgs(losses, draw_rows(), batch_size=1)
