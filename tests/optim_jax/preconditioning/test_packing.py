"""Upper triangles."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.preconditioning.packing import pack_symmetric, unpack_symmetric


def test_replays_the_stored_triangle(golden_dir):
    tables = json.loads((golden_dir / "shampoo" / "functions.json").read_text())
    stored = tables["packing"]
    matrix = np.array(stored["matrix"])
    packed = pack_symmetric(matrix)
    assert packed.tolist() == stored["packed_upper_row_major"]
    np.testing.assert_array_equal(unpack_symmetric(packed), matrix)


@pytest.mark.parametrize("namespace", [np, jnp])
def test_batches_keep_their_kind(namespace):
    matrices = namespace.stack([namespace.eye(3), namespace.full((3, 3), 2.0)])
    packed = pack_symmetric(matrices)
    assert packed.shape == (2, 6)
    assert isinstance(packed, jax.Array) == (namespace is jnp)
    np.testing.assert_array_equal(unpack_symmetric(packed), matrices)


def test_bad_input():
    with pytest.raises(ValueError, match=r"shape \(..., d, d\), got \(2, 3\)"):
        pack_symmetric(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"d \(d \+ 1\) / 2 entries"):
        unpack_symmetric(np.ones(5))
