import numpy as np
import pytest

from experiments.data.binary_labels import sign_labels


@pytest.mark.parametrize(
    ("labels", "signs"),
    [
        ([1.0, 2.0, 2.0], [-1, 1, 1]),
        ([1.0, -1.0, 1.0], [1, -1, 1]),
        ([0, 1], [-1, 1]),
        (["spam", "ham"], [1, -1]),
        ([10.0, 9.0], [1, -1]),  # as numbers, not as texts
        ([False, True], [-1, 1]),
    ],
)
def test_larger_or_later_class_is_plus_one(labels, signs):
    found = sign_labels(labels, "file")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, signs)


def test_other_numbers_of_classes_are_refused_with_their_names():
    with pytest.raises(
        ValueError, match=r"a.csv: the labels must be of two classes, got 3: 0.0, 1.0, "
    ):
        sign_labels([0.0, 1.0, 7.5, 1.0], "a.csv")
    with pytest.raises(ValueError, match="got 1: yes$"):
        sign_labels(["yes", "yes"], "a.csv")
    with pytest.raises(ValueError, match=r"got 50: 0, 1, .*, 9, …$"):
        sign_labels(range(50), "a.csv")
