"""The form by parameter and block: round trips, other meshes, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import optim_jax

KINDS = {
    "root": optim_jax.RootInverse(),
    "eigendecomposed": optim_jax.Eigendecomposed(),
    "soap": optim_jax.EigenvalueCorrected(),
    "diagonal": optim_jax.Diagonal("adam"),
}
OPTIONS = {
    "max_preconditioner_dim": 4,
    "target_dimensionality": 2,
    "precondition_frequency": 2,
    "grafting": "adam",
    "b2": 0.95,
    "eps": 1e-4,
}


def _draw(seed):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(2, 6, 5)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=3), jnp.float32),
    }


def _axes(params):
    return {"kernel": optim_jax.MatrixAxes("hidden", (0,), (1,), (2,)), "bias": None}


def _build(kind="root", devices=None, **options):
    mesh = None
    if devices:
        mesh = jax.make_mesh(
            (devices,),
            ("data",),
            axis_types=(AxisType.Auto,),
            devices=jax.devices()[:devices],
        )
    return optim_jax.scale_by_shampoo(
        preconditioner=KINDS[kind], matrix_axes=_axes, mesh=mesh, **OPTIONS, **options
    )


def _advance(tx, state, seeds):
    updates, step = None, jax.jit(tx.update)
    for seed in seeds:
        updates, state = step(_draw(seed), state)
    return jax.tree.map(np.asarray, updates), state


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_changes_nothing(kind, packed):
    tx = _build(kind)
    plan = tx.plan(_draw(0))
    _, state = _advance(tx, tx.init(_draw(0)), range(3))
    canonical = optim_jax.to_canonical_state(state, plan, packed=packed)
    restored = optim_jax.from_canonical_state(canonical, plan)

    def compare(x, y):
        # Packing keeps one of two entries that are equal up to rounding, whose size
        # follows the diagonal, not the entry.
        atol = 4 * np.finfo(np.float32).eps * np.abs(y).max() if packed else 0.0
        np.testing.assert_allclose(x, y, rtol=0.0, atol=atol)

    jax.tree.map(compare, restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_the_form():
    tx = _build()
    _, state = _advance(tx, tx.init(_draw(0)), range(3))
    canonical = optim_jax.to_canonical_state(state, tx.plan(_draw(0)))
    assert set(canonical) == {"count", "params", "health"}
    # Two layers of a (5, 6) matrix in blocks of 4: layer 0 first.
    blocks = canonical["params"]["['kernel']"]
    assert len(blocks) == 8
    shapes = [blocks[str(n)]["mu"].shape for n in range(8)]
    assert shapes == [(4, 4), (4, 2), (1, 4), (1, 2)] * 2
    assert [f.shape for f in blocks["1"]["factor"]] == [(4, 4), (2, 2)]
    assert set(blocks["0"]) == {"factor", "inverse", "mu", "graft"}
    packed = optim_jax.to_canonical_state(state, tx.plan(_draw(0)), packed=True)
    assert packed["params"]["['kernel']"]["1"]["factor"][0].shape == (10,)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(canonical))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, 3, 1])
@pytest.mark.parametrize("kind", ["root", "soap"])
def test_eight_devices_go_on_as_fewer(kind, devices):
    eight = _build(kind, devices=8)
    _, state = _advance(eight, eight.init(_draw(0)), range(3))
    canonical = optim_jax.to_canonical_state(state, eight.plan(_draw(0)))
    expected, _ = _advance(eight, state, range(3, 6))
    fewer = _build(kind, devices=devices)
    restored = optim_jax.from_canonical_state(canonical, fewer.plan(_draw(0)))
    stack = jax.tree.leaves(restored.mu)[0]
    assert stack.shape[0] % devices == 0 and len(stack.sharding.device_set) == devices
    actual, _ = _advance(fewer, restored, range(3, 6))
    for name, leaf in expected.items():
        np.testing.assert_allclose(actual[name], leaf, rtol=1e-5, atol=1e-6)


def test_within_other_transformations():
    tx = optim_jax.gpa(optax.chain(optax.clip_by_global_norm(1.0), _build()))
    params = _draw(0)
    _, state = tx.update(_draw(1), tx.init(params), params)
    plan = _build().plan(params)
    restored = optim_jax.from_canonical_state(
        optim_jax.to_canonical_state(state, plan), plan
    )
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    with pytest.raises(ValueError, match="expected one Shampoo state .* found 0"):
        optim_jax.to_canonical_state(optax.EmptyState(), plan)
    with pytest.raises(ValueError, match="expected one Shampoo state .* found 2"):
        optim_jax.to_canonical_state((state, state), plan)


def _broken(change):
    tx = _build()
    plan = tx.plan(_draw(0))
    _, state = _advance(tx, tx.init(_draw(0)), range(1))
    canonical = optim_jax.to_canonical_state(state, plan)
    change(canonical)
    return canonical, plan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["params"].pop("['bias']"), r"params lacks \[\"\['bias'\]\"\]"),
        (lambda c: c["params"].update(new={}), r"unexpected \['new'\]"),
        (lambda c: c["params"]["['bias']"].pop("0"), r"\['bias'\] lacks \['0'\]"),
        (
            lambda c: c["params"]["['bias']"]["0"].pop("mu"),
            r"block 0 of \['bias'\] lacks \['mu'\]",
        ),
        (
            lambda c: c["params"]["['bias']"]["0"].update(second_moment=0),
            r"block 0 of \['bias'\] .* unexpected \['second_moment'\]",
        ),
        (
            lambda c: c["params"]["['bias']"]["0"].update(mu=np.zeros(4)),
            r"block 0 of \['bias'\] .* shape \(4,\), expected \(3,\)",
        ),
        (lambda c: c["health"].pop("skipped"), r"health lacks \['skipped'\]"),
        (lambda c: c.update(count=-1), "count .* must be an integer >= 0, got -1"),
        (lambda c: c["health"].update(skipped=5), "disagree: skipped=5 of count=1"),
        (lambda c: c.pop("health"), r"the state lacks \['health'\]"),
    ],
)
def test_bad_canonical_states(change, words):
    canonical, plan = _broken(change)
    with pytest.raises(ValueError, match=words):
        optim_jax.from_canonical_state(canonical, plan)
