"""Batches of click models: checked on the host, padded to a few static shapes.

A batch of B samples and T tables maps names to NumPy arrays:

* `dense`: float32 `[B, num_dense]`;
* `ids`: the looked-up ids of each table, `[T, L]` int32, or a T-tuple of `[L_t]`
  where tables have capacities of their own. An id that is not in its table is padding:
  it looks nothing up. Here the number of rows stands for it, elsewhere any larger
  number may;
* `segments`: for bags, the sample that each id belongs to, sorted, shaped like `ids`;
  B for padding. Absent where every sample has exactly one id per table: then L = B;
* `id_weights`: float32 like `ids`, where the ids of a bag are weighted;
* `labels`, `weights`: float32 `[B]`; weight 0 marks a padded sample.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.embeddings import check_offsets
from models.embeddings.integer_arrays import read_integers

ID_POLICIES = ("error", "clip", "drop", "hash")
NAN_POLICIES = ("error", "zero")


@dataclasses.dataclass(frozen=True)
class BatchRules:
    """What a batch must look like, and what to do where it does not.

    Attributes:
      rows: of each table.
      num_dense: dense features.
      id_policy: for an id outside its table: `error`; `clip` to the nearest row;
        `drop`, leave it out of its bag; `hash`, take it modulo the rows.
      nan_policy: for NaN or infinity among dense features: `error` or `zero`.
      capacities: most ids of each table in a batch of bags; None takes the next power
        of two of what the fullest table holds, so that few shapes are ever compiled.

    Raises:
      ValueError: an unknown policy; capacities that are not one positive number for
        each table.
    """

    rows: tuple[int, ...]
    num_dense: int
    id_policy: str = "error"
    nan_policy: str = "error"
    capacities: tuple[int, ...] | None = None

    def __post_init__(self):
        for name, allowed in (("id_policy", ID_POLICIES), ("nan_policy", NAN_POLICIES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {value!r}"
                )
        capacities = self.capacities
        if capacities is not None and (
            len(capacities) != len(self.rows) or min(capacities, default=1) < 1
        ):
            raise ValueError(
                f"capacities must be one number >= 1 for each of {len(self.rows)} "
                f"tables, got {capacities}"
            )


def assemble_batch(
    rules: BatchRules,
    dense: Any,
    ids: Sequence[Any],
    *,
    offsets: Sequence[Any] | None = None,
    lengths: Sequence[Any] | None = None,
    id_weights: Sequence[Any] | None = None,
    labels: Any = None,
    weights: Any = None,
) -> dict[str, Any]:
    """Checks host arrays and lays them out for a compiled step.

    Args:
      rules: sizes and policies.
      dense: `[B, num_dense]`.
      ids: one integer array for each table: flat ids `[L_t]` with `offsets` or
        `lengths`, else one id a sample `[B]`. Any integer type, of up to 64 bits.
      offsets: one `[B]` array for each table: where each bag starts.
      lengths: one `[B]` array for each table: how many ids each bag has; may be 0.
      id_weights: one float array like `ids` for each table.
      labels: `[B]` or `[B, 1]` in [0, 1].
      weights: `[B]` or `[B, 1]`, >= 0; 1 by default.

    Returns:
      The batch, see the module's docstring; `weights` is always there.

    Raises:
      TypeError: ids, offsets or lengths that are not integers.
      ValueError: anything else that does not fit, naming table, sample and value.
    """
    dense = _dense_features(rules, dense)
    size = len(dense)
    if offsets is not None and lengths is not None:
        raise ValueError("give offsets or lengths of the bags, not both")
    for name, arrays in (
        ("ids", ids),
        ("offsets", offsets),
        ("lengths", lengths),
        ("id_weights", id_weights),
    ):
        if arrays is not None and len(arrays) != len(rules.rows):
            raise ValueError(
                f"the model has {len(rules.rows)} tables, got {name} of {len(arrays)}"
            )
    tables = [
        _lookups(
            rules,
            table,
            size,
            values,
            None if offsets is None else offsets[table],
            None if lengths is None else lengths[table],
            None if id_weights is None else id_weights[table],
        )
        for table, values in enumerate(ids)
    ]
    batch = {"dense": dense, **_lay_out(rules, size, tables)}
    if labels is not None:
        batch["labels"] = _per_sample("labels", labels, size, upper=1.0)
    ones = np.ones(size, np.float32) if weights is None else weights
    batch["weights"] = _per_sample("weights", ones, size, upper=np.inf)
    return batch


def bucket(count: int) -> int:
    """The static size for `count` ids: the next power of two, at least 1."""
    return 1 << max(count - 1, 0).bit_length()


def _dense_features(rules: BatchRules, dense: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, which is seen below
        dense = np.asarray(dense, np.float32)
    if dense.ndim != 2 or dense.shape[1] != rules.num_dense:
        raise ValueError(
            f"dense must have shape [B, {rules.num_dense}], got {dense.shape}"
        )
    finite = np.isfinite(dense)
    if finite.all():
        return dense
    if rules.nan_policy == "zero":
        return np.where(finite, dense, np.float32(0))
    row, column = np.argwhere(~finite)[0]
    raise ValueError(
        f"dense[{row}, {column}] is {dense[row, column]}; dense features must be "
        "finite (nan_policy='zero' replaces them)"
    )


Lookups = dict[str, np.ndarray]  # `ids` of one table, perhaps `segments`, `id_weights`


def _lookups(
    rules: BatchRules,
    table: int,
    size: int,
    ids: Any,
    offsets: Any,
    lengths: Any,
    id_weights: Any,
) -> Lookups:
    """The ids of one table, in range and with the sample of each."""
    name = f"table {table}"
    ids = np.asarray(read_integers(f"ids of {name}", ids))
    if ids.ndim != 1:
        raise ValueError(f"ids of {name} must be flat, got shape {ids.shape}")
    found = {}
    if offsets is not None or lengths is not None:
        if lengths is None:
            lengths = _lengths_from_offsets(name, size, len(ids), offsets)
        else:
            lengths = _checked_lengths(name, size, len(ids), lengths)
        found["segments"] = np.repeat(np.arange(size, dtype=np.int32), lengths)
    elif len(ids) != size:
        raise ValueError(
            f"without offsets or lengths each of the {size} samples has one id in "
            f"{name}, got {len(ids)} ids"
        )
    if id_weights is not None:
        found["id_weights"] = _finite_weights(name, len(ids), id_weights)
    found["ids"] = _in_range(rules, table, ids, found.get("segments"))
    if rules.id_policy == "drop" and "segments" in found:
        # An id that is left out does not count in the mean of its bag either.
        kept = found["ids"] < rules.rows[table]
        found = {key: values[kept] for key, values in found.items()}
    return found


def _lengths_from_offsets(name: str, size: int, count: int, offsets: Any) -> np.ndarray:
    offsets = np.asarray(check_offsets(offsets, count, name))
    _require_one_each(f"offsets of {name}", offsets, size)
    return np.diff(offsets, append=count)


def _checked_lengths(name: str, size: int, count: int, lengths: Any) -> np.ndarray:
    lengths = np.asarray(read_integers(f"lengths of {name}", lengths))
    _require_one_each(f"lengths of {name}", lengths, size)
    if (lengths < 0).any():
        sample = int(np.argmax(lengths < 0))
        raise ValueError(
            f"lengths of {name} must be >= 0, got {lengths[sample]} for sample {sample}"
        )
    if lengths.sum() != count:
        raise ValueError(
            f"lengths of {name} add up to {lengths.sum()}, but there are {count} ids"
        )
    return lengths.astype(np.int64)


def _require_one_each(name: str, values: np.ndarray, size: int) -> None:
    if values.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {values.shape}")


def _finite_weights(name: str, count: int, weights: Any) -> np.ndarray:
    weights = np.asarray(weights, np.float32)
    _require_one_each(f"id_weights of {name}", weights, count)
    if not np.isfinite(weights).all():
        place = int(np.argmin(np.isfinite(weights)))
        raise ValueError(
            f"id_weights of {name} must be finite, got {weights[place]} at {place}"
        )
    return weights


def _in_range(
    rules: BatchRules, table: int, ids: np.ndarray, segments: np.ndarray | None
) -> np.ndarray:
    """int32 ids in [0, rows], where `rows` itself stands for an id left out."""
    rows = rules.rows[table]
    outside = (ids < 0) | (ids >= rows)
    if outside.any():
        if rules.id_policy == "error":
            place = int(np.argmax(outside))
            sample = place if segments is None else segments[place]
            raise ValueError(
                f"table {table}, sample {sample}: id {ids[place]} is outside "
                f"[0, {rows}) (id_policy may be clip, drop or hash)"
            )
        if rules.id_policy == "clip":
            ids = np.clip(ids, 0, rows - 1)
        elif rules.id_policy == "hash":
            ids = ids % rows
        else:
            ids = np.where(outside, rows, ids)
    return ids.astype(np.int32)


def _lay_out(rules: BatchRules, size: int, tables: Sequence[Lookups]) -> dict[str, Any]:
    """Pads every table's ids to its capacity and stacks what has one length."""
    if not tables:
        return {"ids": np.zeros((0, size), np.int32)}
    counts = [len(lookups["ids"]) for lookups in tables]
    if "segments" not in tables[0]:
        capacities = counts
    elif rules.capacities is None:
        capacities = [bucket(max(counts))] * len(counts)
    else:
        capacities = rules.capacities
        for table, (count, most) in enumerate(zip(counts, capacities, strict=True)):
            if count > most:
                raise ValueError(
                    f"table {table}: {count} ids exceed its capacity of {most}"
                )
    fills = {
        "ids": rules.rows,
        "segments": [size] * len(tables),
        "id_weights": [0.0] * len(tables),
    }
    batch = {}
    for name in tables[0]:
        arrays = [lookups[name] for lookups in tables]
        padded = tuple(map(_padded, arrays, capacities, fills[name]))
        batch[name] = np.stack(padded) if len(set(capacities)) == 1 else padded
    return batch


def _padded(values: np.ndarray, capacity: int, fill: float) -> np.ndarray:
    found = np.full(capacity, fill, values.dtype)
    found[: len(values)] = values
    return found


def _per_sample(name: str, values: Any, size: int, upper: float) -> np.ndarray:
    values = np.asarray(values, np.float32)
    if values.shape == (size, 1):
        values = values[:, 0]
    if values.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {values.shape}")
    inside = (values >= 0) & (values <= upper) & np.isfinite(values)
    if not inside.all():
        sample = int(np.argmin(inside))
        allowed = "in [0, 1]" if upper == 1.0 else ">= 0 and finite"
        raise ValueError(f"{name}[{sample}] is {values[sample]}; it must be {allowed}")
    return values
