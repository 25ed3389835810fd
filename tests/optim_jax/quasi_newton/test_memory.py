import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optim_jax
from optim_jax.quasi_newton.memory import (
    clear_memory,
    inner_products,
    store_pair,
    tree_dot,
)
from tests.optim_jax.quasi_newton.pairs import (
    draw_pairs,
    draw_vector,
    flat,
    jitted_store,
    make_memory,
    make_tree,
)


def rows(buffers):
    """The buffers as one matrix with a row per slot."""
    leaves = jax.tree.leaves(buffers)
    return np.concatenate(
        [np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1) for leaf in leaves],
        axis=1,
    )


def assert_grams_of_buffers(memory, rtol):
    """Products of the slots that hold something; zero rows and columns elsewhere."""
    count = int(memory.count)
    for gram, left, right in (
        (memory.ss, memory.s, memory.s),
        (memory.sy, memory.s, memory.y),
        (memory.yy, memory.y, memory.y),
    ):
        expected = rows(left) @ rows(right).T
        expected[count:] = expected[:, count:] = 0.0
        scale = np.abs(expected).max(initial=0.0)
        np.testing.assert_allclose(gram, expected, rtol=rtol, atol=rtol * scale)


def test_an_empty_memory():
    params = make_tree(np.zeros(12), "float32") | {"half": jnp.ones(2, jnp.bfloat16)}
    memory = optim_jax.init_memory(params, 4)
    assert memory.s["kernel"].shape == (4, 3, 2)
    assert memory.y["layer"]["scale"].shape == (4,)
    assert memory.s["half"].dtype == jnp.float32
    assert (memory.gamma, memory.count, memory.head) == (1.0, 0, 0)
    for gram in (memory.ss, memory.sy, memory.yy):
        assert gram.shape == (4, 4) and gram.dtype == jnp.float32 and not gram.any()


def test_dtypes_of_buffers_and_products(x64):
    params = {"wide": jnp.ones(2), "single": jnp.ones(2, jnp.float32)}
    memory = optim_jax.init_memory(params, 3)
    assert memory.s["wide"].dtype == memory.gamma.dtype == jnp.float64
    assert memory.s["single"].dtype == jnp.float32
    memory = optim_jax.init_memory(params, 3, memory_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(memory.y)} == {
        jnp.dtype(jnp.bfloat16)
    }
    assert memory.ss.dtype == jnp.float64


@pytest.mark.parametrize("count", [1, 4, 5, 6, 13])
def test_slots_are_filled_and_then_overwritten(x64, count):
    s, y = draw_pairs(count)
    memory = make_memory(s, y)
    assert int(memory.count) == min(count, 5)
    assert int(memory.head) == count % 5
    for j in range(min(count, 5)):
        slot = (int(memory.head) - int(memory.count) + j) % 5
        which = max(count - 5, 0) + j
        np.testing.assert_array_equal(rows(memory.s)[slot], s[which])
        np.testing.assert_array_equal(rows(memory.y)[slot], y[which])
    assert_grams_of_buffers(memory, 1e-14)
    gamma = s[-1] @ y[-1] / (y[-1] @ y[-1])
    np.testing.assert_allclose(memory.gamma, gamma, rtol=1e-14)


def test_a_cleared_memory_is_an_empty_one(x64):
    s, y = draw_pairs(9)
    cleared = clear_memory(make_memory(s[:7], y[:7]))
    v = make_tree(draw_vector(0))
    products = inner_products(cleared, v)
    assert not products.s.any() and not products.y.any()
    assert cleared.gamma == 1.0
    # What the slots still hold does not come back with the next pairs.
    refilled, fresh = cleared, make_memory(s[7:], y[7:])
    for pair in zip(s[7:], y[7:], strict=True):
        refilled = jitted_store(refilled, *map(make_tree, pair))
    for name in ("ss", "sy", "yy", "head", "count", "gamma"):
        actual, expected = getattr(refilled, name), getattr(fresh, name)
        np.testing.assert_allclose(actual, expected, rtol=1e-14, err_msg=name)


