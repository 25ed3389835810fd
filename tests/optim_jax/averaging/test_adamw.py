import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax

NAMES = [
    "pub01_gpa_defaults_quadratic_f32",
    "pub02_gpa_wd_on_z_quadratic_f64",
    "pub03_gpa_wd_on_y_softmax_f32",
    "pub04_schedule_free_warmup_softmax_f32",
    "pub05_gpa_two_groups_warmup_cosine_f64",
    "pub06_gpa_train_eval_toggle_softmax_f32",
    "pub07_schedule_free_poly_decaying_lr_f64",
    "pub08_gpa_mu_x_zero_is_adamw_f64",
    "pub09_schedule_free_constant_lr_quadratic_f64",
]
SEQUENCES = ("x", "y", "z")


def group_optimizer(golden, index):
    """The `gpa_adamw` of one parameter group of the file."""
    group = golden.meta["groups"][index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases resonate on paper
        return optim_jax.gpa_adamw(
            golden.learning_rate(index),
            b1=group["beta1"],
            b2=group["beta2"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decay_mode=f"shrink_{group['weight_decay_on']}",
            mu_x=group["mu_x"],
            mu_y=group["mu_y"],
            averaging=golden.meta["mode"],
            weight_pow=group.get("weight_pow_coeff", 0.0),
            weight_lr_power=group.get("weight_lr_power", 2.0),
        )


def golden_optimizer(golden):
    groups = golden.meta["groups"]
    if len(groups) == 1:
        return group_optimizer(golden, 0)
    labels = {name: i for i, group in enumerate(groups) for name in group["params"]}
    return optax.partition(
        {i: group_optimizer(golden, i) for i in range(len(groups))}, labels
    )


def assert_rows_close(actual, expected, tolerance):
    for name, rows in expected.items():
        np.testing.assert_allclose(
            np.asarray(actual[name], np.float64), rows, rtol=0, atol=tolerance
        )


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("name", NAMES)
def test_golden_trajectory(name, closed, load_golden, replay):
    golden = load_golden(name)
    is_double = golden.meta["dtype"] == "float64"
    tolerance = 1e-12 if is_double else (5e-5 if closed else 5e-6)
    with jax.enable_x64(is_double):
        golden = load_golden(name)
        sequences = replay(
            golden,
            golden_optimizer(golden),
            lambda state, params: dict(
                zip(SEQUENCES, optim_jax.gpa_sequences(state, params), strict=True)
            ),
            closed=closed,
        )
        for key in SEQUENCES:
            assert (
                sequences[key]["" or next(iter(sequences[key]))].dtype
                == (golden.meta["dtype"])
            )
            assert_rows_close(sequences[key], golden.rows(key), tolerance)


@pytest.mark.parametrize(
    "name", ["pub01_gpa_defaults_quadratic_f32", "pub02_gpa_wd_on_z_quadratic_f64"]
)
def test_golden_moments(name, load_golden, replay):
    is_double = name.endswith("f64")
    with jax.enable_x64(is_double):
        golden = load_golden(name)
        moments = replay(
            golden,
            golden_optimizer(golden),
            lambda state, _: {
                "m": optax.tree.get(state, "mu"),
                "v": optax.tree.get(state, "nu"),
            },
            closed=False,
        )
    for key in ("m", "v"):
        rows = {name: a[1:] for name, a in moments[key].items()}
        assert_rows_close(rows, golden.rows(key), 1e-12 if is_double else 5e-6)


def test_golden_evaluation_switch(load_golden):
    golden = load_golden("pub06_gpa_train_eval_toggle_softmax_f32")
    optimizer = golden_optimizer(golden)
    params = jax.tree.map(jnp.asarray, golden.row("y", 0))
    state = optimizer.init(params)
    for t in range(golden.steps):
        updates, state = optimizer.update(golden.row("grad", t), state, params)
        params = optax.apply_updates(params, updates)
        if t + 1 in golden.meta["toggle_after_steps"]:
            x = optim_jax.gpa_eval_params(state, params)
            assert_rows_close(x, golden.rows(f"toggle/eval_{t + 1}"), 5e-6)
            back = optim_jax.gpa_train_params(state, x)
            assert_rows_close(back, golden.rows(f"toggle/back_{t + 1}"), 5e-6)


def test_equals_wrapper_around_adam(x64, quadratic, trajectory):
    start, grads = quadratic
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.05, 5, 30)
    one = optim_jax.gpa_adamw(schedule, weight_decay=0.1, mu_x=0.98)
    other = optim_jax.gpa(
        optax.adam(schedule), weight_decay=0.1, learning_rate=schedule, mu_x=0.98
    )
    for (y1, _), (y2, _) in zip(
        trajectory(one, start, grads, 30),
        trajectory(other, start, grads, 30),
        strict=True,
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-13), y1, y2
        )


