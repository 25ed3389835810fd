import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.preconditioning.packing import pack_symmetric, unpack_symmetric


def _symmetric(*shape, dtype=np.float32):
    a = np.random.default_rng(0).standard_normal(shape)
    return (a + np.swapaxes(a, -1, -2)).astype(dtype)


def test_packs_as_stored(golden_dir):
    path = golden_dir / "shampoo" / "functions.json"
    stored = json.loads(path.read_text())["packing"]
    matrix, packed = np.array(stored["matrix"]), stored["packed_upper_row_major"]
    np.testing.assert_array_equal(pack_symmetric(matrix), packed)
    np.testing.assert_array_equal(unpack_symmetric(np.array(packed)), matrix)


@pytest.mark.parametrize("dim", [0, 1, 2, 3, 5, 64])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_round_trip(batch, dim):
    a = _symmetric(*batch, dim, dim)
    packed = pack_symmetric(a)
    assert packed.shape == (*batch, dim * (dim + 1) // 2)
    np.testing.assert_array_equal(unpack_symmetric(packed), a)
    assert pack_symmetric(unpack_symmetric(packed)).tobytes() == packed.tobytes()


def test_batches_are_packed_apart():
    a = _symmetric(2, 3, 4, 4)
    packed = pack_symmetric(a)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(packed[index], pack_symmetric(a[index]))
        np.testing.assert_array_equal(a[index], unpack_symmetric(packed[index]))


def test_only_the_upper_triangle_counts():
    a = np.array([[1.0, 2.0], [9.0, 3.0]])
    np.testing.assert_array_equal(pack_symmetric(a), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(
        unpack_symmetric(pack_symmetric(a)), [[1.0, 2.0], [2.0, 3.0]]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_keeps_the_kind_and_the_dtype(dtype):
    on_host = _symmetric(3, 3).astype(jnp.dtype(dtype))
    on_device = jnp.asarray(on_host)
    for a, kind in ((on_host, np.ndarray), (on_device, jax.Array)):
        packed = pack_symmetric(a)
        unpacked = unpack_symmetric(packed)
        assert isinstance(packed, kind) and isinstance(unpacked, kind)
        assert packed.dtype == unpacked.dtype == a.dtype
        np.testing.assert_array_equal(np.asarray(unpacked), on_host)


def test_under_jit():
    a = jnp.asarray(_symmetric(2, 4, 4))
    packed, back = jax.jit(
        lambda a: (pack_symmetric(a), unpack_symmetric(pack_symmetric(a)))
    )(a)
    np.testing.assert_array_equal(packed, pack_symmetric(np.asarray(a)))
    np.testing.assert_array_equal(back, a)


def test_does_not_share_memory():
    a = _symmetric(3, 3)
    kept = a.copy()
    pack_symmetric(a)[:] = 0.0
    np.testing.assert_array_equal(a, kept)
    packed = pack_symmetric(a)
    unpack_symmetric(packed)[:] = 0.0
    np.testing.assert_array_equal(packed, pack_symmetric(kept))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (3, 3, 2)])
def test_refuses_what_is_not_square(shape):
    with pytest.raises(ValueError, match=r"a must be square matrices.* got shape"):
        pack_symmetric(np.zeros(shape))


@pytest.mark.parametrize("shape", [(), (2,), (4,), (5,), (3, 7), (6, 9)])
def test_refuses_lengths_that_are_not_triangular(shape):
    with pytest.raises(ValueError, match=r"packed must have a last dim of .* got"):
        unpack_symmetric(np.zeros(shape))
