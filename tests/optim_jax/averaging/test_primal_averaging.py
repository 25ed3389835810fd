import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax

BASES = {
    "sgd": optax.sgd(0.05),
    "sgd with momentum": optax.sgd(0.02, momentum=0.9),
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05, weight_decay=0.1),
    "lion": optax.lion(0.01, weight_decay=0.1),
    "adafactor": optax.adafactor(0.05),
    "lamb": optax.lamb(0.05, weight_decay=0.1),
    "muon": optax.contrib.muon(0.02),
}


def _sequences(history):
    """x, y, z after every step, as trees of stacked rows."""
    rows = [optim_jax.gpa_sequences(state, params) for params, state in history]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _params(history):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[p for p, _ in history])


def _assert_close(first, second, atol=1e-10):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), first, second
    )


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_without_smoothing_all_sequences_are_the_base(x64, base, quadratic, trajectory):
    start, grads = quadratic
    plain = _params(trajectory(base, start, grads, 12))
    wrapped = trajectory(optim_jax.gpa(base, mu_x=0.0, mu_y=0.6), start, grads, 12)
    # Muon rounds inside its iteration, so that rounding of z is amplified there.
    for sequence in _sequences(wrapped):
        _assert_close(sequence, plain, 1e-12)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_recursion_around_every_base(x64, base, quadratic, trajectory):
    """x and y are what the definition makes of z."""
    start, grads = quadratic
    mu_x, mu_y = 0.9, 0.7
    x, y, z = _sequences(
        trajectory(optim_jax.gpa(base, mu_x=mu_x, mu_y=mu_y), start, grads, 12)
    )
    for name in z:
        average = z[name][0]
        for t in range(1, 13):
            average = mu_x * average + (1 - mu_x) * z[name][t]
            np.testing.assert_allclose(x[name][t], average, atol=1e-10)
        np.testing.assert_allclose(
            y[name], mu_y * x[name] + (1 - mu_y) * z[name], atol=1e-10
        )
        assert np.abs(z[name][-1] - x[name][-1]).max() > 1e-4


def test_with_full_interpolation_is_heavy_ball(x64, quadratic, trajectory):
    start, grads = quadratic
    rate, beta = 0.02, 0.9
    gpa = optim_jax.gpa(optax.sgd(rate / (1 - beta)), mu_x=beta, mu_y=1.0)
    x, y, _ = _sequences(trajectory(gpa, start, grads, 40))
    heavy_ball = _params(trajectory(optax.sgd(rate, momentum=beta), start, grads, 40))
    _assert_close(y, heavy_ball)
    _assert_close(x, heavy_ball)


def test_with_equal_constants_is_nesterov(x64, quadratic, trajectory):
    start, grads = quadratic
    rate, beta = 0.02, 0.9
    gpa = optim_jax.gpa(optax.sgd(rate / (1 - beta)), mu_x=beta, mu_y=beta)
    x, y, z = _sequences(trajectory(gpa, start, grads, 40))
    history = trajectory(
        optax.sgd(rate, momentum=beta, nesterov=True), start, grads, 40
    )
    nesterov = _params(history)
    momentum = jax.tree.map(
        lambda *m: np.stack(m), *[optax.tree.get(s, "trace") for _, s in history]
    )
    _assert_close(y, nesterov)
    _assert_close(x, jax.tree.map(lambda p, m: p + rate * beta * m, y, momentum))
    _assert_close(
        z,
        jax.tree.map(lambda p, m: p - rate * beta / (1 - beta) * m, x, momentum),
    )


@pytest.mark.parametrize("varying", [False, True], ids=["constant", "varying"])
def test_around_sgd_is_quasi_hyperbolic_momentum(x64, quadratic, trajectory, varying):
    """With a varying rate, the rate must be multiplied into the buffer."""
    start, grads = quadratic
    beta, nu = 0.9, 0.7
    rate = (lambda t: 0.1 / (1.0 + 0.2 * t)) if varying else (lambda t: 0.1)
    gpa = optim_jax.gpa(optax.sgd(rate), mu_x=beta, mu_y=nu)
    _, y, _ = _sequences(trajectory(gpa, start, grads, 30))
    params = jax.tree.map(np.asarray, start)
    buffer = jax.tree.map(np.zeros_like, params)
    for t in range(30):
        scaled = jax.tree.map(lambda g, t=t: rate(t) * g, grads(params))
        buffer = jax.tree.map(lambda e, g: beta * e + (1 - beta) * g, buffer, scaled)
        params = jax.tree.map(
            lambda p, g, e: p - ((1 - nu) * g + nu * e), params, scaled, buffer
        )
        _assert_close(jax.tree.map(lambda a, t=t: a[t + 1], y), params)