@pytest.mark.parametrize("decay_mode", ["shrink_z", "coupled_z", "coupled_y"])
def test_without_smoothing_is_adamw(decay_mode, x64, quadratic, trajectory):
    start, grads = quadratic
    ours = optim_jax.gpa_adamw(
        0.05, weight_decay=0.3, decay_mode=decay_mode, mu_x=0.0, mu_y=0.6
    )
    adamw = optax.adamw(0.05, weight_decay=0.3)
    for (y, state), (expected, _) in zip(
        trajectory(ours, start, grads, 40),
        trajectory(adamw, start, grads, 40),
        strict=True,
    ):
        for sequence in optim_jax.gpa_sequences(state, y):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
                sequence,
                expected,
            )


def test_without_smoothing_shrink_y_does_not_decay(x64, quadratic, trajectory):
    start, grads = quadratic
    ours = optim_jax.gpa_adamw(
        0.05, weight_decay=0.3, decay_mode="shrink_y", mu_x=0.0, mu_y=0.6
    )
    y, state = trajectory(ours, start, grads, 40)[-1]
    expected, _ = trajectory(optax.adam(0.05), start, grads, 40)[-1]
    for sequence in optim_jax.gpa_sequences(state, y):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
            sequence,
            expected,
        )


def test_schedule_free_equals_optax(x64, quadratic, trajectory):
    start, grads = quadratic
    base = optax.adam(0.03, b1=0.0)
    theirs = optax.contrib.schedule_free(base, 0.03, b1=0.9)
    ours = optim_jax.gpa_adamw(0.03, b1=0.0, averaging="schedule_free", mu_y=0.9)
    for (y1, s1), (y2, s2) in zip(
        trajectory(ours, start, grads, 60),
        trajectory(theirs, start, grads, 60),
        strict=True,
    ):
        x1 = optim_jax.gpa_eval_params(s1, y1)
        x2 = optax.contrib.schedule_free_eval_params(s2, y2)
        for a, b in ((y1, y2), (x1, x2)):
            jax.tree.map(
                lambda p, q: np.testing.assert_allclose(p, q, rtol=0, atol=1e-12), a, b
            )


def test_mu_x_one_freezes_x_and_decay_on_z_leaves_y(x64, quadratic, trajectory):
    start, grads = quadratic
    with pytest.warns(UserWarning, match="mu_x = 1 freezes x"):
        still = optim_jax.gpa_adamw(0.05, mu_x=1.0)
    with pytest.warns(UserWarning):
        on_z = optim_jax.gpa_adamw(0.05, mu_x=1.0, weight_decay=0.3)
    with pytest.warns(UserWarning):
        on_y = optim_jax.gpa_adamw(
            0.05, mu_x=1.0, weight_decay=0.3, decay_mode="shrink_y"
        )
    gradients = grads(start)  # the same ones for all three
    y, state = trajectory(still, start, lambda _: gradients, 20)[-1]
    x = optim_jax.gpa_eval_params(state, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), x, start)
    y_z, _ = trajectory(on_z, start, lambda _: gradients, 20)[-1]
    y_y, _ = trajectory(on_y, start, lambda _: gradients, 20)[-1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), y_z, y)
    assert np.abs(y_y["w"] - y["w"]).max() > 1e-3


def test_warns_of_resonance():
    with pytest.warns(UserWarning, match=r"b1 = 0.9, mu_x = 0.9 .* is 0.64, and 38"):
        optim_jax.gpa_adamw(1e-3, mu_x=0.9)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"mu_x": 0.974},
        {"mu_x": 0.0},
        {"mu_x": 0.9, "averaging": "schedule_free"},
        {"mu_x": lambda count: 0.9},
        {"mu_x": 0.9, "b1": 0.0},
    ],
)
def test_does_not_warn(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optim_jax.gpa_adamw(1e-3, **arguments)


def test_does_not_warn_of_traced_values():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(lambda mu_x: optim_jax.gpa_adamw(1e-3, mu_x=mu_x).init(jnp.ones(2)).z)(
            0.9
        )


def test_mask_restricts_decay(x64, quadratic):
    start, grads = quadratic
    params = jax.tree.map(jnp.asarray, start)
    expected = {"w": True, "b": False, "s": False}
    for mask in (expected, lambda p: jax.tree.map(lambda a: jnp.ndim(a) > 1, p)):
        masked = optim_jax.gpa_adamw(0.1, weight_decay=0.5, mask=mask)
        plain = optim_jax.gpa_adamw(0.1)
        decayed = optim_jax.gpa_adamw(0.1, weight_decay=0.5)
        z, z_plain, z_decayed = (
            o.update(grads(params), o.init(params), params)[1].z
            for o in (masked, plain, decayed)
        )
        np.testing.assert_array_equal(z["w"], z_decayed["w"])
        np.testing.assert_array_equal(z["b"], z_plain["b"])
        np.testing.assert_array_equal(z["s"], z_plain["s"])
        assert np.abs(z["w"] - z_plain["w"]).max() > 1e-3


def test_mu_dtype_is_that_of_the_first_moment():
    params = {"w": jnp.ones((3,), jnp.float32)}
    optimizer = optim_jax.gpa_adamw(1e-3, mu_dtype="bfloat16")
    state = optimizer.init(params)
    _, after = optimizer.update(params, state, params)
    for s in (state, after):
        assert optax.tree.get(s, "mu")["w"].dtype == jnp.bfloat16
        assert optax.tree.get(s, "nu")["w"].dtype == jnp.float32
