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


def _alone(counts):
    return tuple((size, (size,)) for size in sorted(counts))


def _block_shapes(shapes, limit):
    return [
        tuple(part.stop - part.start for part in block)
        for shape in shapes.values()
        for block in block_slices(merge_small_dims(shape, limit, 1), limit)
    ]


def _factor_counts(shapes, limit):
    return collections.Counter(itertools.chain(*_block_shapes(shapes, limit)))


# Owners.


def test_assigns_as_stored(golden_dir):
    path = golden_dir / "shampoo" / "functions.json"
    cases = json.loads(path.read_text())["load_balance"]
    assert len(cases) == 4
    for case in cases:
        shapes, model = case["block_shapes"], case["cost_model"]
        held = [aligned_bytes(shape) for shape in shapes]
        assert held == case["buffer_bytes"]
        costs = held
        if model != "memory64":
            costs = [polynomial_cost(shape, model) for shape in shapes]
        assert costs == case["costs"]
        owners = greedy_lpt(costs, case["ranks"])
        assert list(owners) == case["assigned_rank"]
        loads = [0.0] * case["ranks"]
        for owner, cost in zip(owners, costs, strict=True):
            loads[owner] += cost
        assert loads == case["load"]


def test_cost_models():
    assert aligned_bytes((4, 4)) == 64
    assert aligned_bytes((17,)) == 128
    assert aligned_bytes(()) == 64
    assert aligned_bytes((0, 5)) == 0
    assert aligned_bytes((5, 3), itemsize=2, alignment=8) == 32
    assert aligned_bytes((5, 3), itemsize=2, alignment=1) == 30
    assert polynomial_cost((2, 3), (1, 10, 100)) == (1 + 20 + 400) + (1 + 30 + 900)
    assert polynomial_cost((), (1, 2)) == 0
    assert refresh_cost((2, 3)) == 35
    assert refresh_cost((2, 3)) == polynomial_cost((2, 3), (0, 0, 0, 1))
    assert refresh_cost(()) == 0


def test_greedy_lpt_breaks_ties_by_order_and_device():
    assert greedy_lpt([], 3) == ()
    assert greedy_lpt([1, 1, 1, 1], 3) == (0, 1, 2, 0)
    assert greedy_lpt([1, 3, 2], 1) == (0, 0, 0)
    assert greedy_lpt([0, 0, 0], 2) == (0, 0, 0)
    assert greedy_lpt([2, 3, 2, 3, 2], 2) == (0, 0, 1, 1, 0)


def test_greedy_lpt_meets_the_bound_of_graham():
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(60):
        costs = [int(cost) for cost in rng.integers(1, 20, rng.integers(1, 8))]
        devices = int(rng.integers(1, 4))
        owners = greedy_lpt(costs, devices)

        def busiest(owners, costs=costs):
            loads = collections.Counter()
            for owner, cost in zip(owners, costs, strict=True):
                loads[owner] += cost
            return max(loads.values())

        optimum = min(
            map(busiest, itertools.product(range(devices), repeat=len(costs)))
        )
        gaps.append(busiest(owners) / optimum)
        assert optimum <= busiest(owners)
        assert gaps[-1] <= 4 / 3 - 1 / (3 * devices) + 1e-12
    assert max(gaps) > 1.0  # the cases are not all trivial


# Stacks.


def _runs(sizes):
    """Every way to cut a sorted list into runs."""
    for number in range(len(sizes)):
        for cuts in itertools.combinations(range(1, len(sizes)), number):
            bounds = zip((0, *cuts), (*cuts, len(sizes)), strict=True)
            yield tuple(
                (sizes[last - 1], tuple(sizes[first:last])) for first, last in bounds
            )


