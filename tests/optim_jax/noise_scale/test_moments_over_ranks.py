"""Moments reduced over ranks, and the three traps of `jax.shard_map`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optim_jax import noise_scale as ns
from tests.optim_jax.noise_scale.numpy_estimates import (
    AXES,
    draw_gradients,
    layout_of,
)

RANKS = 8
WEIGHTS = np.array([3.0, 1.0, 2.0, 5.0, 0.0, 1.0, 4.0, 2.0])
LAYOUTS = [("sign", "min"), ("spectral", "tightest")]


def ranks_mesh(**options):
    options = {"axis_types": (AxisType.Auto,), **options}
    return jax.make_mesh((RANKS,), ("ranks",), **options)


BY_RANK = P("ranks")


def shard_map(function, check_vma=True, mesh=None, in_specs=BY_RANK):
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh or ranks_mesh(),
            in_specs=in_specs,
            out_specs=P(),
            check_vma=check_vma,
        )
    )


def own(stacked):
    """The one gradient in a rank's slice of stacked ones."""
    return jax.tree.map(lambda leaf: leaf[0], stacked)


def assert_moments(actual, expected, rtol=1e-12):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol),
        actual,
        expected,
    )


@pytest.mark.parametrize(("geometry", "side"), LAYOUTS)
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_one_draw_per_rank_is_a_stack_of_them(geometry, side, check_vma, centred, x64):
    layout, stacked = layout_of(geometry, side), draw_gradients(RANKS)

    def reduce(stacked, weight):
        return ns.moments_psum(
            own(stacked), "ranks", weight=weight[0], centred=centred, **layout
        )

    expected = jax.jit(
        lambda draws: ns.moments_from_stacked(draws, sample_weights=WEIGHTS, **layout)
    )(stacked)
    actual = shard_map(reduce, check_vma)(stacked, WEIGHTS)
    assert_moments(actual, expected)
    assert int(actual.count) == 7 and float(actual.weight) == 18.0


@pytest.mark.parametrize(("geometry", "side"), LAYOUTS)
@pytest.mark.parametrize("check_vma", [True, False])
def test_moments_of_each_rank_are_merged(geometry, side, check_vma, x64):
    # Two draws per rank, gathered in a scan; one rank has none.
    layout, stacked = layout_of(geometry, side), draw_gradients(2 * RANKS)
    weights = np.concatenate([WEIGHTS, WEIGHTS[::-1]])
    weights[:2] = 0.0

    def reduce(stacked, weights):
        def push(moments, draw):
            return ns.moments_push(moments, *draw, **layout), None

        local = ns.moments_init(own(stacked), **layout)
        local, _ = jax.lax.scan(push, local, (stacked, weights))
        return ns.moments_psum(local, "ranks", **layout)

    expected = jax.jit(
        lambda draws: ns.moments_from_stacked(draws, sample_weights=weights, **layout)
    )(stacked)
    assert_moments(shard_map(reduce, check_vma)(stacked, weights), expected)


@pytest.mark.parametrize(("geometry", "side"), LAYOUTS)
def test_ranks_under_vmap_are_ranks_under_shard_map(geometry, side, x64):
    layout, stacked = layout_of(geometry, side), draw_gradients(RANKS)

    def reduce(grads, weight):
        return ns.moments_psum(grads, "ranks", weight=weight, **layout)

    expected = jax.jit(
        lambda draws: ns.moments_from_stacked(draws, sample_weights=WEIGHTS, **layout)
    )(stacked)
    mapped = jax.vmap(reduce, axis_name="ranks", out_axes=None)
    assert_moments(jax.jit(mapped)(stacked, WEIGHTS), expected)

    # As in a trainer: the mapped axis lies on the devices.
    mesh = ranks_mesh()
    mapped = jax.vmap(reduce, axis_name="ranks", spmd_axis_name="ranks", out_axes=None)
    with jax.set_mesh(mesh):
        placed = jax.device_put(stacked, NamedSharding(mesh, P("ranks")))
        assert_moments(jax.jit(mapped)(placed, WEIGHTS), expected)


