"""A share of the roots at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim_jax
from optim_jax.preconditioning.staggered import turn_tables

OPTIONS = {"max_preconditioner_dim": 4, "target_dimensionality": 2, "grafting": "adam"}


def _draw(seed):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(10, 4)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=3), jnp.float32),
    }


def _walk(tx, steps):
    step, state, path = jax.jit(tx.update), tx.init(_draw(0)), []
    for t in range(steps):
        updates, state = step(_draw(t), state)
        path.append((updates, state))
    return path


def _changed(before, after):
    """(bucket, position, slot) of every root that a step replaced."""
    changed = set()
    for key, bucket in after.buckets.items():
        for position, new in enumerate(bucket.inverses):
            old = before.buckets[key].inverses[position]
            for slot in range(new.shape[0]):
                if np.any(np.asarray(new[slot]) != np.asarray(old[slot])):
                    changed.add((key, position, slot))
    return changed


@pytest.mark.parametrize("start", [-1, 3])
def test_a_period_of_one_is_the_plain_refresh(start):
    runs = [
        _walk(
            optim_jax.scale_by_shampoo(
                refresh=refresh, start_preconditioning_step=start, **OPTIONS
            ),
            5,
        )
        for refresh in ("cond", "staggered")
    ]
    for (expected, _), (actual, _) in zip(*runs, strict=True):
        for name, leaf in expected.items():
            np.testing.assert_allclose(actual[name], leaf, rtol=1e-5, atol=1e-6)


def test_every_root_has_its_turn_once_in_a_period():
    tx = optim_jax.scale_by_shampoo(
        refresh="staggered", precondition_frequency=3, **OPTIONS
    )
    states = [tx.init(_draw(0)), *(state for _, state in _walk(tx, 9))]
    shares = [_changed(a, b) for a, b in zip(states, states[1:], strict=False)]
    everything = {
        (bucket.key, position, slot)
        for bucket in tx.plan(_draw(0)).layout.buckets
        for position in range(len(bucket.modes))
        for slot in range(bucket.slots)
    }
    for first in (0, 3, 6):
        period = shares[first : first + 3]
        assert set.union(*period) == everything
        assert sum(map(len, period)) == len(everything)
    assert max(map(len, shares)) - min(map(len, shares)) <= 2


def test_roots_are_not_used_before_the_start():
    options = {"precondition_frequency": 3, "start_preconditioning_step": 5}
    tx = optim_jax.scale_by_shampoo(refresh="staggered", **options, **OPTIONS)
    plain = optim_jax.scale_by_shampoo(
        preconditioner=optim_jax.Diagonal("adam", eps=1e-8),
        max_preconditioner_dim=4,
        target_dimensionality=2,
    )
    path, reference = _walk(tx, 5), _walk(plain, 5)
    for t in range(4):
        for name, leaf in reference[t][0].items():
            np.testing.assert_allclose(path[t][0][name], leaf, rtol=1e-5)
    assert np.abs(path[4][0]["kernel"] - reference[4][0]["kernel"]).max() > 1e-3
    # The sweep that fills all roots is the period that ends at the start.
    refreshes = [int(state.health.refreshes) for _, state in path]
    assert refreshes == [0, 0, 1, 2, 3]


def test_turns_do_not_depend_on_the_mesh():
    def turns(devices):
        mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
        layout = (
            optim_jax.scale_by_shampoo(
                refresh="staggered", precondition_frequency=3, mesh=mesh, **OPTIONS
            )
            .plan(_draw(0))
            .layout
        )
        found = {}
        for stack, table in zip(layout.stacks, turn_tables(layout), strict=True):
            first = 0
            for key, position in stack.members:
                local = layout.bucket[key].padded_slots // devices
                for device, phase, _ in np.ndindex(table.shape):
                    for entry in table[device, phase]:
                        if first <= entry < first + local:
                            slot = device * local + int(entry) - first
                            found[key, position, slot] = phase
                first += local
        return found

    assert turns(1) == turns(2) == turns(4)