@pytest.mark.parametrize("power", [0, 1, 3])
def test_merging_is_the_best_of_all_runs(power):
    """By time, then padded work, then more groups, as counted here."""

    def key(groups, counts, devices):
        time = work = 0
        for padded, sizes in groups:
            number = sum(counts[size] for size in sizes)
            time += math.ceil(number / devices) * padded**power
            work += number * padded**power
        return time, work, -len(groups)

    rng = np.random.default_rng(power)
    merges = 0
    for _ in range(150):
        sizes = rng.choice(np.arange(1, 40), rng.integers(1, 8), replace=False)
        counts = {int(size): int(rng.integers(1, 15)) for size in sizes}
        devices = int(rng.integers(1, 17))

        def cost(size):
            return size**power

        groups = merge_dims_for_devices(counts, devices, cost)
        candidates = list(_runs(sorted(counts)))
        assert len(candidates) == 2 ** (len(counts) - 1)
        assert groups in candidates
        best = min(key(candidate, counts, devices) for candidate in candidates)
        assert key(groups, counts, devices) == best
        assert stack_cost(groups, counts, devices, cost) == best[0]
        merges += len(groups) < len(counts)
    assert merges > 50


def test_merging_prefers_less_padding_among_equal_times():
    # {2, 3} {4} and {2} {3, 4} both take 3; padding 3 to 4 adds work, 2 to 3 does not.
    cost = {2: 1, 3: 1, 4: 2}
    groups = merge_dims_for_devices({2: 1, 3: 1, 4: 1}, 2, cost.__getitem__)
    assert groups == ((3, (2, 3)), (4, (4,)))
    assert (
        stack_cost(
            ((2, (2,)), (4, (3, 4))), dict.fromkeys(cost, 1), 2, cost.__getitem__
        )
        == 3
    )


def test_merging_prefers_more_groups_among_equal_times_and_paddings():
    # One stack or two, both take 2.
    assert merge_dims_for_devices({2: 4, 3: 4}, 4, lambda size: 1) == _alone([2, 3])


def test_one_device_needs_no_padding():
    counts = {3: 2, 5: 1, 9: 4}
    assert merge_dims_for_devices(counts, 1) == _alone(counts)
    assert refresh_imbalance(counts, 1) == 1.0
    assert merge_dims_for_devices({}, 8) == ()


def test_merging_fills_idle_devices():
    assert merge_dims_for_devices({8: 1, 9: 7}, 8) == ((9, (8, 9)),)
    # The stack of 9 is full: one factor more would take a second round.
    assert merge_dims_for_devices({8: 1, 9: 8}, 8) == _alone([8, 9])


def test_a_grouping_without_runs_may_take_less():
    counts = {1: 1, 2: 2, 3: 1}
    groups = merge_dims_for_devices(counts, 2)
    assert groups == _alone(counts)
    assert stack_cost(groups, counts, 2) == 1 + 8 + 27
    assert stack_cost(((2, (2,)), (3, (1, 3))), counts, 2) == 8 + 27


def test_imbalance_by_hand():
    # One factor on four devices: three are idle.
    assert refresh_imbalance({7: 1}, 4) == 4.0
    # 5 of size 2 on 2 devices take 3 rounds where 2.5 would be perfect.
    assert refresh_imbalance({2: 5}, 2) == pytest.approx(1.2)
    # 8 and 9 in one round of 9^3.
    perfect = (8**3 + 7 * 9**3) / 8
    assert refresh_imbalance({8: 1, 9: 7}, 8) == pytest.approx(9**3 / perfect)
    assert refresh_imbalance({}, 8) == 1.0


@pytest.mark.parametrize(
    ("shapes", "limit", "devices", "by_size", "merged"),
    [
        (gpt2_shapes, 1024, 8, 1.016, 1.016),
        (gpt2_shapes, 1024, 64, 1.245, 1.242),
        (resnet50_shapes, 1024, 8, 1.165, 1.057),
        (resnet50_shapes, 1024, 64, 2.076, 1.101),
        (resnet50_shapes, 256, 64, 1.143, 1.054),
    ],
)
def test_imbalance_of_known_models(shapes, limit, devices, by_size, merged):
    counts = _factor_counts(shapes(), limit)
    perfect = sum(number * size**3 for size, number in counts.items()) / devices
    unmerged = stack_cost(_alone(counts), counts, devices) / perfect
    assert unmerged == pytest.approx(by_size, abs=5e-4)
    imbalance = refresh_imbalance(counts, devices)
    assert imbalance == pytest.approx(merged, abs=5e-4)
    assert 1.0 <= imbalance <= unmerged
    groups = merge_dims_for_devices(counts, devices)
    assert imbalance == stack_cost(groups, counts, devices) / perfect