def test_merging_ranks_under_vmap_after_a_loop(x64):
    layout, stacked = layout_of("spectral"), draw_gradients(6)
    by_rank = jax.tree.map(lambda leaf: leaf.reshape(3, 2, *leaf.shape[1:]), stacked)

    def reduce(draws):
        def body(index, moments):
            one = jax.tree.map(lambda leaf: leaf[index], draws)
            return ns.moments_push(moments, one, 4.0, **layout)

        empty = ns.moments_init(own(draws), **layout)
        local = jax.lax.fori_loop(0, 2, body, empty)
        return ns.moments_psum(local, "ranks", **layout)

    mapped = jax.jit(jax.vmap(reduce, axis_name="ranks", out_axes=None))
    expected = ns.moments_from_stacked(stacked, sample_weights=4.0, **layout)
    assert_moments(mapped(by_rank), expected)


def test_order_of_the_ranks_is_irrelevant(x64):
    layout, stacked = layout_of("spectral"), draw_gradients(RANKS)
    reduce = shard_map(lambda s: ns.moments_psum(own(s), "ranks", **layout))
    permuted = jax.tree.map(lambda leaf: leaf[::-1], stacked)
    assert_moments(reduce(permuted), reduce(stacked))


@pytest.mark.parametrize("geometry", ["sign", "spectral"])
def test_rank_of_weight_zero_may_hold_nan(geometry):
    layout = layout_of(geometry)
    stacked = draw_gradients(RANKS, dtype=np.float32)
    expected = ns.moments_from_stacked(stacked, sample_weights=WEIGHTS, **layout)
    for leaf in stacked.values():
        leaf[4] = np.nan  # WEIGHTS[4] is zero

    def reduce(stacked, weight):
        return ns.moments_psum(own(stacked), "ranks", weight=weight[0], **layout)

    assert_moments(shard_map(reduce)(stacked, WEIGHTS), expected, rtol=1e-5)


def test_one_rank_with_one_draw_is_refused():
    mesh = jax.make_mesh((1,), ("ranks",), axis_types=(AxisType.Auto,))
    reduce = shard_map(
        lambda s: ns.moments_psum(own(s), "ranks", geometry="sign"), mesh=mesh
    )
    with pytest.raises(ValueError, match="at least 2 .* but axis 'ranks' holds 1"):
        reduce({"w": jnp.ones((1, 3))})


def test_one_rank_with_moments_is_left_alone():
    mesh = jax.make_mesh((1,), ("ranks",), axis_types=(AxisType.Auto,))
    stacked = {"w": jnp.arange(6.0).reshape(2, 3)}
    local = ns.moments_from_stacked(stacked, geometry="sign")
    reduce = shard_map(
        lambda m: ns.moments_psum(m, "ranks", geometry="sign"), mesh=mesh, in_specs=P()
    )
    assert_moments(reduce(local), local, rtol=1e-6)


def test_gradients_sharded_over_devices_are_those_of_one_device():
    # No mapped axis: the compiler partitions the same program.
    layout = layout_of("spectral", "tightest")
    axes = {"w": AXES["wide"], "layers": AXES["layers"]}
    layout["matrix_axes"] = axes
    shapes = {"w": (8, 16), "layers": (8, 3, 4)}
    stacked = draw_gradients(4, shapes=shapes, dtype=np.float32)
    mesh = ranks_mesh()
    specs = {"w": P(None, None, "ranks"), "layers": P(None, "ranks")}
    placed = {
        name: jax.device_put(leaf, NamedSharding(mesh, specs[name]))
        for name, leaf in stacked.items()
    }

    def measure(stacked):
        moments = ns.moments_from_stacked(stacked, sample_weights=2.0, **layout)
        return moments, ns.noise_scale(moments, **layout)

    expected, actual = jax.jit(measure)(stacked), jax.jit(measure)(placed)
    assert_moments(actual, expected, rtol=2e-5)


