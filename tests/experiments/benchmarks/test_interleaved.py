import numpy as np
import pytest

from experiments.benchmarks.interleaved import interleave, ratio, restrict_threads


def test_every_contender_runs_once_per_round_in_changing_order():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = interleave(contenders, rounds=20, warmup=2)
    rounds = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 22
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1
    assert {name: values.shape for name, values in seconds.items()} == {
        name: (20,) for name in "abc"
    }


def test_ratio_compares_within_a_round():
    # The machine slows down tenfold half-way; the contender always takes twice as long.
    reference = np.array([1.0, 1.0, 10.0, 10.0])
    result = ratio(2 * reference, reference)
    assert (result.lower_quartile, result.median, result.upper_quartile) == (2, 2, 2)
    assert result.minimum == 2


def test_ratio_reports_the_spread_over_rounds():
    result = ratio(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.ones(5))
    assert (result.lower_quartile, result.median, result.upper_quartile) == (2, 3, 4)
    assert result.minimum == 1


@pytest.mark.parametrize("arguments", [{"rounds": 0}, {"rounds": 1, "warmup": -1}])
def test_refuses_round_counts_out_of_range(arguments):
    with pytest.raises(ValueError, match=r"(rounds|warmup) must be >= [01], got"):
        interleave({}, **arguments)


def test_refuses_more_threads_than_cores():
    with pytest.raises(ValueError, match=r"threads must lie in \[1, \d+\].*got 100000"):
        restrict_threads(100_000)
