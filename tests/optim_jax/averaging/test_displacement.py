import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax
from optim_jax.averaging.adam import adam_base

SEQUENCES = ("x", "y", "z")


def _schedule_free_mu_x(golden):
    """mu_x(t) = 1 - c_{t+1} of the stored learning rates."""
    group = golden.meta["groups"][0]
    rates = np.maximum.accumulate(golden.arrays["lr/0"])
    steps = np.arange(1, rates.size + 1)
    power, lr_power = (
        group.get("weight_pow_coeff", 0.0),
        group.get("weight_lr_power", 2),
    )
    weights = steps**power * rates**lr_power
    smoothing = jnp.asarray(1 - weights / np.cumsum(weights), golden.meta["dtype"])
    return lambda count: smoothing[count]


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize(
    "name",
    [
        "pub01_gpa_defaults_quadratic_f32",
        "pub04_schedule_free_warmup_softmax_f32",
        "pub07_schedule_free_poly_decaying_lr_f64",
        "pub09_schedule_free_constant_lr_quadratic_f64",
    ],
)
def test_golden_trajectory_without_decay(name, closed, load_golden, replay):
    is_double = name.endswith("f64")
    tolerance = 1e-12 if is_double else (5e-5 if closed else 5e-6)
    with jax.enable_x64(is_double):
        golden = load_golden(name)
        group = golden.meta["groups"][0]
        is_free = golden.meta["mode"] == "schedule_free"
        optimizer = optax.chain(
            # Optax's Adam itself is 8e-6 off in float32; see `adam_base`.
            adam_base(
                golden.learning_rate(0), group["beta1"], group["beta2"], group["eps"]
            )[0],
            optim_jax.scale_by_primal_averaging(
                _schedule_free_mu_x(golden) if is_free else group["mu_x"],
                group["mu_y"],
            ),
        )
        found = replay(
            golden,
            optimizer,
            lambda state, params: dict(
                zip(SEQUENCES, optim_jax.gpa_sequences(state, params), strict=True)
            ),
            closed=closed,
        )
    for key in SEQUENCES:
        for leaf, rows in golden.rows(key).items():
            np.testing.assert_allclose(found[key][leaf], rows, rtol=0, atol=tolerance)


@pytest.mark.parametrize("mu_y", [0.3, 0.7, 1.0])
@pytest.mark.parametrize(
    "mu_x",
    [0.95, lambda count: 1.0 - 1.0 / (2.0 + count)],
    ids=["constant", "varying"],
)
def test_equals_the_wrapper(x64, quadratic, trajectory, mu_x, mu_y):
    start, grads = quadratic
    base = optax.adam(0.05)
    chained = optax.chain(base, optim_jax.scale_by_primal_averaging(mu_x, mu_y))
    wrapped = optim_jax.gpa(base, mu_x=mu_x, mu_y=mu_y)
    for (a, state_a), (b, state_b) in zip(
        trajectory(chained, start, grads, 30),
        trajectory(wrapped, start, grads, 30),
        strict=True,
    ):
        first = optim_jax.gpa_sequences(state_a, a)
        second = optim_jax.gpa_sequences(state_b, b)
        jax.tree.map(
            lambda p, q: np.testing.assert_allclose(p, q, rtol=0, atol=1e-10),
            first,
            second,
        )


@pytest.mark.parametrize("form", ["displacement", "wrapper"])
def test_varying_mu_y_leaves_x_and_z_alone(x64, form):
    """For given updates, x and z do not depend on the schedule of mu_y."""
    mu_y = lambda count: 0.9 - 0.4 * jnp.cos(1.3 * count)  # noqa: E731
    updates = np.random.default_rng(0).normal(size=(20, 3))

    def run(mu_y):
        if form == "wrapper":
            optimizer = optim_jax.gpa(optax.identity(), mu_x=0.8, mu_y=mu_y)
        else:
            optimizer = optim_jax.scale_by_primal_averaging(0.8, mu_y)
        params = jnp.zeros(3)
        state, found = optimizer.init(params), []
        for u in updates:
            delta, state = optimizer.update(jnp.asarray(u), state, params)
            params = params + delta
            found.append(optim_jax.gpa_sequences(state, params))
        return found

    varying = lambda count: jnp.clip(mu_y(count), 0.3, 1.0)  # noqa: E731
    for count, (a, b) in enumerate(zip(run(0.7), run(varying), strict=True)):
        np.testing.assert_allclose(a[0], b[0], atol=1e-10)
        np.testing.assert_allclose(a[2], b[2], atol=1e-10)
        y = float(varying(count)) * b[0] + (1 - float(varying(count))) * b[2]
        np.testing.assert_allclose(b[1], y, atol=1e-10)


def test_without_interpolation_params_follow_the_base(x64, quadratic, trajectory):
    start, grads = quadratic
    base = optax.adam(0.05)
    ema = optax.chain(base, optim_jax.scale_by_primal_averaging(0.9, 0.0))
    plain = trajectory(base, start, grads, 15)
    average = jax.tree.map(jnp.asarray, start)
    for (p, _), (q, state) in zip(
        plain[1:], trajectory(ema, start, grads, 15)[1:], strict=True
    ):
        average = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, average, p)
        x = optim_jax.gpa_eval_params(state, q)
        for name in p:
            np.testing.assert_allclose(q[name], p[name], atol=1e-10)
            np.testing.assert_allclose(x[name], average[name], atol=1e-10)


def test_equals_the_momentum_form(x64):
    mu_x, mu_y = 0.93, 0.6
    updates = np.random.default_rng(1).normal(size=(30, 4))
    optimizer = optim_jax.scale_by_primal_averaging(mu_x, mu_y)
    y = jnp.zeros(4)
    state, momentum, x = optimizer.init(y), np.zeros(4), np.zeros(4)
    for u in updates:
        delta, state = optimizer.update(jnp.asarray(u), state)
        y = y + delta
        momentum = mu_x * momentum + (1 - mu_x) * u
        x = x + momentum
        np.testing.assert_allclose(delta, (1 - mu_y) * u + mu_y * momentum, atol=1e-12)
        np.testing.assert_allclose(
            optim_jax.gpa_eval_params(state, y), x, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mu_x": 1.0}, r"mu_x must be in \[0, 1\), got 1.0"),
        ({"mu_x": np.nan}, "mu_x .* got nan"),
        ({"mu_y": -0.1}, r"mu_y must be in \[0, 1\], got -0.1"),
        ({"mu_y": 1.1}, "mu_y"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        optim_jax.scale_by_primal_averaging(**arguments)
