"""Slot by slot or all slots in one batch: where each is the faster."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from optim_jax.preconditioning.layout import Bucket
from optim_jax.preconditioning.mesh import on_each_device
from optim_jax.preconditioning.options import Options
from optim_jax.preconditioning.preconditioners import Spectral

Written = TypeVar("Written")

# Below this size of a matrix its products are too short to pay for a loop iteration.
LOOP_MIN_DIM = 64


def over_slots(
    function: Callable[[Written, Any], Written],
    written: Written,
    read: Any,
    bucket: Bucket,
    options: Options,
) -> Written:
    """Applies a function of stacks that treats every slot alike.

    On accelerators all slots go through one batched product. On a CPU large blocks go
    one by one: XLA would otherwise hold the products of all slots and buckets at once,
    and fresh memory costs more there than the arithmetic. The loop writes in place.

    Args:
      function: (written, read) -> new written, on stacks of any number of slots.
      written: tree of stacks (S, ...) that are replaced. What the function reads more
        than once belongs to `read`: the loop would copy it.
      read: tree of stacks (S, ...) that are only read.
      bucket: the bucket they belong to.
      options: with the mesh; each device has its own slots.
    """
    products = bool(bucket.modes) or isinstance(options.preconditioner, Spectral)
    slots = bucket.padded_slots // options.num_devices
    if slots == 1 or not products or max(bucket.block_shape) < LOOP_MIN_DIM:
        return on_each_device(function, options)(written, read)

    def one_by_one(written: Written, read: Any) -> Written:
        def body(slot: jax.Array, written: Written) -> Written:
            def pick(stack: jax.Array) -> jax.Array:
                return jax.lax.dynamic_slice_in_dim(stack, slot, 1)

            def put(stack: jax.Array, row: jax.Array) -> jax.Array:
                return jax.lax.dynamic_update_slice_in_dim(stack, row, slot, 0)

            new = function(jax.tree.map(pick, written), jax.tree.map(pick, read))
            return jax.tree.map(put, written, new)

        return jax.lax.fori_loop(0, slots, body, written)

    def local(written: Written, read: Any) -> Written:
        return jax.lax.platform_dependent(
            written, read, cpu=one_by_one, default=function
        )

    return on_each_device(local, options)(written, read)