def test_half_precision_buffers_agree_with_their_products():
    s, y = draw_pairs(8)
    memory = make_memory(s, y, memory_dtype=jnp.bfloat16)
    exact = make_memory(s, y)
    assert {leaf.dtype for leaf in jax.tree.leaves(memory.s)} == {
        jnp.dtype(jnp.bfloat16)
    }
    assert_grams_of_buffers(memory, 1e-6)
    newest = (int(memory.head) - 1) % 5
    rounded = [rows(tree)[newest] for tree in (memory.s, memory.y)]
    gamma = rounded[0] @ rounded[1] / (rounded[1] @ rounded[1])
    np.testing.assert_allclose(memory.gamma, gamma, rtol=1e-6)
    assert abs(float(memory.gamma / exact.gamma) - 1) > 1e-5


def test_inner_products(x64):
    s, y = draw_pairs(3)
    v = draw_vector(1)
    products = inner_products(make_memory(s, y), make_tree(v))
    np.testing.assert_allclose(products.s, [*(s @ v), 0, 0], rtol=1e-13)
    np.testing.assert_allclose(products.y, [*(y @ v), 0, 0], rtol=1e-13)
    np.testing.assert_allclose(products.square, v @ v, rtol=1e-13)


def test_products_of_half_precision_are_summed_in_float32():
    ones = {"a": jnp.ones(1000, jnp.bfloat16), "b": jnp.ones((), jnp.bfloat16)}
    total = tree_dot(ones, ones)
    assert total.dtype == jnp.float32 and float(total) == 1001.0


def test_a_pair_is_stored_where_it_is_to_be():
    s, y = draw_pairs(4)
    memory = make_memory(s[:3], y[:3])
    kept = store_pair(memory, make_tree(s[3]), make_tree(y[3]), where=False)
    jax.tree.map(np.testing.assert_array_equal, kept, memory)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_pair_that_is_not_finite_is_not_stored(value):
    s, y = draw_pairs(4)
    memory = make_memory(s[:3], y[:3], dtype="float32")
    y[3, 2] = value
    pair = make_tree(s[3], "float32"), make_tree(y[3], "float32")
    jax.tree.map(np.testing.assert_array_equal, store_pair(memory, *pair), memory)


def test_storing_takes_no_copy_of_the_buffers():
    params = jnp.zeros(20_000)
    memory = optim_jax.init_memory(params, 10)
    step = jax.jit(lambda memory, s, y: store_pair(memory, s, y), donate_argnums=0)
    compiled = step.lower(memory, params, params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < memory.s.nbytes


def test_the_buffers_lie_where_the_parameters_lie():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data", None))
    params = {"a": jax.device_put(jnp.ones((16, 2)), sharding), "b": jnp.ones(3)}
    memory = optim_jax.init_memory(params, 4)
    expected = NamedSharding(mesh, PartitionSpec(None, "data", None))
    assert memory.s["a"].sharding.is_equivalent_to(expected, 3)
    assert memory.sy.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec()), 2)


@pytest.mark.parametrize("memory_size", [0, -1, 2.0, True, None])
def test_bad_memory_sizes_are_refused(memory_size):
    with pytest.raises(ValueError, match="memory_size must be an integer >= 1, got"):
        optim_jax.init_memory(jnp.ones(2), memory_size)


@pytest.mark.parametrize("dtype", [jnp.int32, "complex64", "half of it"])
def test_bad_memory_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="memory_dtype must be None or a floating"):
        optim_jax.init_memory(jnp.ones(2), memory_dtype=dtype)


def test_bad_leaves_are_named():
    with pytest.raises(ValueError, match="leaf 'table/rows' is int32"):
        optim_jax.init_memory({"table": {"rows": jnp.arange(2)}})
    with pytest.raises(TypeError, match="leaf 'wave/phase' is complex64"):
        optim_jax.init_memory({"wave": {"phase": jnp.ones(2, jnp.complex64)}})


def test_flat_puts_leaves_in_order():
    v = draw_vector(3)
    np.testing.assert_array_equal(flat(make_tree(v, "float32")), np.float32(v))


def test_weakly_typed_float64_leaves_are_accumulated_in_float64(x64):
    params = {"w": jnp.full(3, 0.05), "b": jnp.zeros(2, jnp.float32)}
    assert params["w"].weak_type
    assert optim_jax.init_memory(params).sy.dtype == jnp.float64
