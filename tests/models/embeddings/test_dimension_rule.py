import json

import numpy as np
import pytest

from models.embeddings import mixed_dimensions

ROWS = [1000, 10, 250, 4000]


def test_replays_the_original_implementations_widths(golden_dir):
    case = json.loads((golden_dir / "dlrm" / "md_basic.json").read_text())
    sizes, alpha, d0 = case["sizes"], case["alpha"], case["d0"]
    assert mixed_dimensions(sizes, alpha, d0=d0) == case["dims"]
    rounded = mixed_dimensions(sizes, alpha, d0=d0, round_to_power_of_two=True)
    assert rounded == case["dims_pow2"]
    from_budget = mixed_dimensions(sizes, alpha, budget=case["budget_B"])
    assert from_budget == case["dims_from_budget"]


def test_the_rule_is_written_out():
    widths = mixed_dimensions([4, 1, 16, 64], 0.5, d0=32)
    assert widths == [16, 32, 8, 4]
    assert mixed_dimensions([4, 1, 16, 10**9], 0.5, d0=32) == [16, 32, 8, 1]
    # Halves go to the even neighbour.
    assert mixed_dimensions([1, 4, 4], 0.5, d0=5) == [5, 2, 2]
    assert mixed_dimensions([1, 4, 4], 0.5, d0=7) == [7, 4, 4]


def test_alpha_zero_gives_equal_widths():
    assert mixed_dimensions(ROWS, 0.0, d0=16) == [16] * 4
    assert mixed_dimensions(ROWS, 0.0, budget=5260 * 7) == [7] * 4


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.7, 1.0])
def test_the_budget_is_met_up_to_rounding(alpha):
    budget = 400_000.0
    widths = mixed_dimensions(ROWS, alpha, budget=budget)
    spent = float(np.dot(ROWS, widths))
    assert abs(spent - budget) <= 0.5 * sum(ROWS)


@pytest.mark.parametrize("d0", [3, 16, 64, 100])
def test_the_smallest_table_gets_d0_exactly(d0):
    for rows in ([7, 49, 3, 11], [3], [10**7, 999_983]):
        widths = mixed_dimensions(rows, 0.37, d0=d0)
        assert widths[int(np.argmin(rows))] == d0 == max(widths)


def test_the_order_of_the_tables_is_kept():
    order = [2, 0, 3, 1]
    widths = mixed_dimensions(ROWS, 0.3, d0=16)
    permuted = mixed_dimensions([ROWS[i] for i in order], 0.3, d0=16)
    assert permuted == [widths[i] for i in order]


def test_query_rates_divide_the_rows():
    # 64 rows looked up 16 times as often are as 4 rows.
    widths = mixed_dimensions([1, 64], 0.5, d0=32, query_rates=[1, 16])
    assert widths == [32, 16]
    equal = mixed_dimensions(ROWS, 0.3, d0=16, query_rates=[2.0] * 4)
    assert equal == mixed_dimensions(ROWS, 0.3, d0=16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixed_dimensions(ROWS, 0.3), "one of d0 and budget, got d0=None"),
        (lambda: mixed_dimensions(ROWS, 0.3, 4, 9.0), "got d0=4, budget=9.0"),
        (lambda: mixed_dimensions(ROWS, -0.1, d0=4), "alpha must be finite and >= 0"),
        (lambda: mixed_dimensions(ROWS, float("nan"), d0=4), "alpha must be finite"),
        (lambda: mixed_dimensions(ROWS, 0.3, d0=0), "d0 must be >= 1, got 0"),
        (
            lambda: mixed_dimensions(ROWS, 0.3, budget=0),
            "budget must be finite and > 0",
        ),
        (lambda: mixed_dimensions([5, 0], 0.3, d0=4), r"rows\[1\] must be positive"),
        (lambda: mixed_dimensions([], 0.3, d0=4), "one number per table, got"),
        (
            lambda: mixed_dimensions([5, 4], 0.3, d0=4, query_rates=[1.0]),
            "query_rates must hold one rate for each of 2 tables, got 1",
        ),
        (
            lambda: mixed_dimensions([5, 4], 0.3, d0=4, query_rates=[1.0, -1.0]),
            r"query_rates\[1\] must be positive and finite, got -1",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