@pytest.mark.parametrize(
    ("shapes", "limit", "devices", "by_shape", "owners"),
    [
        (gpt2_shapes, 1024, 8, 1.074, 1.005),
        (gpt2_shapes, 1024, 64, 1.592, 1.039),
        (resnet50_shapes, 1024, 8, 1.684, 1.000),
        (resnet50_shapes, 1024, 64, 10.437, 1.841),
        (resnet50_shapes, 256, 64, 2.028, 1.041),
    ],
)
def test_imbalance_of_the_alternatives(shapes, limit, devices, by_shape, owners):
    """Stacks of equal blocks, and whole blocks to devices."""
    blocks = _block_shapes(shapes(), limit)
    costs = [refresh_cost(block) for block in blocks]
    perfect = sum(costs) / devices
    stacks = sum(
        math.ceil(number / devices) * refresh_cost(block)
        for block, number in collections.Counter(blocks).items()
    )
    assert stacks / perfect == pytest.approx(by_shape, abs=5e-4)
    loads = [0] * devices
    for owner, cost in zip(greedy_lpt(costs, devices), costs, strict=True):
        loads[owner] += cost
    assert max(loads) / perfect == pytest.approx(owners, abs=5e-4)


def test_resnet50_keeps_64_devices_busy():
    counts = _factor_counts(resnet50_shapes(), 1024)
    assert refresh_imbalance(counts, 64) <= 1.11


# Messages.


@pytest.mark.parametrize("devices", [0, -1, 2.0, "2", None])
def test_refuses_numbers_of_devices(devices):
    match = r"num_devices must be an integer >= 1, got"
    for call in (
        lambda: greedy_lpt([1.0], devices),
        lambda: merge_dims_for_devices({2: 1}, devices),
        lambda: stack_cost(((2, (2,)),), {2: 1}, devices),
        lambda: refresh_imbalance({2: 1}, devices),
    ):
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.parametrize("cost", [-1.0, math.nan, math.inf])
def test_refuses_costs(cost):
    with pytest.raises(ValueError, match=r"costs must be finite and >= 0, got"):
        greedy_lpt([1.0, cost], 2)
    match = r"cost\(2\) must be finite and >= 0, got"
    with pytest.raises(ValueError, match=match):
        merge_dims_for_devices({2: 1}, 2, lambda size: cost)
    with pytest.raises(ValueError, match=match):
        stack_cost(((2, (2,)),), {2: 1}, 2, lambda size: cost)


@pytest.mark.parametrize(
    ("counts", "match"),
    [
        ({0: 1}, r"a size in counts must be an integer >= 1, got 0"),
        ({2.5: 1}, r"a size in counts must be an integer >= 1, got 2.5"),
        ({4: 0}, r"counts\[4\] must be an integer >= 1, got 0"),
        ({4: 1.5}, r"counts\[4\] must be an integer >= 1, got 1.5"),
    ],
)
def test_refuses_counts(counts, match):
    with pytest.raises(ValueError, match=match):
        merge_dims_for_devices(counts, 2)
    with pytest.raises(ValueError, match=match):
        refresh_imbalance(counts, 2)


@pytest.mark.parametrize(
    "groups", [(), ((2, (2,)),), ((2, (2, 3)),), ((3, (2, 3)), (3, (3,)))]
)
def test_refuses_groups_that_do_not_fit(groups):
    with pytest.raises(
        ValueError, match=r"groups must name each of the sizes \[2, 3\]"
    ):
        stack_cost(groups, {2: 1, 3: 1}, 2)


def test_refuses_arguments_of_cost_models():
    dim = r"a dim of shape must be an integer >= 0, got -1"
    for call in (
        lambda: aligned_bytes((2, -1)),
        lambda: polynomial_cost((2, -1), (1,)),
        lambda: refresh_cost((2, -1)),
    ):
        with pytest.raises(ValueError, match=dim):
            call()
    with pytest.raises(ValueError, match=r"itemsize must be an integer >= 1, got 0"):
        aligned_bytes((2,), itemsize=0)
    with pytest.raises(ValueError, match=r"alignment must be an integer >= 1, got 0"):
        aligned_bytes((2,), alignment=0)
    for coefficients in ((), (1.0, math.nan)):
        with pytest.raises(ValueError, match=r"coefficients must be at least one"):
            polynomial_cost((2,), coefficients)
