import numpy as np
import pytest

from experiments.data.criteo.id_hashing import hash_ids, mix_ids, reduce_ids

IDS = np.array([0, 1, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32)


def test_modulo_is_exact_over_all_32_bits():
    for rows in (1, 3, 100, 2**31 - 1):
        hashed = hash_ids(IDS, rows, None, 0)
        assert hashed.tolist() == [int(i) % rows for i in IDS]
        assert hashed.dtype == np.int32
    assert reduce_ids(IDS, 5).tolist() == [int(i) % 5 for i in IDS]
    assert reduce_ids(IDS, 2**32 - 1).tolist() == [0, 1, 7, 2**31 - 1, 2**31, 0]
    for unlimited in (-1, 2**32):
        assert reduce_ids(IDS, unlimited) is IDS


def slow_mix(key: int, value: int) -> int:
    mixed = (value + key) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return mixed ^ mixed >> 31


def test_mixing_is_the_finalizer_and_differs_by_seed_and_column():
    key = int(np.random.SeedSequence((3, 5)).generate_state(1, np.uint64)[0])
    assert mix_ids(IDS, 3, 5).tolist() == [slow_mix(key, int(i)) for i in IDS]
    others = [mix_ids(IDS, 3, 4), mix_ids(IDS, 4, 5), mix_ids(IDS, 5, 3)]
    assert len({tuple(mixed) for mixed in [mix_ids(IDS, 3, 5), *others]}) == 4


@pytest.mark.parametrize("stride", [1, 16, 100])
def test_mixing_spreads_what_the_modulo_does_not(stride):
    ids = np.arange(0, 20_000 * stride, stride, dtype=np.uint32)
    counts = np.bincount(hash_ids(ids, 100, 1, 0), minlength=100)
    # Chi-square with 99 degrees of freedom; 170 is beyond one in 10,000.
    assert ((counts - 200.0) ** 2 / 200.0).sum() < 170.0
    if stride == 100:
        assert (hash_ids(ids, 100, None, 0) == 0).all()
