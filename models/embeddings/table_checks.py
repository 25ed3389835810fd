"""What the fields of a table config may be, with one message for each mistake."""

import dataclasses
import math
import operator
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from models.embeddings.partitions import first_clash, require_coprime

if TYPE_CHECKING:
    from models.embeddings.table_config import TableConfig

METHODS = (
    "full",
    "hash",
    "qr",
    "mixed_radix",
    "crt",
    "path",
    "features",
    "mixed",
    "explicit",
    "frequency",
)
COMBINING_METHODS = ("qr", "mixed_radix", "crt", "explicit", "frequency")
REMAINDER_METHODS = ("qr", "path", "features", "frequency")
MAX_ROWS = 2**31 - 1  # ids are int32 on the device, and so is the padding id `rows`

_CHOICES = {
    "method": METHODS,
    "op": ("concat", "add", "mult"),
    "pooling": ("sum", "mean"),
    "pool_order": ("combine_then_pool", "pool_then_combine"),
    "init": ("default", "ones", "reference_qr", "hash_rows", "glorot"),
}
_LEAST = {
    "rows": 1,
    "dim": 1,
    "collisions": 1,
    "hash_rows": 1,
    "threshold": 0,
    "hot_rows": 0,
    "path_hidden": 1,
}
# Which methods read a field that has no meaning for the others.
_METHODS_OF_FIELDS = {
    "moduli": ("mixed_radix", "crt", "path", "features"),
    "hash_rows": ("hash",),
    "component_dims": (*COMBINING_METHODS, "mixed"),
    "classes": ("explicit",),
    "hot_rows": ("frequency",),
    "path_residual": ("path",),
}
_METHODS_OF_INITS = {
    "ones": COMBINING_METHODS,
    "reference_qr": ("qr",),
    "hash_rows": ("hash",),
    "glorot": ("mixed",),
}


def plain_fields(config: "TableConfig") -> dict[str, Any]:
    """The fields as plain integers and tuples, by which configs compare and hash.

    Args:
      config: as the caller filled it in: lists and NumPy integers are read too.

    Returns:
      New values by field name.

    Raises:
      TypeError: classes are not integers.
      ValueError: a number is not an integer or out of range.
    """
    plain: dict[str, Any] = {"path_residual": bool(config.path_residual)}
    for name, least in _LEAST.items():
        value = getattr(config, name)
        if name != "hash_rows" or value is not None:
            plain[name] = _integer(name, value, least)
    for name in ("moduli", "component_dims"):
        values = getattr(config, name)
        if values is not None:
            read = (_integer(f"{name}[{j}]", v, 1) for j, v in enumerate(values))
            plain[name] = tuple(read)
    if config.classes is not None:
        read = (_class_numbers(j, part) for j, part in enumerate(config.classes))
        plain["classes"] = tuple(read)
    if plain["rows"] > MAX_ROWS:
        raise ValueError(
            f"rows must be at most 2**31 - 1 = {MAX_ROWS} (ids are int32 on the "
            f"device), got {config.rows}; hash the ids or reduce them on the host"
        )
    return plain


def _integer(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return number


def _class_numbers(number: int, part: Any) -> tuple[int, ...]:
    array = np.asarray(part)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"classes[{number}] must be a sequence of integers, got {array.dtype} of "
            f"shape {array.shape}"
        )
    for worst in (array.min(initial=0), array.max(initial=0)):
        if not 0 <= worst < MAX_ROWS:
            raise ValueError(
                f"classes[{number}] must be in [0, {MAX_ROWS}), got {worst}"
            )
    return tuple(array.tolist())


def check_choices(config: "TableConfig") -> None:
    """Refuses unknown names, and fields or inits that the method does not read."""
    for name, allowed in _CHOICES.items():
        value = getattr(config, name)
        if value not in allowed:
            raise ValueError(
                f"{name} must be one of {', '.join(allowed)}, got {value!r}"
            )
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, methods in _METHODS_OF_FIELDS.items():
        value = getattr(config, name)
        if value != defaults[name] and config.method not in methods:
            raise ValueError(
                f"{name} is read by method {' or '.join(methods)} only, got "
                f"method={config.method!r}"
            )
    methods = _METHODS_OF_INITS.get(config.init, METHODS)
    if config.method not in methods:
        raise ValueError(
            f"init={config.init!r} goes with method {' or '.join(methods)} only, got "
            f"method={config.method!r}"
        )
    if config.init == "ones" and config.op != "mult":
        raise ValueError(f"init='ones' goes with op='mult' only, got {config.op!r}")
    if config.method == "path" and config.pool_order != "combine_then_pool":
        raise ValueError(
            "method='path' picks a function for every id and needs "
            f"pool_order='combine_then_pool', got {config.pool_order!r}"
        )


