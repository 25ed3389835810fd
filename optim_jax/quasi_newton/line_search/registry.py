"""The line searches by name."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from optim_jax.quasi_newton.line_search.backtracking import armijo, fixed
from optim_jax.quasi_newton.line_search.interpolation import armijo_interpolated
from optim_jax.quasi_newton.line_search.trial import SearchResult, check_search_options
from optim_jax.quasi_newton.line_search.wolfe import weak_wolfe
from optim_jax.quasi_newton.line_search.zoom import strong_wolfe
from optim_jax.validation import check_choice


class LineSearch(NamedTuple):
    """A search and the most trials it is given by default."""

    function: Callable[..., SearchResult]
    max_trials: int


LINE_SEARCHES = {
    "armijo": LineSearch(armijo, 30),
    "armijo_interp": LineSearch(armijo_interpolated, 10),
    "weak_wolfe": LineSearch(weak_wolfe, 25),
    "weak_wolfe_interp": LineSearch(
        functools.partial(weak_wolfe, interpolate=True), 25
    ),
    "strong_wolfe": LineSearch(strong_wolfe, 20),
    "fixed": LineSearch(fixed, 1),
}

_NEED_SLOPES = {"weak_wolfe", "weak_wolfe_interp", "strong_wolfe"}


def needs_slope(name: str) -> bool:
    """Whether a search reads the slopes of trials, so that they need a gradient.

    Raises:
      ValueError: there is no search of this name.
    """
    check_choice("line_search", name, LINE_SEARCHES)
    return name in _NEED_SLOPES


def make_line_search(
    name: str,
    *,
    c1: Any = 1e-4,
    c2: Any = 0.9,
    factor: Any = 0.5,
    max_trials: Any = None,
) -> Callable[..., SearchResult]:
    """Returns a search with its options set; those that it lacks are dropped.

    Args:
      name: a key of `LINE_SEARCHES`.
      c1: fraction of the slope in the Armijo condition, in (0, 1).
      c2: fraction of the slope in the curvature condition, in (c1, 1).
      factor: by which backtracking shortens a step, in (0, 1).
      max_trials: most evaluations, >= 1; None means the default of the search.

    Returns:
      `search(evaluate, start, slope, init_step) -> SearchResult`.

    Raises:
      ValueError: there is no search of this name, or an option is out of range, be it
        one that this search lacks.
    """
    check_choice("line_search", name, LINE_SEARCHES)
    function, default = LINE_SEARCHES[name]
    max_trials = default if max_trials is None else max_trials
    check_search_options(c1=c1, c2=c2, factor=factor, max_trials=max_trials)
    options = {"c1": c1, "c2": c2, "factor": factor, "max_trials": max_trials}
    taken = inspect.signature(function).parameters
    chosen = {option: value for option, value in options.items() if option in taken}
    return functools.partial(function, **chosen)
