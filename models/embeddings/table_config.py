"""What one embedding table is: its size, its compression, its pooling."""

import dataclasses
import functools
import json
from typing import Any

import numpy as np

from models.embeddings.partitions import choose_moduli
from models.embeddings.table_checks import (
    COMBINING_METHODS,
    REMAINDER_METHODS,
    check_choices,
    check_partitions,
    check_widths,
    plain_fields,
    warn_without_gain,
)


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """One categorical feature and how it is embedded, checked when made.

    With n = `rows`, D = `dim`, c = `collisions`, the methods and their leaves are:

    ============= ==================================================================
    `full`        `table` [n, D]
    `hash`        `table` [hash_rows, D], looked up at id mod hash_rows
    `qr`          `quotient` [ceil(n/c), .] and `remainder` [c, .]
    `mixed_radix` `part_0` [m_1, .] …: digits of the id in the mixed radix `moduli`
    `crt`         `part_0` [m_1, .] …: remainders by the coprime `moduli`
    `explicit`    `part_0` …: classes given as `classes`
    `frequency`   `hot` [hot_rows, D] for ids < hot_rows (the caller numbers ids by
                  falling frequency), QR leaves for the others
    `features`    `part_0` [., D] …, each a feature of its own: k vectors per id
    `path`        `part_0` [., D] and `functions`: every later partition selects a
                  perceptron D -> path_hidden -> D that is applied to the vector
    `mixed`       `table` [n, d] and `projection` [d, D] for component_dims = (d,)
    ============= ==================================================================

    `features` and `path` take QR as their partitions (`part_0` the quotient), or the
    digits of `moduli` where those are given.

    Attributes:
      rows: ids are 0 … rows - 1; at most 2**31 - 1.
      dim: width of what one id becomes (the combined width); with `features` the width
        of each of its vectors.
      method: one of the above.
      op: how the parts of `qr`, `mixed_radix`, `crt`, `explicit` and the cold rows of
        `frequency` are combined: `concat`, `add` or `mult` (entry by entry).
      collisions: c, how many ids share a quotient row, >= 1.
      moduli: m_1 … m_k with product >= rows; None: `choose_moduli` with
        k = len(component_dims), or 2.
      hash_rows: None: ceil(n/c) + c, as many as QR has.
      component_dims: widths of the parts; for `concat` they sum to `dim` (None: as
        even as possible, the wider first), for `add` and `mult` each is `dim`. For
        `mixed` one number, the width of the table, in [1, dim].
      threshold: a table of at most this many rows is `full` whatever the method.
      pooling: of a bag: `sum`, or `mean` over its ids (an empty bag is zero).
      pool_order: `combine_then_pool` embeds every id and pools; `pool_then_combine`,
        the original implementation's order, pools every part and combines. They differ
        for `mult` with bags of two or more.
      init: `default`; `ones` (`mult`: one part random, the others near one);
        `reference_qr` (`qr`, the original implementation's); `hash_rows` (`hash`: scale
        by the rows stored instead of n); `glorot` (`mixed`). See `init_table`.
      classes: for `explicit`, k tuples of length n: the class of each id, from 0. A
        compiled program that maps ids holds them as constants, 4 n k bytes.
      hot_rows: for `frequency`, in [1, rows).
      path_hidden: hidden width of the functions of `path`, >= 1.
      path_residual: the functions of `path` are added to their argument.

    Raises:
      TypeError: classes are not integers.
      ValueError: a field is out of range, fields do not fit each other, or one is set
        that the method does not read.

    References:
      Shi, Mudigere, Naumov, Yang, 2020, https://arxiv.org/abs/1909.02107.
      Ginart, Naumov, Mudigere, Yang, Zou, 2019, https://arxiv.org/abs/1909.11810
      (`mixed`). `frequency` is this project's choice.
    """

    rows: int
    dim: int
    method: str = "full"
    op: str = "mult"
    collisions: int = 4
    moduli: tuple[int, ...] | None = None
    hash_rows: int | None = None
    component_dims: tuple[int, ...] | None = None
    threshold: int = 0
    pooling: str = "sum"
    pool_order: str = "combine_then_pool"
    init: str = "default"
    classes: tuple[tuple[int, ...], ...] | None = None
    hot_rows: int = 0
    path_hidden: int = 16
    path_residual: bool = False

    def __post_init__(self):
        for name, value in plain_fields(self).items():
            object.__setattr__(self, name, value)
        check_choices(self)
        check_partitions(self)
        check_widths(self)
        warn_without_gain(self)

    @property
    def is_compressed(self) -> bool:
        """Whether the method applies: strictly more rows than the threshold."""
        return self.method != "full" and self.rows > self.threshold

    @property
    def built_method(self) -> str:
        """The method that applies: `full` up to the threshold."""
        return self.method if self.is_compressed else "full"

    @functools.cached_property
    def part_moduli(self) -> tuple[int, ...] | None:
        """The moduli in use; None where the method has none."""
        if self.moduli is not None or self.method not in ("mixed_radix", "crt"):
            return self.moduli
        count = len(self.component_dims or (0, 0))
        return choose_moduli(self.rows, count, coprime=self.method == "crt")

    @functools.cached_property
    def part_rows(self) -> tuple[int, ...]:
        """Classes of every partition of the method; empty where it has none."""
        if self.method == "explicit":
            return tuple(int(part.max()) + 1 for part in self.class_arrays)
        if self.part_moduli is not None:
            return self.part_moduli
        if self.method in REMAINDER_METHODS:
            ids = self.rows - self.hot_rows
            return -(-ids // self.collisions), self.collisions
        return ()

    @property
    def part_dims(self) -> tuple[int, ...]:
        """Width of every part."""
        count = len(self.part_rows)
        if self.method in COMBINING_METHODS and self.op == "concat":
            wider = self.dim % count
            even = (self.dim // count + (j < wider) for j in range(count))
            return self.component_dims or tuple(even)
        return (self.dim,) * count

    @property
    def stored_hash_rows(self) -> int:
        """Rows of a hashed table: `hash_rows`, or as many as QR would have."""
        c = self.collisions
        return -(-self.rows // c) + c if self.hash_rows is None else self.hash_rows

    @functools.cached_property
    def class_arrays(self) -> tuple[np.ndarray, ...]:
        """`classes` as int32 arrays."""
        return tuple(np.asarray(part, np.int32) for part in self.classes or ())

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types (tuples are written as lists)."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "TableConfig":
        """The inverse of `to_dict`.

        Args:
          fields: may leave out what has a default.

        Returns:
          The config.

        Raises:
          ValueError: a key is no field, or a value is refused.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(
                f"unknown table fields {', '.join(unknown)}; there are "
                f"{', '.join(known)}"
            )
        return cls(**fields)

    def to_json(self) -> str:
        """The config as one JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "TableConfig":
        """The inverse of `to_json`; raises like `from_dict`."""
        return cls.from_dict(json.loads(text))
