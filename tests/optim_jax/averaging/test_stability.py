import warnings

import numpy as np
import pytest

import optim_jax

# Rows of the table: (b1, mu_y) and the limits over mu_x, rounded as published here.
TABLE = [
    (0.0, 0.7, {0.9: 6.0, 0.974: 6.5, 0.9869: 6.6, 0.9967: 6.7}),
    (0.0, 0.9, {0.9: 14, 0.974: 18, 0.9869: 19, 0.9934: 19.5, 0.9967: 20}),
    (0.9, 0.7, {0.9: 0.640, 0.974: 123, 0.9869: 126, 0.9967: 126.2}),
    (0.9, 0.9, {0.9: 0.30, 0.974: 0.30, 0.9869: 2.5, 0.9934: 372, 0.9967: 376}),
    (0.95, 0.7, {0.9: 0.32, 0.974: 0.87, 0.9869: 257, 0.9967: 260}),
    (0.95, 0.9, {0.9: 0.20, 0.974: 0.12, 0.9869: 0.14, 0.9934: 0.58, 0.9967: 776}),
]
CELLS = [
    (b1, mu_x, mu_y, limit)
    for b1, mu_y, limits in TABLE
    for mu_x, limit in limits.items()
]


@pytest.mark.parametrize(("b1", "mu_x", "mu_y", "published"), CELLS)
def test_table(b1, mu_x, mu_y, published):
    # Published are the first unstable points of a scan in steps of 2.5 %, rounded.
    digit = 0.005 if published < 1 else (0.05 if published < 10 else 0.5)
    limit = optim_jax.stability_limit(b1, mu_x, mu_y)
    assert limit - digit <= published <= 1.025 * limit + digit


@pytest.mark.parametrize("b1", [0.0, 0.9, 0.95])
def test_without_smoothing_is_the_limit_of_the_base(b1):
    limit = optim_jax.stability_limit(b1, 0.0, 0.7)
    assert limit == pytest.approx(2 * (1 + b1) / (1 - b1), rel=1e-3)


@pytest.mark.parametrize("mu_x", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("mu_y", [0.3, 0.7, 0.9])
def test_without_base_momentum_is_the_closed_form(mu_x, mu_y):
    closed_form = 2 * (1 + mu_x) / (1 + mu_x - 2 * mu_x * mu_y)
    assert optim_jax.stability_limit(0.0, mu_x, mu_y) == pytest.approx(
        closed_form, rel=1e-3
    )


def _grows(b1, mu_x, mu_y, h, steps=40_000):
    x = z = 1.0
    m = 0.0
    for _ in range(steps):
        y = mu_y * x + (1 - mu_y) * z
        m = b1 * m + (1 - b1) * h * y
        z -= m
        x = mu_x * x + (1 - mu_x) * z
        if abs(z) > 1e6:
            return True
    return abs(z) > 1.0


@pytest.mark.parametrize(
    ("b1", "mu_x", "mu_y"), [(0.9, 0.974, 0.7), (0.9, 0.9, 0.7), (0.95, 0.9869, 0.9)]
)
def test_the_recursion_itself_turns_unstable_there(b1, mu_x, mu_y):
    limit = optim_jax.stability_limit(b1, mu_x, mu_y)
    assert not _grows(b1, mu_x, mu_y, 0.97 * limit)
    assert _grows(b1, mu_x, mu_y, 1.03 * limit)


def test_averaging_carries_a_rate_at_which_the_base_diverges():
    assert _grows(0.9, 0.0, 1.0, 60.0)
    assert not _grows(0.9, 0.9967, 0.7, 60.0)


@pytest.mark.parametrize(
    ("inner_steps", "exact"),
    [
        (1, 0.9),
        (4, 0.9740037),
        (8, 0.9869163),
        (16, 0.9934366),
        (32, 0.9967129),
        (64, 0.9983551),
        (128, 0.9991772),
    ],
)
def test_smoothing_of_inner_steps(inner_steps, exact):
    mu_x = optim_jax.mu_x_from_inner_steps(inner_steps)
    assert mu_x == pytest.approx(exact, abs=5e-8)
    assert optim_jax.inner_steps_from_mu_x(mu_x) == pytest.approx(inner_steps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim_jax.mu_x_from_inner_steps(0), "inner_steps"),
        (lambda: optim_jax.mu_x_from_inner_steps(np.nan), "inner_steps"),
        (lambda: optim_jax.mu_x_from_inner_steps(4, momentum=1.0), "momentum"),
        (lambda: optim_jax.inner_steps_from_mu_x(1.0), "mu_x"),
        (lambda: optim_jax.stability_limit(1.0, 0.9, 0.7), "b1"),
        (lambda: optim_jax.stability_limit(0.9, 1.0, 0.7), "mu_x"),
        (lambda: optim_jax.stability_limit(0.9, 0.9, 1.5), "mu_y"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        call()