def test_heavy_ball_identity_fails_for_a_schedule_outside_the_buffer(
    x64, quadratic, trajectory
):
    start, grads = quadratic
    rate = lambda t: 0.02 / (1.0 + 0.2 * t)  # noqa: E731
    gpa = optim_jax.gpa(optax.sgd(lambda t: 10 * rate(t)), mu_x=0.9, mu_y=1.0)
    _, y, _ = _sequences(trajectory(gpa, start, grads, 20))
    heavy_ball = _params(trajectory(optax.sgd(rate, momentum=0.9), start, grads, 20))
    assert np.abs(y["w"] - heavy_ball["w"]).max() > 1e-3


def test_uniform_weights_make_x_the_mean_of_z(x64, quadratic, trajectory):
    start, grads = quadratic
    optimizer = optim_jax.schedule_free(
        optax.sgd(lambda t: 0.1 / (1.0 + t)),
        lambda t: 0.1 / (1.0 + t),
        mu_y=0.8,
        weight_lr_power=0.0,
    )
    x, _, z = _sequences(trajectory(optimizer, start, grads, 25))
    for name in x:
        for t in range(1, 26):
            mean = z[name][1 : t + 1].mean(axis=0)
            np.testing.assert_allclose(x[name][t], mean, atol=1e-10)


@pytest.mark.parametrize("use_max_lr", [True, False])
def test_weights_of_a_falling_rate(x64, quadratic, trajectory, use_max_lr):
    start, grads = quadratic
    rate = lambda t: 0.2 / (1.0 + t)  # noqa: E731
    optimizer = optim_jax.schedule_free(
        optax.sgd(rate), rate, weight_pow=1.0, use_max_lr=use_max_lr
    )
    x, _, z = _sequences(trajectory(optimizer, start, grads, 15))
    rates = 0.2 / (1.0 + np.arange(15))
    top = np.maximum.accumulate(rates) if use_max_lr else rates
    weights = np.arange(1, 16) * top**2
    mean = np.tensordot(weights, z["w"][1:], 1) / weights.sum()
    np.testing.assert_allclose(x["w"][-1], mean, atol=1e-10)


def test_schedule_free_equals_optax_at_a_constant_rate(x64, quadratic, trajectory):
    start, grads = quadratic
    base = optax.adam(0.05, b1=0.0)
    ours = _params(trajectory(optim_jax.schedule_free(base, 0.05), start, grads, 40))
    theirs = optax.contrib.schedule_free(base, 0.05, b1=0.9)
    _assert_close(ours, _params(trajectory(theirs, start, grads, 40)), 1e-12)


@pytest.mark.parametrize("lr_power", [2.0, 0.0])
def test_a_warmup_that_starts_at_zero(x64, quadratic, trajectory, lr_power):
    start, grads = quadratic
    rate = optax.linear_schedule(0.0, 0.1, 5)
    optimizer = optim_jax.schedule_free(optax.sgd(rate), rate, weight_lr_power=lr_power)
    history = trajectory(optimizer, start, grads, 8)
    x, y, z = _sequences(history)
    for sequence in (x, y, z):
        np.testing.assert_array_equal(sequence["w"][1], start["w"])
        assert np.isfinite(sequence["w"]).all()
    # 0^0 = 1: with power 0 the idle step has its share of the mean all the same.
    sums = [float(state.weight_sum) for _, state in history]
    assert sums[1] == (1.0 if lr_power == 0 else 0.0)