def test_gram_matrix_of_a_leaf_sharded_along_its_long_side_moves_no_gradients():
    # Partial Gram matrices are added up; the leaf is not gathered.
    stacked = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 64)))}
    sharding = NamedSharding(ranks_mesh(), P(None, None, "ranks"))
    layout = {"geometry": "spectral", "matrix_axes": {"w": AXES["wide"]}}
    measure = jax.jit(lambda draws: ns.moments_from_stacked(draws, **layout).m2)
    program = measure.lower(jax.device_put(stacked, sharding)).compile().as_text()
    assert "all-reduce(" in program
    for collective in ("all-gather(", "all-to-all(", "collective-permute("):
        assert collective not in program


# Communication.


def is_reduction(equation):
    return equation.primitive.name.startswith("psum")


def inner_jaxprs(equation):
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else [value]:
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
                yield item.jaxpr


def reductions(jaxpr):
    for equation in jaxpr.eqns:
        if is_reduction(equation):
            yield equation
        for inner in inner_jaxprs(equation):
            yield from reductions(inner)


def rounds(jaxpr):
    """Length of the longest chain of reductions that need each other."""
    depth = {}

    def deepest(variables):
        variables = (v for v in variables if not isinstance(v, Literal))
        return max((depth.get(v, 0) for v in variables), default=0)

    for equation in jaxpr.eqns:
        level = deepest(equation.invars) + is_reduction(equation)
        for inner in inner_jaxprs(equation):
            assert not any(True for _ in reductions(inner)), equation
        depth.update(dict.fromkeys(equation.outvars, level))
    return deepest(jaxpr.outvars)


@pytest.mark.parametrize(("geometry", "side"), LAYOUTS)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("draws", ["ranks", "microbatches"])
def test_a_measurement_takes_two_rounds_of_reductions(geometry, side, centred, draws):
    # Each leaf is reduced twice, its mean and its second moment (a pair for both
    # sides); two scalars, weight and count, ride along with the means.
    layout = layout_of(geometry, side)
    stacked = draw_gradients(2 * RANKS, dtype=np.float32)

    def measure(stacked):
        local = own(stacked)
        if draws == "microbatches":
            local = ns.moments_from_stacked(stacked, **layout)
        moments = ns.moments_psum(local, "ranks", centred=centred, **layout)
        return moments, ns.noise_scale(moments, **layout)

    mapped = jax.shard_map(
        measure, mesh=ranks_mesh(), in_specs=P("ranks"), out_specs=P()
    )
    (equation,) = jax.make_jaxpr(mapped)(stacked).eqns
    (body,) = inner_jaxprs(equation)
    sizes = [sum(v.aval.size for v in eqn.outvars) for eqn in reductions(body)]
    leaves = len(stacked)
    counted = 2 * 5 if geometry == "spectral" else leaves
    scalars = 2
    assert len(sizes) == leaves + counted + scalars
    assert rounds(body) == (2 if centred else 1)


# The traps.


def loss(params, batch):
    return jnp.mean(jnp.square(batch @ params["w"] - 1.0))


def measure_gradients(params, batch, check_vma, vary):
    def local(params, batch):
        if vary:
            params = jax.lax.pcast(params, "ranks", to="varying")
        grads = jax.grad(loss)(params, batch)
        moments = ns.moments_psum(grads, "ranks", weight=len(batch), geometry="sign")
        return moments, ns.noise_scale(moments, geometry="sign")

    mapped = shard_map(local, check_vma, in_specs=(P(), P("ranks")))
    return mapped(params, batch)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.normal(size=(4 * RANKS, 6)), jnp.float32)
    params = {"w": jnp.asarray(rng.normal(size=6), jnp.float32)}
    by_rank = batch.reshape(RANKS, 4, 6)
    draws = jax.vmap(jax.grad(loss), (None, 0))(params, by_rank)
    moments = ns.moments_from_stacked(draws, sample_weights=4, geometry="sign")
    return params, batch, moments


