"""Which of the extra arguments of an update reach a transformation or a function.

`optax.chain` passes every extra argument to all of its parts. What one part needs, such
as the gradients of an overlap, another may refuse.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import optax


def with_filtered_args(
    tx: optax.GradientTransformation, names: Collection[str]
) -> optax.GradientTransformationExtraArgs:
    """Passes only the named extra arguments on to a transformation.

    The line searches of Optax are the case in point: they raise a `TypeError` for an
    extra argument that `value_fn` does not take, and so cannot share a chain with a
    transformation that has arguments of its own::

      search = optax.scale_by_backtracking_linesearch(30)
      tx = optax.chain(
          optim_jax.scale_by_multibatch_lbfgs(),
          optax.scale(-1.0),
          optim_jax.with_filtered_args(search, ("value", "grad", "value_fn")),
      )

    Args:
      tx: the transformation; its state is the state.
      names: names of the extra arguments that it may see, with those that `value_fn`
        takes. A name may be missing from an update.

    Returns:
      An `optax.GradientTransformationExtraArgs` that takes any extra argument.

    Raises:
      ValueError: `names` is a string or holds something that is not one.
    """
    names_are_strings = not isinstance(names, str) and all(
        isinstance(name, str) for name in names
    )
    if not names_are_strings:
        raise ValueError(
            f"names must be a tuple, list or set of argument names, got {names!r}"
        )
    kept = frozenset(names)
    inner = optax.with_extra_args_support(tx)

    def update(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        passed = {name: extra_args[name] for name in extra_args if name in kept}
        return inner.update(updates, state, params, **passed)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def arguments_taken(
    function: Callable[..., Any], extra_args: Mapping[str, Any]
) -> dict[str, Any]:
    """The extra arguments that a function of the parameters takes by name.

    Args:
      function: called with the parameters first. With `**kwargs` it takes everything;
        a built-in function that does not tell its signature takes nothing.
      extra_args: what there is.

    Returns:
      The part of `extra_args` to call it with.

    Raises:
      TypeError: the function requires an argument that is not there.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return {}
    by_keyword = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    if parameters and parameters[0].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        first, *parameters = parameters
        extra_args = {
            name: value for name, value in extra_args.items() if name != first.name
        }
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return dict(extra_args)
    named = [p for p in parameters if p.kind in by_keyword]
    missing = [
        p.name
        for p in named
        if p.default is inspect.Parameter.empty and p.name not in extra_args
    ]
    if missing:
        raise TypeError(
            f"value_fn needs the arguments {', '.join(missing)}, but the update was "
            f"given {', '.join(sorted(extra_args)) or 'none'}"
        )
    names = {p.name for p in named}
    return {name: extra_args[name] for name in extra_args if name in names}