def check_partitions(config: "TableConfig") -> None:
    """Refuses partitions that cannot tell all ids apart, and parts that are too long.

    Args:
      config: with plain fields.

    Raises:
      ValueError: naming the numbers that do not fit.
    """
    n = config.rows
    if config.method == "explicit":
        _check_classes(config)
    if config.method == "frequency" and not 1 <= config.hot_rows < n:
        raise ValueError(
            f"hot_rows must be in [1, rows) = [1, {n}), got {config.hot_rows}"
        )
    if config.moduli is not None:
        _check_moduli(config, config.moduli)
    stored = [config.stored_hash_rows] if config.method == "hash" else []
    longest = max([0, *stored, *config.part_rows])
    if longest > MAX_ROWS:
        raise ValueError(
            f"a part would have {longest} rows, at most 2**31 - 1 = {MAX_ROWS}; got "
            f"collisions={config.collisions}, moduli={config.moduli}, "
            f"hash_rows={config.hash_rows}"
        )


def _check_moduli(config: "TableConfig", moduli: tuple[int, ...]) -> None:
    product = math.prod(moduli)
    if not moduli or product < config.rows:
        raise ValueError(
            f"moduli {moduli} have the product {product} < rows={config.rows}: some "
            "ids would share all their classes"
        )
    if config.method == "path" and len(moduli) < 2:
        raise ValueError(f"method='path' needs two or more moduli, got {moduli}")
    if config.method == "crt":
        require_coprime(moduli)


def _check_classes(config: "TableConfig") -> None:
    if not config.classes:
        raise ValueError("method='explicit' needs classes, one tuple per partition")
    for number, part in enumerate(config.classes):
        if len(part) != config.rows:
            raise ValueError(
                f"classes[{number}] must hold one class for each of rows="
                f"{config.rows} ids, got {len(part)}"
            )
    clash = first_clash(config.class_arrays)
    if clash is not None:
        a, b = clash
        shared = tuple(part[a] for part in config.classes)
        raise ValueError(
            f"classes are not complementary: ids {a} and {b} share the classes {shared}"
        )


def check_widths(config: "TableConfig") -> None:
    """Refuses `component_dims` that do not make up `dim`.

    Args:
      config: with plain fields and valid partitions.

    Raises:
      ValueError: with both numbers.
    """
    dims, count = config.component_dims, len(config.part_rows)
    if config.method == "mixed":
        if dims is None or len(dims) != 1 or dims[0] > config.dim:
            raise ValueError(
                "method='mixed' needs component_dims=(d,) with d in [1, dim] = "
                f"[1, {config.dim}], got {dims}"
            )
        return
    if dims is not None and len(dims) != count:
        raise ValueError(
            f"component_dims must hold one width for each of {count} parts, got {dims}"
        )
    if config.op == "concat" and config.method in COMBINING_METHODS:
        if dims is None and config.dim < count:
            raise ValueError(
                f"op='concat' of {count} parts needs dim >= {count}, got {config.dim}"
            )
        if dims is not None and sum(dims) != config.dim:
            raise ValueError(
                f"component_dims {dims} sum to {sum(dims)}, but dim={config.dim} is "
                "the combined width"
            )
    elif dims is not None and set(dims) != {config.dim}:
        raise ValueError(
            f"op={config.op!r} needs every width equal to dim={config.dim}, got "
            f"component_dims={dims}"
        )


def warn_without_gain(config: "TableConfig") -> None:
    """Warns where a compressed table cannot be smaller than a full one."""
    if not config.is_compressed:
        return
    ids = config.rows - config.hot_rows
    if config.method == "hash" and config.hash_rows is not None:
        wasted, cause = config.hash_rows >= ids, f"hash_rows={config.hash_rows}"
    else:
        reads_c = config.method in (*REMAINDER_METHODS, "hash") and not config.moduli
        wasted, cause = (
            reads_c and config.collisions >= ids,
            (f"collisions={config.collisions}"),
        )
    if wasted:
        # 1 is here, 2 __post_init__, 3 the generated __init__, 4 the caller.
        warnings.warn(
            f"{cause} >= {ids}, the number of ids to compress: method="
            f"{config.method!r} saves nothing on a table of rows={config.rows}; a "
            "higher threshold keeps it full",
            stacklevel=4,
        )
