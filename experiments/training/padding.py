"""Train states with and without the padding that a mesh asks for.

Shampoo's stacks of blocks are padded to a multiple of the number of devices. A
checkpoint holds every leaf as one device would, so that it can be read on any mesh.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.sharding import evenly_split


@dataclasses.dataclass(frozen=True)
class Padding:
    """The two forms of a state: the run's, and that of checkpoints.

    Attributes:
      state: abstract arrays as the run lays them out.
      stored: the same tree as checkpoints hold it; leaves with padding are shorter.
    """

    state: Any
    stored: Any

    def remove(self, state: Any) -> Any:
        """The state as a checkpoint holds it; leaves without padding are the same."""
        if not self._positions:
            return state
        leaves, structure = jax.tree.flatten(state)
        return structure.unflatten(self._replaced(leaves, self._shorten))

    def add(self, stored: Any, init: Callable[[], Any]) -> Any:
        """The inverse of `remove`.

        Args:
          stored: what a checkpoint held.
          init: jit-able, makes the state of step 0: what its empty slots hold, they
            hold to the last step.
        """
        if not self._positions:
            return stored

        def fill(stacks: list[jax.Array]) -> list[jax.Array]:
            initial = jax.tree.leaves(init())
            return [
                jnp.concatenate([stack, initial[position][stack.shape[0] :]])
                for position, stack in zip(self._positions, stacks, strict=True)
            ]

        wanted = jax.tree.leaves(self.state)
        shardings = [wanted[position].sharding for position in self._positions]
        leaves, structure = jax.tree.flatten(stored)
        filled = jax.jit(fill, out_shardings=shardings)
        return structure.unflatten(self._replaced(leaves, filled))

    @functools.cached_property
    def _positions(self) -> list[int]:
        """Which leaves are padded."""
        pairs = zip(
            jax.tree.leaves(self.state), jax.tree.leaves(self.stored), strict=True
        )
        return [i for i, (leaf, short) in enumerate(pairs) if leaf.shape != short.shape]

    @functools.cached_property
    def _shorten(self) -> Callable[[list[jax.Array]], list[jax.Array]]:
        stored = jax.tree.leaves(self.stored)
        wanted = [stored[position] for position in self._positions]

        def shorten(stacks: list[jax.Array]) -> list[jax.Array]:
            # Blocks come before empty slots on every mesh.
            return [
                stack[: short.shape[0]]
                for stack, short in zip(stacks, wanted, strict=True)
            ]

        return jax.jit(shorten, out_shardings=[short.sharding for short in wanted])

    def _replaced(self, leaves: list[Any], function: Callable[..., Any]) -> list[Any]:
        replaced = list(leaves)
        changed = function([leaves[position] for position in self._positions])
        for position, leaf in zip(self._positions, changed, strict=True):
            replaced[position] = leaf
        return replaced


def find_padding(state: Any, on_one_device: Any, mesh: Mesh) -> Padding:
    """Compares a run's layout with that of one device.

    Args:
      state: abstract arrays of the run's layout, with their shardings.
      on_one_device: the same tree of shapes, as one device has them.
      mesh: of the run; over it lies what a checkpoint holds as well, where that goes
        evenly.
    """

    def unpadded(leaf: Any, short: Any) -> Any:
        if leaf.shape == short.shape:
            return leaf
        sharding = evenly_split(short.shape, mesh)
        return jax.ShapeDtypeStruct(short.shape, short.dtype, sharding=sharding)

    return Padding(state, jax.tree.map(unpadded, state, on_one_device))
