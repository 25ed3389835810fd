"""Closed forms and symmetries of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax
from optim_jax import Eigendecomposed, EigenvalueCorrected, Graft, RootInverse

PLAIN = {"b1": 0.0, "b2": 1.0, "eps": 1e-10, "relative_epsilon": 0.0, "grafting": None}
DOUBLE = {"factor_dtype": jnp.float64, "inverse_dtype": jnp.float64}


def _draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _run(tx, params, gradients):
    """Parameters after every step, and the state."""
    step = jax.jit(tx.update)
    state, path = tx.init(params), []
    for gradient in gradients:
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path, state


def _root(matrix, exponent, eps):
    eigenvalues, vectors = np.linalg.eigh(matrix)
    return (vectors * (eigenvalues + eps) ** -exponent) @ vectors.T


def test_a_merged_vector_is_full_matrix_adagrad(x64):
    tx = optim_jax.shampoo(0.1, **PLAIN, **DOUBLE, max_preconditioner_dim=6)
    w = _draw(2, 3)
    gradients = [_draw(2, 3, seed=1 + t) for t in range(5)]
    path, _ = _run(tx, w, gradients)
    total, expected = np.zeros((6, 6)), np.asarray(w).ravel()
    for gradient, after in zip(gradients, path, strict=True):
        g = np.asarray(gradient).ravel()
        total += np.outer(g, g)
        expected = expected - 0.1 * _root(total, 0.5, 1e-10) @ g
        np.testing.assert_allclose(np.ravel(after), expected, rtol=0.0, atol=1e-9)


def test_first_steps(x64):
    options = {**PLAIN, **DOUBLE, "eps": 1e-14, "target_dimensionality": 2}
    tx = optim_jax.shampoo(1.0, **options)
    g = _draw(4, 4)
    update = tx.update(g, tx.init(g), g)[0]
    left, _, right = np.linalg.svd(g)
    np.testing.assert_allclose(update, -left @ right, atol=1e-6)
    rank_one = jnp.outer(jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0, 2.0]))
    update = tx.update(rank_one, tx.init(rank_one), rank_one)[0]
    expected = [[-0.2, -0.4, -0.4], [-4 / 15, -8 / 15, -8 / 15]]
    np.testing.assert_allclose(update, expected, atol=1e-6)
    vector = jnp.array([3.0, 4.0])
    update = tx.update(vector, tx.init(vector), vector)[0]
    np.testing.assert_allclose(update, [-0.6, -0.8], atol=1e-6)


def test_a_constant_gradient_decays_like_adagrad(x64):
    tx = optim_jax.shampoo(1.0, **PLAIN, **DOUBLE, target_dimensionality=2)
    gradient = 2.5 * jnp.eye(3)
    path, _ = _run(tx, jnp.zeros((3, 3)), [gradient] * 4)
    steps = np.diff([np.zeros((3, 3)), *path], axis=0)
    for t, step in enumerate(steps, start=1):
        np.testing.assert_allclose(step, -np.eye(3) / t**0.5, atol=1e-9)


@pytest.mark.parametrize("grafting", [None, "sgd"])
def test_orthogonal_equivariance(grafting, x64):
    options = {**PLAIN, **DOUBLE, "eps": 1e-6, "target_dimensionality": 2}
    tx = optim_jax.shampoo(0.1, **{**options, "grafting": grafting, "b1": 0.9})
    left = jnp.linalg.qr(_draw(5, 5, seed=8))[0]
    right = jnp.linalg.qr(_draw(3, 3, seed=9))[0]
    w, gradients = _draw(5, 3), [_draw(5, 3, seed=1 + t) for t in range(4)]
    plain, _ = _run(tx, w, gradients)
    turned, _ = _run(tx, left @ w @ right, [left @ g @ right for g in gradients])
    np.testing.assert_allclose(turned[-1], left @ plain[-1] @ right, atol=1e-12)


def test_scale_invariance(x64):
    gradients = [_draw(4, 3, seed=t) for t in range(3)]
    runs = []
    for c in (1.0, 100.0):
        tx = optim_jax.shampoo(
            0.1,
            **{**PLAIN, **DOUBLE, "b2": 0.9, "eps": 1e-6 * c**2},
            target_dimensionality=2,
        )
        runs.append(_run(tx, jnp.zeros((4, 3)), [c * g for g in gradients])[0][-1])
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-10)


@pytest.mark.parametrize("build", [optim_jax.shampoo, optim_jax.soap])
def test_blocks_are_independent(build, x64):
    options = {**DOUBLE, "precondition_frequency": 1, "target_dimensionality": 2}
    tx = build(0.1, max_preconditioner_dim=4, **options)
    gradients = [_draw(6, 7, seed=t) for t in range(3)]
    whole, _ = _run(tx, jnp.zeros((6, 7)), gradients)
    for rows in (slice(0, 4), slice(4, 6)):
        for columns in (slice(0, 4), slice(4, 7)):
            parts = [g[rows, columns] for g in gradients]
            alone, _ = _run(tx, jnp.zeros(parts[0].shape), parts)
            np.testing.assert_allclose(
                whole[-1][rows, columns], alone[-1], rtol=0.0, atol=1e-12
            )


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rmsprop", "adam"])
def test_grafting_gives_each_block_the_norm_of_the_other_method(kind):
    options = {"max_preconditioner_dim": 4, "target_dimensionality": 2, "b1": 0.9}
    tx = optim_jax.scale_by_shampoo(grafting=Graft(kind), **options)
    graft = optim_jax.scale_by_shampoo(
        preconditioner=optim_jax.Diagonal(kind), **options
    )
    gradients = [_draw(4, 8, seed=t) for t in range(3)]
    state, graft_state = tx.init(gradients[0]), graft.init(gradients[0])
    for gradient in gradients:
        update, state = tx.update(gradient, state)
        magnitude, graft_state = graft.update(gradient, graft_state)
    for columns in (slice(0, 4), slice(4, 8)):
        np.testing.assert_allclose(
            jnp.linalg.norm(update[:, columns]),
            jnp.linalg.norm(magnitude[:, columns]),
            rtol=1e-6,
        )
    assert jnp.abs(update - magnitude).max() > 1e-2


def test_soap_is_adam_until_its_first_refresh(x64):
    tx = optim_jax.soap(0.1, precondition_frequency=10, **DOUBLE)
    adam = optax.adam(0.1, b1=0.95, b2=0.95, eps=1e-8)
    gradients = [_draw(5, 3, seed=t) for t in range(4)]
    ours, _ = _run(tx, jnp.zeros((5, 3)), gradients)
    theirs, _ = _run(adam, jnp.zeros((5, 3)), gradients)
    np.testing.assert_allclose(ours[-1], theirs[-1], rtol=0.0, atol=1e-14)


def test_traces_of_all_factors_agree(x64):
    tx = optim_jax.scale_by_shampoo(b2=0.9, **DOUBLE, max_preconditioner_dim=4)
    gradients = [_draw(3, 4, 2, seed=t) for t in range(4)]
    state = tx.init(gradients[0])
    for gradient in gradients:
        _, state = tx.update(gradient, state)
    weights = 0.1 * 0.9 ** np.arange(4)[::-1]
    expected = sum(w * jnp.sum(g**2) for w, g in zip(weights, gradients, strict=True))
    for bucket in state.buckets.values():
        for factor in bucket.factors:
            np.testing.assert_allclose(jnp.trace(factor[0]), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("frequency", "start", "expected"),
    [
        (1, -1, list(range(1, 19))),
        (5, -1, [5, 10, 15]),
        (3, 7, [7, 9, 12, 15, 18]),
        (4, 9, [9, 12, 16]),
    ],
)
def test_refresh_schedule(frequency, start, expected):
    tx = optim_jax.scale_by_shampoo(
        precondition_frequency=frequency,
        start_preconditioning_step=start,
        grafting="sgd",
    )
    step, gradient = jax.jit(tx.update), jnp.ones(2)
    state, refreshes = tx.init(gradient), []
    for t in range(1, 19):
        before = int(state.health.refreshes)
        _, state = step(gradient, state)
        if int(state.health.refreshes) > before:
            refreshes.append(t)
    assert refreshes == expected


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_averaging_around_plain_descent_is_heavy_ball(beta, x64):
    sgd = {"preconditioner": optim_jax.Diagonal("sgd"), "grafting": None, "b1": 0.0}
    gradients = [_draw(3, seed=t) for t in range(5)]
    base = optim_jax.shampoo(0.1 / (1 - beta), **sgd)
    averaged = optim_jax.gpa(base, mu_x=beta, mu_y=1.0)
    ours, _ = _run(averaged, jnp.zeros(3), gradients)
    theirs, _ = _run(optax.sgd(0.1, momentum=beta), jnp.zeros(3), gradients)
    np.testing.assert_allclose(ours[-1], theirs[-1], atol=1e-12)


def test_matrix_axes_make_every_batch_entry_a_parameter_of_its_own(x64):
    options = {**DOUBLE, "target_dimensionality": 2, "max_preconditioner_dim": 4}
    axes = optim_jax.MatrixAxes("hidden", (0,), (1,), (2,))
    tx = optim_jax.shampoo(0.1, matrix_axes=axes, **options)
    alone = optim_jax.shampoo(
        0.1, matrix_axes=optim_jax.MatrixAxes("hidden"), **options
    )
    gradients = [_draw(3, 5, 4, seed=t) for t in range(3)]
    together, state = _run(tx, jnp.zeros((3, 5, 4)), gradients)
    # Outputs come first in the blocks: 4 x 4 and 4 x 1.
    assert set(state[0].buckets) == {"4x4_float64", "4x1_float64"}
    for layer in range(3):
        path, _ = _run(alone, jnp.zeros((5, 4)), [g[layer] for g in gradients])
        np.testing.assert_allclose(together[-1][layer], path[-1], atol=1e-12)


def test_dims_without_a_factor(x64):
    tx = optim_jax.scale_by_shampoo(
        skip_dims_larger_than=4, max_preconditioner_dim=4, target_dimensionality=2
    )
    (bucket,) = tx.plan(jnp.ones((8, 3))).layout.buckets
    assert bucket.modes == (1,) and bucket.exponents[0] == 1 / 4
    tx = optim_jax.scale_by_shampoo(precondition_1d=False, b1=0.0)
    g = _draw(5)
    np.testing.assert_array_equal(tx.update(g, tx.init(g))[0], g)


def test_eigenvalues_corrected_at_every_step(x64):
    # With a basis that fits for ever, they are those of the current factor.
    tx = optim_jax.scale_by_shampoo(
        b1=0.0,
        b2=1.0,
        eps=1e-12,
        relative_epsilon=0.0,
        target_dimensionality=2,
        start_preconditioning_step=100,
        precondition_frequency=100,
        grafting="sgd",
        preconditioner=Eigendecomposed(correct_eigenvalues=True),
        refresh="external",
        **DOUBLE,
    )
    gradients = [jnp.diag(_draw(3, seed=t)) for t in range(3)]
    state = tx.init(gradients[0])
    for index, gradient in enumerate(gradients):
        update, state = tx.update(gradient, state)
        if index == 0:
            state = optim_jax.refresh_preconditioners(state, tx.plan(gradient))
    total = sum(np.diag(g) ** 2 for g in gradients)
    direction = np.diag(gradients[-1]) / np.sqrt(total)
    expected = direction * np.linalg.norm(gradients[-1]) / np.linalg.norm(direction)
    np.testing.assert_allclose(np.diag(update), expected, rtol=1e-9)


def test_a_permuted_second_moment_follows_its_columns(x64):
    def build(permute):
        return optim_jax.scale_by_soap(
            b1=0.0,
            b2=1.0,
            precondition_1d=True,
            precondition_frequency=2,
            preconditioner=EigenvalueCorrected(
                method=optim_jax.QR(), permute_second_moment=permute
            ),
            **DOUBLE,
        )

    gradients = [jnp.array([3.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0])]
    moments = []
    for permute in (False, True):
        tx = build(permute)
        state = tx.init(gradients[0])
        for gradient in gradients:
            _, state = tx.update(gradient, state)
        moments.append(state.buckets["3_float64"].second_moment[0])
    # After step 1: (9, 0, 0). The basis sorts the dims as (2, 1, 0), and the gradient
    # of step 2 then lies in the middle.
    np.testing.assert_allclose(moments[0], [9.0, 1.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(moments[1], [0.0, 1.0, 9.0], atol=1e-9)


def test_aliases_are_shampoo_with_other_defaults():
    gradient = _draw(4, 3)
    pairs = [
        (
            optim_jax.soap(0.1),
            optim_jax.shampoo(
                0.1,
                b1=0.95,
                b2=0.95,
                eps=1e-8,
                precondition_frequency=10,
                grafting=None,
                preconditioner=EigenvalueCorrected(),
            ),
        ),
        (
            optim_jax.kl_shampoo(0.1),
            optim_jax.shampoo(
                0.1,
                grafting=None,
                preconditioner=optim_jax.KLRootInverse(
                    inverse_exponent_override={2: 0.5}
                ),
            ),
        ),
        (
            optim_jax.shampoo(0.1, exact_reference_defaults=True),
            optim_jax.shampoo(0.1, b2=1.0, grafting=None, relative_epsilon=0.0),
        ),
        (
            optim_jax.scale_by_soap(),
            optim_jax.scale_by_shampoo(
                b1=0.95,
                b2=0.95,
                eps=1e-8,
                precondition_frequency=10,
                preconditioner=EigenvalueCorrected(),
            ),
        ),
    ]
    for first, second in pairs:
        updates = [
            tx.update(gradient, tx.init(gradient), gradient)[0]
            for tx in (first, second)
        ]
        np.testing.assert_array_equal(updates[0], updates[1])


def test_root_inverse_and_eigendecomposed_agree(x64):
    gradients = [_draw(4, 3, seed=t) for t in range(4)]
    runs = [
        _run(
            optim_jax.shampoo(
                0.1,
                preconditioner=kind,
                precondition_frequency=2,
                target_dimensionality=2,
                eps=1e-6,
                relative_epsilon=0.0,
                **DOUBLE,
            ),
            jnp.zeros((4, 3)),
            gradients,
        )[0][-1]
        for kind in (RootInverse(), Eigendecomposed())
    ]
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-10)
