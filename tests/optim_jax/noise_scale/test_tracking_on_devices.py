"""Tracking inside shard_map: eight ranks are a stack of eight, at the least traffic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from optim_jax.noise_scale.moments import moments_from_stacked, moments_psum
from optim_jax.noise_scale.tracking import track_noise_scale
from optim_jax.typing import MatrixAxes

RANKS = 8
AXES = {"kernel": MatrixAxes("hidden"), "bias": None}
LAYOUTS = {
    "l2": {"geometry": "l2"},
    "sign": {"geometry": "sign"},
    "spectral": {"geometry": "spectral", "matrix_axes": AXES},
}
SIZES = {"kernel": 20, "bias": 5}


@functools.cache
def mesh(ranks=RANKS):
    return jax.make_mesh((ranks,), ("data",), axis_types=(AxisType.Auto,))


def stack(seed=0, ranks=RANKS, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        "bias": jnp.asarray(0.5 + rng.normal(size=(ranks, 5)), dtype),
        "kernel": jnp.asarray(0.5 + rng.normal(size=(ranks, 4, 5)), dtype),
    }


def params():
    return jax.tree.map(lambda leaf: leaf[0], stack())


def on_ranks(tx, check_vma=True, ranks=RANKS, weights=None):
    """(state, stacked gradients) -> (updates, state), every rank with its gradient."""
    weights = jnp.ones(ranks) if weights is None else weights

    @functools.partial(
        jax.shard_map,
        mesh=mesh(ranks),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
        check_vma=check_vma,
    )
    def step(state, grads, weight):
        own = jax.tree.map(lambda leaf: leaf[0], grads)
        return tx.update(own, state, samples_per_grad=weight[0])

    return jax.jit(lambda state, grads: step(state, grads, weights))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
def test_eight_ranks_measure_what_a_stack_of_eight_does(name, check_vma):
    layout, weights = LAYOUTS[name], jnp.asarray([4.0, 2, 2, 1, 3, 4, 4, 4])
    options = layout | {"every": 2}
    ranks = track_noise_scale(**options, axis_name="data")
    stacked = track_noise_scale(**options, stacked=True)
    step = on_ranks(ranks, check_vma, weights=weights)
    state = expected = ranks.init(params())
    for seed in range(3):
        updates, state = step(state, stack(seed))
        means, expected = stacked.update(
            stack(seed), expected, samples_per_grad=weights
        )
        for leaf in means:
            np.testing.assert_allclose(updates[leaf], means[leaf], rtol=2e-6, atol=1e-7)
        for left, right in zip(state, expected, strict=True):
            np.testing.assert_allclose(left, right, rtol=3e-6)
    assert state.ticks == 2


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", ["sign", "spectral"])
def test_alignment_and_direct_noise_work_on_ranks(name, check_vma):
    options = LAYOUTS[name] | {"signal": "alignment", "noise": "direct"}
    ranks = track_noise_scale(**options, axis_name="data")
    _, state = on_ranks(ranks, check_vma)(ranks.init(params()), stack())
    stacked = track_noise_scale(**options, stacked=True)
    _, expected = stacked.update(stack(), stacked.init(params()))
    np.testing.assert_allclose(state.noise_sq, expected.noise_sq, rtol=1e-5)
    np.testing.assert_allclose(state.signal_sq, expected.signal_sq, rtol=1e-5)


def test_moments_of_all_ranks_serve_as_well():
    tx = track_noise_scale("sign")
    ranks = track_noise_scale("sign", axis_name="data")

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P()
    )
    def step(state, grads):
        own = jax.tree.map(lambda leaf: leaf[0], grads)
        moments = moments_psum(own, "data", geometry="sign")
        return tx.update(moments.mean, state, moments=moments)

    _, state = step(tx.init(params()), stack())
    _, expected = on_ranks(ranks)(ranks.init(params()), stack())
    for left, right in zip(state, expected, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_a_rank_without_samples_does_not_count_whatever_it_holds():
    tx = track_noise_scale("sign", axis_name="data")
    weights = jnp.ones(RANKS).at[5].set(0.0)
    padded = jax.tree.map(lambda leaf: leaf.at[5].set(jnp.nan), stack())
    updates, state = on_ranks(tx, weights=weights)(tx.init(params()), padded)
    seven = jax.tree.map(lambda leaf: jnp.delete(leaf, 5, axis=0), stack())
    stacked = track_noise_scale("sign", stacked=True)
    means, expected = stacked.update(seven, stacked.init(params()))
    np.testing.assert_allclose(state.value, expected.value, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], means["bias"], rtol=1e-5)


def test_a_bad_gradient_of_one_rank_reaches_all_and_is_skipped():
    tx = track_noise_scale("sign", axis_name="data")
    spoiled = jax.tree.map(lambda leaf: leaf.at[3].set(jnp.nan), stack())
    updates, state = on_ranks(tx)(tx.init(params()), spoiled)
    assert np.all(np.isnan(updates["bias"]))
    assert (state.skipped, state.ticks, bool(state.valid)) == (1, 0, False)


def test_half_precision_gradients_are_averaged_in_float32():
    tx = track_noise_scale("sign", axis_name="data")
    halves = stack(dtype=jnp.bfloat16)
    updates, _ = on_ranks(tx)(tx.init(params()), halves)
    for leaf, update in updates.items():
        wide = np.asarray(halves[leaf], np.float32).mean(axis=0)
        assert update.dtype == jnp.bfloat16
        np.testing.assert_array_equal(update, wide.astype(jnp.bfloat16))


def test_an_axis_of_one_rank_is_an_error_also_between_measurements():
    tx = track_noise_scale("sign", axis_name="data")
    state = tx.init(params())._replace(count=jnp.int32(1))
    with pytest.raises(ValueError, match="at least 2 independent .*'data' holds 1"):
        on_ranks(tx, ranks=1)(state, stack(ranks=1))


def test_an_axis_of_vmap_is_as_good():
    tx = track_noise_scale("sign", axis_name="data")
    update = jax.vmap(tx.update, in_axes=(0, None), out_axes=None, axis_name="data")
    updates, state = update(stack(), tx.init(params()))
    means, expected = on_ranks(tx)(tx.init(params()), stack())
    np.testing.assert_allclose(state.value, expected.value, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], means["bias"], rtol=1e-6)


@pytest.mark.parametrize("varying", [True, False])
def test_gradients_of_replicated_parameters_are_summed_already_and_show_no_noise(
    varying,
):
    # With check_vma=True; whoever forgets to make the parameters vary sees a noise of
    # exactly zero.
    tx = track_noise_scale("sign", axis_name="data")
    inputs = jnp.arange(16.0).reshape(8, 2)

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh(), in_specs=(P(), P(), P("data")), out_specs=P()
    )
    def step(p, state, x):
        p = jax.lax.pcast(p, "data", to="varying") if varying else p
        return tx.update(jax.grad(lambda p: jnp.vdot(x[0], p))(p), state)[1]

    state = step(jnp.ones(2), tx.init(jnp.ones(2)), inputs)
    assert state.valid
    assert (state.value > 0.0) == varying


def test_the_training_step_of_a_data_parallel_user():
    # Inputs sharded over the ranks, the parameters made to vary so that every rank
    # differentiates its own loss, a chain as on one device.
    tx = optax.chain(
        track_noise_scale("sign", axis_name="data", every=2),
        optax.clip_by_global_norm(1.0),
        optax.adam(1e-2),
    )
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(6, 64, 3)), jnp.float32)
    start = {"w": jnp.asarray([1.0, -2.0, 0.5])}

    def loss(p, x):
        return jnp.mean(jnp.square(x @ p["w"] - 1.0))

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh(), in_specs=(P(), P(), P(None, "data")), out_specs=P()
    )
    def train(p, state, x):
        def step(carry, x):
            p, state = carry
            varying = jax.lax.pcast(p, "data", to="varying")
            updates, state = tx.update(jax.grad(loss)(varying, x), state, p)
            return (optax.apply_updates(p, updates), state), state[0]

        return jax.lax.scan(step, (p, state), x)

    (found, _), states = train(start, tx.init(start), inputs)
    np.testing.assert_array_equal(states.ticks, [1, 1, 2, 2, 3, 3])

    reference = optax.chain(
        track_noise_scale("sign", stacked=True, every=2),
        optax.clip_by_global_norm(1.0),
        optax.adam(1e-2),
    )
    p, state = start, reference.init(start)
    for x in inputs:
        grads = jax.vmap(lambda x, p=p: jax.grad(loss)(p, x))(x.reshape(8, 8, 3))
        updates, state = reference.update(grads, state, p)
        p = optax.apply_updates(p, updates)
    np.testing.assert_allclose(found["w"], p["w"], rtol=1e-5)
    np.testing.assert_allclose(states.value[-1], state[0].value, rtol=1e-4)


# What a step costs.


def equations(jaxpr, inside_cond=False):
    """Every equation with whether it lies in a branch of a conditional."""
    for equation in jaxpr.eqns:
        yield equation, inside_cond
        below = inside_cond or equation.primitive.name == "cond"
        for inner in jaxprs_in_params(equation.params):
            yield from equations(getattr(inner, "jaxpr", inner), below)


def reduced_numbers(step, *args):
    """Numbers that all-reduces take, outside and inside of conditionals."""
    counts = [0, 0]
    for equation, inside in equations(jax.make_jaxpr(step)(*args).jaxpr):
        if equation.primitive.name.startswith("psum"):
            counts[inside] += sum(int(np.prod(v.aval.shape)) for v in equation.invars)
    return counts


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_measurement_reduces_the_squares_and_nothing_else(check_vma):
    tx = track_noise_scale("sign", axis_name="data")
    outside, inside = reduced_numbers(
        on_ranks(tx, check_vma), tx.init(params()), stack()
    )
    # The mean and the total weight; the squares and the number of draws.
    assert outside == sum(SIZES.values()) + 1
    assert inside == sum(SIZES.values()) + 1


def test_under_spectral_a_measurement_reduces_the_gram_matrices():
    tx = track_noise_scale(**LAYOUTS["spectral"], axis_name="data")
    outside, inside = reduced_numbers(on_ranks(tx), tx.init(params()), stack())
    assert outside == sum(SIZES.values()) + 1
    assert inside == 4 * 4 + 1


@pytest.mark.parametrize("source", ["ranks", "stack", "moments"])
def test_outside_of_the_branch_there_is_the_mean_only(source):
    layout = LAYOUTS["spectral"]
    options = {"ranks": {"axis_name": "data"}, "stack": {"stacked": True}}
    tx = track_noise_scale(**layout, **options.get(source, {}))
    step, arguments = tx.update, (stack(), tx.init(params()))
    if source == "ranks":
        step, arguments = on_ranks(tx), arguments[::-1]
    if source == "moments":
        moments = moments_from_stacked(stack(), **layout)
        step = functools.partial(tx.update, moments=moments)
        arguments = (params(), arguments[1])
    found = list(equations(jax.make_jaxpr(step)(*arguments).jaxpr))
    work = {"eigh", "dot_general", "sqrt", "integer_pow", "square", "abs"}
    names = [{e.primitive.name for e, inside in found if inside == i} for i in (0, 1)]
    assert not work & names[False]
    assert {"eigh", "sqrt"} <= names[True]


def test_the_compiled_step_keeps_the_branch():
    # A conditional that XLA turned into a selection would compute both sides.
    tx = track_noise_scale(**LAYOUTS["spectral"], axis_name="data")
    state = tx.init(params())
    text = on_ranks(tx).lower(state, stack()).compile().as_text()
    entry = text[text.index("\nENTRY ") :]
    assert "conditional(" in entry
    assert entry.count("all-reduce(") + entry.count("all-reduce-start(") >= 1
    assert "syevd" in text or "eigh" in text.lower()
    assert "syevd" not in entry
    assert "sqrt(" not in entry
