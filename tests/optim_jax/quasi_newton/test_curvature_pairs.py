import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim_jax
from optim_jax.quasi_newton.curvature_pairs import (
    ACCEPTED,
    CURVATURES,
    DAMPED,
    SKIPPED,
)
from optim_jax.quasi_newton.memory import tree_dot
from tests.optim_jax.quasi_newton.pairs import (
    columns,
    draw_pairs,
    draw_vector,
    flat,
    make_memory,
    make_tree,
)


@functools.partial(jax.jit, static_argnames=("curvature", "damping"))
def push(memory, s, y, **options):
    return optim_jax.push_pair(memory, make_tree(s), make_tree(y), **options)


image_of = jax.jit(optim_jax.apply_hessian)


def with_curvature(s, y, wanted):
    """y changed along s until s'y is what is wanted."""
    return y + (wanted - s @ y) / (s @ s) * s


def setting(count=3, c=1.0):
    """A memory, a further step, a change of gradient along it, and s'Bs."""
    s, y = draw_pairs(count + 1)
    memory = make_memory(s[:-1], c * y[:-1])
    image = image_of(memory, make_tree(s[-1]))
    return memory, s[-1], c * y[-1], float(flat(image) @ s[-1])


def assert_unchanged(after, before):
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("eps", [1e-3, 0.01, 0.5])
def test_relative_curvature(x64, eps):
    memory, s, y, sbs = setting(7)
    for factor, expected in ((1.001, ACCEPTED), (0.999, SKIPPED), (-1.0, SKIPPED)):
        low = with_curvature(s, y, factor * eps * sbs)
        after, status = push(memory, s, low, eps=eps)
        assert int(status) == expected
        if expected == SKIPPED:
            assert_unchanged(after, memory)
        else:
            newest = columns(optim_jax.apply_inverse_hessian, after)
            np.testing.assert_allclose(newest @ low, s, rtol=1e-10)
            assert float(after.gamma) == pytest.approx(s @ low / (low @ low), rel=1e-12)


def test_the_default_asks_for_a_hundredth(x64):
    memory, s, y, sbs = setting()
    for factor, expected in ((0.0101, ACCEPTED), (0.0099, SKIPPED)):
        low = with_curvature(s, y, factor * sbs)
        assert int(push(memory, s, low)[1]) == expected


def test_what_is_known_of_bs_is_used(x64):
    memory, s, y, sbs = setting()
    low = with_curvature(s, y, 0.02 * sbs)
    image = image_of(memory, make_tree(s))
    larger = jax.tree.map(lambda leaf: 3.0 * leaf, image)
    assert int(push(memory, s, low)[1]) == ACCEPTED
    assert int(push(memory, s, low, bs=image)[1]) == ACCEPTED
    assert int(push(memory, s, low, bs=larger)[1]) == SKIPPED
    assert int(push(memory, s, low, sbs=sbs)[1]) == ACCEPTED
    assert int(push(memory, s, low, sbs=3.0 * sbs)[1]) == SKIPPED
    assert int(push(memory, s, low, sbs=sbs, bs=larger)[1]) == ACCEPTED


def test_an_empty_memory_asks_for_an_angle(x64):
    empty = make_memory(*draw_pairs(0))
    s, y = (draw_vector(seed) for seed in range(2))
    y = with_curvature(s, y, 0.0)
    for cosine, expected in ((1.1e-8, ACCEPTED), (0.9e-8, SKIPPED), (-0.1, SKIPPED)):
        for length in (1e-9, 1.0, 1e9):
            wanted = cosine * np.linalg.norm(s) * np.linalg.norm(y)
            low = with_curvature(s, y, wanted)
            assert int(push(empty, length * s, 1e-3 * low * length)[1]) == expected


@pytest.mark.parametrize("c", [1e-6, 1e6])
@pytest.mark.parametrize("count", [0, 4])
def test_the_relative_decision_has_no_unit(x64, count, c):
    for factor in (0.0099, 0.0101, 1.0, -1.0):
        statuses = []
        for unit in (1.0, c):
            memory, s, y, sbs = setting(count, unit)
            if count:
                y = with_curvature(s, y, factor * sbs)
            else:
                y = factor * y
            statuses.append(int(push(memory, s, y)[1]))
        smallest = 0.01 if count else 0.0
        assert statuses[0] == statuses[1] == (factor > smallest)


def test_the_absolute_decision_has_one(x64):
    statuses = []
    for unit in (1.0, 1e-6):
        memory, s, y, _ = setting(4, unit)
        statuses.append(int(push(memory, s, y, curvature="absolute")[1]))
    assert statuses == [ACCEPTED, SKIPPED]
    for factor, expected in ((1.001, ACCEPTED), (0.999, SKIPPED)):
        memory, s, y, _ = setting(0)
        low = with_curvature(s, y, factor * 0.3 * s @ s)
        status = push(memory, s, low, curvature="absolute", eps=0.3)[1]
        assert int(status) == expected


