"""The host side of the solver: what is compiled, called and handed back."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from optim_jax.quasi_newton.memory import accumulation_dtype, init_memory
from optim_jax.quasi_newton.progressive_batching import sources
from optim_jax.quasi_newton.progressive_batching.growth import no_recent
from optim_jax.quasi_newton.progressive_batching.input_checks import (
    check_counters,
    check_loss,
    checked_permutation,
    raw_key,
)
from optim_jax.quasi_newton.progressive_batching.iteration import is_finite, iterate
from optim_jax.quasi_newton.progressive_batching.options import Options
from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.records import (
    Records,
    empty_records,
    read_records,
    write_record,
)
from optim_jax.quasi_newton.progressive_batching.renewal import first_evaluation
from optim_jax.quasi_newton.progressive_batching.sample_sums import SampleSums
from optim_jax.quasi_newton.progressive_batching.sampling import first_window
from optim_jax.quasi_newton.progressive_batching.solver_state import (
    REASONS,
    Counters,
    PBLBFGSResult,
    PBLBFGSState,
    StepInfo,
)
from optim_jax.quasi_newton.progressive_batching.stopping import (
    largest_entry,
    reason_to_stop,
    reopened,
)
from optim_jax.quasi_newton.progressive_batching.supplied_batch import as_optax

PerSampleLoss = Callable[[Any, Any], Any]

# Iterations of one call of the device loop: their records come back together.
RECORDS = 256
RECORDS_UNDER_CLOCK = 8
SMALLEST_BUCKET = 32

_largest_entry = jax.jit(largest_entry)


class PBLBFGS:
    """Progressive-batching L-BFGS on one problem; made by `pb_lbfgs`.

    Attributes:
      options: the options, with the sizes that depend on the data filled in.
    """

    def __init__(
        self,
        per_sample_loss: PerSampleLoss,
        data: Any,
        options: Options,
        weights: Any,
        mesh: Mesh | None,
        data_axis: str,
    ):
        if mesh is not None:
            mesh = sources.auto_mesh(mesh)
        self._mesh, self._axis = mesh, data_axis
        self._loss = per_sample_loss
        self._sampler = data if callable(data) else None
        self._population = None
        if data is not None:
            self._population = sources.population_of(data)
            options = options.sized(self._population)
        self.options = options
        self._has_weights = weights is not None
        if data is None or self._sampler is not None:
            self._data = None
        else:
            rows = data if weights is None else (data, weights)
            self._data = sources.place(rows, mesh, data_axis)
        self._iterate: Any = jax.jit(self._traced_iterate, static_argnames="chunk")
        self._advance: Any = jax.jit(
            self._traced_advance, static_argnames=("chunk", "records")
        )
        self._evaluate: Any = jax.jit(self._traced_init, static_argnames="chunk")

    def init(self, params: Any, key: jax.Array) -> PBLBFGSState:
        """Draws the first sample and evaluates it.

        Args:
          params: tree of real floating-point arrays, the first point.
          key: PRNG key, typed or raw, that decides all samples.

        Returns:
          The first state; its `params` are copies.

        Raises:
          ValueError: there is no data, a leaf is an integer array, or the loss does not
            return one number per sample.
          TypeError: a leaf is complex.
        """
        if self._data is None and self._sampler is None:
            raise ValueError(
                "data is None: only as_optax(), where a data loader supplies the "
                "batches, works without data"
            )
        options = self.options
        check_counters(self._population, options.max_epochs)
        params = jax.tree.map(sources.copied, params)
        memory = init_memory(
            params, options.memory_size, memory_dtype=options.memory_dtype
        )
        key_data = raw_key(key)
        source = self._source(key_data)
        batch = self._example(source)
        check_loss(self._loss, params, batch, has_aux=options.has_aux)
        window = first_window(
            key_data, self._population, options.first_batch, options.largest_batch
        )
        chunk = self._chunk(options.first_batch)
        return self._evaluate(source, params, memory, window, chunk=chunk)

    def step(
        self, state: PBLBFGSState, perm: Any = None
    ) -> tuple[PBLBFGSState, StepInfo]:
        """One iteration, driven from the host.

        Args:
          state: from `init` or the last `step`; it stays usable.
          perm: (N,) int32, a permutation of the data that replaces the random order of
            this iteration's samples. The first samples of the batch, rather than the
            last, are then shared with the next one.

        Returns:
          The next state and the record of the iteration.

        Raises:
          ValueError: `perm` is not a permutation of the data.
        """
        if perm is not None:
            perm = checked_permutation(perm, self._population)
        state = _on_device(state)
        chunk = self._chunk(state.window.size)
        state, info = self._iterate(self._source_of(state), state, perm, chunk=chunk)
        return state, info._replace(compilations=np.int32(self._compilations()))

    def run(
        self, params: Any = None, key: Any = None, *, state: PBLBFGSState | None = None
    ) -> PBLBFGSResult:
        """Iterates on the device until there is a reason to stop.

        Args:
          params: first point; not read if `state` is given.
          key: PRNG key; not read if `state` is given.
          state: where to go on instead of a first point, e.g. from a checkpoint. The
            rest of the run is then bitwise that of the run it was taken from. A run
            that a limit has ended goes on where this solver's limits allow it.

        Returns:
          The result; non-convergence is a `reason`, never an exception.

        Raises:
          ValueError: neither `state` nor both of `params` and `key` are given, and
            what `init` raises.
        """
        started = time.monotonic()
        if state is None and (params is None or key is None):
            raise ValueError("run needs params and key, or state")
        at = self.init(params, key) if state is None else self._reopened(state)
        limit = self.options.max_time
        most = RECORDS if limit is None else RECORDS_UNDER_CLOCK
        history = []
        while int(at.reason) == 0:
            at, records, count = self.advance(at, most)
            history.append(read_records(records, int(count)))
            late = limit is not None and time.monotonic() - started >= limit
            if late and int(at.reason) == 0:
                reason = jnp.full_like(at.reason, REASONS.index("max_time"))
                at = at._replace(reason=reason)
        return self._result(at, history)

    def advance(
        self, state: PBLBFGSState, most: int = RECORDS
    ) -> tuple[PBLBFGSState, Records, jax.Array]:
        """One call of the device loop, without waiting for it: what `run` repeats.

        Args:
          state: where to go on.
          most: iterations at most, >= 1; another number is another program.

        Returns:
          The state at the end or after `most` iterations, the packed records, and how
          many there are.
        """
        chunk = self._chunk(state.window.size)
        source = self._source_of(state)
        return self._advance(source, state, chunk=chunk, records=most)

    def as_optax(self) -> optax.GradientTransformationExtraArgs:
        """The same method for batches that a data loader supplies.

        See `optim_jax.quasi_newton.progressive_batching.supplied_batch.as_optax`.

        Raises:
          ValueError: the solver has weights, which belong to its own data.
        """
        if self._has_weights:
            raise ValueError(
                "weights belong to the samples of data; for as_optax() weight the loss"
            )
        return as_optax(self._losses, self.options)

    def memory_analysis(self, state: PBLBFGSState) -> Any:
        """XLA's account of the memory of one compiled iteration.

        Args:
          state: from `init`; only its shapes matter.
        """
        chunk = self._chunk(state.window.size)
        source = self._source_of(state)
        lowered = self._iterate.lower(source, state, None, chunk=chunk)
        return lowered.compile().memory_analysis()

    def _reopened(self, state: PBLBFGSState) -> PBLBFGSState:
        state = _on_device(state)
        problem = self._problem(state.params, self._chunk(state.window.size))
        return reopened(problem, state)

    def _result(self, state: PBLBFGSState, history: list[StepInfo]) -> PBLBFGSResult:
        counters = jax.device_get(state.counters)
        if history:
            joined = jax.tree.map(lambda *parts: np.concatenate(parts), *history)
        else:
            joined = StepInfo(*[np.zeros(0)] * len(StepInfo._fields))
        compilations = np.full(len(joined.k), self._compilations(), np.int32)
        reason = REASONS[int(state.reason)]
        return PBLBFGSResult(
            params=state.params,
            value=float(state.evaluation.value),
            grad_norm=float(_largest_entry(state.evaluation.grad)),
            reason=reason,
            converged=reason == "certified",
            n_iter=int(counters.k),
            grad_evals=int(counters.grad_evals),
            fn_evals=int(counters.fn_evals),
            jvp_evals=int(counters.jvp_evals),
            batch_size=int(state.window.size),
            history=joined._replace(compilations=compilations),
            state=state,
        )

    def _traced_init(
        self, source: Any, params: Any, memory: Any, window: Any, chunk: int
    ) -> PBLBFGSState:
        problem = self._problem(params, chunk)
        evaluation, overlap_start, overlap_size = first_evaluation(
            problem, source, params, memory, window
        )
        state = PBLBFGSState(
            params=params,
            memory=memory,
            window=window,
            overlap_start=overlap_start,
            overlap_size=overlap_size,
            evaluation=evaluation,
            recent=no_recent(self.options, params, problem.dtype),
            aux=problem.sums.no_aux(params, source, window.order),
            step=jnp.ones((), problem.dtype),
            counters=Counters.zeros(),
            reason=jnp.int32(0),
        )
        healthy = is_finite(evaluation)
        return state._replace(reason=reason_to_stop(problem, state, healthy))

    def _traced_iterate(
        self, source: Any, state: PBLBFGSState, perm: Any, chunk: int
    ) -> tuple[PBLBFGSState, StepInfo]:
        return iterate(self._problem(state.params, chunk), source, state, perm)

    def _traced_advance(
        self, source: Any, state: PBLBFGSState, chunk: int, records: int
    ) -> tuple[PBLBFGSState, Records, jax.Array]:
        problem = self._problem(state.params, chunk)
        kept = empty_records(records, problem.dtype)

        def goes_on(carry: Any) -> jax.Array:
            state, _, count = carry
            fits = (count < records) & (state.reason == 0)
            if self.options.evaluation == "bucketed":
                fits &= (state.window.size <= chunk) | (count == 0)
            return fits

        def body(carry: Any) -> Any:
            state, kept, count = carry
            state, info = iterate(problem, source, state)
            return state, write_record(kept, count, info), count + 1

        return lax.while_loop(goes_on, body, (state, kept, jnp.int32(0)))

    def _problem(self, params: Any, chunk: int) -> Problem:
        sums = SampleSums(
            losses=self._losses,
            dtype=accumulation_dtype(params),
            chunk=chunk,
            population=self._population,
            sampler=self._sampler,
            mesh=self._mesh,
            axis=self._axis,
        )
        return Problem(sums, self.options)

    def _losses(self, params: Any, batch: Any) -> tuple[jax.Array, Any]:
        """Losses with weights and the l2 term, and auxiliary outputs."""
        weights = None
        if self._has_weights:
            batch, weights = batch
        losses = self._loss(params, batch)
        losses, aux = losses if self.options.has_aux else (losses, ())
        if weights is not None:
            losses = weights.astype(losses.dtype) * losses
        if self.options.l2:
            leaves = jax.tree.leaves(params)
            square = jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in leaves]))
            losses = losses + (0.5 * self.options.l2 * square).astype(losses.dtype)
        return losses, aux

    def _source(self, key_data: Any) -> Any:
        if self._sampler is not None:
            return sources.Stream(jnp.asarray(key_data))
        return self._data

    def _source_of(self, state: PBLBFGSState) -> Any:
        return self._data if self._sampler is None else state.window.stream

    def _example(self, source: Any) -> Any:
        """Shapes of a small batch as the caller's loss sees it."""
        indices = jnp.zeros(min(2, self._population or 2), jnp.int32)
        sampler = self._sampler
        if sampler is not None:
            return jax.eval_shape(lambda: sources.draw(source, sampler, indices))
        batch = jax.eval_shape(lambda: sources.take(source, indices))
        return batch[0] if self._has_weights else batch

    def _chunk(self, size: Any) -> int:
        if self.options.evaluation == "chunked":
            return self.options.chunk_size
        most = self._population or self.options.largest_batch
        bucket = max(SMALLEST_BUCKET, 1 << (int(size) - 1).bit_length())
        return min(bucket, most)

    def _compilations(self) -> int:
        functions = (self._evaluate, self._iterate, self._advance)
        return max(function._cache_size() for function in functions)


def _on_device(state: PBLBFGSState) -> PBLBFGSState:
    """A state whose arrays are those of JAX."""
    # Those of NumPy, as in a checkpoint, would count as another program.
    if isinstance(state.reason, jax.Array):
        return state
    return jax.tree.map(jnp.asarray, state)
