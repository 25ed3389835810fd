"""One contender of the step-time benchmark: compiled, with its memory counted."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks.trees import parameter_count


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per parameter.

    Attributes:
      state: arrays of the optimizer state, without its scalars.
      scalars: bytes of the state's scalars, in all (not per parameter).
      temporary: peak of the buffers that the compiled step allocates for itself.
      traffic: what a step must read and write at least: gradient and parameters
        read, parameters written, every array of the state read and written once.
    """

    state: float
    scalars: int
    temporary: float
    traffic: float


def state_bytes(state: Any) -> tuple[int, int]:
    """Bytes of a state's arrays and, apart, of its scalars."""
    arrays = scalars = 0
    for leaf in jax.tree.leaves(state):
        if leaf.ndim:
            arrays += leaf.nbytes
        else:
            scalars += leaf.nbytes
    return arrays, scalars


class UpdateStep:
    """Holds params and state of a transformation, and advances them in place.

    The step is `(params, state, grads) -> (params, state)` with params and state
    donated. Donated buffers are matched with results by position among equal shapes:
    had the results another order than the arguments, XLA would copy every buffer.
    """

    def __init__(
        self, transformation: optax.GradientTransformation, params: Any, grads: Any
    ):
        self._grads = grads
        # The caller's params must survive the donation of ours.
        self._params = jax.tree.map(jnp.copy, params)
        self.state = transformation.init(self._params)
        self._parameters = parameter_count(params)
        self._step = self._compile_step(transformation)
        self._update = self._compile_update(transformation)

    def _compile_step(self, transformation: optax.GradientTransformation) -> Any:
        def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = transformation.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        jitted = jax.jit(step, donate_argnums=(0, 1))
        return jitted.lower(self._params, self.state, self._grads).compile()

    def _compile_update(self, transformation: optax.GradientTransformation) -> Callable:
        def update(state: Any, grads: Any, params: Any) -> tuple[Any, Any]:
            updates, state = transformation.update(grads, state, params)
            return state, updates

        jitted = jax.jit(update, donate_argnums=0)
        return jitted.lower(self.state, self._grads, self._params).compile()

    def step(self) -> Any:
        """Updates the state and the parameters."""
        self._params, self.state = self._step(self._params, self.state, self._grads)
        return self._params, self.state

    def update(self) -> Any:
        """Updates the state and returns the updates, the parameters stay."""
        self.state, updates = self._update(self.state, self._grads, self._params)
        return updates, self.state

    def memory(self) -> Memory:
        """Counts the bytes of state, temporaries and unavoidable traffic."""
        arrays, scalars = state_bytes(self.state)
        state = arrays / self._parameters
        params_and_grads = self._bytes(self._grads) + 2 * self._bytes(self._params)
        analysis = self._step.memory_analysis()
        return Memory(
            state=state,
            scalars=scalars,
            temporary=analysis.temp_size_in_bytes / self._parameters,
            traffic=params_and_grads / self._parameters + 2 * state,
        )

    @staticmethod
    def _bytes(tree: Any) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


class InPlaceStream:
    """Reads and writes one large buffer in place: the speed of the memory."""

    def __init__(self, elements: int):
        self._buffer = jnp.ones((elements,), jnp.float32)
        jitted = jax.jit(lambda buffer: buffer * 1.000001, donate_argnums=0)
        self._scale = jitted.lower(self._buffer).compile()

    @property
    def traffic(self) -> int:
        """Bytes moved by one run."""
        return 2 * self._buffer.nbytes

    def run(self) -> jax.Array:
        """Scales the buffer once."""
        self._buffer = self._scale(self._buffer)
        return self._buffer
