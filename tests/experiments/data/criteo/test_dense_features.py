import math

import numpy as np
import pytest

from experiments.data.criteo.dense_features import log1p_dense, transform_dense


@pytest.mark.parametrize("name", ["criteo_small", "criteo_hashed"])
def test_logarithm_of_the_original_implementation(golden_dir, name):
    with np.load(golden_dir / "dlrm" / f"{name}.npz", allow_pickle=False) as golden:
        expected = golden["batch0/dense_log1p"]
        dense = log1p_dense(golden["X_int"][:4])
    assert dense.dtype == np.float32
    # Libraries round the last bit of a float32 logarithm either way.
    np.testing.assert_array_max_ulp(dense, expected, maxulp=1)


def test_logarithm_clips_and_keeps_large_values_finite():
    dense = log1p_dense(np.array([-(2**63), -3, 0, 1, 2**63 - 1]))
    expected = [0.0, 0.0, 0.0, math.log(2.0), 63 * math.log(2.0)]
    np.testing.assert_allclose(dense, expected, rtol=1e-6)


def test_shifted_logarithm():
    values = np.array([[-1, 0, 5], [-3, 2**62, 7]])
    # ln(x + 3) with the minimum -1; what lies below it counts as the minimum.
    expected = np.log([[2.0, 3.0, 8.0], [2.0, 2.0**62 + 3, 10.0]])
    shifted = transform_dense(values, "log_shift", minimum=-1)
    np.testing.assert_allclose(shifted, expected, rtol=1e-6)
    assert shifted.dtype == np.float32
    # The difference overflows 64 bits.
    extreme = transform_dense(np.array([2**63 - 1]), "log_shift", minimum=-(2**63))
    np.testing.assert_allclose(extreme, 64 * math.log(2.0), rtol=1e-6)


def test_none_changes_the_type_only():
    plain = transform_dense(np.array([-2, 0, 9]), "none")
    assert plain.dtype == np.float32 and plain.tolist() == [-2.0, 0.0, 9.0]


def test_refuses_settings():
    with pytest.raises(ValueError, match="dense_transform must be one of .*'log2'"):
        transform_dense(np.zeros(3, int), "log2")
    with pytest.raises(ValueError, match="'log_shift' needs dense_minimum"):
        transform_dense(np.zeros(3, int), "log_shift")
    with pytest.raises(ValueError, match="dense_minimum=0 has no use"):
        transform_dense(np.zeros(3, int), "log1p_clip", minimum=0)