def test_none_stores_negative_curvature_and_refuses_zero():
    memory = optim_jax.init_memory(jnp.zeros(2), 3)
    options = {"curvature": "none"}
    s, orthogonal = jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 1.0])
    after, status = optim_jax.push_pair(memory, s, -s, **options)
    assert int(status) == ACCEPTED and float(after.gamma) == -1.0
    after, status = optim_jax.push_pair(memory, s, orthogonal, **options)
    assert int(status) == SKIPPED
    assert_unchanged(after, memory)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("damping", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pairs_that_are_not_finite_change_nothing(curvature, damping, value):
    options = {"curvature": curvature, "damping": damping}
    for count in (0, 6):
        s, y = draw_pairs(count + 1)
        memory = make_memory(s[:-1], y[:-1])
        bad_s, bad_y = s[-1].copy(), y[-1].copy()
        bad_s[3] = bad_y[5] = value
        for pair in ((bad_s, y[-1]), (s[-1], bad_y), (bad_s, bad_y)):
            after, status = push(memory, *pair, **options)
            assert int(status) == SKIPPED
            assert_unchanged(after, memory)


def test_absurd_pairs_are_skipped(x64):
    for count in (0, 3):
        memory, s, y, _ = setting(count)
        steep = y * np.linalg.norm(s) / np.linalg.norm(y)
        assert int(push(memory, s, 0.9e8 * steep)[1]) == ACCEPTED
        assert int(push(memory, s, 1.1e8 * steep)[1]) == SKIPPED
        for pair in ((0.0 * s, y), (s, 0.0 * y), (0.0 * s, 0.0 * y)):
            assert int(push(memory, *pair)[1]) == SKIPPED


def test_damping_lifts_the_curvature(x64):
    memory, s, y, sbs = setting(7)
    for factor, expected in ((-2.0, DAMPED), (0.19, DAMPED), (0.21, ACCEPTED)):
        low = with_curvature(s, y, factor * sbs)
        after, status = push(memory, s, low, damping=True)
        assert int(status) == expected
        newest = (int(after.head) - 1) % 5
        stored = flat(jax.tree.map(lambda leaf, i=newest: leaf[i], after.y))
        if expected == DAMPED:
            image = image_of(memory, make_tree(s))
            mended, _ = optim_jax.damp_pair(make_tree(s), make_tree(low), image, 0.2)
            np.testing.assert_allclose(stored, flat(mended), rtol=1e-10)
            assert s @ stored == pytest.approx(0.2 * sbs, rel=1e-10)
            given, _ = push(memory, s, low, damping=True, bs=image)
            np.testing.assert_allclose(given.yy, after.yy, rtol=1e-10)
        else:
            np.testing.assert_array_equal(stored, low)
        gamma = s @ stored / (stored @ stored)
        assert float(after.gamma) == pytest.approx(gamma, rel=1e-12) and gamma > 0
        inverse = columns(optim_jax.apply_inverse_hessian, after)
        assert np.linalg.eigvalsh(inverse).min() > 0


@pytest.mark.parametrize("curvature", CURVATURES)
def test_damping_of_an_empty_memory_takes_its_scale_from_the_pair(x64, curvature):
    memory, s, y, _ = setting(0)
    scale = (y @ y) / (s @ y)
    options = {"damping": True, "eps": 0.1, "curvature": curvature}
    for image in (None, make_tree(1e9 * s)):
        after, status = push(memory, s, -y, bs=image, **options)
        assert int(status) == DAMPED
        assert float(after.sy[0, 0]) == pytest.approx(0.1 * scale * (s @ s), rel=1e-12)


def test_a_pair_may_be_left_out(x64):
    memory, s, y, _ = setting()
    assert int(push(memory, s, y)[1]) == ACCEPTED
    after, status = push(memory, s, y, where=False)
    assert int(status) == SKIPPED
    assert_unchanged(after, memory)


def test_traced_eps_and_a_batch_of_memories(x64):
    memory, s, y, sbs = setting()
    low = with_curvature(s, y, 0.1 * sbs)
    together = jax.jit(jax.vmap(lambda eps: push(memory, s, low, eps=eps)))
    after, statuses = together(jnp.asarray([0.05, 0.2]))
    np.testing.assert_array_equal(statuses, [ACCEPTED, SKIPPED])
    assert_unchanged(jax.tree.map(lambda leaf: leaf[1], after), memory)
    np.testing.assert_allclose(after.sy[0], push(memory, s, low)[0].sy, rtol=1e-13)


def test_types_do_not_change(x64):
    s, y = (make_tree(v, "float32") for v in draw_pairs(1)[0:2] for v in v)
    memory = optim_jax.init_memory(s, 2, memory_dtype="bfloat16")
    for options in ({}, {"damping": True}, {"sbs": np.float64(1.0)}, {"bs": y}):
        eps = jnp.asarray(0.1)
        after, status = jax.eval_shape(
            lambda m, o=options, e=eps: optim_jax.push_pair(m, s, y, eps=e, **o), memory
        )
        assert status.dtype == jnp.int32
        same = jax.tree.map(lambda a, b: a.dtype == b.dtype, after, memory)
        assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "angle"}, "curvature must be one of absolute, none, relative"),
        ({"eps": 0.0}, "eps must be finite and > 0, got 0.0"),
        ({"eps": -1}, "eps must be finite and > 0, got -1.0"),
        ({"eps": float("inf")}, "eps must be finite and > 0, got inf"),
        ({"eps": 1.0, "damping": True}, r"eps must be in \(0, 1\) for damping, got 1"),
        ({"eps": lambda t: 0.1}, "eps must be a number"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    memory, v = optim_jax.init_memory(jnp.ones(2), 2), jnp.ones(2)
    with pytest.raises(ValueError, match=message):
        optim_jax.push_pair(memory, v, v, **options)
    with pytest.raises(ValueError, match=message):
        optim_jax.scale_by_multibatch_lbfgs(**options)


def test_products_of_the_pair_are_those_of_what_is_stored():
    s, y = draw_pairs(2)
    memory = optim_jax.init_memory(make_tree(s[0]), 2, memory_dtype="bfloat16")
    memory, _ = push(memory, s[0], y[0])
    step, change = (jax.tree.map(lambda b: b[0], t) for t in (memory.s, memory.y))
    assert float(memory.sy[0, 0]) == pytest.approx(
        float(tree_dot(step, change)), rel=1e-6
    )
    assert float(memory.sy[0, 0]) != pytest.approx(s[0] @ y[0], rel=1e-6)
