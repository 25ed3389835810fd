"""Line searches on a function of one step, inside jit.

Every search is called as `search(evaluate, start, slope, init_step, **options)` and
returns a `SearchResult`. `LINE_SEARCHES` names them.
"""

from optim_jax.quasi_newton.line_search.backtracking import armijo, fixed
from optim_jax.quasi_newton.line_search.interpolation import armijo_interpolated
from optim_jax.quasi_newton.line_search.registry import (
    LINE_SEARCHES,
    LineSearch,
    make_line_search,
    needs_slope,
)
from optim_jax.quasi_newton.line_search.trial import (
    Evaluate,
    SearchResult,
    Trial,
    check_search_options,
)
from optim_jax.quasi_newton.line_search.wolfe import weak_wolfe
from optim_jax.quasi_newton.line_search.zoom import strong_wolfe

__all__ = [
    "LINE_SEARCHES",
    "Evaluate",
    "LineSearch",
    "SearchResult",
    "Trial",
    "armijo",
    "armijo_interpolated",
    "check_search_options",
    "fixed",
    "make_line_search",
    "needs_slope",
    "strong_wolfe",
    "weak_wolfe",
]