def test_energy_identity(x64):
    """Regret of z against losses at y, with the Bregman terms of the analysis."""
    rng = np.random.default_rng(2)
    factor = rng.normal(size=(5, 5))
    hessian, minimum = factor @ factor.T + np.eye(5), rng.normal(size=5)
    f = lambda p: 0.5 * (p - minimum) @ hessian @ (p - minimum)  # noqa: E731
    g = lambda p: hessian @ (p - minimum)  # noqa: E731
    bregman = lambda p, q: f(p) - f(q) - g(q) @ (p - q)  # noqa: E731
    mu_x, mu_y, steps = 0.9, 0.7, 40
    optimizer = optim_jax.gpa(optax.adam(0.05), mu_x=mu_x, mu_y=mu_y)
    params = jnp.asarray(rng.normal(size=5))
    state, rows = optimizer.init(params), []
    for _ in range(steps):
        rows.append([np.asarray(s) for s in optim_jax.gpa_sequences(state, params)])
        updates, state = optimizer.update(jnp.asarray(g(rows[-1][1])), state, params)
        params = params + updates
    x, y, z = (np.stack(s) for s in zip(*rows, strict=True))
    kappa = mu_x * mu_y / (1 - mu_x)
    regret = sum(g(y[t]) @ (z[t] - minimum) for t in range(steps))
    losses = sum(f(y[t]) + bregman(minimum, y[t]) for t in range(steps))
    gains = [bregman(x[t - 1], y[t]) - bregman(x[t], y[t]) for t in range(1, steps)]
    assert min(gains) >= -1e-12
    right = losses + kappa * (f(x[-1]) - f(x[0])) + kappa * sum(gains)
    assert regret == pytest.approx(right, abs=1e-9)


def test_lag_of_a_constant_update(x64):
    optimizer = optim_jax.gpa(optax.identity(), mu_x=0.9967, mu_y=0.7)
    params = jnp.zeros(())

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jnp.asarray(1e-3), state, params)
        return (params + updates, state), None

    carry = (params, optimizer.init(params))
    (params, state), _ = jax.lax.scan(step, carry, length=6000)
    x, y, z = optim_jax.gpa_sequences(state, params)
    assert float((z - x) / 1e-3) == pytest.approx(302.0303, abs=1e-4)
    assert float((z - y) / 1e-3) == pytest.approx(211.4212, abs=1e-4)


def _by_hand(mode, z, y, gradient, *, rate, decay, mu_x, mu_y):
    """One step of each decay mode, written out from its definition."""
    c, k = 1 - mu_x, 1 - mu_x * mu_y
    u, shrink = -rate * gradient, rate * decay
    if mode == "shrink_z":
        z = (1 - shrink) * z
    if mode == "coupled_z":
        u = u - shrink * z
    if mode == "coupled_y":
        u = u - shrink * y
    if mode == "shrink_y":
        y = (1 - shrink) * y
    return y + c * (z - y) + k * u, z + u


@pytest.mark.parametrize("mode", ["shrink_z", "shrink_y", "coupled_z", "coupled_y"])
def test_decay_modes_by_hand(x64, mode):
    constants = {"rate": 0.05, "decay": 0.3, "mu_x": 0.9, "mu_y": 0.7}
    optimizer = optim_jax.gpa(
        optax.sgd(0.05),
        mu_x=0.9,
        mu_y=0.7,
        weight_decay=0.3,
        learning_rate=0.05,
        decay_mode=mode,
    )
    rng = np.random.default_rng(3)
    y = z = rng.normal(size=4)
    params = jnp.asarray(y)
    state = optimizer.init(params)
    for _ in range(10):
        gradient = rng.normal(size=4)
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = params + updates
        y, z = _by_hand(mode, z, y, gradient, **constants)
        np.testing.assert_allclose(params, y, atol=1e-13)
        np.testing.assert_allclose(state.z, z, atol=1e-13)


@pytest.mark.parametrize(
    ("base_params", "mode"), [("z", "coupled_z"), ("y", "coupled_y")]
)
def test_decay_inside_the_base_is_the_coupled_mode(
    x64, quadratic, trajectory, base_params, mode
):
    start, grads = quadratic
    inside = optim_jax.gpa(
        optax.adamw(0.05, weight_decay=0.2), mu_x=0.9, base_params=base_params
    )
    outside = optim_jax.gpa(
        optax.adam(0.05),
        mu_x=0.9,
        weight_decay=0.2,
        learning_rate=0.05,
        decay_mode=mode,
    )
    _assert_close(
        _sequences(trajectory(inside, start, grads, 20)),
        _sequences(trajectory(outside, start, grads, 20)),
    )


def test_shrinking_z_is_not_the_recurrence_of_the_paper(x64, quadratic, trajectory):
    start, grads = quadratic

    def run(mode, mu_y):
        optimizer = optim_jax.gpa(
            optax.adam(0.05),
            mu_x=0.974,
            mu_y=mu_y,
            weight_decay=0.5,
            learning_rate=0.05,
            decay_mode=mode,
        )
        return _sequences(trajectory(optimizer, start, grads, 40))

    different = np.abs(run("shrink_z", 0.7)[0]["w"] - run("coupled_z", 0.7)[0]["w"])
    assert different.max() > 1e-3
    _assert_close(run("shrink_z", 1.0), run("coupled_z", 1.0))


