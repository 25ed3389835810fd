import numpy as np
import pytest

from experiments.data.documents import content_position, digest, split_corpus


def test_the_split_is_by_content_alone():
    texts = [f"document {i}" for i in range(2000)]
    train, held_out = split_corpus(texts, 0.05)
    assert sorted(train + held_out) == sorted(texts)
    assert 60 < len(held_out) < 140
    # Order, company and copies do not matter.
    again = split_corpus(texts[::-1] + texts[:500] + ["more"], 0.05)[1]
    assert set(held_out) <= set(again) <= {*held_out, "more"}


def test_no_side_is_left_empty():
    for fraction in (1e-9, 0.999999):
        train, held_out = split_corpus(["a", "b", "c", "a"], fraction)
        assert train and held_out and not set(train) & set(held_out)
    with pytest.raises(ValueError, match="only one: give data.validation_path"):
        split_corpus(["a", "a"], 0.5)


def test_positions_are_uniform_and_fixed():
    positions = np.array([content_position(str(i)) for i in range(4000)])
    assert 0 <= positions.min() and positions.max() < 1
    assert abs(positions.mean() - 0.5) < 0.02
    # Stored: a change would move documents across the split of running projects.
    assert content_position("optim-jax") == pytest.approx(0.49210116197325626)
    content_position("lone \ud800 surrogate")


def test_the_digest_tells_boundaries_apart():
    assert digest(["a"], [b"bc"]) != digest(["ab"], [b"c"])
    assert digest(["a", "b"], [b"", b""]) != digest(["a"], [b"b"])
