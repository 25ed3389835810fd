import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optim_jax
from optim_jax.quasi_newton.compact_form import (
    inverse_hessian_combination,
    is_reliable,
    quadratic_form,
)
from optim_jax.quasi_newton.hessian_products import hessian_combination
from optim_jax.quasi_newton.memory import inner_products
from tests.optim_jax.quasi_newton.pairs import (
    DIMENSION,
    columns,
    dense_inverse,
    draw_pairs,
    draw_vector,
    flat,
    jitted_store,
    make_memory,
    make_tree,
)

FORMS = ("compact", "two_loop")
COUNTS = [0, 1, 3, 5, 8, 13]


def close(actual, expected, rtol):
    """Equal up to rounding in the largest entry."""
    atol = rtol * np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", COUNTS)
def test_the_inverse_is_that_of_the_dense_recursion(x64, form, count):
    s, y = draw_pairs(count)
    memory = make_memory(s, y)
    inverse = columns(optim_jax.apply_inverse_hessian, memory, form=form)
    close(inverse, dense_inverse(s, y), 1e-12)
    close(inverse, inverse.T, 1e-12)
    assert np.linalg.eigvalsh(inverse).min() > 0
    if count:
        close(inverse @ y[-1], s[-1], 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_single_precision(form):
    s, y = draw_pairs(8)
    memory = make_memory(s, y, dtype="float32")
    inverse = columns(optim_jax.apply_inverse_hessian, memory, form=form)
    assert inverse.dtype == np.float32
    close(inverse, dense_inverse(s, y), 1e-5)
    hessian = columns(optim_jax.apply_hessian, memory)
    close(hessian, np.linalg.inv(dense_inverse(s, y)), 1e-5)


@pytest.mark.parametrize("count", COUNTS)
def test_the_hessian_is_the_inverse_of_the_inverse(x64, count):
    s, y = draw_pairs(count)
    memory = make_memory(s, y)
    hessian = columns(optim_jax.apply_hessian, memory)
    close(hessian @ dense_inverse(s, y), np.eye(DIMENSION), 1e-12)
    if count:
        close(hessian @ s[-1], y[-1], 1e-12)
    v = draw_vector(0)
    products = inner_products(memory, make_tree(v))
    form = quadratic_form(hessian_combination(memory, products), products)
    close(form, v @ hessian @ v, 1e-12)


def test_the_stored_run(x64, golden_dir):
    stored = np.load(golden_dir / "pblbfgs" / "ipqn_small.npz", allow_pickle=False)
    memory = optim_jax.init_memory(jnp.zeros(6), 4)
    for pair in zip(stored["S"], stored["Y"], strict=True):
        memory = jitted_store(memory, *map(jnp.asarray, pair))
    for form in FORMS:
        inverse = jax.jit(
            jax.vmap(
                lambda v, f=form: optim_jax.apply_inverse_hessian(memory, v, form=f)
            )
        )(jnp.eye(6))
        close(inverse, stored["H_dense"], 1e-12)
    image = jax.jit(optim_jax.apply_hessian)(memory, jnp.asarray(stored["Hg"]))
    close(image, stored["Bg_compact"], 1e-12)
    close(image, stored["g"], 1e-12)


def test_buffers_of_half_precision_hold_one_consistent_matrix():
    s, y = draw_pairs(8)
    memory = make_memory(s, y, dtype="float32", memory_dtype=jnp.bfloat16)
    compact, two_loop = (
        columns(optim_jax.apply_inverse_hessian, memory, form=f) for f in FORMS
    )
    close(compact, two_loop, 1e-5)
    newest = (int(memory.head) - 1) % 5
    step, change = (
        flat(jax.tree.map(lambda leaf: leaf[newest].astype("float32"), tree))
        for tree in (memory.s, memory.y)
    )
    close(compact @ change, step, 1e-5)
    assert np.abs(step - s[-1]).max() > 1e-4
    hessian = columns(optim_jax.apply_hessian, memory)
    close(hessian @ compact, np.eye(DIMENSION), 2e-4)


@pytest.mark.parametrize("c", [1e-6, 1e6])
def test_the_direction_does_not_depend_on_the_unit_of_the_loss(x64, c):
    s, y = draw_pairs(7)
    g = draw_vector(0)
    for form in FORMS:
        one, other = (
            optim_jax.apply_inverse_hessian(
                make_memory(s, unit * y), make_tree(unit * g), form=form
            )
            for unit in (1.0, c)
        )
        close(flat(other), flat(one), 1e-12)


def test_a_near_singular_triangle_is_left_to_the_recursion():
    s, y = draw_pairs(5)
    y[2] -= (1 - 1e-8) * (s[2] @ y[2]) / (s[2] @ s[2]) * s[2]
    memory = make_memory(s, y, dtype="float32")
    v = make_tree(draw_vector(0), "float32")
    products = inner_products(memory, v)
    assert not is_reliable(memory, inverse_hessian_combination(memory, products))
    compact, two_loop = (
        jax.jit(lambda f=f: optim_jax.apply_inverse_hessian(memory, v, form=f))()
        for f in FORMS
    )
    jax.tree.map(np.testing.assert_array_equal, compact, two_loop)


def test_jit_and_vmap(x64):
    memory = make_memory(*draw_pairs(8))
    vectors = jnp.stack([draw_vector(seed) for seed in range(3)])
    for apply in (optim_jax.apply_inverse_hessian, optim_jax.apply_hessian):
        eager = flat(apply(memory, make_tree(vectors[1])))
        together = jax.jit(jax.vmap(lambda v, f=apply: f(memory, make_tree(v))))
        second = jax.tree.map(lambda leaf: leaf[1], together(vectors))
        close(flat(second), eager, 1e-13)


def count_reductions(compiled):
    pattern = r"= .*\b(?:all-reduce|all-gather|reduce-scatter|all-to-all)\("
    return len(re.findall(pattern, compiled.as_text()))


def test_eight_devices_are_one(x64):
    # One reduction of all products; the recursion, in its branch, has one in each loop.
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    everywhere, rows, slots = (
        NamedSharding(mesh, PartitionSpec(*spec))
        for spec in ((), ("data",), (None, "data"))
    )
    rng = np.random.default_rng(0)
    s = [{"a": rng.normal(size=(16, 3)), "b": np.ones(8)} for _ in range(4)]
    one = optim_jax.init_memory(jax.tree.map(jnp.asarray, s[0]), 3)
    for step in s:
        y = jax.tree.map(lambda leaf: leaf * np.linspace(1, 2, leaf.shape[-1]), step)
        one = jitted_store(one, step, y)
    layout = jax.tree.map(lambda _: everywhere, one)
    eight = jax.device_put(
        one,
        layout._replace(**dict.fromkeys(("s", "y"), {"a": slots, "b": slots})),
    )
    v = jax.device_put(s[0], rows)
    for apply, reductions in (
        (optim_jax.apply_inverse_hessian, 3),
        (optim_jax.apply_hessian, 1),
    ):
        compiled = jax.jit(apply).lower(eight, v).compile()
        assert count_reductions(compiled) == reductions
        actual, expected = compiled(eight, v), jax.jit(apply)(one, s[0])
        for left, right in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
            close(left, np.asarray(right), 1e-12)
            assert left.sharding.spec[0] == "data"


@pytest.mark.parametrize("form", ["loop", None])
def test_unknown_forms_are_refused(form):
    memory = optim_jax.init_memory(jnp.ones(2))
    with pytest.raises(ValueError, match="form must be one of compact, two_loop, got"):
        optim_jax.apply_inverse_hessian(memory, jnp.ones(2), form=form)
