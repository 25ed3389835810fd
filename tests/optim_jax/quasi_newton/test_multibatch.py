import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optim_jax
from optim_jax.quasi_newton.memory import tree_dot


def logistic(dimension=6, samples=40):
    """A strictly convex loss of a tree, with a matrix and a vector."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(samples, dimension)))
    labels = jnp.asarray(np.sign(rng.normal(size=samples)))

    def loss(params, rows=slice(None)):
        w = jnp.concatenate([params["matrix"].ravel(), params["vector"]])
        margins = labels[rows] * (x[rows] @ w)
        return jnp.mean(jax.nn.softplus(-margins)) + 0.01 * w @ w

    params = {"matrix": jnp.ones((2, 2)), "vector": jnp.zeros(dimension - 4)}
    return loss, params


def descend(params, direction, step):
    return jax.tree.map(lambda w, p: w - step * p, params, direction)


@pytest.mark.parametrize("form", ["compact", "two_loop"])
@pytest.mark.parametrize("memory_size", [1, 3, 10])
def test_full_batch_directions_are_those_of_optax(x64, form, memory_size):
    loss, params = logistic()
    ours = optim_jax.scale_by_multibatch_lbfgs(memory_size, curvature="none", form=form)
    theirs = optax.scale_by_lbfgs(memory_size)
    states, updates = [tx.init(params) for tx in (ours, theirs)], []
    step = [jax.jit(tx.update) for tx in (ours, theirs)]
    gradient = jax.jit(jax.grad(lambda w: 20.0 * loss(w)))
    for _ in range(12):
        updates = []
        for index in range(2):
            found, states[index] = step[index](gradient(params), states[index], params)
            updates.append(jax.flatten_util.ravel_pytree(found)[0])
        error = np.linalg.norm(updates[0] - updates[1]) / np.linalg.norm(updates[1])
        assert error <= 1e-12
        direction = jax.flatten_util.ravel_pytree(params)[1](updates[0])
        params = descend(params, direction, 0.7)
    assert int(states[0].memory.count) == min(memory_size, 11)


@pytest.mark.parametrize("dimension", [3, 8])
def test_a_quadratic_ends_after_as_many_steps_as_it_has_dimensions(x64, dimension):
    rng = np.random.default_rng(dimension)
    basis = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    matrix = jnp.asarray(basis * np.geomspace(1, 100, dimension) @ basis.T)
    w = jnp.asarray(rng.normal(size=dimension))
    tx = optim_jax.scale_by_multibatch_lbfgs(10)
    state, update = tx.init(w), jax.jit(tx.update)
    first = float(jnp.linalg.norm(matrix @ w))
    norms = []
    for _ in range(dimension + 1):
        g = matrix @ w
        p, state = update(g, state, w)
        w = w - (g @ p) / (p @ matrix @ p) * p
        norms.append(float(jnp.linalg.norm(matrix @ w)))
    assert min(norms) < 1e-8 * first
    # Not earlier: the eigenvalues are all different.
    assert norms[dimension - 2] > 1e-8 * first


def test_a_pair_of_negative_curvature_is_skipped():
    tx = optim_jax.scale_by_multibatch_lbfgs()
    start, g = jnp.zeros(2), jnp.asarray([1.0, 0.0])
    update = jax.jit(tx.update)
    direction, state = update(g, tx.init(start), start)
    np.testing.assert_array_equal(direction, g)
    g = jnp.asarray([2.0, -1.0])
    direction, state = update(g, state, -direction)
    assert int(state.status) == 0 and int(state.memory.count) == 0
    assert float(g @ direction) > 0
    # Without the rule the same pair gives an ascent direction, as from Optax.
    for other in (
        optim_jax.scale_by_multibatch_lbfgs(curvature="none"),
        optax.scale_by_lbfgs(),
    ):
        update = jax.jit(other.update)
        _, state = update(jnp.asarray([1.0, 0.0]), other.init(start), start)
        direction, _ = update(g, state, jnp.asarray([-1.0, 0.0]))
        np.testing.assert_allclose(direction, [-2.5, -0.5], rtol=1e-6)
        assert float(g @ direction) == pytest.approx(-4.5)


def test_damping_mends_the_same_pair():
    tx = optim_jax.scale_by_multibatch_lbfgs(damping=True)
    start, g, update = jnp.zeros(2), jnp.asarray([2.0, -1.0]), jax.jit(tx.update)
    _, state = update(jnp.asarray([1.0, 0.0]), tx.init(start), start)
    direction, state = update(g, state, jnp.asarray([-1.0, 0.0]))
    assert int(state.status) == 2 and float(state.memory.gamma) > 0
    assert float(g @ direction) > 0


def test_pairs_are_made_of_the_samples_that_two_steps_share(x64):
    loss, params = logistic()
    gradient = jax.jit(jax.grad(loss))
    tx = optim_jax.scale_by_multibatch_lbfgs(4)
    state, update = tx.init(params), jax.jit(tx.update)
    samples = [np.arange(8 * k, 8 * k + 16) for k in range(3)]
    overlaps = [sample[8:] for sample in samples]
    previous = None
    for k, overlap in enumerate(overlaps):
        given = {"overlap_grad": gradient(params, overlap)}
        if k:
            given["overlap_grad_new"] = gradient(params, overlaps[k - 1])
        g = gradient(params, samples[k])
        direction, state = update(g, state, params, **given)
        if previous is not None:
            newest = (int(state.memory.head) - 1) % 4
            s, y = (
                jax.tree.map(lambda leaf, i=newest: leaf[i], tree)
                for tree in (state.memory.s, state.memory.y)
            )
            old, sample = previous, overlaps[k - 1]
            expected = jax.tree.map(
                jnp.subtract, gradient(params, sample), gradient(old, sample)
            )
            jax.tree.map(np.testing.assert_array_equal, y, expected)
            moved = jax.tree.map(jnp.subtract, params, old)
            jax.tree.map(np.testing.assert_array_equal, s, moved)
            assert int(state.status) == 1
        previous, params = params, descend(params, direction, 0.5)


def test_the_step_length_stands_for_the_product_with_b(x64):
    loss, params = logistic()
    gradient = jax.jit(jax.grad(loss))
    tx = optim_jax.scale_by_multibatch_lbfgs(4)
    update = jax.jit(tx.update)
    state, alpha = tx.init(params), 0.3
    for _ in range(6):
        old = params
        direction, state = update(gradient(params), state, params)
        params = descend(params, direction, alpha)
    s = jax.tree.map(jnp.subtract, params, old)
    sbs = tree_dot(s, jax.jit(optim_jax.apply_hessian)(state.memory, s))
    assert float(alpha**2 * state.decrement) == pytest.approx(float(sbs), rel=1e-12)
    g = gradient(params)
    sy = tree_dot(s, jax.tree.map(jnp.subtract, g, state.overlap_grad))
    for factor, length, status in ((0.99, 0.3, 1), (1.01, 0.3, 0), (0.99, 0.31, 0)):
        tx = optim_jax.scale_by_multibatch_lbfgs(4, eps=factor * sy / sbs)
        _, after = jax.jit(tx.update)(g, state, params, step_info=length)
        assert int(after.status) == status


@pytest.mark.parametrize("scale_first", [True, False])
def test_the_first_direction_is_no_longer_than_one(x64, scale_first):
    params = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    tx = optim_jax.scale_by_multibatch_lbfgs(scale_first=scale_first)
    update = jax.jit(tx.update)
    for scale, capped in ((10.0, 1.0), (0.1, 0.3), (0.0, 0.0)):
        g = {"a": scale * jnp.asarray([1.0, 2.0]), "b": jnp.asarray(2.0 * scale)}
        direction, _ = update(g, tx.init(params), params)
        expected = capped if scale_first else 3.0 * scale
        assert np.sqrt(tree_dot(direction, direction)) == pytest.approx(expected)


def test_a_memory_that_refuses_five_pairs_is_cleared():
    tx = optim_jax.scale_by_multibatch_lbfgs(4)
    w = jnp.zeros(2)
    state, update = tx.init(w), jax.jit(tx.update)
    _, state = update(w, state, w)
    # A curvature of 1e6, then one of 1 along the same line.
    position, slope, curvatures = 0.0, 0.0, [1e6] + 5 * [1.0] + [1.0]
    counts, statuses = [], []
    for curvature in curvatures:
        position, slope = position + 1.0, slope + curvature
        g, w = jnp.asarray([slope, 0.0]), jnp.asarray([position, 0.0])
        _, state = update(g, state, w)
        counts.append(int(state.memory.count))
        statuses.append(int(state.status))
    assert statuses == [1, 0, 0, 0, 0, 0, 1]
    assert counts == [1, 1, 1, 1, 1, 0, 1]
    assert int(state.skips) == 0 and float(state.memory.gamma) == 1.0


def test_a_gradient_that_is_not_finite_spoils_no_pair():
    loss, params = logistic()
    gradient = jax.jit(jax.grad(loss))
    tx = optim_jax.scale_by_multibatch_lbfgs(3)
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(3):
        direction, state = update(gradient(params), state, params)
        params = descend(params, direction, 0.3)
    kept = state.memory
    bad = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), gradient(params))
    for g in (bad, gradient(params)):
        direction, state = update(g, state, params)
        jax.tree.map(np.testing.assert_array_equal, state.memory, kept)
        assert int(state.status) == 0
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(direction))
    params = descend(params, direction, 0.3)
    _, state = update(gradient(params), state, params)
    assert int(state.status) == 1 and int(state.skips) == 0


@pytest.mark.parametrize("devices", [1, 8])
def test_one_compilation_for_all_steps(devices):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    scale = jnp.linspace(1.0, 3.0, 16)
    params = jnp.ones(16)
    if devices > 1:
        params, scale = jax.device_put((params, scale), sharding)
    tx = optim_jax.scale_by_multibatch_lbfgs(2)

    @jax.jit
    def step(params, state):
        direction, state = tx.update(scale * params, state, params, step_info=0.5)
        return descend(params, direction, 0.5), state

    state = tx.init(params)
    for _ in range(6):
        params, state = step(params, state)
    assert step._cache_size() == 1
    assert int(state.memory.count) == 2
    np.testing.assert_allclose(params, 0.0, atol=0.2)


def test_half_precision_is_stored_in_float32():
    params = {"a": jnp.ones(3, jnp.bfloat16)}
    tx = optim_jax.scale_by_multibatch_lbfgs(2)
    direction, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert direction["a"].dtype == jnp.bfloat16
    for leaf in jax.tree.leaves(state):
        assert not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == jnp.float32
    tx = optim_jax.scale_by_multibatch_lbfgs(2, memory_dtype="bfloat16")
    assert tx.init(params).memory.s["a"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_size": 0}, "memory_size must be an integer >= 1, got 0"),
        ({"form": "dense"}, "form must be one of compact, two_loop, got 'dense'"),
        ({"memory_dtype": "int8"}, "memory_dtype must be None or a floating-point"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        optim_jax.scale_by_multibatch_lbfgs(**options)


def test_bad_leaves_are_named():
    tx = optim_jax.scale_by_multibatch_lbfgs()
    with pytest.raises(ValueError, match="leaf 'table/rows' is int32"):
        tx.init({"table": {"rows": jnp.arange(2)}})
    with pytest.raises(TypeError, match="leaf 'wave/phase' is complex64"):
        tx.init({"wave": {"phase": jnp.ones(2, jnp.complex64)}})


def test_an_update_needs_the_parameters():
    tx = optim_jax.scale_by_multibatch_lbfgs()
    with pytest.raises(ValueError, match="scale_by_multibatch_lbfgs needs the current"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
