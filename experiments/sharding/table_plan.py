"""Plans where embedding tables lie, under a byte budget for each device."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from experiments.sharding.table_placement import Plan, place_tables
from models.embeddings import TableConfig, component_shapes

_BYTES = 4  # of a float32
# Numbers that a rule keeps for a row of some width.
_STATE_SIZES: dict[str, Callable[[int], int]] = {
    "sgd": lambda width: 0,
    "adagrad": lambda width: width,
    "row_wise_adagrad": lambda width: 1,
}
# Small tables are worth having everywhere, as their lookups need no exchange: each at
# most so much, and all of them together at most that much, of a device's fair share.
_REPLICATED_SHARE = 0.001
_ALL_REPLICATED_SHARE = 0.02
_IMBALANCE = 1.1  # of the fullest device over the fair share, where whole tables allow


class _Need(NamedTuple):
    """Bytes of a table and of its statistics of whole rows; how it is split."""

    bytes: int
    row_statistics: int
    split: str


def table_bytes(
    table: TableConfig, rule: str = "row_wise_adagrad", *, weighted: bool = False
) -> int:
    """Bytes of one table's looked-up rows and of their optimizer state.

    Args:
      table: the table.
      rule: `sgd`, `adagrad` or `row_wise_adagrad`.
      weighted: whether every row has a trained pooling weight besides.

    Raises:
      ValueError: for another rule.
    """
    if rule not in _STATE_SIZES:
        raise ValueError(f"rule must be one of {', '.join(_STATE_SIZES)}, got {rule!r}")
    state = _STATE_SIZES[rule]
    return _BYTES * sum(
        rows * (width + state(width)) for rows, width in _shapes(table, weighted)
    )


def plan_tables(
    config: Any,
    devices: int,
    byte_budget: int,
    *,
    rule: str = "row_wise_adagrad",
) -> Plan:
    """Assigns the tables of a model to devices.

    This project's choice: tiny tables are replicated, the others go whole to one device
    each, the largest first, to the least loaded. While the fullest device exceeds its
    budget, or its fair share by more than a tenth, one more table is split, the largest
    first. Columns are split where that costs no more memory than splitting rows, that
    is, where no statistics of rows would be repeated: it moves fewer bytes.

    Args:
      config: of a model, with `tables`.
      devices: number of devices, >= 1.
      byte_budget: bytes that a device has for tables and their optimizer state.
      rule: of the tables: `sgd`, `adagrad` or `row_wise_adagrad`.

    Returns:
      The plan.

    Raises:
      ValueError: an argument is out of range, or the tables do not fit; then it says
        what they need and which compression would fit (`propose_compression`).
    """
    plan = _best_plan(config, devices, byte_budget, rule)
    needed = max(plan.device_bytes)
    if needed <= byte_budget:
        return plan
    message = (
        f"the tables need {needed} bytes a device over {devices} device(s), "
        f"byte_budget is {byte_budget}"
    )
    found = _fitting_compression(config, devices, byte_budget, rule)
    if found is None:
        raise ValueError(f"{message}, and no quotient-remainder compression fits")
    raise ValueError(
        f"{message}; quotient-remainder tables with collisions={found[0]} would fit"
    )


def propose_compression(
    config: Any,
    devices: int,
    byte_budget: int,
    *,
    rule: str = "row_wise_adagrad",
) -> tuple[Any, Plan]:
    """The mildest quotient-remainder compression that fits a budget, and its plan.

    Full tables are compressed with the smallest power of two of collisions that
    fits, the same for all whose parameters it reduces.

    Args:
      config: of a model, with `tables`.
      devices: number of devices.
      byte_budget: see `plan_tables`.
      rule: see `plan_tables`.

    Returns:
      The config (unchanged if it fits as it is) and the plan.

    Raises:
      ValueError: if none fits.
    """
    plan = _best_plan(config, devices, byte_budget, rule)
    if max(plan.device_bytes) <= byte_budget:
        return config, plan
    found = _fitting_compression(config, devices, byte_budget, rule)
    if found is None:
        raise ValueError(
            f"no quotient-remainder compression fits byte_budget={byte_budget} on "
            f"{devices} device(s)"
        )
    return found[1:]


def _shapes(table: TableConfig, weighted: bool) -> list[tuple[int, int]]:
    """Rows and width of everything that is looked up."""
    shapes = list(component_shapes(table).values())
    return [*shapes, (table.rows, 1)] if weighted else shapes


def _need(table: TableConfig, rule: str, weighted: bool, devices: int) -> _Need:
    shapes = _shapes(table, weighted)
    row_wise = rule == "row_wise_adagrad"
    by_columns = not row_wise and all(width % devices == 0 for _, width in shapes)
    return _Need(
        table_bytes(table, rule, weighted=weighted),
        _BYTES * sum(rows for rows, _ in shapes) if row_wise else 0,
        "column" if by_columns else "row",
    )


def _best_plan(config: Any, devices: int, byte_budget: int, rule: str) -> Plan:
    """The first plan that fits and is balanced, or else that of the least memory."""
    if devices < 1:
        raise ValueError(f"devices must be >= 1, got {devices}")
    if byte_budget < 1:
        raise ValueError(f"byte_budget must be >= 1, got {byte_budget}")
    weighted = getattr(config, "weighted_pooling", "none") == "learned"
    needs = [_need(table, rule, weighted, devices) for table in config.tables]
    sizes, statistics = ([need[which] for need in needs] for which in (0, 1))
    enough = min(byte_budget, _IMBALANCE * sum(sizes) / devices)
    plans = []
    for layouts in _candidates(needs, devices, byte_budget):
        placements = place_tables(layouts, sizes, devices, statistics)
        plans.append(Plan(placements, devices, byte_budget))
        if max(plans[-1].device_bytes) <= enough:
            return plans[-1]
    return min(plans, key=lambda plan: max(plan.device_bytes))


def _candidates(
    needs: Sequence[_Need], devices: int, byte_budget: int
) -> Iterator[list[str]]:
    """Layouts of all tables, from the least traffic to the least memory."""
    if devices == 1:
        yield ["replicated"] * len(needs)
        return
    share = sum(need.bytes for need in needs) / devices
    small = min(byte_budget, share)
    by_size = sorted(range(len(needs)), key=lambda t: (needs[t].bytes, t))
    layouts = ["table"] * len(needs)
    replicated = 0
    for table in by_size:
        replicated += needs[table].bytes
        tiny = needs[table].bytes <= _REPLICATED_SHARE * small
        if tiny and replicated <= _ALL_REPLICATED_SHARE * small:
            layouts[table] = "replicated"
    yield list(layouts)
    for table in reversed(by_size):
        if layouts[table] != needs[table].split:
            layouts[table] = needs[table].split
            yield list(layouts)


def _fitting_compression(
    config: Any, devices: int, byte_budget: int, rule: str
) -> tuple[int, Any, Plan] | None:
    """The least power of two of collisions that fits, the config and its plan."""
    if getattr(config, "weighted_pooling", "none") != "none":
        return None  # only full tables can be weighted
    most = max((table.rows for table in config.tables), default=1)
    collisions = 2
    while collisions <= most:
        tables = tuple(_compressed(table, collisions) for table in config.tables)
        compressed = dataclasses.replace(config, tables=tables)
        plan = _best_plan(compressed, devices, byte_budget, rule)
        if max(plan.device_bytes) <= byte_budget:
            return collisions, compressed, plan
        collisions *= 2
    return None


def _compressed(table: TableConfig, collisions: int) -> TableConfig:
    """A full table by quotient and remainder, where that makes it smaller."""
    fewer = -(-table.rows // collisions) + collisions < table.rows
    if table.method != "full" or not fewer:
        return table
    return dataclasses.replace(table, method="qr", op="mult", collisions=collisions)
