import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax


def _diloco(**changes):
    arguments = {"inner_steps": 4} | changes
    inner = arguments.pop("inner", optax.sgd(0.1))
    return optim_jax.single_worker_diloco(inner, **arguments)


def _assert_same_params(first, second, atol=1e-12):
    for (a, _), (b, _) in zip(first, second, strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=atol)


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_golden_trajectory(closed, x64, load_golden, replay):
    golden = load_golden("pub10_diloco_k4_softmax_f64")
    inner = golden.meta["inner"]
    optimizer = _diloco(
        inner=optax.adamw(
            inner["lr"],
            b1=inner["beta1"],
            b2=inner["beta2"],
            eps=inner["eps"],
            weight_decay=inner["weight_decay"],
        ),
        inner_steps=golden.meta["inner_steps"],
        outer_learning_rate=golden.meta["outer"]["lr"],
        outer_momentum=golden.meta["outer"]["momentum"],
    )
    found = replay(
        golden,
        optimizer,
        lambda state, params: {
            "fast": params,
            "slow": optim_jax.gpa_eval_params(state, params),
            "momentum": state.momentum,
        },
        closed=closed,
        params_key="fast",
    )
    for key, leaves in found.items():
        for name, rows in golden.rows(key).items():
            np.testing.assert_allclose(leaves[name], rows, rtol=0, atol=1e-12)


def test_one_inner_step_is_primal_averaging(x64, quadratic, trajectory):
    start, grads = quadratic
    mu = 0.9
    inner = optax.adam(0.05)
    diloco = _diloco(
        inner=inner, inner_steps=1, outer_learning_rate=1 - mu, outer_momentum=mu
    )
    gpa = optim_jax.gpa(inner, mu_x=mu, mu_y=mu)
    _assert_same_params(
        trajectory(diloco, start, grads, 25), trajectory(gpa, start, grads, 25)
    )


def test_without_outer_momentum_and_rate_one_is_the_inner_optimizer(
    x64, quadratic, trajectory
):
    start, grads = quadratic
    inner = optax.adam(0.05)
    diloco = _diloco(
        inner=inner, inner_steps=3, outer_learning_rate=1.0, outer_momentum=0.0
    )
    _assert_same_params(
        trajectory(diloco, start, grads, 10), trajectory(inner, start, grads, 10)
    )


def test_without_outer_momentum_is_lookahead(x64, quadratic, trajectory):
    start, grads = quadratic
    eta, steps = 0.4, 3
    diloco = _diloco(inner_steps=steps, outer_learning_rate=eta, outer_momentum=0.0)
    found = trajectory(diloco, start, grads, 2 * steps)
    slow = fast = jax.tree.map(jnp.asarray, start)
    for step in range(2 * steps):
        fast = jax.tree.map(lambda p, g: p - 0.1 * g, fast, grads(fast))
        if (step + 1) % steps == 0:
            slow = jax.tree.map(lambda s, f: s + eta * (f - s), slow, fast)
            fast = slow
        for name in fast:
            np.testing.assert_allclose(found[step + 1][0][name], fast[name], atol=1e-12)


def test_heavy_ball_outer_step_by_hand(x64):
    optimizer = _diloco(
        inner_steps=1, outer_learning_rate=0.5, outer_momentum=0.8, nesterov=False
    )
    params = jnp.array([1.0])
    state = optimizer.init(params)
    slow, momentum = 1.0, 0.0
    for gradient in (1.0, -2.0, 3.0):
        updates, state = optimizer.update(jnp.array([gradient]), state, params)
        params = optax.apply_updates(params, updates)
        momentum = 0.8 * momentum + 0.1 * gradient
        slow -= 0.5 * momentum
        np.testing.assert_allclose(params, [slow], atol=1e-13)


def test_evaluates_at_the_last_slow_point(quadratic, trajectory):
    start, grads = quadratic
    start = jax.tree.map(np.float32, start)
    history = trajectory(_diloco(inner_steps=4), start, grads, 6)
    for step, (params, state) in enumerate(history):
        x = optim_jax.gpa_eval_params(state, params)
        synced = history[step - step % 4][0]
        np.testing.assert_array_equal(x["w"], synced["w"])


def test_half_precision_slow_copy_is_float32():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    optimizer = _diloco(inner=optax.adam(0.1), inner_steps=2)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(
            {"w": jnp.ones(3, jnp.bfloat16)}, state, params
        )
        params = optax.apply_updates(params, updates)
    assert state.slow["w"].dtype == state.momentum["w"].dtype == jnp.float32
    assert params["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inner_steps": 0}, ValueError, "inner_steps must be an int >= 1, got 0"),
        ({"inner_steps": True}, TypeError, "inner_steps must be an int >= 1, got True"),
        ({"inner_steps": 2.0}, TypeError, "inner_steps must be an int >= 1, got 2.0"),
        ({"outer_momentum": 1.0}, ValueError, r"outer_momentum must be in \[0, 1\)"),
        ({"outer_momentum": np.nan}, ValueError, "outer_momentum .* got nan"),
        ({"outer_learning_rate": 0.0}, ValueError, "outer_learning_rate .* > 0"),
        ({"outer_learning_rate": np.nan}, ValueError, "outer_learning_rate .* nan"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        _diloco(**arguments)


def test_update_needs_params():
    optimizer = _diloco()
    state = optimizer.init(jnp.ones(2))
    with pytest.raises(ValueError, match="single_worker_diloco needs the current"):
        optimizer.update(jnp.ones(2), state)
