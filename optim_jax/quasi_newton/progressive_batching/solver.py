"""`pb_lbfgs`: the solver a user calls."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from optim_jax.quasi_newton.progressive_batching.driver import PBLBFGS, PerSampleLoss
from optim_jax.quasi_newton.progressive_batching.options import Options
from optim_jax.quasi_newton.progressive_batching.sources import population_of


def pb_lbfgs(
    per_sample_loss: PerSampleLoss,
    data: Any,
    *,
    batch_size: int | None = None,
    memory_size: int = 10,
    theta: float = 0.9,
    test: str = "ipqn_unbiased",
    groups: int = 8,
    growth_cap: float = 2.0,
    max_batch: int | None = None,
    variance_samples: int | None = 1000,
    finite_population: bool = False,
    test_every: int = 1,
    overlap: str = "multi",
    overlap_ratio: float = 0.25,
    line_search: str = "armijo",
    c1: float = 1e-4,
    c2: float = 0.9,
    factor: float = 0.5,
    max_line_search: int | None = None,
    init_step: str = "variance",
    variance: str = "groups",
    first_step: str | None = None,
    curvature: str = "relative",
    eps: float | None = None,
    damping: bool = False,
    form: str = "compact",
    memory_dtype: Any = None,
    evaluation: str = "chunked",
    chunk_size: int = 256,
    mesh: Mesh | None = None,
    data_axis: str = "data",
    tol: float = 1e-8,
    max_epochs: float = 100.0,
    max_iterations: int | None = None,
    max_time: float | None = None,
    has_aux: bool = False,
    weights: Any = None,
    l2: float = 0.0,
    work_weights: tuple[float, float, float] = (1.0, 1 / 3, 2 / 3),
) -> PBLBFGS:
    r"""Progressive-batching L-BFGS for a mean of per-sample losses.

    Minimises :math:`F(w) = \frac{1}{N} \sum_i f_i(w)`, or the mean over a stream. The
    solver starts with a small sample, takes L-BFGS steps on sampled gradients g with a
    line search on the same sample, and tests after every gradient whether the step -Hg
    can be trusted to point the right way:

    .. math::

      \frac{\operatorname{Var}_i(g_i^\top H^2 g)}{b} \le \theta^2 \|H g\|^4.

    If not, the sample grows to the size at which it would be. Near a minimiser of a
    noisy gradient :math:`\|Hg\|^2` is mostly noise and the test passes although nothing
    of the signal is left; the default test therefore puts an unbiased estimate in its
    place, made of products of the means of `groups` disjoint groups.

    Args:
      per_sample_loss: (params, batch) -> (B,) losses, or (losses, aux) with `has_aux`;
        the loss of a sample must depend on no other sample (no batch normalisation;
        random layers need a key that is part of the data).
      data: tree of arrays with equal leading axes N; or a traceable sampler
        (key, n) -> batch of n samples, for a stream without end; or None if only
        `as_optax` is used.
      batch_size: first batch size, >= 2. None: an eighth of the data as a power of two,
        within [32, 512]. N makes it full-batch L-BFGS.
      memory_size: pairs kept, >= 1.
      theta: tolerated relative standard deviation along the step, > 0.
      test: "ipqn" (the paper's), "ipqn_window" (which looks at the mean of the last ten
        gradients where that is much smaller), "ipqn_unbiased", "inner_product", "norm"
        or "none". See `optim_jax.ipqn_statistics`.
      groups: groups of the unbiased estimates, >= 2.
      growth_cap: the most a batch grows in one iteration, > 1; `inf` for no cap.
      max_batch: largest batch; None: N. A stream needs one.
      variance_samples: samples of which the variances are taken, >= 2; None: all.
      finite_population: count on the sample being a part of N without replacement.
      test_every: iterations from one test to the next.
      overlap: samples over which the gradients of a pair are taken. "multi":
        consecutive batches share `overlap_ratio` of their samples, at no cost. "full":
        the batch is evaluated again at the new point.
      overlap_ratio: in (0, 0.5].
      line_search: "armijo", "armijo_interp", "weak_wolfe", "weak_wolfe_interp",
        "strong_wolfe" (Optax's) or "fixed".
      c1: sufficient decrease, in (0, 1).
      c2: curvature condition of the Wolfe searches, in (c1, 1).
      factor: by which Armijo backtracking shortens steps, in (0, 1).
      max_line_search: most trials; None: 30 Armijo, 10 interpolated, 25 weak Wolfe,
        20 strong Wolfe.
      init_step: first trial: "variance" (the paper's), "variance_unbiased", "unit",
        "previous" or "projected"; always 1 at b = N.
      variance: how Var(g_i) is estimated for it: "groups" (free), "hutchinson" (one
        directional derivative) or "exact" (one gradient per sample).
      first_step: scale of steps with an empty memory: "unit" -g, "capped"
        -min(1, 1/‖g‖) g or "normalized" -g/‖g‖. None: "capped" at b = N, else "unit".
      curvature: "relative", "absolute" or "none"; see `optim_jax.push_pair`.
      eps: least part of the present curvature that a pair must have, > 0. None: 0.01,
        or 0.2 with damping.
      damping: Powell damping in place of skipping; for non-convex losses.
      form: "compact" or "two_loop".
      memory_dtype: dtype of the stored pairs; None: that of the parameters.
      evaluation: "chunked": one program for every batch size. "bucketed": batches are
        filled up to powers of two, one program each.
      chunk_size: samples evaluated at once; the memory of the activations is
        proportional to it. Cheap losses want it large.
      mesh: devices over which the rows of the data are split.
      data_axis: the axis of `mesh` for them; other axes may shard the parameters.
      tol: certificate, on ‖g‖_∞ of all data.
      max_epochs: gradients of samples to compute, over N.
      max_iterations: None: no limit.
      max_time: seconds; None: no limit.
      has_aux: whether the loss returns auxiliary outputs, a tree of (B, ...) arrays;
        their means at the accepted point are `state.aux`.
      weights: (N,) non-negative weights of the samples; the objective is their weighted
        mean.
      l2: adds l2/2 ‖w‖² to every loss.
      work_weights: cost of a gradient, a loss and a directional derivative, for
        `info.work`.

    Returns:
      A `PBLBFGS` with `init`, `step`, `run` and `as_optax`.

    Raises:
      ValueError: an option is out of its range, the data are empty or their leading
        axes differ, the weights do not fit, or `mesh` has no axis `data_axis`.

    References:
      Bollapragada, Mudigere, Nocedal, Shi, Tang, "A Progressive Batching L-BFGS Method
      for Machine Learning", ICML 2018, https://arxiv.org/abs/1802.05374. The unbiased
      test and the rule for an empty memory are this project's (derived, not read).
    """
    arguments = dict(locals())
    names = {field.name for field in dataclasses.fields(Options)}
    chosen = {name: value for name, value in arguments.items() if name in names}
    if memory_dtype is not None:
        chosen["memory_dtype"] = jnp.dtype(memory_dtype).name
    if mesh is not None and data_axis not in mesh.shape:
        raise ValueError(
            f"data_axis must be an axis of the mesh, {tuple(mesh.shape)}, got "
            f"{data_axis!r}"
        )
    options = Options(**chosen)
    weights = _checked_weights(weights, data)
    return PBLBFGS(per_sample_loss, data, options, weights, mesh, data_axis)


def _checked_weights(weights: Any, data: Any) -> np.ndarray | None:
    """The weights with mean one."""
    if weights is None:
        return None
    if data is None or callable(data):
        raise ValueError("weights need arrays as data; weight the loss of a stream")
    weights = np.asarray(weights)
    population = population_of(data)
    if weights.shape != (population,):
        raise ValueError(
            f"weights must have shape ({population},), one per sample, got "
            f"{weights.shape}"
        )
    valid = np.all(np.isfinite(weights)) and np.all(weights >= 0) and weights.sum() > 0
    if not valid:
        raise ValueError("weights must be finite, >= 0 and not all zero")
    return weights / weights.mean()