def test_decay_follows_the_scheduled_rate(x64):
    rate = lambda t: 0.1 / (1.0 + t)  # noqa: E731
    optimizer = optim_jax.gpa(
        optax.sgd(rate), mu_x=0.9, weight_decay=1.0, learning_rate=rate
    )
    params, z = jnp.ones(2), 1.0
    state = optimizer.init(params)
    for t in range(4):
        updates, state = optimizer.update(jnp.zeros(2), state, params)
        params = params + updates
        z *= 1 - rate(t)
        np.testing.assert_allclose(state.z, z, rtol=1e-12)


def test_the_base_sees_the_sequence_asked_for():
    seen = []

    def update(updates, state, params):
        seen.append(params)
        return updates, state

    spy = optax.GradientTransformation(lambda params: (), update)
    for base_params in ("z", "y"):
        seen.clear()
        optimizer = optim_jax.gpa(spy, mu_x=0.9, base_params=base_params)
        params = jnp.zeros(2)
        state = optimizer.init(params)
        for _ in range(3):
            _, y, z = optim_jax.gpa_sequences(state, params)
            updates, state = optimizer.update(jnp.ones(2), state, params)
            params = params + updates
            np.testing.assert_array_equal(seen[-1], z if base_params == "z" else y)


def test_state_holds_one_buffer_beyond_the_base_and_does_not_alias_params():
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    base = optax.adam(0.1)
    state = optim_jax.gpa(base).init(params)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    scalars = 4  # count, weight_sum, lr_max, mu_y
    assert size(state) == size(base.init(params)) + size(params) + scalars
    assert state.z["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()
    assert jax.tree.leaves(state.y_master) == []


@pytest.mark.parametrize(
    "search",
    [
        optax.lbfgs(),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
    ],
)
def test_bases_that_search_along_their_step_are_refused(search):
    with pytest.raises(ValueError, match="gpa cannot wrap a base with ScaleBy"):
        optim_jax.gpa(search).init(jnp.ones(2))


SGD = optax.sgd(0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim_jax.gpa(SGD, mu_x=1.0), r"mu_x must be in \[0, 1\), got 1.0"),
        (lambda: optim_jax.gpa(SGD, mu_x=np.nan), "mu_x .* got nan"),
        (lambda: optim_jax.gpa(SGD, mu_y=0.0), r"mu_y must be in \(0, 1\], got 0.0"),
        (lambda: optim_jax.gpa(SGD, mu_y=1.5), "mu_y .* got 1.5"),
        (
            lambda: optim_jax.gpa(SGD, base_params="x"),
            "base_params must be one of y, z",
        ),
        (lambda: optim_jax.gpa(SGD, decay_mode="l2"), "decay_mode must be one of coup"),
        (lambda: optim_jax.gpa(SGD, weight_decay=0.1), "needs learning_rate"),
        (lambda: optim_jax.gpa(SGD, weight_decay=-1.0), "weight_decay .* got -1.0"),
        (lambda: optim_jax.gpa(SGD, master="yes"), "master must be None, True or"),
        (lambda: optim_jax.gpa(SGD, state_dtype=jnp.int32), "state_dtype .* int32"),
        (lambda: optim_jax.schedule_free(SGD, -0.1), "learning_rate .* got -0.1"),
        (lambda: optim_jax.schedule_free(SGD, np.nan), "learning_rate .* got nan"),
        (
            lambda: optim_jax.schedule_free(SGD, 0.1, weight_pow=-1.0),
            "weight_pow .* got -1.0",
        ),
        (
            lambda: optim_jax.schedule_free(SGD, 0.1, weight_lr_power=np.inf),
            "weight_lr_power .* got inf",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        make()


def test_update_needs_params():
    optimizer = optim_jax.gpa(SGD)
    state = optimizer.init(jnp.ones(2))
    with pytest.raises(ValueError, match="gpa needs the current parameters"):
        optimizer.update(jnp.ones(2), state)


def test_integer_leaves_are_refused_by_name():
    with pytest.raises(ValueError, match="leaf 'steps' is int32"):
        optim_jax.gpa(SGD).init({"steps": jnp.ones(2, jnp.int32)})
