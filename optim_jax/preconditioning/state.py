"""The optimizer state: arrays only, stacked by bucket."""

from typing import Any, NamedTuple

import jax


class BucketState(NamedTuple):
    """Statistics of one bucket; a field that the method lacks is `()`.

    Shape legend: S slots, d size of a mode. Tuples run over the preconditioned modes.

    Attributes:
      factors: Kronecker factors (S, d, d), without bias correction.
      inverses: stored inverse roots (S, d, d).
      eigenvectors: stored bases (S, d, d), one vector per column.
      eigenvalues: stored eigenvalues (S, d), ascending.
      second_moment: (S, *block), of the rotated gradient for SOAP and of the gradient
        for a diagonal method; without bias correction.
    """

    factors: Any = ()
    inverses: Any = ()
    eigenvectors: Any = ()
    eigenvalues: Any = ()
    second_moment: Any = ()


Buckets = dict[str, BucketState]


class Health(NamedTuple):
    """What happened so far; read it with `check_preconditioners`.

    Attributes:
      refreshes: int32, refreshes of all or some roots.
      skipped: int32, steps in which a leaf was skipped for a non-finite gradient.
      total_failures: int32, failed refreshes of blocks, summed over time.
      failures: per bucket int32 (S, modes), consecutive failures of each factor; one
        of a block that fails counts for all of them where they are solved together.
      max_residual: float32, largest residual of a solver at the last refresh.
      iterations: int32, most iterations of a solver at the last refresh.
      off_diagonal: float32, largest relative off-diagonal norm that the last refresh
        by QR iterations left.
    """

    refreshes: jax.Array
    skipped: jax.Array
    total_failures: jax.Array
    failures: Any
    max_residual: jax.Array
    iterations: jax.Array
    off_diagonal: jax.Array


class ShampooState(NamedTuple):
    """State of `scale_by_shampoo`.

    Attributes:
      count: int32, steps done.
      mu: per bucket the first moment (S, *block); `()` without one.
      buckets: per bucket a `BucketState`.
      graft: per bucket the grafting accumulator (S, *block); `()` without one.
      health: counters.
    """

    count: jax.Array
    mu: Any
    buckets: Any
    graft: Any
    health: Health
