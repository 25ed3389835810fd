"""Sharing refresh work between devices."""

import collections
import itertools
import json
import math

import numpy as np
import pytest

from optim_jax.preconditioning.assignment import (
    aligned_bytes,
    greedy_lpt,
    merge_dims_for_devices,
    polynomial_cost,
    refresh_cost,
    refresh_imbalance,
    stack_cost,
)
from optim_jax.preconditioning.merging import block_slices, merge_small_dims
from tests.optim_jax.preconditioning.architectures import gpt2_shapes, resnet50_shapes


def _factor_counts(shapes, limit):
    counts = collections.Counter()
    for shape in shapes.values():
        for block in block_slices(merge_small_dims(shape, limit, 1), limit):
            counts.update(part.stop - part.start for part in block)
    return counts


def test_replays_the_stored_assignments(golden_dir):
    tables = json.loads((golden_dir / "shampoo" / "functions.json").read_text())
    for row in tables["load_balance"]:
        model = row["cost_model"]
        costs = [
            aligned_bytes(shape)
            if model == "memory64"
            else polynomial_cost(shape, model)
            for shape in row["block_shapes"]
        ]
        assert costs == row["costs"]
        owners = greedy_lpt(costs, row["ranks"])
        assert list(owners) == row["assigned_rank"]
        loads = np.bincount(owners, weights=costs, minlength=row["ranks"])
        assert loads.tolist() == row["load"]


@pytest.mark.parametrize(
    ("shapes", "limit", "devices", "by_size", "merged"),
    [
        (gpt2_shapes, 1024, 8, 1.02, 1.02),
        (gpt2_shapes, 1024, 64, 1.25, 1.24),
        (resnet50_shapes, 1024, 8, 1.17, 1.06),
        (resnet50_shapes, 1024, 64, 2.08, 1.10),
        (resnet50_shapes, 256, 64, 1.14, 1.05),
    ],
)
def test_imbalance_of_published_architectures(shapes, limit, devices, by_size, merged):
    counts = _factor_counts(shapes(), limit)
    perfect = sum(n * d**3 for d, n in counts.items()) / devices
    apart = stack_cost(counts, tuple((d, (d,)) for d in counts), devices) / perfect
    assert apart == pytest.approx(by_size, abs=0.006)
    assert refresh_imbalance(counts, devices) == pytest.approx(merged, abs=0.006)


def test_the_best_partition_is_found():
    rng = np.random.default_rng(0)
    for _ in range(20):
        dims = sorted(rng.choice(np.arange(1, 40), size=5, replace=False).tolist())
        counts = {dim: int(rng.integers(1, 9)) for dim in dims}
        devices = int(rng.integers(1, 9))
        costs = []
        for cuts in itertools.product([False, True], repeat=4):
            groups, begin = [], 0
            for end in range(1, 6):
                if end == 5 or cuts[end - 1]:
                    groups.append((dims[end - 1], tuple(dims[begin:end])))
                    begin = end
            costs.append(stack_cost(counts, tuple(groups), devices))
        found = merge_dims_for_devices(counts, devices)
        assert stack_cost(counts, found, devices) == min(costs)
        assert [dim for _, group in found for dim in group] == dims


def test_one_device_pads_nothing():
    assert merge_dims_for_devices({4: 3, 8: 1}, 1) == ((4, (4,)), (8, (8,)))


def test_costs():
    assert refresh_cost((2, 3)) == 35
    assert aligned_bytes((5,)) == 64 and aligned_bytes((16, 4)) == 256
    assert polynomial_cost((2, 3), (1.0, 0.0, 2.0)) == 2 + 2 * (4 + 9)
    assert refresh_imbalance({}, 8) == 1.0
    assert math.isclose(refresh_imbalance({4: 9}, 8), 16 / 9)


def test_bad_input():
    with pytest.raises(ValueError, match="num_devices must be an integer >= 1, got 0"):
        greedy_lpt([1.0], 0)
    with pytest.raises(ValueError, match="costs must be >= 0"):
        greedy_lpt([float("nan")], 2)
    with pytest.raises(ValueError, match="num_devices must be an integer >= 1"):
        merge_dims_for_devices({2: 1}, 0)
