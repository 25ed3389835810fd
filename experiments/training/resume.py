"""Whether a run may be continued under this configuration.

A continued run is the same run: every field that bears on the trajectory must be
what it was. What may change is named by the caller, as prefixes of dotted names.
"""

from collections.abc import Iterator, Sequence
from typing import Any

_ABSENT = "(absent)"


def trajectory_diff(saved: dict, current: dict, free: Sequence[str]) -> list[str]:
    """Lists the fields that differ, as `optimizer.learning_rate: 0.001 -> 0.002`.

    Args:
      saved: nested dict from a checkpoint; tuples may have become lists in JSON.
      current: nested dict of this run.
      free: dotted names, of a field or a whole group, that may differ.

    Returns:
      One line per field, in the order of `saved`, then what only `current` has.
    """
    old, new = dict(_flatten(saved)), dict(_flatten(current))
    lines = []
    for name in [*old, *(name for name in new if name not in old)]:
        if _is_free(name, free):
            continue
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if not _same(before, after):
            lines.append(f"{name}: {_show(before)} -> {_show(after)}")
    return lines


def require_same_trajectory(
    saved_metadata: dict, current_metadata: dict, free: Sequence[str]
) -> None:
    """Raises a `ValueError` with the differences, if there are any.

    Args:
      saved_metadata: nested dict from a checkpoint.
      current_metadata: nested dict of this run.
      free: dotted names, of a field or a whole group, that may differ.
    """
    lines = trajectory_diff(saved_metadata, current_metadata, free)
    if lines:
        listing = "\n".join(f"  {line}" for line in lines)
        raise ValueError(
            "cannot resume: the checkpoint was made under another configuration "
            f"(saved -> now):\n{listing}\n"
            "Give the saved values again, or start a new run in another output "
            f"directory. Free to change: {', '.join(free) or 'nothing'}."
        )


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _is_free(name: str, free: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in free)


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        return len(before) == len(after) and all(map(_same, before, after))
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(
            _same(value, after[key]) for key, value in before.items()
        )
    if isinstance(before, bool) != isinstance(after, bool):
        return False
    both_nan = before != before and after != after
    return before == after or both_nan


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return value if value is _ABSENT else repr(value)
