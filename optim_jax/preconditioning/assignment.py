"""Sharing work between devices: greedily by block, or by padded stacks of factors."""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence

Groups = tuple[tuple[int, tuple[int, ...]], ...]


def refresh_cost(shape: Sequence[int]) -> int:
    """Work of refreshing the factors of one block: the sum of d^3."""
    return sum(size**3 for size in shape)


def aligned_bytes(shape: Sequence[int], itemsize: int = 4, alignment: int = 64) -> int:
    """Bytes of a block, rounded up to the alignment."""
    return -(-math.prod(shape) * itemsize // alignment) * alignment


def polynomial_cost(shape: Sequence[int], coefficients: Sequence[float]) -> float:
    """A polynomial of each size, coefficients from the constant up, summed up."""
    return float(
        sum(c * size**power for size in shape for power, c in enumerate(coefficients))
    )


def _check_devices(num_devices: int) -> None:
    if not isinstance(num_devices, int) or num_devices < 1:
        raise ValueError(f"num_devices must be an integer >= 1, got {num_devices!r}")


def greedy_lpt(costs: Sequence[float], num_devices: int) -> tuple[int, ...]:
    """Gives the items, longest first, each to the least loaded device.

    Args:
      costs: cost >= 0 of each item.
      num_devices: number of devices.

    Returns:
      The owner of each item. Ties go to the earlier item and the lower device.

    Raises:
      ValueError: a cost is negative or NaN, or there is no device.
    """
    _check_devices(num_devices)
    for cost in costs:
        if not cost >= 0.0:
            raise ValueError(f"costs must be >= 0, got {cost!r}")
    owners = [0] * len(costs)
    loads: list[tuple[float, int]] = [(0.0, device) for device in range(num_devices)]
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        load, device = heapq.heappop(loads)
        owners[item] = device
        heapq.heappush(loads, (load + costs[item], device))
    return tuple(owners)


def merge_dims_for_devices(
    counts: Mapping[int, int],
    num_devices: int,
    cost: Callable[[int], float] = lambda dim: dim**3,
) -> Groups:
    """Joins factors of different sizes in stacks so that the slowest device is fast.

    Every device solves ceil(n / devices) matrices of a stack of n, each padded to the
    largest size in it. Padding a few small matrices up is cheaper than a stack of
    their own that keeps most devices waiting. The best partition of the sorted sizes
    is found by a dynamic program.

    Args:
      counts: size -> number of factors.
      num_devices: number of devices, or of equal shares in time.
      cost: size -> cost of one matrix, increasing.

    Returns:
      Pairs (padded size, sizes in the stack), sizes ascending. Among equals the one
      with the least padding, then with the most stacks.

    Raises:
      ValueError: there is no device.
    """
    _check_devices(num_devices)
    dims = sorted(dim for dim, number in counts.items() if number)
    # Per prefix of the sizes: (time, padded work, -stacks) and where its last stack
    # begins.
    best: list[tuple[tuple[float, float, int], int]] = [((0.0, 0.0, 0), 0)]
    for end in range(1, len(dims) + 1):
        options = []
        for begin in range(end):
            (time, padded, stacks), _ = best[begin]
            number = sum(counts[dim] for dim in dims[begin:end])
            top = cost(dims[end - 1])
            options.append(
                (
                    (
                        time + math.ceil(number / num_devices) * top,
                        padded + number * top,
                        stacks - 1,
                    ),
                    begin,
                )
            )
        best.append(min(options))
    groups = []
    end = len(dims)
    while end:
        begin = best[end][1]
        groups.append((dims[end - 1], tuple(dims[begin:end])))
        end = begin
    return tuple(reversed(groups))


def stack_cost(counts: Mapping[int, int], groups: Groups, num_devices: int) -> float:
    """Work of the busiest device, in sums of d^3."""
    return sum(
        math.ceil(sum(counts[dim] for dim in dims) / num_devices) * padded**3
        for padded, dims in groups
    )


def refresh_imbalance(counts: Mapping[int, int], num_devices: int) -> float:
    """Work of the busiest device over a perfect split, after the best merge.

    Args:
      counts: size d of a factor -> number of factors.
      num_devices: number of devices.
    """
    total = sum(number * dim**3 for dim, number in counts.items())
    if not total:
        return 1.0
    groups = merge_dims_for_devices(counts, num_devices)
    return stack_cost(counts, groups, num_devices) / (total / num_devices)
