import collections

import numpy as np
import pytest

from experiments.data.criteo.first_seen import FirstSeen, SortedKeys


@pytest.mark.parametrize("chunk", [1, 7, 20_000])
@pytest.mark.parametrize("values", [5, 90_000])
def test_order_and_counts_are_those_of_a_dictionary(chunk, values):
    rng = np.random.default_rng(values)
    size = 200 if chunk == 1 else 120_000 if chunk > 100 else 2000
    column = (rng.integers(values, size=size) * 2654435761 % 2**32).astype(np.uint32)
    column[::50] = 0xFFFFFFFF
    seen = FirstSeen(count=True)
    for start in range(0, size, chunk):
        seen.add(column[start : start + chunk])
    expected = collections.Counter(column.tolist())  # keeps the order of insertion
    assert seen.values().dtype == np.uint32
    assert seen.values().tolist() == list(expected)
    assert seen.counts().tolist() == list(expected.values())
    assert len(seen) == len(expected)
    keys = SortedKeys(seen.values())
    assert keys.find(seen.values()).tolist() == list(range(len(seen)))


def test_nothing_seen():
    seen = FirstSeen(count=True)
    seen.add(np.zeros(0, np.uint32))
    assert len(seen) == 0 and len(seen.values()) == 0 and len(seen.counts()) == 0
    assert SortedKeys(seen.values()).find(np.array([3], np.uint32)).tolist() == [-1]
    with pytest.raises(ValueError, match="without count=True"):
        FirstSeen().counts()


def test_absent_values_are_not_found():
    keys = SortedKeys(np.array([9, 0xFFFFFFFE, 4], np.uint32))
    asked = np.array([0, 4, 5, 9, 0xFFFFFFFE, 0xFFFFFFFF], np.uint32)
    assert keys.find(asked).tolist() == [-1, 2, -1, 0, 1, -1]