def test_gradients_of_replicated_parameters_are_summed_already_and_refused(problem):
    # Trap 1: under check_vma the transpose of "replicated to varying" is a sum.
    params, batch, expected = problem
    moments, measurement = measure_gradients(params, batch, True, vary=False)
    np.testing.assert_allclose(moments.mean["w"], RANKS * expected.mean["w"], rtol=1e-5)
    # Zero but for the rounding of a mean of eight equal numbers.
    rounding = 4 * RANKS * np.square(np.finfo(np.float32).eps * moments.mean["w"])
    assert np.all(moments.m2["w"] <= RANKS * rounding)
    assert float(measurement.value) < 1e-10
    with pytest.raises(ValueError, match="summed before they were compared"):
        ns.check_independent_draws(measurement, moments)


@pytest.mark.parametrize(("check_vma", "vary"), [(True, True), (False, False)])
def test_gradients_of_varying_parameters_are_each_ranks_own(problem, check_vma, vary):
    params, batch, expected = problem
    moments, measurement = measure_gradients(params, batch, check_vma, vary)
    assert_moments(moments, expected, rtol=1e-5)
    ns.check_independent_draws(measurement, moments)


def accumulate(params, batch, make_empty):
    def local(params, batch):
        def body(index, moments):
            one = jax.lax.dynamic_slice_in_dim(batch, index, 1)
            varying = jax.lax.pcast(params, "ranks", to="varying")
            grads = jax.grad(loss)(varying, one)
            return ns.moments_push(moments, grads, geometry="sign")

        moments = jax.lax.fori_loop(0, 4, body, make_empty(params))
        return ns.moments_psum(moments, "ranks", geometry="sign")

    return shard_map(local, True, in_specs=(P(), P("ranks")))(params, batch)


def test_empty_moments_of_varying_arrays_are_a_carry(problem):
    # Trap 2: a carry must vary over the mesh axes from the start.
    params, batch, _ = problem

    def of_params(params):
        varying = jax.lax.pcast(params, "ranks", to="varying")
        return ns.moments_init(varying, geometry="sign")

    def cast_afterwards(params):
        empty = ns.moments_init(params, geometry="sign")
        return jax.lax.pcast(empty, "ranks", to="varying")

    draws = jax.vmap(jax.grad(loss), (None, 0))(params, batch[:, None])
    expected = ns.moments_from_stacked(draws, geometry="sign")
    for make_empty in (of_params, cast_afterwards):
        moments = accumulate(params, batch, make_empty)
        assert_moments(moments, expected, rtol=1e-5)


def test_empty_moments_of_replicated_arrays_are_no_carry(problem):
    params, batch, _ = problem
    with pytest.raises(TypeError, match="(?i)carry"):
        accumulate(params, batch, functools.partial(ns.moments_init, geometry="sign"))


def test_explicit_mesh_axes_give_the_same_moments(problem):
    # Trap 3: `jax.make_mesh` makes Explicit axes unless told otherwise.
    params, batch, expected = problem
    mesh = jax.make_mesh((RANKS,), ("ranks",))
    assert mesh.axis_types == (AxisType.Explicit,)

    def local(params, batch):
        params = jax.lax.pcast(params, "ranks", to="varying")
        grads = jax.grad(loss)(params, batch)
        return ns.moments_psum(grads, "ranks", weight=4, geometry="sign")

    with jax.set_mesh(mesh):
        mapped = shard_map(local, mesh=mesh, in_specs=(P(), P("ranks")))
        placed = jax.device_put(batch, NamedSharding(mesh, P("ranks")))
        assert_moments(mapped(params, placed), expected, rtol=1e-5)


def test_moments_keep_the_explicit_sharding_of_the_gradients():
    mesh = jax.make_mesh((RANKS,), ("ranks",))
    with jax.set_mesh(mesh):
        grads = jax.device_put(jnp.ones((8, 16)), NamedSharding(mesh, P("ranks", None)))

        @jax.jit
        def push(grads):
            empty = ns.moments_init(grads, geometry="sign")
            return empty, ns.moments_push(empty, grads, geometry="sign")

        for moments in push(grads):
            assert (
                moments.mean.sharding.spec
                == moments.m2.sharding.spec
                == P("ranks", None)
            )
