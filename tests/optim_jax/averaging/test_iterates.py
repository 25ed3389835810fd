"""State, composition and placement of the wrapper around a base."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optim_jax

PARAMS = {"w": np.linspace(-1.0, 1.0, 6, dtype=np.float32).reshape(2, 3), "s": 0.5}


def make_params(dtype=jnp.float32):
    return jax.tree.map(lambda p: jnp.asarray(p, dtype), PARAMS)


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("jitted", [False, True], ids=["eager init", "jitted init"])
def test_params_and_state_are_donated_together(dtype, jitted):
    optimizer = optim_jax.gpa(optax.adam(0.1))
    params = make_params(dtype)
    state = (jax.jit(optimizer.init) if jitted else optimizer.init)(params)

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(2):
        params, state = donating(params, state, make_params(dtype))
    assert all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(params))


@pytest.mark.parametrize("master", [True, None])
def test_no_two_buffers_of_the_state_are_one(master):
    params = make_params(jnp.float32 if master else jnp.bfloat16)
    state = jax.jit(optim_jax.gpa(optax.sgd(0.1), master=master).init)(params)
    arrays = jax.tree.leaves((params, state.z, state.y_master))
    assert len({a.unsafe_buffer_pointer() for a in arrays}) == len(arrays) == 6


def test_shapes_of_the_state_without_values():
    optimizer = optim_jax.gpa_adamw(0.1)
    params = make_params(jnp.bfloat16)
    shapes = jax.eval_shape(optimizer.init, params)
    state = optimizer.init(params)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    jax.tree.map(lambda s, a: (s.shape, s.dtype) == (a.shape, a.dtype), shapes, state)


def test_z_takes_the_stated_dtype():
    with pytest.warns(UserWarning, match="state_dtype=bfloat16: small updates are"):
        optimizer = optim_jax.gpa(optax.sgd(0.1), state_dtype=jnp.bfloat16)
    params = make_params()
    state = optimizer.init(params)
    updates, after = optimizer.update(params, state, params)
    assert state.z["w"].dtype == after.z["w"].dtype == jnp.bfloat16
    assert updates["w"].dtype == jnp.float32


def test_complex_leaves():
    params = jnp.asarray([1.0 + 2.0j, -0.5j])
    optimizer = optim_jax.gpa_adamw(0.1, weight_decay=0.1)
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    assert updates.dtype == state.z.dtype == jnp.complex64
    # Adam's first step has modulus one per entry.
    _, y, z = optim_jax.gpa_sequences(state, params + updates)
    expected = 0.99 * params - 0.1 * params / jnp.abs(params)
    np.testing.assert_allclose(z, expected, rtol=1e-5)
    np.testing.assert_allclose(y, params + updates)


@pytest.mark.parametrize("absent", [None, optax.MaskedNode()])
@pytest.mark.parametrize(
    "optimizer",
    [optim_jax.gpa_adamw(0.1, weight_decay=0.1), optim_jax.gpa(optax.sgd(0.1))],
    ids=["gpa_adamw", "gpa"],
)
def test_leaves_without_a_gradient_stay(optimizer, absent):
    if isinstance(absent, optax.MaskedNode):
        optimizer = optim_jax.gpa_adamw(0.1)
    params = make_params()
    state = optimizer.init(params)
    grads = {"w": params["w"], "s": absent}
    for _ in range(2):
        updates, state = optimizer.update(grads, state, params)
        assert updates["s"] == absent
        assert_equal(state.z["s"], params["s"])
        assert np.abs(state.z["w"] - params["w"]).max() > 0


def test_tree_map_params_sees_z_and_the_base_as_params():
    optimizer = optim_jax.gpa_adamw(0.1)
    params = make_params()
    state = optimizer.init(params)
    specs = jax.tree.map(lambda p: f"like {p.shape}", params)
    mapped = optax.tree_map_params(
        optimizer,
        lambda _, spec: spec,
        state,
        specs,
        transform_non_params=lambda _: "whole",
    )
    assert mapped.z == mapped.base_state.mu == mapped.base_state.nu == specs
    assert mapped.count == mapped.mu_y == mapped.base_state.count == "whole"
    doubled = optax.tree_map_params(optimizer, lambda p: 2 * p, state)
    assert_equal(doubled.z, jax.tree.map(lambda p: 2 * p, params))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_mini_steps_leave_z_alone(dtype):
    inner = optim_jax.gpa(optax.adam(0.1), mu_x=0.9)
    optimizer = optax.MultiSteps(inner, 3)
    params = make_params(dtype)
    grads = make_params(dtype)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(2):
        updates, state = update(grads, state, params)
        assert_equal(updates, jax.tree.map(jnp.zeros_like, params))
        assert_equal(state.inner_opt_state.z, inner.init(params).z)
    updates, state = update(grads, state, params)
    expected, once = inner.update(grads, inner.init(params), params)
    assert jax.tree.map(jnp.result_type, updates) == {"w": dtype, "s": dtype}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-2 * (dtype != "float32"), atol=1e-6
        ),
        state.inner_opt_state.z,
        once.z,
    )
    assert int(state.inner_opt_state.count) == 1


def test_a_rejected_step_changes_nothing():
    inner = optim_jax.schedule_free(optax.sgd(0.1), 0.1)
    optimizer = optax.apply_if_finite(inner, max_consecutive_errors=3)
    params = make_params()
    state = optimizer.init(params)
    _, state = optimizer.update(params, state, params)
    bad = {"w": params["w"].at[0, 0].set(jnp.nan), "s": params["s"]}
    updates, after = optimizer.update(bad, state, params)
    assert_equal(updates, jax.tree.map(jnp.zeros_like, params))
    assert_equal(after.inner_state, state.inner_state)


def test_behind_a_clip_in_a_chain():
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optim_jax.gpa(optax.sgd(1.0), mu_x=0.0)
    )
    params = jnp.zeros(2)
    state = optimizer.init(params)
    updates, state = optimizer.update(jnp.asarray([30.0, 40.0]), state, params)
    np.testing.assert_allclose(updates, [-0.6, -0.8], rtol=1e-6)


def test_injected_values_equal_constants():
    constants = {"mu_x": 0.9, "mu_y": 0.6, "weight_decay": 0.1, "b1": 0.8}
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    plain = optim_jax.gpa_adamw(schedule, **constants)
    injected = optax.inject_hyperparams(optim_jax.gpa_adamw)(schedule, **constants)
    results = []
    for optimizer in (plain, injected):
        params, state = make_params(), optimizer.init(make_params())
        update = jax.jit(optimizer.update)
        for _ in range(5):
            updates, state = update(params, state, params)
            params = optax.apply_updates(params, updates)
        results.append(optim_jax.gpa_sequences(state, params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results
    )


def test_injected_decay_without_a_rate_is_none():
    make = optax.inject_hyperparams(optim_jax.gpa)
    optimizer = make(optax.sgd(0.1), mu_x=0.9)
    params = make_params()
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    _, before = update(params, state, params)
    state.hyperparams["weight_decay"] = jnp.asarray(0.5)
    _, after = update(params, state, params)
    assert_equal(before.inner_state.z, after.inner_state.z)
    with pytest.raises(ValueError, match="needs learning_rate"):
        make(optax.sgd(0.1), weight_decay=0.5).init(params)


def test_a_mu_y_changed_by_hand_keeps_x():
    optimizer = optax.inject_hyperparams(optim_jax.gpa)(optax.sgd(0.1), mu_x=0.9)
    params = make_params()
    state = optimizer.init(params)
    gradients = make_params()  # the same at every step, so that u is known
    x, z = params, params
    for mu_y in (0.7, 0.7, 0.4, 0.9):
        state.hyperparams["mu_y"] = jnp.asarray(mu_y)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        z = jax.tree.map(lambda a, g: a - 0.1 * g, z, gradients)
        x = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, x, z)
        for actual, expected in zip(
            optim_jax.gpa_sequences(state, params),
            (x, jax.tree.map(lambda a, b: mu_y * a + (1 - mu_y) * b, x, z), z),  # noqa: B023
            strict=True,
        ):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
                actual,
                expected,
            )


def test_vmap_over_seeds_equals_a_loop():
    optimizer = optim_jax.gpa_adamw(0.1, weight_decay=0.1)
    seeds = jnp.arange(3.0)[:, None] + jnp.linspace(0.0, 1.0, 4)

    def run(params):
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return params, optim_jax.gpa_eval_params(state, params)

    rows = [run(seed) for seed in seeds]
    jax.tree.map(
        lambda all_rows, *each: np.testing.assert_allclose(
            all_rows, np.stack(each), rtol=1e-6, atol=1e-6
        ),
        jax.vmap(run)(seeds),
        *rows,
    )


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "optimizer",
    [optim_jax.gpa_adamw(0.1), optim_jax.gpa(optax.adam(0.1), mu_y=lambda t: 0.7)],
    ids=["gpa_adamw", "gpa"],
)
def test_state_keeps_the_sharding_of_the_params(optimizer, axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(jnp.arange(16, dtype=jnp.bfloat16), sharding)
    with jax.set_mesh(mesh):
        state = optimizer.init(params)
        updates, after = jax.jit(optimizer.update)(params, state, params)
    for tree in (state, after):
        assert tree.z.sharding.is_equivalent_to(sharding, 1)
        assert tree.y_master.sharding.is_equivalent_to(sharding, 1)
    assert updates.sharding.is_equivalent_to(sharding, 1)
    types = jax.tree.map(jax.typeof, state)
    assert types == jax.tree.map(jax.typeof, after)


def test_donated_step_has_no_temporaries_of_the_size_of_params():
    optimizer = optim_jax.gpa_adamw(0.1, weight_decay=0.1)
    params = {"w": jnp.ones((512, 512)), "v": jnp.ones((256, 512))}
    state = optimizer.init(params)

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    analysis = compiled.compile().memory_analysis()
    bytes_of_params = sum(p.nbytes for p in params.values())
    assert analysis.temp_size_in_bytes < 0.05 * bytes_of_params
    state_bytes = sum(a.nbytes for a in jax.tree.leaves(state) if a.ndim)
    assert state_bytes == 3 * bytes_of_params


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be finite and >= 0, got -1.0"),
        ({"learning_rate": np.nan}, "learning_rate .* got nan"),
        ({"eps": -1e-8}, "eps must be finite and >= 0"),
        ({"weight_decay": np.nan}, "weight_decay .* got nan"),
        ({"weight_pow": -1.0}, "weight_pow"),
        ({"weight_lr_power": -1.0}, "weight_lr_power"),
        ({"b1": 1.0}, r"b1 must be in \[0, 1\), got 1.0"),
        ({"b1": np.nan}, "b1 .* got nan"),
        ({"b2": -0.1}, r"b2 must be in \[0, 1\), got -0.1"),
        ({"b2": lambda count: 0.9}, "b2 must be a number, got the schedule"),
        ({"mu_x": 1.1}, r"mu_x must be in \[0, 1\], got 1.1"),
        ({"mu_x": "0.9"}, "mu_x must be a scalar or a schedule, got '0.9'"),
        ({"mu_y": 0.0}, r"mu_y must be in \(0, 1\], got 0.0"),
        ({"mu_y": np.ones(2)}, "mu_y must be a scalar"),
        (
            {"averaging": "ema"},
            "averaging must be one of gpa, schedule_free, got 'ema'",
        ),
        (
            {"decay_mode": "z"},
            "decay_mode must be one of coupled_y, coupled_z, shrink_y",
        ),
    ],
)
def test_gpa_adamw_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        optim_jax.gpa_adamw(**({"learning_rate": 0.1} | arguments))


def test_arrays_of_known_value_are_checked_too():
    with pytest.raises(ValueError, match="mu_x"):
        optim_jax.gpa(optax.sgd(0.1), mu_x=jnp.asarray(1.5))
